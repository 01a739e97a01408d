"""Learning-rate schedules against torch's, at their ends and joints, and their messages."""

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from dltrain import schedules
from dltrain.config.durations import DurationValue
from dltrain.config.schema import schedules as schema
from dltrain.errors import ConfigError

TOTAL = 100


def rates_of_torch(scheduler: Any, *arguments: Any, **options: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    clock = scheduler(optimizer, *arguments, **options)
    rates = []
    for _ in range(TOTAL):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        clock.step()
    return rates


def rates(schedule: Any, **options: Any) -> list[float]:
    return [schedule(step, TOTAL, **options) for step in range(TOTAL)]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            (schedules.step, {"every": 30, "gamma": 0.5}),
            (torch.optim.lr_scheduler.StepLR, {"step_size": 30, "gamma": 0.5}),
        ),
        (
            (schedules.multistep, {"milestones": [20, 70, 71]}),
            (torch.optim.lr_scheduler.MultiStepLR, {"milestones": [20, 70, 71]}),
        ),
        (
            (schedules.exponential, {"every": 1, "gamma": 0.97}),
            (torch.optim.lr_scheduler.ExponentialLR, {"gamma": 0.97}),
        ),
        (
            (schedules.cosine, {"final": 0.1}),
            (torch.optim.lr_scheduler.CosineAnnealingLR, {"T_max": TOTAL, "eta_min": 0.1}),
        ),
        (
            (schedules.linear, {"final": 0.2}),
            (
                torch.optim.lr_scheduler.LinearLR,
                {"start_factor": 1.0, "end_factor": 0.2, "total_iters": TOTAL},
            ),
        ),
        (
            (schedules.constant, {"warmup": 10}),
            (torch.optim.lr_scheduler.LinearLR, {"start_factor": 0.1, "total_iters": 9}),
        ),
        (
            (schedules.one_cycle, {"peak_at": 30}),
            (
                torch.optim.lr_scheduler.OneCycleLR,
                {
                    "max_lr": 1.0,
                    "total_steps": TOTAL + 1,
                    "pct_start": 31 / (TOTAL + 1),
                    "cycle_momentum": False,
                },
            ),
        ),
    ],
    ids=lambda pair: pair[0].__name__,
)
def test_equals_torch(ours: Any, theirs: Any) -> None:
    assert rates(ours[0], **ours[1]) == pytest.approx(rates_of_torch(theirs[0], **theirs[1]), rel=1e-9)


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        (schedules.constant, {}),
        (schedules.step, {"every": 50}),
        (schedules.multistep, {"milestones": [50]}),
        (schedules.exponential, {"every": 50}),
        (schedules.cosine, {}),
        (schedules.linear, {}),
        (schedules.inverse_sqrt, {}),
        (schedules.wsd, {"decay": 20}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_warmup_is_linear_and_joins_at_the_peak(schedule: Any, options: dict[str, Any]) -> None:
    factors = rates(schedule, warmup=8, **options)
    assert factors[:8] == pytest.approx([(step + 1) / 8 for step in range(8)])
    assert factors[8] == pytest.approx(1.0, abs=0.06)
    assert max(factors) == 1.0


def test_falls_end_at_final() -> None:
    for schedule, options in (
        (schedules.cosine, {"warmup": 10}),
        (schedules.linear, {"warmup": 10}),
        (schedules.wsd, {"decay": 20, "warmup": 10}),
        (schedules.one_cycle, {"peak_at": 30}),
    ):
        assert schedule(TOTAL, TOTAL, final=0.25, **options) == pytest.approx(0.25)
        assert 0.25 < schedule(TOTAL - 1, TOTAL, final=0.25, **options) < 0.29


def test_cosine_and_linear_are_halfway_in_the_middle_of_what_the_warmup_leaves() -> None:
    assert schedules.cosine(60, TOTAL, warmup=20) == pytest.approx(0.5)
    assert schedules.linear(60, TOTAL, warmup=20) == pytest.approx(0.5)


def test_one_cycle_starts_peaks_and_ends_where_it_says() -> None:
    factors = rates(schedules.one_cycle, peak_at=30, start=0.1, final=0.0)
    assert factors[0] == pytest.approx(0.1)
    assert factors[30] == 1.0
    assert factors == pytest.approx(sorted(factors[:31]) + sorted(factors[31:], reverse=True))


def test_wsd_is_stable_until_the_decay() -> None:
    factors = rates(schedules.wsd, decay=20, warmup=10)
    assert set(factors[9:81]) == {1.0}
    assert factors[80:] == pytest.approx([1 - i / 20 for i in range(20)])


def test_inverse_sqrt_is_vaswanis_formula_scaled_to_one() -> None:
    def published(number: int) -> float:
        return min(number**-0.5, number * 16**-1.5)

    expected = [published(step + 1) / published(16) for step in range(TOTAL)]
    assert rates(schedules.inverse_sqrt, warmup=16) == pytest.approx(expected)


def test_exponential_falls_by_gamma_in_each_period() -> None:
    factors = rates(schedules.exponential, every=20, gamma=0.5, warmup=10)
    assert [factors[10], factors[30], factors[90]] == pytest.approx([1.0, 0.5, 0.5**4])
    assert factors[20] == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: schedules.cosine(0, 50, warmup=50),
            "warmup: 50 steps do not fit in a training of 50; possible: less than 50",
        ),
        (
            lambda: schedules.multistep(0, 50, milestones=[10, 60]),
            "milestones: 60 steps do not fit in a training of 50; possible: less than 50",
        ),
        (
            lambda: schedules.step(0, 50, every=0),
            "every: is less than one step of this training; make it longer",
        ),
        (
            lambda: schedules.wsd(0, 50, decay=30, warmup=30),
            "warmup (30 steps) and decay (30 steps) are longer than the training (50 steps); shorten one of them",
        ),
        (
            lambda: schedules.one_cycle(0, 50, peak_at=50),
            "peak_at: 50 steps do not fit in a training of 50; possible: less than 50",
        ),
    ],
)
def test_what_cannot_take_effect_is_an_error(call: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        call()
    assert str(error.value) == message


def test_settings_read_durations() -> None:
    settings = TypeAdapter(schema.WarmupStableDecay).validate_python(
        {"type": "wsd", "decay": "10%", "final": 0.1, "warmup": "200 steps"}
    )
    assert settings.decay == DurationValue(10, "%")
    assert settings.warmup == DurationValue(200, "steps")
    with pytest.raises(ValidationError, match="must be more than nothing"):
        schema.Step(type="step", every="0 steps")
