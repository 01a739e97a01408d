"""docs/faults.md says what the tests show, and nothing else."""

from __future__ import annotations

from tests.faults.table import ELSEWHERE, PAGE, SECTIONS, names_in, page, shown_rows

ROWS = [row for rows in SECTIONS.values() for row in rows]


def test_the_page_is_what_the_marks_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.faults.table"


def test_the_rows_are_numbered_as_they_stand() -> None:
    assert list(range(1, 63)) == ROWS
    assert set(shown_rows()) <= set(ROWS)


def test_every_test_that_is_named_exists() -> None:
    for tests in ELSEWHERE.values():
        for stem, name in (test.split("::") for test in tests):
            assert name in names_in(stem), f"tests/{stem}.py has no {name}"
