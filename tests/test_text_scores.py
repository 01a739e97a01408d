"""Scores of texts: held to what sacrebleu's own command prints, and to what can be said without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dltrain.errors import ConfigError
from dltrain.text_scores import score

REFERENCES = [
    "the cat sat on the mat .",
    "there is a house by the river, and nobody lives in it.",
    "vingt et un",
    "Größe, Maß & Übermaß",
    "one thousand two hundred and thirty-four",
]
HYPOTHESES = [
    "the cat sat on a mat .",
    "there is a house at the river, and no one lives in it.",
    " vingt et un ",
    "Größe, Maß und Übermut",
    "one thousand two hundred and thirty-four",
]


@pytest.mark.slow
def test_bleu_and_chrf_are_those_of_the_command(tmp_path: Path) -> None:
    for name, lines in (("hypotheses", HYPOTHESES), ("references", REFERENCES)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", "references", "-i", "hypotheses", "-m", "bleu", "chrf", "-w", "6"]
    printed = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    expected = {found["name"].lower().removesuffix("2"): found["score"] for found in json.loads(printed)}
    scores = score(HYPOTHESES, REFERENCES)
    assert scores["bleu"] == pytest.approx(expected["bleu"], abs=1e-6)
    assert scores["chrf"] == pytest.approx(expected["chrf"], abs=1e-6)


def test_bleu_and_chrf_are_those_of_the_package() -> None:
    from sacrebleu.metrics import BLEU, CHRF

    scores = score(HYPOTHESES, REFERENCES)
    assert scores["bleu"] == BLEU().corpus_score(HYPOTHESES, [REFERENCES]).score
    assert scores["chrf"] == CHRF().corpus_score(HYPOTHESES, [REFERENCES]).score
    assert 0 < scores["bleu"] < 100


def test_exact_match_counts_equal_texts_but_for_spaces_around_them() -> None:
    assert score(HYPOTHESES, REFERENCES)["exact_match"] == 0.4


def test_perfect_and_empty_translations() -> None:
    assert score(REFERENCES, REFERENCES) == pytest.approx({"bleu": 100, "chrf": 100, "exact_match": 1})
    assert score([""] * 5, REFERENCES) == {"bleu": 0, "chrf": 0, "exact_match": 0}


def test_nothing_is_printed_about_full_stops_that_stand_apart(capfd: pytest.CaptureFixture[str]) -> None:
    score(["it is so ."] * 200, ["so it is ."] * 200)
    assert capfd.readouterr() == ("", "")


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ConfigError) as caught:
        score(["a"], ["a"])
    assert str(caught.value) == (
        "needs the package sacrebleu to compute BLEU and chrF; install it: pip install 'dltrain[text]'"
    )
