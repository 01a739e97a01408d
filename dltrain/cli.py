"""The commands: each reads its options, calls one function and prints its result.

Nothing heavy is imported before a command is known: `dltrain --help` and config errors come without torch.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from dltrain.errors import ConfigError, DltrainError, Stopped, TrainingError

if TYPE_CHECKING:
    from dltrain.config.validate import ConfigFile

_MAX_MATRIX = 20


class _Commands(TyperGroup):
    """The commands, with a word to Ctrl-C, which typer would end without one."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Stopped("stopped", signal.SIGINT) from None


app = typer.Typer(
    name="dltrain",
    cls=_Commands,
    help="Train a neural network from one YAML file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as optimizer.lr=0.1."),
]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
TrustOption = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE", help="Code named by a checkpoint that may run: a .py file or a module."),
]


class SplitName(StrEnum):
    """The splits that can be evaluated."""

    train = "train"
    val = "val"
    test = "test"


@app.command()
def fit(
    config: Annotated[
        Path | None, typer.Argument(help="The config; not needed with --resume.", show_default=False)
    ] = None,
    set_: SetOption = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs; this one becomes OUT/NAME/NUMBER.")] = Path("runs"),
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Go on with a run directory that was stopped; auto: with the config's newest one, or start.",
        ),
    ] = None,
    device: DeviceOption = None,
    json_: JsonOption = False,
    quiet: Annotated[bool, typer.Option(help="Show no progress.")] = False,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Mark the run, for `dltrain runs --where`.")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=2, help="Train this many times, with the seeds from the config's on; show mean and deviation."
        ),
    ] = None,
    trust: TrustOption = None,
) -> None:
    """Train a model and write checkpoints and metrics into a new run directory."""
    overrides = [*(set_ or []), *([f"train.device={device}"] if device else [])]
    is_auto = str(resume) == "auto"
    if config is None and (resume is None or is_auto):
        raise ConfigError("fit: needs a CONFIG, or --resume RUN")
    if resume is not None and (seeds or (tag and not is_auto)):
        raise ConfigError("--resume: a resumed run keeps its tags and its seed; leave --tag and --seeds out")
    from dltrain import listing

    tags = listing.read_tags(tag or [])
    if seeds is not None:
        assert config is not None
        _fit_seeds(config, overrides, seeds, out, tags, json_, quiet)
        return
    file, trusted = _config_of_fit(config, resume, overrides, trust)
    if is_auto:
        from dltrain.records import newest_unfinished

        resume = newest_unfinished(out, file)
    from dltrain.console import Progress
    from dltrain.train import fit

    _prepare_to_train(quiet)
    progress = Progress("off" if quiet else "on")
    summary = fit(listing.tagged(file, tags), root=out, resume=resume, progress=progress, trusted=trusted)
    summary |= {"set": file.changes, "tags": listing.read_run(Path(summary["run"])).tags}
    if json_:
        _print_json(summary)
    else:
        _print_summary(summary)


def _fit_seeds(
    config: Path, overrides: list[str], number: int, out: Path, tags: dict[str, str], json_: bool, quiet: bool
) -> None:
    from dltrain.config.validate import load_config

    load_config(config, overrides)  # mistakes in it are found before torch is loaded
    from dltrain import comparison

    _prepare_to_train(quiet)
    study = comparison.fit_seeds(config, overrides, number, root=out, tags=tags, quiet=quiet)
    if json_:
        _print_json(study)
    else:
        comparison.show_seeds(study)


def _prepare_to_train(quiet: bool) -> None:
    from dltrain.data.storage import hide_progress

    if quiet:
        hide_progress()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a write may fail, but between two steps


def _config_of_fit(
    config: Path | None, resume: Path | None, overrides: list[str], trust: list[str] | None
) -> tuple[ConfigFile, list[str] | None]:
    """Return the config to train by, and the code that it may name: any if the user gave it."""
    from dltrain.config.validate import load_config

    if config is not None:
        return load_config(config, overrides), None
    from dltrain import checkpoint as checkpoints
    from dltrain.network import config_of
    from dltrain.run import is_locked

    assert resume is not None
    if is_locked(resume):
        raise ConfigError(f"--resume {resume}: another process is at work in this run directory")
    path, saved, _ = checkpoints.load_last(resume)
    return config_of(saved, str(path), overrides), trust or []


@app.command()
def sweep(
    config: Annotated[
        Path | None, typer.Argument(help="The config, with a section 'sweep'; not with --resume.", show_default=False)
    ] = None,
    set_: SetOption = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs; this is OUT/NAME-sweep/NUMBER.")] = Path("runs"),
    resume: Annotated[
        Path | None, typer.Option(metavar="SWEEP", help="Go on with the folder of a sweep that ended early.")
    ] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Trainings at once; as sweep.slots.")] = None,
    device: DeviceOption = None,
    json_: JsonOption = False,
    quiet: Annotated[bool, typer.Option(help="Show no progress.")] = False,
) -> None:
    """Train a config many times with other settings, as its section 'sweep' says, and rank the results."""
    overrides = [*(set_ or []), *([f"train.device={device}"] if device else [])]
    overrides += [f"sweep.slots={slots}"] if slots else []
    if (config is None) == (resume is None):
        raise ConfigError("sweep: needs either a CONFIG or --resume SWEEP")
    from dltrain.config.validate import load_config
    from dltrain.sweep.folder import reopened
    from dltrain.sweep.space import settings_of

    file = load_config(config, overrides) if config is not None else reopened(resume or Path(), overrides)
    settings_of(file)  # says what is wrong before torch is loaded
    from dltrain.sweep.display import Display, show_result
    from dltrain.sweep.sweep import sweep

    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    result = sweep(file, root=out, resume=resume, display=Display("off" if quiet else "on"))
    if json_:
        _print_json(result)
    else:
        show_result(result)


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint file, or a run directory (then: its best).")],
    split: Annotated[SplitName, typer.Option(help="Which samples.")] = SplitName.test,
    data: Annotated[
        str | None, typer.Option(help="Other data: a file or folder (all of it), or a config (its split).")
    ] = None,
    device: DeviceOption = None,
    json_: JsonOption = False,
    trust: TrustOption = None,
) -> None:
    """Measure a trained model: metrics, confusion matrix, scores per class."""
    from dltrain.evaluation import evaluate

    result = evaluate(checkpoint, split=split.value, data=data, device=device or "auto", trusted=trust or [])
    if json_:
        _print_json(result)
    else:
        _print_evaluation(result)


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(help="A run directory with two checkpoints.")],
    trust: TrustOption = None,
) -> None:
    """Prove that a run can be resumed exactly: train its last stretch again and compare every bit."""
    from dltrain.verification import verify

    typer.echo(verify(run, trusted=trust or []))


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint file, or a run directory (then: its best).")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT...", help="Tables, images, sounds, texts or folders of them, arrays."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File, .csv or .jsonl; default: CSV on stdout.")
    ] = None,
    generate: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Let a language model go on with this text.", show_default=False)
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of --generate: how many tokens.")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of --generate: 0 takes the likeliest.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Of --generate: draw among the likeliest so many.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of --generate.")] = 0,
    device: DeviceOption = None,
    trust: TrustOption = None,
) -> None:
    """Predict for new inputs, with probabilities, as CSV or JSON lines; or let a language model write."""
    if (generate is None) == (not inputs):
        raise ConfigError("predict: needs INPUTs, or --generate TEXT for a language model")
    if generate is not None:
        from dltrain import prediction
        from dltrain.names import printable

        text = prediction.generate(
            checkpoint,
            generate,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            device=device or "auto",
            trusted=trust or [],
        )
        typer.echo(printable(text) if sys.stdout.isatty() else text)
        return
    assert inputs is not None
    from dltrain.console import err_console
    from dltrain.prediction import predict_to_file

    count = predict_to_file(checkpoint, inputs, output, device=device or "auto", trusted=trust or [])
    if output is not None:
        err_console().print(f"{count} predictions in {output}", markup=False)


@app.command()
def check(
    config: Annotated[Path, typer.Argument(help="The config.")],
    set_: SetOption = None,
    device: DeviceOption = None,
) -> None:
    """Validate a config, show it with all defaults, the model layer by layer, and try one batch."""
    from dltrain.config.validate import load_config

    file = load_config(config, [*(set_ or []), *([f"train.device={device}"] if device else [])])
    from dltrain.inspection import check

    check(file)


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder of runs.")] = Path("runs"),
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'KEY OP VALUE'",
            help="Only runs of which this holds: 'val/accuracy > 0.9', 'optimizer.lr < 0.01', 'tag.NAME == x', "
            "'name == digits', 'state == finished'. Several must hold together.",
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="By a metric, a setting or a tag, such as val/accuracy; -KEY: downwards."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(metavar="KEY,KEY,...", help="Show these, such as run,optimizer.lr,val/loss,elapsed_s."),
    ] = None,
    json_: JsonOption = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print the result as CSV.")] = False,
) -> None:
    """List runs with their metrics and the settings in which they differ, newest first."""
    from dltrain import listing

    chosen = [key.strip() for key in columns.split(",") if key.strip()] if columns else []
    rows = listing.list_runs(folder, sort, where or [], chosen)
    if json_:
        _print_json(rows)
    elif csv:
        listing.write_csv(rows, sys.stdout)
    else:
        listing.show(rows, folder, whole=bool(chosen))


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    b: Annotated[Path, typer.Argument(metavar="RUN", help="Another.")],
    json_: JsonOption = False,
) -> None:
    """Show what two runs differ in: settings, versions, data; and their metrics side by side."""
    from dltrain import difference

    result = difference.diff(a, b)
    if json_:
        _print_json(result)
    else:
        difference.show_diff(result)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="The runs of one setting: a folder, or run directories: RUN,RUN,...")],
    b: Annotated[str, typer.Argument(help="The runs of the other setting.")],
    metric: Annotated[str | None, typer.Option(help="Such as val/loss; else the monitored one.")] = None,
    last: Annotated[bool, typer.Option("--last", help="The values at the end, not at the best checkpoint.")] = False,
    json_: JsonOption = False,
) -> None:
    """Test whether two settings, each trained with several seeds, differ by more than the seeds make them."""
    from dltrain import comparison

    result = comparison.compare(a, b, metric=metric, last=last)
    if json_:
        _print_json(result)
    else:
        comparison.show_comparison(result)


@app.command()
def cache(
    entries: Annotated[
        list[str] | None, typer.Argument(metavar="[ENTRY]...", help="Only these; the start of a name will do.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove them, or all that is there.")] = False,
    json_: JsonOption = False,
) -> None:
    """List the prepared data that the cache keeps, with their sizes, or remove them."""
    from dltrain.data import cache as cached
    from dltrain.data.storage import cache_folder

    folder = cache_folder()
    rows = cached.clear(entries or ()) if clear else cached.list_entries(entries or ())
    if json_:
        _print_json({"folder": folder, "removed" if clear else "entries": rows})
    else:
        _print_cache(folder, rows, clear)


@app.command()
def schema() -> None:
    """Print the JSON schema of configs, by which editors complete and check them."""
    from dltrain.config.manual import json_schema

    _print_json(json_schema())


@app.command()
def components(
    kind: Annotated[str | None, typer.Argument(help="data, model, loss, optimizer, ...", show_default=False)] = None,
    name: Annotated[str | None, typer.Argument(help="One of that kind.", show_default=False)] = None,
) -> None:
    """Show the built-in components, their arguments, defaults and ranges."""
    from dltrain.config.manual import show_components

    show_components(kind, name)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from dltrain import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; what a user can cause ends with its exit code and without a traceback."""
    _prepare_streams()
    # A waiting thread of libgomp should spin for microseconds, not for as long as a neighbour has its core: the same
    # speed on an idle machine, three times the speed on a busy one (benchmarks/LOG.md). Read when torch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        app()
    except DltrainError as error:
        _end(str(error), error.exit_code)
    except OSError as error:
        if error.filename is not None:
            raise
        _end(f"the output cannot be written: {error.strerror}", 1)
    except Exception as error:
        if _out_of_memory(error):
            advice = "set train.micro_batch_size (without dropout and BatchNorm the result stays the same)"
            _end(
                f"out of memory: {str(error).partition(chr(10))[0]}; {advice} or a smaller model",
                TrainingError.exit_code,
            )
        from dltrain.build import is_users, user_failure

        if not is_users(error):
            raise
        _end(f"your own code failed: {user_failure(error)}", ConfigError.exit_code)


def _prepare_streams() -> None:
    """Let the output be closed, read in part, or of an encoding that lacks a character of a class name."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `dltrain predict ... | head` ends as other tools do
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for the whole process)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _out_of_memory(error: BaseException) -> bool:
    texts = ("can't allocate memory", "out of memory", "Unable to allocate", "size calculation overflowed")
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


def _end(message: str, code: int) -> None:
    from dltrain.names import printable

    sys.stderr.write(printable(message) + "\n")
    sys.exit(code)


def _print_json(value: Any) -> None:
    in_ascii = (sys.stdout.encoding or "").lower() != "utf-8"
    sys.stdout.write(json.dumps(value, ensure_ascii=in_ascii, default=str) + "\n")


def _print_summary(summary: dict[str, Any]) -> None:
    from dltrain.console import clock_text, number_text, out_console

    best, run = summary["best"], summary["run"]
    early = " (stopped early)" if summary["stopped_early"] else ""
    console = out_console()
    console.print(
        f"{summary['step']} steps, {summary['epoch']:g} epochs{early} in {clock_text(summary['elapsed_s'])}",
        markup=False,
    )
    console.print(f"best {best['metric']} {number_text(best['value'])}", markup=False)
    console.print(f"run  {run}   (curves.png, metrics.jsonl, checkpoints/)", markup=False, soft_wrap=True)
    console.print(f"next dltrain evaluate {run}", markup=False, soft_wrap=True)


def _print_cache(folder: Path | None, rows: list[dict[str, Any]], removed: bool) -> None:
    from dltrain.console import err_console, out_console, table

    size_mib = sum(row["size_bytes"] for row in rows) / 2**20
    if rows and not removed:
        columns = ["entry", "data", "use", "samples", "MiB", "created", "used"]
        cells = [
            [
                row["entry"],
                row.get("data", "(unfinished or damaged)"),
                row.get("use", ""),
                sum(row["samples"].values()) if "samples" in row else "",
                f"{row['size_bytes'] / 2**20:.1f}",
                row.get("created", "")[:16],
                row["used"][:16],
            ]
            for row in rows
        ]
        out_console().print(table(columns, cells))
    verb = "removed" if removed else "in the cache"
    where = folder or "that DLTRAIN_CACHE=off switches off"
    num_entries = "1 entry" if len(rows) == 1 else f"{len(rows)} entries"
    err_console().print(f"{num_entries} of {size_mib:.1f} MiB {verb} {where}", markup=False, soft_wrap=True)


def _print_evaluation(result: dict[str, Any]) -> None:
    from dltrain.console import out_console, table

    console, labels, report = out_console(), result["labels"], result["report"]
    console.print(f"{result['checkpoint']} at step {result['step']}", markup=False, soft_wrap=True)
    console.print(
        table(
            ["split", "samples", *result["metrics"]],
            [[result["split"], result["num_samples"], *result["metrics"].values()]],
        )
    )
    for note in result["notes"]:
        console.print(f"note {note}", markup=False, soft_wrap=True)
    for kind, rows in report.items():
        console.print()
        if kind == "confusion_matrix":
            console.print("confusion matrix: rows are targets, columns predictions", markup=False)
            if len(labels) <= _MAX_MATRIX:
                console.print(table(["", *labels], [[name, *row] for name, row in zip(labels, rows, strict=True)]))
            else:
                console.print(f"{len(labels)} classes; see --json", markup=False)
        else:
            console.print(
                table(
                    [kind.removeprefix("per_"), *rows[0]],
                    [[n, *r.values()] for n, r in zip(labels, rows, strict=True)],
                )
            )
