"""Trainings of a fraction of a second for the tests of the loop, and what they leave, in a form that can be compared.

The data are 50 training, 20 validation and 15 test samples of three classes, drawn from a seed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from dltrain import checkpoint as checkpoints
from dltrain.build import Builder
from dltrain.config.durations import DurationValue
from dltrain.config.schema.base import Component, type_name
from dltrain.config.validate import ConfigFile, load_config
from dltrain.console import Progress
from dltrain.errors import ConfigError, Stopped
from dltrain.plan import Plan, make_plan
from dltrain.run import read_metrics
from dltrain.train import fit

NUM_TRAIN, NUM_VAL, NUM_TEST = 50, 20, 15
BATCH_SIZE = 16
STEPS_PER_EPOCH = 4  # the last batch of an epoch holds two samples
TIMES = ("samples_per_s", "elapsed_s")
PATIENCE_S = 600.0
"""With other processes: none takes nearly as long, even on a machine that has much else to do."""

Sections = dict[str, Any]


def write_arrays(path: Path, side: int = 0, seed: int = 0, targets: str = "classes") -> Path:
    """Write splits of 6 features, or of images of `side` pixels, with targets that can be learnt in part."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, number in (("train", NUM_TRAIN), ("val", NUM_VAL), ("test", NUM_TEST)):
        classes = np.arange(number) % 3
        shape = (number, 1, side, side) if side else (number, 6)
        x = rng.normal(size=shape)
        x.reshape(number, -1)[np.arange(number), classes] += 2.0
        arrays[f"x_{split}"] = x.astype(np.float32)
        sums = x.reshape(number, -1)[:, :2]
        arrays[f"y_{split}"] = {
            "classes": classes,
            "labels": (sums > 0).astype(np.float64),
            "numbers": sums * [1.0, 100.0],
            "counts": np.floor(np.exp(sums[:, 0])).astype(np.float64),
        }[targets]
    np.savez(path, **arrays)
    return path


def write_config(folder: Path, sections: Sections | None = None, name: str = "small.yaml") -> Path:
    """Write a config of three epochs on data.npz (made if it is missing); `sections` are merged into it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data.npz").exists():
        write_arrays(folder / "data.npz")
    tree: Sections = {
        "data": {"type": "arrays", "path": "data.npz", "scale": "none"},
        "model": {"type": "mlp", "hidden": [8]},
        "optimizer": {"type": "adamw", "lr": 0.01},
        "train": {"duration": "3 epochs", "batch_size": BATCH_SIZE, "device": "cpu"},
    }
    path = folder / name
    path.write_text(yaml.safe_dump(_merged(tree, sections or {}), sort_keys=False), encoding="utf-8")
    return path


def small_config(folder: Path, sections: Sections | None = None) -> ConfigFile:
    """Return the config that `write_config` writes."""
    return load_config(write_config(folder, sections))


def plan_of(folder: Path, sections: Sections) -> Plan:
    """Return the plan of the small config with `sections`."""
    return make_plan(Builder(small_config(folder, sections)))


def refusal(folder: Path, sections: Sections) -> str:
    """Return why there is no plan of the small config with `sections`: the message behind its place."""
    with pytest.raises(ConfigError) as caught:
        plan_of(folder, sections)
    text = str(caught.value)
    assert text.startswith(f"{folder / 'small.yaml'}:"), text
    return text.partition(": ")[2]


def train(folder: Path, sections: Sections | None = None) -> Path:
    """Train the small config with `sections` and return its run directory."""
    return Path(fit(small_config(folder, sections), root=folder / "runs")["run"])


class StopAt(Progress):
    """Sends the process a signal after some steps, as Ctrl-C would at that moment."""

    def __init__(self, *steps: int, number: int = signal.SIGINT) -> None:
        super().__init__("off")
        self.steps, self.number = steps, number

    def step(self, state: Any) -> None:
        if state.step in self.steps:
            signal.raise_signal(self.number)


def fit_with_stops(file: ConfigFile, root: Path, stops: tuple[int, ...]) -> Path:
    """Train to the end, stopped after each of `stops` and resumed each time; return the run directory."""
    run: Path | None = None
    for stop in stops:
        try:
            fit(file, root=root, resume=run, progress=StopAt(stop))
        except Stopped:
            run = run or newest_run(root)
        else:
            raise AssertionError(f"the run did not stop at step {stop}")
    return Path(fit(file, root=root, resume=run)["run"])


def newest_run(root: Path) -> Path:
    """Return the run directory with the highest number below `root`."""
    return max((path for path in root.glob("*/*") if path.name.isdecimal()), key=lambda path: int(path.name))


def rows_of(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics without those columns that no two runs have in common."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in read_metrics(run)]


def result_of(run: Path) -> dict[str, Any]:
    """Return everything that a run leaves and that does not depend on the clock, as comparable values."""
    result: dict[str, Any] = {"rows": rows_of(run)}
    for name in (checkpoints.LAST, checkpoints.BEST):
        saved = checkpoints.load(run / "checkpoints" / name)
        result |= {f"{name}/{key}": bytes_of(tensor) for key, tensor in saved.tensors.items()}
        meta = {key: value for key, value in saved.meta.items() if key not in ("elapsed_s", "folder_from_run")}
        meta["metrics"] = {key: value for key, value in meta["metrics"].items() if key not in TIMES}
        result[f"{name}/meta"] = meta
    return result


def bytes_of(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def weights_of(run: Path, name: str = checkpoints.LAST) -> dict[str, Tensor]:
    """Return the model's weights in a checkpoint of a run."""
    return checkpoints.load(run / "checkpoints" / name).part("model")


def required_arguments(cls: type[Component]) -> dict[str, Any]:
    """Return the least that a config must say to have this component, for a training of a dozen steps."""
    values: dict[str, Any] = {"type": type_name(cls)}
    for name, field in cls.model_fields.items():
        if name != "type" and field.is_required():
            values[name] = _some(field.annotation)
    return values


def _some(annotation: Any) -> Any:
    if annotation is DurationValue:
        return "3 steps"
    if annotation is float:
        return 0.01
    if args := get_args(annotation):
        return [_some(args[0])] if annotation.__class__ is not type(None) and _is_list(annotation) else _some(args[0])
    raise NotImplementedError(f"give a value for settings of {annotation}")


def _is_list(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) is list


def _merged(tree: Sections, changes: Sections) -> Sections:
    """Return `tree` with `changes`; a component of another type takes the place of the old one whole."""
    merged = dict(tree)
    for key, value in changes.items():
        old = merged.get(key)
        same = isinstance(value, dict) and isinstance(old, dict) and value.get("type") in (None, old.get("type"))
        merged[key] = _merged(old, value) if same and isinstance(old, dict) else value
    return merged


def in_child(work: Callable[[], object]) -> int:
    """Do `work` in a forked process; return its exit status (0 done), or minus the signal that killed it."""
    _, status = os.waitpid(start_child(work), 0)
    return os.waitstatus_to_exitcode(status)


def start_child(work: Callable[[], object]) -> int:
    """Begin `work` in a forked process, which has torch loaded already, and return its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: the child uses none
        child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child


def dltrain_here(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, which takes a hundredth of the time of a process of its own."""
    from dltrain.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    argv, pipe_handler = sys.argv, signal.getsignal(signal.SIGPIPE)
    sys.argv = ["dltrain", *map(str, arguments)]
    try:
        with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    finally:
        sys.argv = argv
        signal.signal(signal.SIGPIPE, pipe_handler)
    return subprocess.CompletedProcess(sys.argv, code, out.getvalue(), err.getvalue())


def dltrain(*arguments: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[Any] | None = None) -> Any:
    """Return the value of `condition` once it is one; fail where `process`, which should bring it about, ends first."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        has_ended = process is not None and process.poll() is not None
        if value := condition():
            return value
        assert not has_ended, f"the process ended, and it did not come to that: {process and process.communicate()}"
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


HELD = """
import time
from pathlib import Path

BEGUN, GO = (Path(__file__).with_name(name) for name in ("begun", "go"))

def held(step, total_steps):
    if step == 5:
        with BEGUN.open("a") as file:
            file.write("x")
    is_late = BEGUN.exists() and BEGUN.stat().st_size > {num_quick}
    time.sleep(1.0 if is_late and not GO.exists() else 0.0)
    return 1.0
"""
"""A schedule for sweeps that are stopped: after some trainings a step takes a second, until there is a file "go"."""


def command(*arguments: str | Path) -> list[str]:
    """Return the arguments of a process that runs the command line."""
    return [sys.executable, "-m", "dltrain", *map(str, arguments)]


def one_json(text: str) -> Any:
    """Return the one JSON value that `text` is; numbers that JSON does not know are refused."""

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    assert text.count("\n") == 1
    return json.loads(text, parse_constant=refuse)
