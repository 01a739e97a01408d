"""The run directory: never shared, never overwritten, readable after any accident."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import resource
from pathlib import Path

import pytest

from dltrain.errors import ConfigError, TrainingError
from dltrain.run import Run, find_runs, is_locked, read_metrics
from tests.small_runs import in_child


def test_runs_are_numbered_after_the_highest_and_nothing_is_reused(tmp_path: Path) -> None:
    (tmp_path / "digits" / "7").mkdir(parents=True)
    (tmp_path / "digits" / "notes.txt").touch()
    folders = []
    for _ in range(2):
        with Run.create(tmp_path, "digits") as run:
            folders.append(run.folder.name)
    assert folders == ["8", "9"]


def _make_runs(root: Path) -> list[str]:
    folders = []
    for _ in range(10):
        with Run.create(root, "shared") as run:
            folders.append(run.folder.name)
    return folders


@pytest.mark.slow
def test_processes_that_begin_together_get_directories_of_their_own(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        folders = [name for names in pool.map(_make_runs, [tmp_path] * 2, chunksize=1) for name in names]
    assert sorted(map(int, folders)) == list(range(1, 21))


def test_a_run_in_use_is_locked_and_free_again_after_the_end_or_death_of_its_process(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "digits")
    assert is_locked(run.folder)
    with pytest.raises(ConfigError, match="another process is at work in this run directory"):
        Run.open(run.folder)
    run.close()
    assert not is_locked(run.folder)

    def die_with_the_lock() -> None:
        Run.open(run.folder)
        raise SystemExit  # the process ends by os._exit, as by a kill

    in_child(die_with_the_lock)
    with Run.open(run.folder):
        assert is_locked(run.folder)


def test_a_run_can_be_opened_while_it_is_being_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run.create(tmp_path, "digits") as run:
        folder = run.folder
    with (folder / ".lock").open() as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)
        monkeypatch.setattr("dltrain.run.time.sleep", lambda seconds: fcntl.flock(looked_at, fcntl.LOCK_UN))
        assert not is_locked(folder)
        with Run.open(folder):
            assert is_locked(folder)


def test_an_error_is_logged_and_lets_go_of_the_lock(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "digits")
    with pytest.raises(TrainingError), run:
        raise TrainingError("the loss is not finite")
    assert not is_locked(run.folder)
    assert "ended by TrainingError: the loss is not finite" in (run.folder / "log.txt").read_text()


def test_a_place_where_no_run_can_be_made_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--out .*file: no run directory can be made there: Not a directory"):
        Run.create(tmp_path / "file", "digits")


def test_a_run_that_cannot_be_written_to_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / ".lock").mkdir()
    with pytest.raises(ConfigError, match="cannot be written to"):
        Run.open(tmp_path)


def test_a_full_disk_is_a_training_error_that_names_the_file(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "digits")

    def write_much() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        for step in range(5):
            run.append_metrics({"step": step})
        with pytest.raises(TrainingError, match=r"metrics\.jsonl: cannot be written: File too large"), run:
            run.append_metrics({"step": 5, "text": "x" * 100})

    assert in_child(write_much) == 0
    rows = read_metrics(run.folder)
    assert rows == [{"step": step} for step in range(5)]  # without the line that was torn
    run.close()


def test_numbers_that_json_does_not_know_become_null(tmp_path: Path) -> None:
    with Run.create(tmp_path, "digits") as run:
        run.append_metrics({"step": 1, "val/loss": float("nan"), "val/r2": float("-inf"), "train/loss": 0.1})
    line = (run.folder / "metrics.jsonl").read_text()
    assert json.loads(line) == {"step": 1, "val/loss": None, "val/r2": None, "train/loss": 0.1}
    assert "NaN" not in line
    assert "Infinity" not in line


@pytest.mark.parametrize(
    "tail", ["", '{"step": 3', "\x00\x00", "[1]\n", '{"stop": 3}\n', "\n\n", b"\xff\xfe".decode("latin-1")]
)
def test_lines_that_are_torn_or_foreign_are_skipped(tail: str, tmp_path: Path) -> None:
    with Run.create(tmp_path, "digits") as run:
        run.append_metrics({"step": 1, "train/loss": 0.1})
        run.append_metrics({"step": 2, "train/loss": 1 / 3})
        with (run.folder / "metrics.jsonl").open("a", encoding="latin-1") as stream:
            stream.write(tail)
        assert read_metrics(run.folder) == [{"step": 1, "train/loss": 0.1}, {"step": 2, "train/loss": 1 / 3}]
        first = (run.folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)[0]
        run.cut_metrics(1)
        assert (run.folder / "metrics.jsonl").read_bytes() == first


def test_runs_are_found_at_any_depth_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("a/2", "a/10", "a/9", "b/1", "deep/er/1"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "no run").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in find_runs(tmp_path)]
    assert found == ["a/2", "a/9", "a/10", "b/1", "deep/er/1"]
    assert list(find_runs(tmp_path / "a" / "2")) == [tmp_path / "a" / "2"]
    assert list(find_runs(tmp_path / "missing")) == []
