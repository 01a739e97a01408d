"""The exceptions of dltrain and the exit code that each one ends the process with.

* DltrainError
  * ConfigError      2   the config or the command is wrong
  * DataError        3   the data are wrong
  * TrainingError    4   training failed: out of memory, full disk
    * Diverged       4   loss, gradient or weights are not finite
    * Lost           4   another process of the training does not answer
  * CheckpointError  5   the checkpoint is wrong
  * Stopped      128+n   stopped by signal n: 130 after Ctrl-C, 143 after SIGTERM

Each carries a message for a person: what happened, where, and what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence


class DltrainError(Exception):
    """Base of all errors that a user can cause; shown without a traceback."""

    exit_code = 1


class ConfigError(DltrainError):
    """The config or the command is wrong. Holds all mistakes at once, a line each."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems: Sequence[str] = problems


class DataError(DltrainError):
    """The data are wrong: the message names the file, the row and the column where there is one."""

    exit_code = 3


class TrainingError(DltrainError):
    """Training failed: it diverged, memory ran out, or the disk refused."""

    exit_code = 4


class Diverged(TrainingError):
    """The numbers of a training are not finite, which its settings bring about."""


class Lost(TrainingError):
    """Another process of the training does not answer, most often since it has failed."""


class CheckpointError(DltrainError):
    """A checkpoint is missing, damaged, of another format, or does not fit."""

    exit_code = 5


class Stopped(DltrainError):
    """A signal stopped the process: a training after a step, with its checkpoint saved; all else at once."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
