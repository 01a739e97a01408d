"""The commands that train: fit, check, verify."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dltrain import launch
from dltrain.cli.options import DeviceOption, JsonOption, SetOption, TrustOption, overrides_of, print_json
from dltrain.errors import ConfigError

if TYPE_CHECKING:
    from dltrain.config.validate import ConfigFile
    from dltrain.profiling import Profile


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
    profile: Annotated[
        bool, typer.Option("--profile", help="Measure some steps: say where their time goes, and write a trace.")
    ] = False,
    trust: TrustOption = None,
    devices: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Train on N devices or CPU processes of this machine, a process each."),
    ] = None,
) -> None:
    """Train a model and write checkpoints and metrics into a new run directory."""
    overrides = overrides_of(set_, device)
    is_auto = str(resume) == "auto"
    is_one_of_several = launch.is_one_of_several()
    if is_one_of_several:
        launch.hush_torch()
    with launch.said_once():
        if config is None and (resume is None or is_auto):
            raise ConfigError("fit: needs a CONFIG, or --resume RUN")
        if resume is not None and (seeds or (tag and not is_auto)):
            raise ConfigError("--resume: a resumed run keeps its tags and its seed; leave --tag and --seeds out")
        if seeds and (is_one_of_several or devices):
            raise ConfigError("--seeds: trains one model after the other, each on one process; leave --devices out")
        if seeds and profile:
            raise ConfigError("--profile: is of one training; leave --seeds out")
        if devices is not None and is_one_of_several:
            launch.check_devices(devices)
        if profile:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read as torch is imported; it would write to stderr
        from dltrain import listing

        tags = listing.read_tags(tag or [])
        if seeds is not None:
            assert config is not None
            _fit_seeds(config, overrides, seeds, out, tags, json_, quiet)
            return
        file, trusted = _config_of_fit(config, resume, overrides, trust)
    if devices is not None and devices > 1 and not is_one_of_several:
        raise typer.Exit(launch.launch(devices))
    from dltrain.console import Progress
    from dltrain.ranks import joined
    from dltrain.train import fit

    _prepare_to_train(quiet)
    progress = Progress("off" if quiet else "on")
    with joined() as ranks, _profile(progress.say) if profile and ranks.first else nullcontext() as watcher:
        if is_auto:
            from dltrain.records import newest_unfinished

            resume = newest_unfinished(out, file) if ranks.first else None  # the others are told
        summary = fit(
            replace(file, tags=tags),
            root=out,
            resume=resume,
            progress=progress,
            watcher=watcher,
            trusted=trusted,
            ranks=ranks,
        )
    if not ranks.first:
        return
    summary |= {"set": file.changes, "tags": listing.read_run(Path(summary["run"])).tags}
    if json_:
        print_json(summary)
    else:
        _print_summary(summary)


def check(
    config: Annotated[Path, typer.Argument(help="The config.")],
    set_: SetOption = None,
    device: DeviceOption = None,
) -> None:
    """Validate a config, show it with all defaults, the model layer by layer, and try one batch."""
    from dltrain.config.validate import load_config

    file = load_config(config, overrides_of(set_, device))
    from dltrain.inspection import check

    check(file)


def verify(
    run: Annotated[Path, typer.Argument(help="A run directory with two checkpoints.")],
    trust: TrustOption = None,
) -> None:
    """Prove that a run can be resumed exactly: train its last stretch again and compare every bit."""
    from dltrain.verification import verify

    typer.echo(verify(run, trusted=trust or []))


def _fit_seeds(
    config: Path, overrides: list[str], number: int, out: Path, tags: dict[str, str], json_: bool, quiet: bool
) -> None:
    from dltrain.config.validate import load_config

    load_config(config, overrides)  # mistakes in it are found before torch is loaded
    from dltrain import comparison

    _prepare_to_train(quiet)
    study = comparison.fit_seeds(config, overrides, number, root=out, tags=tags, quiet=quiet)
    if json_:
        print_json(study)
    else:
        comparison.show_seeds(study)


def _profile(say: Callable[[str], None]) -> Profile:
    from dltrain.profiling import Profile

    return Profile(say)


def _prepare_to_train(quiet: bool) -> None:
    from dltrain.data.progress import hide_progress

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
    from dltrain.build import Builder
    from dltrain.network import config_of, refuse_another_size
    from dltrain.run import is_locked

    assert resume is not None
    if is_locked(resume) and not launch.is_one_of_several():  # then it may be the first of them
        raise ConfigError(f"--resume {resume}: another process is at work in this run directory")
    path, saved, _ = checkpoints.load_last(resume)
    file = config_of(saved, str(path), overrides)
    with checkpoints.understood(str(path)):
        refuse_another_size(Builder(file, trust or []), saved, str(path))
    return file, trust or []


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
