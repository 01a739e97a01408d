"""Settings trained with several seeds: how much a metric varies with the seed, and whether two differ by more.

All intervals are 95 % intervals of a mean by Student's t, as is the test: with the few seeds that one can afford, a
test by ranks could not find anything (five pairs have at best p = 0.06 there). Scores are taken as normal.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dltrain.difference import differences, spelled
from dltrain.errors import ConfigError, DltrainError, Stopped
from dltrain.listing import RunFacts, best_row, checkpoint_meta_of, differing, facts_of, read_run
from dltrain.names import did_you_mean
from dltrain.run import find_runs, is_metric, read_metrics

_SIGNIFICANT = 0.05
_OF_THE_MACHINE = ("train.device", "train.threads", "train.checkpoint_every", "train.eval_batch_size")
"""Settings in which the runs of one side may differ: they change no weights, or only their last bits."""
_NO_NOISE = 1e-9
"""Differences that are equal but for this share of themselves have no spread that a test could use."""


# ---- several seeds ---------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return n, mean, standard deviation (of a sample) and the 95 % interval of the mean; null below two values."""
    n = len(values)
    mean = math.fsum(values) / n if n else None
    if mean is None or n < 2:
        return {"n": n, "mean": mean, "sd": None, "interval": None}
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = _t_quantile(n - 1) * sd / math.sqrt(n)
    return {"n": n, "mean": mean, "sd": sd, "interval": [mean - half, mean + half]}


def _t_quantile(degrees: float) -> float:
    """Return what |t| is below in 95 of 100 cases."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 1 - _SIGNIFICANT / 2))


def _p_value(t: float, degrees: float) -> float:
    """Return the two-sided p of Student's t."""
    from scipy.special import stdtr

    return float(2 * stdtr(degrees, -abs(t)))


def fit_seeds(
    config: Path,
    overrides: Sequence[str],
    number: int,
    *,
    root: Path,
    tags: dict[str, str] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train a config with its seed and the `number` - 1 that follow, one after the other, each as a run of its own.

    Each run has the tag "seeds" beside `tags`. Returns the spread of the best and the last value of the monitored
    metric, and the summary of each run. Data that take long to prepare are prepared once, for the cache keeps them.

    Raises:
        ConfigError, DataError, TrainingError: as `fit` does; what is done by then is said and stays.
        Stopped: after a signal, with the runs that are done, and how to go on.
    """
    from dltrain.config.validate import load_config
    from dltrain.console import Progress
    from dltrain.train import fit

    given = load_config(config, overrides)
    seeds = range(given.config.seed, given.config.seed + number)
    marks = {"seeds": f"{seeds[0]}-{seeds[-1]}", **(tags or {})}
    files = {seed: replace(load_config(config, [*overrides, f"seed={seed}"]), tags=marks) for seed in seeds}
    done: dict[int, dict[str, Any]] = {}
    for seed, file in files.items():
        progress = Progress("off" if quiet else "on")
        progress.say(f"{chr(10) if done else ''}seed {seed} ({len(done) + 1} of {number})")
        try:
            done[seed] = fit(file, root=root, progress=progress)
        except KeyboardInterrupt:
            raise Stopped(_what_is_done("stopped", done, seeds), signal.SIGINT) from None
        except Stopped as error:
            raise Stopped(_what_is_done(str(error), done, seeds), error.exit_code - 128) from None
        except DltrainError as error:
            if done:
                error.args = (_what_is_done(f"seed {seed}: {error}", done, seeds),)
            raise
    return _study(done) | {"set": given.changes, "tags": marks}


def _study(done: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return the result of the runs of several seeds as JSON values."""
    metric = next(iter(done.values()))["best"]["metric"]
    best = {seed: summary["best"]["value"] for seed, summary in done.items()}
    last = {seed: summary["metrics"].get(metric) for seed, summary in done.items()}
    return {
        "metric": metric,
        "seeds": list(done),
        "best": {"values": list(best.values()), **spread([v for v in best.values() if v is not None])},
        "last": {"values": list(last.values()), **spread([v for v in last.values() if v is not None])},
        "runs": [summary["run"] for summary in done.values()],
        "elapsed_s": round(math.fsum(summary["elapsed_s"] for summary in done.values()), 3),
    }


def _what_is_done(message: str, done: dict[int, dict[str, Any]], seeds: range) -> str:
    """Return a message and below it which seeds are done, and how to train those that are not begun."""
    finished = ", ".join(f"{seed} in {summary['run']}" for seed, summary in done.items()) or "none"
    left = [seed for seed in seeds if seed > seeds[len(done)]]
    if not left:
        return f"{message}\nseeds done: {finished}"
    options = f"--set seed={left[0]}" + (f" --seeds {len(left)}" if len(left) > 1 else " and without --seeds")
    return (
        f"{message}\nseeds done: {finished}\n"
        f"seeds not begun: {', '.join(map(str, left))}; the same command trains them with {options}"
    )


def show_seeds(study: dict[str, Any]) -> None:
    """Print what `fit_seeds` returned: a row for each seed, and below them mean, deviation and interval."""
    from dltrain.console import number_text, out_console, table

    columns = ["seed", "run", f"best {study['metric']}", f"last {study['metric']}"]
    both = (study["best"], study["last"])
    rows: list[list[Any]] = [
        [str(seed), run, *(number_text(of_kind["values"][i]) for of_kind in both)]
        for i, (seed, run) in enumerate(zip(study["seeds"], study["runs"], strict=True))
    ]
    rows.append(["mean", "", *(number_text(of_kind["mean"]) for of_kind in both)])
    rows.append(["sd", "standard deviation", *(number_text(of_kind["sd"]) for of_kind in both)])
    rows.append(["95 %", "interval of the mean", *(_interval_text(of_kind["interval"]) for of_kind in both)])
    out_console().print(table(columns, rows))


def _interval_text(interval: list[float] | None) -> str:
    from dltrain.console import number_text

    return "-" if interval is None else f"{number_text(interval[0])} to {number_text(interval[1])}"


# ---- two settings, each with several seeds ---------------------------------------------------------------------------


class _Side(NamedTuple):
    """The finished runs of one setting, by seed."""

    name: str
    runs: dict[int, RunFacts]
    num_unfinished: int

    def values(self, metric: str, last: bool) -> dict[int, float]:
        """Return the metric of each run, at its best checkpoint or its end. Raises ConfigError where there is none."""
        return {seed: _value(run, metric, last) for seed, run in self.runs.items()}


def compare(a: str, b: str, *, metric: str | None = None, last: bool = False) -> dict[str, Any]:
    """Test whether a metric of two settings, each trained with several seeds, differs by more than seeds make it.

    Where both sides have the same seeds, the paired t-test is used (Student 1908): runs of one seed share the order of
    samples and often the initial weights. Else Welch's t-test (Welch 1947), which lets the sides vary unequally. The
    effect size is Cohen's d, with the mean of both variances: the difference in standard deviations of a run.

    Args:
        a: a folder with the runs of one setting, or several run directories or folders with commas between them.
        b: likewise, of the other setting.
        metric: such as "val/loss"; None for the one by which the runs chose their best checkpoint.
        last: compare the values at the end of the training, not those of the best checkpoints.

    Raises:
        ConfigError: if a side has fewer than two finished runs, two of one seed, or runs that differ in more than the
            seed; or if there is no such metric.
    """
    sides = (_side(a), _side(b))
    metric = metric or _monitored(sides)
    values = [side.values(metric, last) for side in sides]
    is_paired = values[0].keys() == values[1].keys()
    test = _paired(*values) if is_paired else _welch(*values)
    settings = [{k: v for k, v in next(iter(side.runs.values())).settings.items() if k != "seed"} for side in sides]
    result = {
        "metric": metric,
        "at": "last" if last else "best",
        **{
            key: {
                "name": side.name,
                "runs": [run.about["run"] for run in side.runs.values()],
                "seeds": list(side.runs),
                "values": list(of_side.values()),
                **spread(list(of_side.values())),
            }
            for key, side, of_side in zip("ab", sides, values, strict=True)
        },
        **test,
        "effect_size": _effect_size(*(list(of_side.values()) for of_side in values)),
        "settings": differences(dict(zip("ab", settings, strict=True))),
        "notes": _notes(sides),
    }
    return result | {"result": _sentence(result)}


def _side(argument: str) -> _Side:
    """Return the runs that an argument of `compare` names. Raises ConfigError if they are not of one setting."""
    folders = [Path(part) for part in argument.split(",") if part.strip()]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: there is no such folder of runs")
    paths = dict.fromkeys(path for folder in folders for path in find_runs(folder))
    all_runs = [read_run(path) for path in paths]
    runs = [run for run in all_runs if run.about["state"] == "finished"]
    if len(runs) < 2:
        of_all = f" of {len(all_runs)}" if len(all_runs) != len(runs) else ""
        raise ConfigError(
            f"{argument}: has {len(runs)} finished run{'s' * (len(runs) != 1)}{of_all}; to know the noise of seeds "
            "takes 2 or more of each setting, better 5: dltrain fit CONFIG --seeds 5"
        )
    others = [key for key in differing(run.settings for run in runs) if key not in ("seed", *_OF_THE_MACHINE)]
    if others:
        raise ConfigError(
            f"{argument}: its runs differ in {', '.join(others)}, not in the seed alone; name the runs of one setting, "
            "with commas between them"
        )
    by_seed: dict[int, RunFacts] = {}
    for run in sorted(runs, key=lambda run: int(run.settings.get("seed", 0))):
        other = by_seed.setdefault(run.settings.get("seed", 0), run)
        if other is not run:
            raise ConfigError(
                f"{argument}: {other.about['run']} and {run.about['run']} have the same seed, "
                f"{run.settings.get('seed', 0)}; name one run of each seed, with commas between them"
            )
    return _Side(argument, by_seed, len(all_runs) - len(runs))


def _monitored(sides: Sequence[_Side]) -> str:
    """Return the metric by which all the runs chose their best checkpoints. Raises ConfigError if they have no such."""
    metrics = dict.fromkeys(_monitor_of(run) for side in sides for run in side.runs.values())
    if len(metrics) == 1 and (metric := next(iter(metrics))) is not None:
        return metric
    found = ", ".join(str(name) for name in metrics if name is not None) or "none"
    raise ConfigError(f"--metric: is needed, for the runs have no one monitored metric; found: {found}")


def _monitor_of(run: RunFacts) -> str | None:
    """Return the monitored metric: as set, or the one whose values the scores in the checkpoint are, but for a sign."""
    if run.settings.get("train.monitor") is not None:
        return str(run.settings["train.monitor"])
    folder = Path(run.about["run"])
    scores, rows = checkpoint_meta_of(folder).get("scores"), read_metrics(folder)
    if not isinstance(scores, list) or not scores or not rows:
        return None
    pairs = list(zip(rows, scores, strict=False))
    names = sorted(filter(is_metric, rows[0]), key=lambda name: not name.startswith("val/"))
    for sign in (1, -1):
        for name in names:
            if all(score == (None if row.get(name) is None else sign * row[name]) for row, score in pairs):
                return name
    return None


def _value(run: RunFacts, metric: str, last: bool) -> float:
    rows = read_metrics(Path(run.about["run"]))
    row = (rows[-1] if rows else {}) if last else best_row(rows)
    value = row.get(metric)
    if isinstance(value, int | float) and is_metric(metric):
        return float(value)
    where = f"{run.about['run']}: its {'last' if last else 'best'} line of metrics"
    if metric in row and is_metric(metric):
        raise ConfigError(f"{where} has no finite {metric}")
    known = [name for name in row if is_metric(name)]
    raise ConfigError(f"{where} has no '{metric}'; possible: {', '.join(known)}{did_you_mean(metric, known)}")


def _paired(a: dict[int, float], b: dict[int, float]) -> dict[str, Any]:
    differences = [a[seed] - b[seed] for seed in a]
    of_pairs = spread(differences)
    n, mean, sd = of_pairs["n"], of_pairs["mean"], of_pairs["sd"]
    has_noise = sd > _NO_NOISE * max(map(abs, differences))
    return _test_result(f"paired t-test, n = {n} seeds", mean, sd / math.sqrt(n) if has_noise else 0.0, n - 1)


def _welch(a: dict[int, float], b: dict[int, float]) -> dict[str, Any]:
    of_a, of_b = spread(list(a.values())), spread(list(b.values()))
    parts = [side["sd"] ** 2 / side["n"] for side in (of_a, of_b)]
    error = math.sqrt(math.fsum(parts))
    name = f"Welch's t-test, n = {of_a['n']} and {of_b['n']} runs"
    mean = of_a["mean"] - of_b["mean"]
    if error <= _NO_NOISE * max(abs(of_a["mean"]), abs(of_b["mean"])):
        return _test_result(name, mean, 0.0, len(a) + len(b) - 2)
    degrees = error**4 / math.fsum(p**2 / (side["n"] - 1) for p, side in zip(parts, (of_a, of_b), strict=True))
    return _test_result(name, mean, error, degrees)


def _test_result(name: str, difference: float, error: float, degrees: float) -> dict[str, Any]:
    """Return the result of a t-test of a difference with this standard error; no p where there is no noise at all."""
    half = _t_quantile(degrees) * error
    p = _p_value(difference / error, degrees) if error else None
    return {
        "test": name,
        "difference": difference,
        "interval": [difference - half, difference + half],
        "t": difference / error if error else None,
        "degrees_of_freedom": degrees,
        "p": p,
        "exceeds_noise": None if p is None else p < _SIGNIFICANT,
    }


def _effect_size(a: list[float], b: list[float]) -> float | None:
    """Return Cohen's d: the difference of the means in standard deviations of a run."""
    of_a, of_b = spread(a), spread(b)
    deviation = math.sqrt((of_a["sd"] ** 2 + of_b["sd"] ** 2) / 2)
    difference = float(of_a["mean"] - of_b["mean"])
    return difference / deviation if deviation > _NO_NOISE * max(map(abs, [*a, *b])) else None


def _notes(sides: Sequence[_Side]) -> list[str]:
    """Return what one should know before one believes the test."""
    notes = [
        f"{side.name}: {side.num_unfinished} unfinished run{'s are' if side.num_unfinished > 1 else ' is'} left out"
        for side in sides
        if side.num_unfinished
    ]
    folders = [[Path(run.about["run"]) for run in side.runs.values()] for side in sides]
    fingerprints = [{facts_of(folder).get("fingerprint") for folder in of_side} for of_side in folders]
    if len({fingerprint for of_side in fingerprints for fingerprint in of_side}) > 1:
        notes.append("the runs are not all of the same data and split")
    return notes


def _sentence(result: dict[str, Any]) -> str:
    """Return the result of a comparison in plain words."""
    from dltrain.console import number_text

    metric, a, b, difference = result["metric"], result["a"]["name"], result["b"]["name"], result["difference"]
    p = result["p"]
    if p is None:
        return (
            f"{metric} of {a} is {number_text(abs(difference))} {'below' if difference < 0 else 'above'} that of {b} "
            f"without any noise; there is nothing to test ({result['test']})"
        )
    by = f"by {number_text(abs(difference))}"
    low, high = sorted(abs(x) for x in result["interval"])
    p_text = f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"
    if result["exceeds_noise"]:
        return (
            f"{metric} is {'lower' if difference < 0 else 'higher'} in {a} than in {b} {by} (95 % interval "
            f"{number_text(low)} to {number_text(high)}): more than the noise of seeds ({result['test']}, {p_text})"
        )
    return (
        f"{metric} of {a} and {b} differ {by} (95 % interval {_interval_text(result['interval'])}): no more than the "
        f"noise of seeds can make ({result['test']}, {p_text}); more seeds would narrow the interval"
    )


def show_comparison(result: dict[str, Any]) -> None:
    """Print what `compare` returned: the two sides, what they differ in, and the result as a sentence."""
    from dltrain.console import err_console, number_text, out_console, table

    for note in result["notes"]:
        err_console().print(f"note {note}", markup=False, soft_wrap=True)
    columns = ["", "runs", "n", f"mean of {result['at']} {result['metric']}", "sd", "95 % interval"]
    rows = []
    for key in ("a", "b"):
        side = result[key]
        numbers = (number_text(side["mean"]), number_text(side["sd"]), _interval_text(side["interval"]))
        rows.append([key, side["name"], side["n"], *numbers])
    effect = result["effect_size"]
    console = out_console()
    console.print(table(columns, rows))
    if result["settings"]:
        console.print()
        cells = [[key, *(spelled(of, side) for side in ("a", "b"))] for key, of in result["settings"].items()]
        console.print(table(["settings", "a", "b"], cells))
    console.print()
    interval = _interval_text(result["interval"])
    console.print(f"difference a - b {number_text(result['difference'])}, 95 % interval {interval}")
    console.print(f"effect size {'-' if effect is None else f'{effect:.2f} standard deviations of a run'}")
    console.print(result["result"], markup=False, soft_wrap=True)
