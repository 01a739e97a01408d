"""The commands of sweeps."""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dltrain.cli.options import DeviceOption, JsonOption, SetOption, overrides_of, print_json
from dltrain.errors import ConfigError

SlotsOption = Annotated[int | None, typer.Option(min=1, help="Trainings at once; as sweep.slots.")]
QuietOption = Annotated[bool, typer.Option(help="Show no progress.")]


class Format(StrEnum):
    """How a plan is written."""

    lines = "lines"
    slurm = "slurm"
    parallel = "parallel"


def sweep(
    config: Annotated[
        Path | None, typer.Argument(help="The config, with a section 'sweep'; not with --resume.", show_default=False)
    ] = None,
    set_: SetOption = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs; this is OUT/NAME-sweep/NUMBER.")] = Path("runs"),
    resume: Annotated[
        Path | None, typer.Option(metavar="SWEEP", help="Go on with the folder of a sweep that ended early.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Share the sweep with other machines, for `dltrain sweep-worker`: postgresql://USER@HOST/DATABASE; "
            "sqlite:///FILE for the processes of one.",
        ),
    ] = None,
    study: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of --storage: what it is called there; else NAME-sweep-NUMBER.")
    ] = None,
    slots: SlotsOption = None,
    device: DeviceOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a config many times with other settings, as its section 'sweep' says, and rank the results.

    Three more commands begin with this word: `dltrain sweep plan CONFIG` writes the trials as commands for a queue of
    your own, `dltrain sweep best` prints the config of the best trial, and `dltrain sweep report` draws them all. (A
    config of such a name is ./plan.)
    """
    overrides = overrides_of(set_, device)
    overrides += [f"sweep.slots={slots}"] if slots else []
    if (config is None) == (resume is None):
        raise ConfigError("sweep: needs either a CONFIG or --resume SWEEP")
    if storage is None and study is not None:
        raise ConfigError(f"--study {study}: needs --storage URL")
    if storage is not None and resume is not None:
        raise ConfigError("--resume: is for a sweep in a folder; one in a database goes on with dltrain sweep-worker")
    from dltrain.config.validate import load_config
    from dltrain.sweep.folder import reopened
    from dltrain.sweep.space import settings_of

    file = load_config(config, overrides) if config is not None else reopened(resume or Path(), overrides)
    settings_of(file)  # says what is wrong before torch is loaded
    from dltrain.sweep.display import Display
    from dltrain.sweep.sweep import sweep, work

    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    display = Display("off" if quiet else "on")
    if storage is None:
        _show(sweep(file, root=out, resume=resume, display=display), json_)
        return
    from dltrain.sweep.shared import Database

    database = Database(storage)
    name = study or database.free_name(f"{file.name}-sweep")
    _show(work(file, database, name, new=True, root=out, display=display), json_)


def sweep_worker(
    study: Annotated[str, typer.Argument(help="What the sweep is called in the database.")],
    storage: Annotated[str, typer.Option(metavar="URL", help="The database, as given to `dltrain sweep --storage`.")],
    out: Annotated[Path, typer.Option(help="Folder of the runs; this worker's are in OUT/STUDY/NUMBER.")] = Path(
        "runs"
    ),
    set_: SetOption = None,
    slots: SlotsOption = None,
    device: DeviceOption = None,
    trust: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Code named by the sweep's config that may run: a .py file or a module."),
    ] = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Work at a sweep that lies in a database, together with others, until all its trials have ended.

    The config comes from the database; the paths in it start in the working directory. `--set sweep.trials=100` lets
    the sweep have as many, with all workers; what else may be set is this worker's own.
    """
    from dltrain.sweep.shared import Database

    database = Database(storage)
    overrides = set_ or []
    database.change(study, overrides)
    overrides += [*overrides_of([], device), *([f"sweep.slots={slots}"] if slots else [])]
    file = database.config(study, overrides)
    from dltrain.sweep.display import Display
    from dltrain.sweep.sweep import work

    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    display = Display("off" if quiet else "on")
    _show(work(file, database, study, new=False, root=out, trusted=trust or [], display=display), json_)


def plan(
    config: Annotated[Path, typer.Argument(help="The config, with a section 'sweep'.")],
    set_: SetOption = None,
    format_: Annotated[
        Format, typer.Option("--format", help="Plain lines, a SLURM array, or a script of GNU parallel.")
    ] = Format.lines,
    device: DeviceOption = None,
) -> None:
    """Write the trials of a sweep as commands, for SLURM arrays, GNU parallel, or a queue of your own.

    For the samplers grid, random and sobol, whose points do not depend on how other trials went.
    """
    from dltrain.config.validate import load_config
    from dltrain.sweep.space import settings_of

    file = load_config(config, overrides_of(set_, device))
    settings_of(file)  # says what is wrong before torch is loaded
    from dltrain.sweep.listing import plan_text

    sys.stdout.write(plan_text(file, str(config), format_.value))


def best(
    sweep: Annotated[
        Path | None, typer.Argument(help="The folder of a sweep; else the newest in runs/.", show_default=False)
    ] = None,
    trial: Annotated[int | None, typer.Option(min=1, help="Another trial than the best.")] = None,
    storage: Annotated[str | None, typer.Option(metavar="URL", help="The database of a shared sweep.")] = None,
    study: Annotated[str | None, typer.Option(metavar="NAME", help="What it is called there.")] = None,
) -> None:
    """Print the config of the best trial, ready to train by: `dltrain sweep best > best.yaml`."""
    if (storage is None) != (study is None) or (storage is not None and sweep is not None):
        raise ConfigError("sweep best: needs the folder of a SWEEP, or --storage URL and --study NAME")
    from dltrain.sweep.best import best_text, newest

    if storage is not None and study is not None:
        from dltrain.sweep.shared import Database

        database = Database(storage)
        goals, file, trials = database.about(study)["goals"], database.config(study), database.trials(study)
    else:
        from dltrain.sweep.folder import config_of
        from dltrain.sweep.journal import read_events, trials_of
        from dltrain.sweep.space import settings_of

        folder = sweep or newest(Path("runs"))
        events = read_events(folder)
        file = config_of(folder, events)
        goals, trials = events[0]["goals"], trials_of(events, settings_of(file).seeds)
    sys.stdout.write(best_text(file, trials, goals, trial))


def report(
    sweep: Annotated[
        Path | None, typer.Argument(help="The folder of a sweep; else the newest in runs/.", show_default=False)
    ] = None,
) -> None:
    """Write the report of a sweep anew, also while it runs: one HTML page with all its trials."""
    from dltrain.sweep.best import newest
    from dltrain.sweep.report import write_report

    typer.echo(write_report(sweep or newest(Path("runs"))))


def _show(result: dict[str, Any], json_: bool) -> None:
    from dltrain.sweep.display import show_result

    if json_:
        print_json(result)
    else:
        show_result(result)
