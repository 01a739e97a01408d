"""What all tests share: one thread for torch (two processes test on two cores), and no colours."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["NO_COLOR"] = "1"
os.environ["COLUMNS"] = "160"

import pytest


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the drawing of curves.png, which takes longer than a small training."""
    monkeypatch.setattr("dltrain.curves.draw_curves", lambda folder: None)
