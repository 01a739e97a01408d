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

_LONG = (
    *("test_cache.py", "test_hosts.py", "test_sweep.py", "test_sweep_shared.py", "test_sharding.py", "test_ranks.py"),
    *("test_cli.py", "test_processes.py", "test_compilation.py", "test_resume.py", "test_soak.py", "test_configs.py"),
)
"""Files whose tests take longest. They come first: else one process works at the last of them, and the other waits."""

atexit.register(shutil.rmtree, os.environ["DLTRAIN_CACHE"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _LONG.index(item.path.name) if item.path.name in _LONG else len(_LONG))


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the drawing of curves.png, which takes longer than a small training."""
    for place in ("dltrain.curves", "dltrain.sweep.sweep"):
        monkeypatch.setattr(f"{place}.draw_curves", lambda folder: None)
