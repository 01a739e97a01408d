"""The spread over seeds, and the test whether two settings differ by more than that."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from dltrain.comparison import compare, fit_seeds, show_comparison, show_seeds, spread
from dltrain.config.reader import write_text
from dltrain.config.validate import load_config
from dltrain.errors import ConfigError, Stopped, TrainingError
from dltrain.listing import list_runs
from dltrain.run import Run
from dltrain.train import fit
from tests.small_runs import StopAt, dltrain_here, one_json, result_of, small_config, write_arrays, write_config

pytestmark = pytest.mark.usefixtures("no_curves")


def make_runs(
    root: Path, name: str, values: Sequence[float | None], seeds: Sequence[int] | None = None, state: str = "finished"
) -> Path:
    """Make runs of one setting that monitor val/accuracy: these are its values at the end; its best are twice that."""
    for seed, value in zip(seeds or range(len(values)), values, strict=True):
        with Run.create(root, name) as run:
            for step, best in ((1, True), (2, False)):
                at = None if value is None else value * (2 if best else 1)
                run.append_metrics({"step": step, "epoch": step, "val/loss": 0.5, "val/accuracy": at, "best": best})
        settings = {"seed": seed, "optimizer": {"lr": 0.1}, "train": {"monitor": "val/accuracy"}}
        run.write("resolved.yaml", write_text(settings))
        run.write("log.txt", f"2026-01-01 10:00:00 start\n2026-01-01 10:00:01 {state}\n")
    return root / name


# ---- the spread over seeds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_the_spread_is_that_of_scipy(n: int) -> None:
    values = np.random.default_rng(n).normal(3, 2, n)
    found = spread(values.tolist())
    low, high = scipy.stats.t.interval(0.95, n - 1, loc=values.mean(), scale=scipy.stats.sem(values))
    assert found["interval"] == pytest.approx([low, high])
    assert (found["n"], found["mean"], found["sd"]) == (
        n,
        pytest.approx(values.mean()),
        pytest.approx(values.std(ddof=1)),
    )


def test_the_interval_holds_the_mean_in_95_of_100_experiments() -> None:
    rng = np.random.default_rng(0)
    intervals = [spread(rng.normal(0.9, 0.01, 5).tolist())["interval"] for _ in range(2000)]
    assert 0.935 < np.mean([low <= 0.9 <= high for low, high in intervals]) < 0.965


def test_below_two_values_there_is_no_spread() -> None:
    assert spread([]) == {"n": 0, "mean": None, "sd": None, "interval": None}
    assert spread([0.5]) == {"n": 1, "mean": 0.5, "sd": None, "interval": None}


# ---- fit --seeds -----------------------------------------------------------------------------------------------------


def test_each_seed_is_the_run_that_it_would_be_alone(tmp_path: Path) -> None:
    path = write_config(tmp_path, {"seed": 3, "model": {"dropout": 0.2}})
    study = fit_seeds(path, ["optimizer.lr=0.02"], 3, root=tmp_path / "runs", tags={"who": "ana"}, quiet=True)
    assert study["seeds"] == [3, 4, 5]
    for seed, run in zip(study["seeds"], study["runs"], strict=True):
        file = load_config(path, ["optimizer.lr=0.02", f"seed={seed}"])
        alone = fit(file, root=tmp_path / "alone")
        assert result_of(Path(run)) == result_of(Path(alone["run"]))
        assert study["best"]["values"][seed - 3] == alone["best"]["value"]
        assert study["last"]["values"][seed - 3] == alone["metrics"][study["metric"]]
    assert study["set"] == {"optimizer.lr": 0.02}
    rows = list_runs(tmp_path / "runs", sort="seed")
    assert [(row["seed"], row["tag.seeds"], row["tag.who"]) for row in rows] == [(s, "3-5", "ana") for s in (3, 4, 5)]


def test_fit_seeds_prints_a_table_or_one_object(tmp_path: Path) -> None:
    write_config(tmp_path)
    shown = dltrain_here("fit", "small.yaml", "--seeds", "3", "--quiet", cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = [re.split(r" {2,}", line.strip()) for line in shown.stdout.splitlines()]
    assert lines[0] == ["seed", "run", "best val/accuracy", "last val/accuracy"]
    assert [line[0] for line in lines[1:]] == ["0", "1", "2", "mean", "sd", "95 %"]
    assert lines[1][1] == "runs/small/1"
    told = one_json(dltrain_here("fit", "small.yaml", "--seeds", "3", "--json", "--tag", "a=b", cwd=tmp_path).stdout)
    assert told["best"] == {"values": told["best"]["values"], **spread(told["best"]["values"])}
    assert f"{told['best']['mean']:.4f}" == lines[4][1]
    assert told["runs"] == ["runs/small/4", "runs/small/5", "runs/small/6"]
    assert (told["tags"], told["metric"]) == ({"seeds": "0-2", "a": "b"}, "val/accuracy")


def test_ctrl_c_ends_the_seeds_and_says_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_config(tmp_path)
    progresses = iter([StopAt(), StopAt(5)])
    monkeypatch.setattr("dltrain.console.Progress", lambda mode: next(progresses))
    with pytest.raises(Stopped) as caught:
        fit_seeds(path, [], 4, root=tmp_path / "runs")
    runs = tmp_path / "runs" / "small"
    assert caught.value.exit_code == 130
    assert str(caught.value) == (
        f"stopped at step 5 of 12; the checkpoint is saved. Go on with: dltrain fit --resume {runs / '2'}\n"
        f"seeds done: 0 in {runs / '1'}\n"
        "seeds not begun: 2, 3; the same command trains them with --set seed=2 --seeds 2"
    )
    assert [row["state"] for row in list_runs(tmp_path / "runs", sort="run")] == ["finished", "stopped"]


def test_a_seed_that_diverges_ends_the_others_and_says_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(tmp_path)

    def diverges(file: Any, *, root: Path, progress: object) -> dict[str, Any]:
        if file.config.seed == 1:
            raise TrainingError("step 3: the loss is not finite")
        return fit(file, root=root)

    monkeypatch.setattr("dltrain.train.fit", diverges)
    with pytest.raises(TrainingError) as caught:
        fit_seeds(path, [], 2, root=tmp_path / "runs", quiet=True)
    done = tmp_path / "runs" / "small" / "1"
    assert str(caught.value) == f"seed 1: step 3: the loss is not finite\nseeds done: 0 in {done}"


def test_a_mistake_in_the_config_is_told_as_without_seeds(tmp_path: Path) -> None:
    write_config(tmp_path, {"data": {"path": "none.npz"}})
    alone = dltrain_here("fit", "small.yaml", "--quiet", cwd=tmp_path)
    seeds = dltrain_here("fit", "small.yaml", "--quiet", "--seeds", "2", cwd=tmp_path)
    assert (seeds.returncode, seeds.stderr, seeds.stdout) == (3, alone.stderr, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--resume", "runs/small/1", "--seeds", "2"],
            "--resume: a resumed run keeps its tags and its seed; leave --tag and --seeds out\n",
        ),
        (
            ["small.yaml", "--resume", "runs/small/1", "--tag", "a=b"],
            "--resume: a resumed run keeps its tags and its seed; leave --tag and --seeds out\n",
        ),
        (
            ["small.yaml", "--tag", "a"],
            "--tag a: is not of the form NAME=VALUE; a name has letters, digits, - and _\n",
        ),
    ],
)
def test_options_that_cannot_take_effect_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    write_config(tmp_path)
    result = dltrain_here("fit", *arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", message)


def test_fit_tells_its_tags_and_a_resumed_run_has_them_still(tmp_path: Path) -> None:
    write_config(tmp_path)
    arguments = ("--set", "optimizer.lr=0.1", "--tag", "who=ana", "--tag", "note=a b", "--json", "--quiet")
    told = one_json(dltrain_here("fit", "small.yaml", *arguments, cwd=tmp_path).stdout)
    assert told["set"] == {"optimizer.lr": 0.1}
    assert told["tags"] == {"who": "ana", "note": "a b"}
    longer = ("--resume", told["run"], "--set", "train.duration=4 epochs", "--json", "--quiet")
    again = one_json(dltrain_here("fit", *longer, cwd=tmp_path).stdout)
    assert (again["step"], again["tags"]) == (16, told["tags"])
    where = ("--where", "tag.who == ana", "--where", "val/accuracy >= 0", "--json")
    (row,) = one_json(dltrain_here("runs", *where, cwd=tmp_path).stdout)
    assert (row["run"], row["tag.note"], row["optimizer.lr"]) == (told["run"], "a b", 0.1)


# ---- compare ---------------------------------------------------------------------------------------------------------

NOISE = [0.001, -0.002, 0.003, -0.001, 0.002]


def test_the_same_seeds_are_compared_by_the_paired_t_test(tmp_path: Path) -> None:
    a = [0.40, 0.41, 0.39, 0.42, 0.43]
    b = [0.38, 0.40, 0.38, 0.40, 0.40]
    found = compare(str(make_runs(tmp_path, "a", a)), str(make_runs(tmp_path, "b", b)))
    expected = scipy.stats.ttest_rel(2 * np.array(a), 2 * np.array(b))
    assert (found["test"], found["metric"], found["at"]) == ("paired t-test, n = 5 seeds", "val/accuracy", "best")
    assert (found["t"], found["p"]) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    interval = expected.confidence_interval(0.95)
    assert found["interval"] == pytest.approx([interval.low, interval.high])
    assert found["exceeds_noise"] is True
    deviation = np.sqrt((np.var(2 * np.array(a), ddof=1) + np.var(2 * np.array(b), ddof=1)) / 2)
    assert found["effect_size"] == pytest.approx(2 * (np.mean(a) - np.mean(b)) / deviation)


def test_other_seeds_are_compared_by_welchs_t_test(tmp_path: Path) -> None:
    a, b = [0.40, 0.41, 0.39, 0.42], [0.38, 0.45, 0.31]
    found = compare(str(make_runs(tmp_path, "a", a)), str(make_runs(tmp_path, "b", b, seeds=[1, 2, 7])), last=True)
    expected = scipy.stats.ttest_ind(a, b, equal_var=False)
    assert (found["test"], found["at"]) == ("Welch's t-test, n = 4 and 3 runs", "last")
    assert (found["t"], found["p"]) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    assert found["degrees_of_freedom"] == pytest.approx(expected.df)
    interval = expected.confidence_interval(0.95)
    assert found["interval"] == pytest.approx([interval.low, interval.high])


def test_the_result_is_a_plain_sentence(tmp_path: Path) -> None:
    a = make_runs(tmp_path, "a", [0.4 + x for x in NOISE])
    b = make_runs(tmp_path, "b", [0.3 - x for x in NOISE])
    c = make_runs(tmp_path, "c", [0.405 - x for x in NOISE])
    assert compare(str(a), str(b))["result"] == (
        f"val/accuracy is higher in {a} than in {b} by 0.2024 (95 % interval 0.1921 to 0.2127): more than the noise of "
        "seeds (paired t-test, n = 5 seeds, p < 0.001)"
    )
    assert compare(str(b), str(a))["result"].startswith(f"val/accuracy is lower in {b} than in {a} by 0.2024 (95 % ")
    assert compare(str(a), str(c))["result"] == (
        f"val/accuracy of {a} and {c} differ by 0.0076 (95 % interval -0.0179 to 0.0027): no more than the noise of "
        "seeds can make (paired t-test, n = 5 seeds, p = 0.11); more seeds would narrow the interval"
    )


def test_one_time_in_twenty_equal_settings_seem_to_differ(tmp_path: Path) -> None:
    from dltrain.comparison import _paired, _welch

    rng = np.random.default_rng(1)
    for test in (_paired, _welch):
        found = [
            test(*({i: float(v) for i, v in enumerate(rng.normal(0.9, 0.01, 5))} for _ in range(2)))["exceeds_noise"]
            for _ in range(2000)
        ]
        assert 0.03 < np.mean(found) < 0.07


@pytest.mark.parametrize("seeds", [[0, 1, 2], [5, 6, 7]])
def test_without_any_noise_nothing_is_claimed(seeds: list[int], tmp_path: Path) -> None:
    a = make_runs(tmp_path, "a", [0.4, 0.4, 0.4])
    b = make_runs(tmp_path, "b", [0.3, 0.3, 0.3], seeds=seeds)
    found = compare(str(a), str(b))
    assert (found["p"], found["exceeds_noise"], found["effect_size"]) == (None, None, None)
    assert found["result"].startswith(
        f"val/accuracy of {a} is 0.2000 above that of {b} without any noise; there is nothing to test ("
    )


def test_sides_are_folders_or_lists_of_runs_and_unfinished_runs_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = make_runs(tmp_path, "a", [0.4, 0.41])
    make_runs(tmp_path, "a", [0.9], seeds=[2], state="ended by Stopped")
    b = make_runs(tmp_path, "b", [0.3, 0.32, 0.31])
    found = compare(str(a), f"{b / '1'},{b / '2'}")
    assert (found["a"]["seeds"], found["b"]["seeds"]) == ([0, 1], [0, 1])
    assert found["notes"] == [f"{a}: 1 unfinished run is left out"]
    show_comparison(found)
    printed = capsys.readouterr()
    assert printed.err == f"note {a}: 1 unfinished run is left out\n"
    assert printed.out.splitlines()[-1] == found["result"]


def test_compare_refuses_what_says_nothing_of_seed_noise(tmp_path: Path) -> None:
    a = make_runs(tmp_path, "a", [0.4, 0.41])
    one = make_runs(tmp_path, "one", [0.4])
    make_runs(tmp_path, "one", [0.4], seeds=[1], state="stopped")
    twice = make_runs(tmp_path, "twice", [0.4, 0.4], seeds=[0, 0])
    mixed = make_runs(tmp_path, "mixed", [0.4, 0.4])
    (mixed / "2" / "resolved.yaml").write_text("seed: 1\noptimizer: {lr: 0.2}\ntrain: {monitor: val/loss}\n")
    (tmp_path / "empty").mkdir()
    for argument, message in (
        (
            one,
            f"{one}: has 1 finished run of 2; to know the noise of seeds takes 2 or more of each setting, better 5: "
            "dltrain fit CONFIG --seeds 5",
        ),
        (
            tmp_path / "empty",
            f"{tmp_path / 'empty'}: has 0 finished runs; to know the noise of seeds takes 2 or more of each setting, "
            "better 5: dltrain fit CONFIG --seeds 5",
        ),
        (tmp_path / "none", f"{tmp_path / 'none'}: there is no such folder of runs"),
        (
            mixed,
            f"{mixed}: its runs differ in optimizer.lr, train.monitor, not in the seed alone; name the runs of one "
            "setting, with commas between them",
        ),
        (
            twice,
            f"{twice}: {twice / '1'} and {twice / '2'} have the same seed, 0; name one run of each seed, with commas "
            "between them",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            compare(str(a), str(argument))
        assert str(caught.value) == message


def test_a_metric_that_is_not_there_is_answered_with_the_nearest(tmp_path: Path) -> None:
    a = make_runs(tmp_path, "a", [0.4, None])
    with pytest.raises(ConfigError) as caught:
        compare(str(a), str(a), metric="val/acuracy")
    assert str(caught.value) == (
        f"{a / '1'}: its best line of metrics has no 'val/acuracy'; possible: val/loss, val/accuracy; "
        "did you mean 'val/accuracy'?"
    )
    with pytest.raises(ConfigError) as caught:
        compare(str(a), str(a))
    assert str(caught.value) == f"{a / '2'}: its best line of metrics has no finite val/accuracy"


@pytest.mark.parametrize(
    ("sections", "metric"),
    [
        ({}, "val/accuracy"),
        ({"train": {"monitor": "val/loss"}}, "val/loss"),
        ({"split": {"val": 0}, "regularization": {"mix": {"type": "mixup"}}}, "train/loss"),
    ],
)
def test_the_monitored_metric_is_found_in_the_runs_themselves(
    sections: dict[str, Any], metric: str, tmp_path: Path
) -> None:
    if "split" in sections:
        with np.load(write_arrays(tmp_path / "all.npz")) as data:
            np.savez(tmp_path / "data.npz", x=data["x_train"], y=data["y_train"])
    path = write_config(tmp_path, sections)
    for name, lr in (("a", 0.01), ("b", 0.0001)):
        fit_seeds(path, [f"optimizer.lr={lr}"], 2, root=tmp_path / name, quiet=True)
    found = compare(str(tmp_path / "a"), str(tmp_path / "b"))
    assert found["metric"] == metric
    assert found["settings"] == {"optimizer.lr": {"a": 0.01, "b": 0.0001}}
    assert found["notes"] == []


def test_other_data_are_noted(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        write_arrays(tmp_path / name / "data.npz", seed=seed)
        fit_seeds(write_config(tmp_path / name), [], 2, root=tmp_path / name / "runs", quiet=True)
    found = compare(str(tmp_path / "a" / "runs"), str(tmp_path / "b" / "runs"))
    assert found["notes"] == ["the runs are not all of the same data and split"]


def test_diff_and_compare_from_the_shell(tmp_path: Path) -> None:
    file = small_config(tmp_path)
    runs = [fit(file, root=tmp_path / "runs")["run"] for _ in range(2)]
    assert one_json(dltrain_here("diff", *runs, "--json", cwd=tmp_path).stdout)["settings"] == {}
    assert "settings: the same" in dltrain_here("diff", *runs, cwd=tmp_path).stdout
    make_runs(tmp_path, "a", [0.4, 0.41])
    make_runs(tmp_path, "b", [0.3, 0.32])
    told = one_json(dltrain_here("compare", "a", "b", "--json", cwd=tmp_path).stdout)
    assert dltrain_here("compare", "a", "b", cwd=tmp_path).stdout.splitlines()[-1] == told["result"]
    refused = dltrain_here("compare", "a", "runs/small/1", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "Traceback" not in refused.stderr


def test_the_study_shows_a_metric_that_a_run_lacks_as_missing(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"values": [0.5, None], **spread([0.5])}
    show_seeds({"metric": "val/r2", "seeds": [0, 1], "runs": ["r/1", "r/2"], "best": values, "last": values})
    assert [line.split() for line in capsys.readouterr().out.splitlines()][1:3] == [
        ["0", "r/1", "0.5000", "0.5000"],
        ["1", "r/2", "-", "-"],
    ]


def test_to_list_and_to_compare_runs_takes_no_torch() -> None:
    code = "import sys, dltrain.listing, dltrain.comparison; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
