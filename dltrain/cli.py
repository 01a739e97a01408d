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
        Path | None, typer.Option(metavar="RUN", help="Go on with a run directory that was stopped.")
    ] = None,
    device: DeviceOption = None,
    json_: JsonOption = False,
    quiet: Annotated[bool, typer.Option(help="Show no progress.")] = False,
    trust: TrustOption = None,
) -> None:
    """Train a model and write checkpoints and metrics into a new run directory."""
    overrides = [*(set_ or []), *([f"train.device={device}"] if device else [])]
    if config is None and resume is None:
        raise ConfigError("fit: needs a CONFIG, or --resume RUN")
    file, trusted = _config_of_fit(config, resume, overrides, trust)
    from dltrain.console import Progress
    from dltrain.train import fit

    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a write may fail, but between two steps
    progress = Progress("off" if quiet else "on")
    summary = fit(file, root=out, resume=resume, progress=progress, trusted=trusted)
    summary["set"] = file.changes
    if json_:
        _print_json(summary)
    else:
        _print_summary(summary)


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
    path = checkpoints.find(resume, checkpoints.LAST)
    return config_of(checkpoints.load(path), str(path), overrides), trust or []


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
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint file, or a run directory (then: its best).")],
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Tables, images or folders of them, arrays.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File, .csv or .jsonl; default: CSV on stdout.")
    ] = None,
    device: DeviceOption = None,
    trust: TrustOption = None,
) -> None:
    """Predict for new inputs, with probabilities, as CSV or JSON lines."""
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
    sort: Annotated[
        str | None,
        typer.Option(metavar="METRIC", help="By a column, such as val/accuracy; -NAME: downwards."),
    ] = None,
    json_: JsonOption = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print the result as CSV.")] = False,
) -> None:
    """List runs with their metrics, newest first."""
    from dltrain import listing

    rows = listing.list_runs(folder, sort)
    if json_:
        _print_json(rows)
    elif csv:
        listing.write_csv(rows, sys.stdout)
    else:
        listing.show(rows, folder)


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
    texts = ("can't allocate memory", "out of memory", "Unable to allocate")
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
