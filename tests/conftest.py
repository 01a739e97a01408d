"""What all tests share: one thread for torch (two processes test on two cores), no colours, a cache of their own."""

import atexit
import os
import shutil
import tempfile

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["NO_COLOR"] = "1"
os.environ["COLUMNS"] = "160"
os.environ["DLTRAIN_CACHE"] = tempfile.mkdtemp(prefix="dltrain-cache-")

import pytest

atexit.register(shutil.rmtree, os.environ["DLTRAIN_CACHE"], ignore_errors=True)


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the drawing of curves.png, which takes longer than a small training."""
    monkeypatch.setattr("dltrain.curves.draw_curves", lambda folder: None)
