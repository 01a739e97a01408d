"""`dltrain fit --profile`: where the time of a step goes, part by part, and a trace of a few steps for a viewer.

The parts are timed first, by the clock alone, so that their sum is the step as it is without a profile; the trace,
which slows small operators down, is taken of the steps after those.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from dltrain.console import Function
from dltrain.plan import Plan
from dltrain.run import writing
from dltrain.state import State

TEXT, TRACE = "profile.txt", "profile.json.gz"
_PARTS = {
    "data": "gather of the batch, move to the device",
    "transform": "scaling, augmentation, mixing",
    "forward": "",
    "loss": "",
    "penalty": "",
    "backward": "",
    "update": "the optimizer",
    "other": "check of the gradient, clipping, averages, sums of metrics",
    "logging": "progress, evaluation, checkpoints",
}
_AFTER = {"data": "transform"}
"""What begins at the end of a part; after those not named it is "other", until the next part begins."""
_MOST_WARM_UP, _MOST_TIMED, _MOST_TRACED = 5, 50, 10
_FEWEST_STEPS = 3
_MANY = 1_000_000
"""Steps of a training whose length is a time, for all that is known before the first."""
_LONGEST_S = 20.0
"""After which no further step is timed, or traced."""
_NUM_OPERATORS = 10
_MUCH = 0.2


class Profile:
    """A watcher that measures some steps of a training and then says where their time went.

    To be left as a context when the training ends, however it ends: then it tells what it has.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._mode = "off"
        """off, then in this order: warm up, timed, traced, off."""
        self._num_steps = self._num_samples = 0
        self._now, self._since = "other", 0.0
        self._spent_s = dict.fromkeys(_PARTS, 0.0)
        self._evaluations_s: list[float] = []
        self._state: State | None = None
        self._num_scores = 0
        self._profiler: profile | None = None
        self._range: Any = None
        self._text: list[str] = []

    def begin(self, run: Path, plan: Plan) -> None:
        """Choose the steps to measure: few enough that the training has them."""
        self._run, self._plan = run, plan
        num_left = plan.state.total_steps - plan.state.step if plan.budget is None else _MANY
        if num_left < _FEWEST_STEPS:
            self._say(f"profile: takes {_FEWEST_STEPS} steps, and {max(num_left, 0)} are left; there will be none")
            return
        num_warm_up = max(1, min(_MOST_WARM_UP, num_left // 4))
        num_traced = max(1, min(_MOST_TRACED, num_left // 4))
        num_timed = min(_MOST_TIMED, num_left - num_warm_up - num_traced)
        self._limits = {"warm up": num_warm_up, "timed": num_timed, "traced": num_traced}
        self._mode = "warm up"

    def part(self, name: str, function: Function) -> Function:
        """Return `function` so that the time until its end counts as `name`."""

        def measured(*arguments: Any, **named: Any) -> Any:
            if self._mode == "off":
                return function(*arguments, **named)
            self._enter(name)
            try:
                return function(*arguments, **named)
            finally:
                self._enter(_AFTER.get(name, "other"))

        return cast(Function, measured)

    def step(self, state: State, num_samples: int) -> None:
        """Count the step; all until the next batch is logging."""
        if self._mode == "off":
            return
        self._enter("logging")
        self._num_steps += 1
        self._num_samples += num_samples
        self._state, self._num_scores = state, len(state.scores)
        too_long = self._mode != "warm up" and time.perf_counter() - self._began >= _LONGEST_S
        if self._num_steps == self._limits[self._mode] or too_long:
            self._next_mode()

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._mode == "warm up" or (self._mode == "timed" and not self._num_steps):
            self._say("profile: none, since the training ended before its first steps were over")
        elif self._mode == "timed":
            self._text = self._parts_text()
            self._finish()
        elif self._mode == "traced":
            self._next_mode()
        self._mode = "off"

    def _enter(self, name: str) -> None:
        """End the part that is under way and begin the next."""
        if self._mode == "timed":
            if self._plan.device.type == "cuda":
                torch.cuda.synchronize(self._plan.device)
            now = time.perf_counter()
            self._spent_s[self._now] += now - self._since
            if self._now == "logging" and self._state is not None and len(self._state.scores) > self._num_scores:
                self._evaluations_s.append(now - self._since)
            self._since = now
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None
        if self._mode == "traced":
            self._range = record_function(name)
            self._range.__enter__()
        self._now = name

    def _next_mode(self) -> None:
        """Go on from warming up to timing, from timing to tracing, from tracing to nothing; tell what was found."""
        if self._mode == "warm up":
            self._mode = "timed"
        elif self._mode == "timed":
            self._text = self._parts_text()
            self._profiler = profile(activities=_activities(self._plan.device), acc_events=True)
            self._profiler.start()
            self._mode = "traced"
        else:
            self._mode = "off"
            self._enter("other")
            self._finish()
        self._num_steps = self._num_samples = 0
        self._began = self._since = time.perf_counter()

    def _finish(self) -> None:
        """Write trace and text into the run directory and show the text."""
        if self._profiler is not None:
            self._profiler.stop()
        if self._profiler is not None and self._num_steps:
            self._text += _operators_text(self._profiler, self._num_steps, self._plan.device)
            with writing(self._run / TRACE) as path:
                self._profiler.export_chrome_trace(str(path))
            self._text.append(f"trace of {self._num_steps} steps: {self._run / TRACE}, for https://ui.perfetto.dev")
        with writing(self._run / TEXT) as path:
            path.write_text("\n".join(self._text) + "\n", encoding="utf-8")
        for line in ["", *self._text, ""]:
            self._say(line)

    def _parts_text(self) -> list[str]:
        """Return the table of the parts, and what is to be said of them."""
        plan, num_steps, spent_s = self._plan, self._num_steps, self._spent_s
        whole_s = sum(spent_s.values())
        where = f"{plan.device}, waiting for it after each part" if _is_gpu(plan.device) else "cpu"
        lines = [
            f"profile of {num_steps} steps of {self._num_samples / num_steps:.4g} samples on {where}, "
            f"CPU threads: {torch.get_num_threads()}",
            "",
        ]
        for name, what in _PARTS.items():
            if spent_s[name] or name != "penalty":
                numbers = _ms(spent_s[name] / num_steps) + _percent(spent_s[name] / whole_s)
                lines.append(f"  {name:<12}{numbers}   {what}")
        rate = f"{self._num_samples / whole_s:,.0f} samples/s"
        lines += [f"  {'step':<12}{_ms(whole_s / num_steps)}{_percent(1.0)}   {rate}", ""]
        evaluation_s = sum(self._evaluations_s)
        if self._evaluations_s:
            each_s = evaluation_s / len(self._evaluations_s)
            between_s = (whole_s - evaluation_s) / num_steps * plan.evaluate_every
            share = each_s / (each_s + between_s)
            advice = "; a longer train.evaluate_every would save most of that" if share > _MUCH else ""
            lines.append(
                f"evaluation: {1000 * each_s:.1f} ms each, {len(self._evaluations_s)} in these steps; with one every "
                f"{plan.evaluate_every} steps that is {share:.0%} of the training{advice}"
            )
        else:
            lines.append("evaluation: none in these steps")
        share = spent_s["transform"] / (whole_s - evaluation_s)
        if share > _MUCH and (plan.augment or plan.regularizer.mix is not None):
            lines.append(
                f"transform: {share:.0%} of a step; fewer or cheaper transforms in augment or regularization.mix "
                "would make it shorter"
            )
        return [line.rstrip() for line in lines]


def _operators_text(profiler: profile, num_steps: int, device: torch.device) -> list[str]:
    """Return the table of the operators that take longest by themselves."""
    attribute = "self_device_time_total" if _is_gpu(device) else "self_cpu_time_total"
    operators = [event for event in profiler.key_averages() if event.key not in _PARTS]
    operators.sort(key=lambda event: -getattr(event, attribute))
    lines = ["", f"operators{'':<33}  ms a step   calls a step (traced, which makes small ones slower)"]
    for event in operators[:_NUM_OPERATORS]:
        time_ms = getattr(event, attribute) / 1000 / num_steps
        lines.append(f"  {event.key[:40]:<40}{time_ms:>11.3f}{event.count / num_steps:>15.4g}")
    return [*lines, ""]


def _activities(device: torch.device) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if _is_gpu(device) else [])]


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:>10.3f} ms"


def _percent(share: float) -> str:
    return f"{100 * share:>8.1f} %"
