"""The commands of sweeps."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from dltrain.cli.options import DeviceOption, JsonOption, SetOption, overrides_of, print_json
from dltrain.errors import ConfigError


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
    overrides = overrides_of(set_, device)
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
        print_json(result)
    else:
        show_result(result)
