"""The commands: each reads its options, calls one function and prints its result.

Nothing heavy is imported before a command is known: `dltrain --help` and config errors come without torch.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dltrain.cli import listing, models, sweeps, training
from dltrain.errors import ConfigError, DltrainError, Stopped, TrainingError
from dltrain.names import first_line
from dltrain.signals import let_go_of_stderr


class _Commands(TyperGroup):
    """The commands, some of two words, with a word to Ctrl-C, which typer would end without one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        two_words = " ".join(args[:2])
        return super().resolve_command(ctx, [two_words, *args[2:]] if two_words in self.commands else args)

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
_TWO_WORDS = {sweeps.plan: "sweep plan", sweeps.best: "sweep best", sweeps.report: "sweep report"}
for _command in (
    training.fit,
    sweeps.sweep,
    sweeps.plan,
    sweeps.best,
    sweeps.report,
    sweeps.sweep_worker,
    models.evaluate,
    training.verify,
    models.predict,
    training.check,
    listing.runs,
    listing.diff,
    listing.compare,
    listing.cache,
    listing.schema,
    listing.components,
):
    app.command(_TWO_WORDS.get(_command))(_command)


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
        from dltrain.build import is_users, user_failure
        from dltrain.memory import is_out_of_memory

        if is_out_of_memory(error):
            _end(f"out of memory: {first_line(error)}; choose a smaller model or input", TrainingError.exit_code)

        if not is_users(error):
            raise
        _end(f"your own code failed: {user_failure(error)}", ConfigError.exit_code)
    finally:
        let_go_of_stderr()


def _prepare_streams() -> None:
    """Let the output be closed, read in part, or of an encoding that lacks a character of a class name."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `dltrain predict ... | head` ends as other tools do
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for the whole process)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _end(message: str, code: int) -> None:
    from dltrain.names import printable

    sys.stderr.write(printable(message) + "\n")
    sys.exit(code)
