"""Durations mean what they say, and become steps in one place."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dltrain.config.durations import DurationValue, parse, parse_interval, parse_length, to_steps


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("500 steps", 500, "steps"),
        ("1 step", 1, "steps"),
        ("10epochs", 10, "epochs"),
        ("  0.5 epochs ", 0.5, "epochs"),
        (".5 epoch", 0.5, "epochs"),
        ("1e3 steps", 1000, "steps"),
        ("5%", 5, "%"),
        ("2.5 %", 2.5, "%"),
        ("100%", 100, "%"),
        ("0 steps", 0, "steps"),
    ],
)
def test_a_duration_is_an_amount_and_a_unit(text: str, amount: float, unit: str) -> None:
    assert parse(text) == DurationValue(amount, unit)


@pytest.mark.parametrize(("text", "seconds"), [("30 s", 30), ("1.5min", 90), ("2 h", 7200)])
def test_an_interval_may_be_a_time(text: str, seconds: float) -> None:
    assert parse_interval(text) == DurationValue(seconds, "s")
    assert parse_interval("5%") == DurationValue(5, "%")


@pytest.mark.parametrize(
    "text", [10, None, True, [1], "", "ten epochs", "10", "-1 epochs", "10 Epochs", "5 min", "1e999 steps", "1 2 steps"]
)
def test_what_is_no_duration_is_refused_with_what_is_one(text: object) -> None:
    with pytest.raises(ValueError, match=r"^possible: '500 steps', '10 epochs' or '5%' of the training$"):
        parse(text)


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (parse, "1.5 steps", "possible: a whole number of steps"),
        (parse, "101%", "possible: up to 100%"),
        (parse_length, "50%", "possible: '500 steps', '10 epochs' or a time: '10 min'"),
        (
            parse_interval,
            "10 minutes",
            "possible: '500 steps', '10 epochs' or '5%' of the training, or a time: '30 s', '10 min', '1 h'",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(read: Callable[[object], DurationValue], text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is compared whole)
        read(text)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "steps"),
    [("7 steps", 7), ("2 epochs", 80), ("0.5 epochs", 20), ("0.01 epochs", 0), ("5%", 10), ("100%", 200), ("0%", 0)],
)
def test_durations_become_steps(text: str, steps: int) -> None:
    assert to_steps(parse(text), steps_per_epoch=40, total_steps=200) == steps


def test_a_share_needs_a_total_and_a_time_is_no_number_of_steps() -> None:
    with pytest.raises(ValueError, match="'5%' cannot be counted in steps here"):
        to_steps(parse("5%"), steps_per_epoch=40)
    with pytest.raises(ValueError, match="'90 s' cannot be counted in steps here"):
        to_steps(parse_interval("1.5 min"), steps_per_epoch=40, total_steps=200)


@pytest.mark.parametrize("text", ["500 steps", "1.5 epochs", "5%", "0.1 epochs", "1000000 steps", "2.5%"])
def test_a_duration_is_written_as_it_is_read(text: str) -> None:
    assert str(parse(text)) == text
    assert parse(str(parse(text))) == parse(text)
    assert parse(parse(text)) == parse(text)
