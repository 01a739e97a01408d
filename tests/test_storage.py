"""Where the cache is, and large arrays on the disk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dltrain.data import storage

MIB = 2**20


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "memory_bytes", lambda: 64 * MIB)


def is_on_disk(array: np.ndarray) -> bool:
    """Return whether the memory of an array is that of a file."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if start <= address < end:
            return "(deleted)" in line and " rw-s " in line
    raise AssertionError("the array is nowhere")


# ---- where the cache is


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"DLTRAIN_CACHE": "/a/b"}, "/a/b"),
        ({"DLTRAIN_CACHE": "~/b"}, "/home/me/b"),
        ({"DLTRAIN_CACHE": "off"}, None),
        ({"DLTRAIN_CACHE": "", "XDG_CACHE_HOME": "/x"}, "/x/dltrain"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/dltrain"),
        ({}, "/home/me/.cache/dltrain"),
    ],
)
def test_the_folder_of_the_cache(
    variables: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DLTRAIN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    assert storage.cache_folder() == (None if expected is None else Path(expected))


# ---- arrays


def test_a_small_array_is_memory(little_memory: None) -> None:
    array = storage.allocate((4, 1024, 1024), np.uint8)
    assert not is_on_disk(array)
    assert (array.shape, array.dtype) == ((4, 1024, 1024), np.uint8)


def test_a_large_array_is_a_file_without_a_name(
    little_memory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLTRAIN_CACHE", str(tmp_path / "new" / "cache"))
    array = storage.allocate((5, MIB), np.float32)
    array[3] = 7
    assert is_on_disk(array)
    assert array.sum() == 7 * MIB
    assert (array.shape, array.dtype) == ((5, MIB), np.float32)
    assert list((tmp_path / "new" / "cache").iterdir()) == []
    taken = storage.gather(array, np.array([3, 0, 3, 1, 2]))
    assert is_on_disk(taken)
    np.testing.assert_array_equal(taken[:, 0], [7, 0, 7, 0, 0])


@pytest.mark.parametrize("cache", ["off", "/proc/no/folder"])
def test_without_a_cache_it_lies_where_temporary_files_do(
    cache: str, little_memory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLTRAIN_CACHE", cache)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert is_on_disk(storage.allocate((20 * MIB,), np.uint8))


def test_on_a_full_disk_it_is_memory(little_memory: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    array = storage.allocate((20 * MIB,), np.uint8)
    array[:] = 1
    assert not is_on_disk(array)


@given(st.lists(st.integers(0, 9), max_size=20))
def test_gather_is_indexing(indices: list[int]) -> None:
    array = np.arange(30).reshape(10, 3)
    np.testing.assert_array_equal(storage.gather(array, np.array(indices, np.int64)), array[indices or []])


def test_gather_of_one_stretch_copies_nothing() -> None:
    array = np.arange(30).reshape(10, 3)
    assert storage.gather(array, np.arange(2, 8)).base is array.base
    assert not np.shares_memory(storage.gather(array, np.array([2, 4])), array)
