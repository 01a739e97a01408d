"""The trials of a sweep as commands, one a line, for those who have a queue of their own.

Only for samplers that learn nothing: their points are functions of (seed, trial), so that all can be written down
before the first one has run.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Literal

from dltrain.config.validate import ConfigFile
from dltrain.errors import ConfigError
from dltrain.sweep.points import OWN, num_trials, point
from dltrain.sweep.space import SPACE, options_of, options_of_trainings, settings_of

Format = Literal["lines", "slurm", "parallel"]

_SLURM = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=1-{number}
#SBATCH --cpus-per-task=1
#SBATCH --signal=B:USR1@60
set -eu
export OMP_NUM_THREADS=${{SLURM_CPUS_PER_TASK:-1}}
case $SLURM_ARRAY_TASK_ID in
{cases}
esac
"""

_PARALLEL = """#!/bin/sh
# Arguments go to parallel: -j 4, --sshlogin host1,host2 --workdir . The same command again does what is missing.
export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-1}}
exec parallel --env OMP_NUM_THREADS --joblog {name}.joblog --resume-failed "$@" <<'END'
{lines}
END
"""


def plan_text(file: ConfigFile, config: str, form: Format) -> str:
    """Return the trainings of a sweep as commands: as plain lines, as a SLURM array, or as a script of GNU parallel.

    Raises ConfigError where points depend on how other trials went.
    """
    lines = commands(file, config)
    if form == "slurm":
        cases = "\n".join(f"{number}) exec {line} ;;" for number, line in enumerate(lines, 1))
        return _SLURM.format(name=file.name, number=len(lines), cases=cases)
    if form == "parallel":
        return _PARALLEL.format(name=file.name, lines="\n".join(lines))
    return "".join(f"{line}\n" for line in lines)


def commands(file: ConfigFile, config: str) -> list[str]:
    """Return a `dltrain fit` for each training of the sweep; `config` is where its file lies."""
    settings = settings_of(file)
    if settings.sampler not in OWN:
        raise ConfigError(
            f"{file.place(SPACE[0], 'sampler')}: is {settings.sampler}, which learns from trials; "
            f"a plan is written before there are any; possible: {', '.join(OWN)}"
        )
    if settings.pruner != "none":
        raise ConfigError(
            f"{file.place(SPACE[0], 'pruner')}: is {settings.pruner}, which compares trials while they run; "
            "those of a plan know nothing of each other; possible: none"
        )
    own = options_of_trainings(file)
    lines = []
    for number in range(1, num_trials(settings) + 1):
        options = [*own, *options_of(point(settings, file.config.seed, number))]
        for index in range(settings.seeds):
            seed = [f"seed={file.config.seed + index}"] if settings.seeds > 1 else []
            lines.append(_command(config, [*options, *seed], number))
    return lines


def _command(config: str, options: Sequence[str], number: int) -> str:
    words = ["dltrain", "fit", config, *(word for option in options for word in ("--set", option))]
    return shlex.join([*words, "--tag", f"trial={number}"])
