"""A training whose length is a time: how far it is, and how many steps still fit in."""

from __future__ import annotations

_SHARE_OF_LAST_STEP = 0.1
_FORWARD_SHARE = 0.4
"""Of a step, about what its forward pass takes: an evaluation is as many of these, until one has been measured."""
_NEARLY_ALL = 0.95


class Budget:
    """Seconds into which a training fits, with its last evaluation and checkpoint.

    The machine decides how many steps that are, so two runs do not end with the same weights.
    """

    parts = 10_000
    """Into so many the training is divided for the schedule, which knows only steps."""

    def __init__(self, seconds: float, val_steps: float) -> None:
        """`val_steps`: how many training batches the validation split would make."""
        self.seconds = seconds
        self._val_steps = val_steps
        self._step_s = 0.0
        self._closing_s: float | None = None
        self._part = 0
        self._end_s = 0.0
        """When the step before this one was over, with all that came after its update."""

    def begin(self, step: int, elapsed_s: float, *, has_ended: bool) -> int:
        """Go on after `elapsed_s`; return about how many steps there will be. `has_ended`: with an evaluation."""
        self._end_s = elapsed_s
        is_over = has_ended and elapsed_s >= _NEARLY_ALL * self.seconds
        return step if is_over else step + 1

    def part(self, elapsed_s: float) -> int:
        """Return which part of the training it is after `elapsed_s`, 0 to `parts` - 1; it never falls."""
        part = int(self.parts * elapsed_s / max(self._steps_s, elapsed_s, 1e-9))
        self._part = max(self._part, min(self.parts - 1, part))
        return self._part

    def total_steps(self, step: int, elapsed_s: float) -> int:
        """Return about how many steps there will be, after an update; `step` itself where no other fits in."""
        step_s = elapsed_s - self._end_s
        self._step_s += (_SHARE_OF_LAST_STEP if self._step_s else 1.0) * (step_s - self._step_s)
        return step + max(0, round((self._steps_s - elapsed_s) / max(self._step_s, 1e-9)))

    def ends_step(self, elapsed_s: float, closing_s: float | None) -> None:
        """Take in the end of a step, and what its evaluation took, with any checkpoint after it; None without one."""
        self._end_s = elapsed_s
        if closing_s is not None:
            self._closing_s = closing_s

    @property
    def _steps_s(self) -> float:
        """What there is for steps."""
        closing_s = self._closing_s
        if closing_s is None:
            closing_s = _FORWARD_SHARE * self._val_steps * self._step_s
        return max(0.0, self.seconds - closing_s)
