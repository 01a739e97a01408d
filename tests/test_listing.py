"""`dltrain runs`: what lies in a folder, whatever else lies there."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from dltrain.errors import ConfigError
from dltrain.listing import list_runs, show, write_csv
from dltrain.run import Run


def make_run(root: Path, name: str, started: str, losses: list[float | None], finished: bool = True) -> Path:
    with Run.create(root, name) as run:
        for step, loss in enumerate(losses, start=1):
            run.append_metrics({"step": step, "epoch": step / 2, "val/loss": loss})
    end = f"\n{started} finished at step 2: ..." if finished else ""
    run.write("log.txt", f"{started} start at step 0 of 2 on cpu{end}\n")
    return run.folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_run(tmp_path, "a", "2026-01-01 10:00:00", [0.5, 0.3])
    make_run(tmp_path, "b", "2026-01-03 10:00:00", [0.5, 0.9], finished=False)
    make_run(tmp_path, "a", "2026-01-02 10:00:00", [0.5, None])
    make_run(tmp_path, "a", "2026-01-02 10:00:00", [0.5, 0.1])
    return tmp_path


def names(rows: list[dict[str, object]], root: Path) -> list[str]:
    return [str(Path(str(row["run"])).relative_to(root)) for row in rows]


def test_the_newest_run_comes_first_also_within_one_second(root: Path) -> None:
    assert names(list_runs(root), root) == ["b/1", "a/3", "a/2", "a/1"]


@pytest.mark.parametrize(
    ("sort", "order"), [("val/loss", ["a/3", "a/1", "b/1", "a/2"]), ("-val/loss", ["b/1", "a/1", "a/3", "a/2"])]
)
def test_runs_without_the_value_come_last_in_both_directions(sort: str, order: list[str], root: Path) -> None:
    assert names(list_runs(root, sort), root) == order


def test_the_state_tells_running_stopped_and_finished_apart(root: Path) -> None:
    with Run.open(root / "a" / "1"):
        rows = list_runs(root)
    states = dict(zip(names(rows, root), [row["state"] for row in rows], strict=True))
    assert states == {"a/1": "running", "a/2": "finished", "a/3": "finished", "b/1": "stopped"}


def test_a_finished_run_that_is_resumed_for_longer_and_stopped_is_not_finished(root: Path) -> None:
    with Run.open(root / "a" / "1") as run:
        run.log("resume at step 2 of 4 on cpu")
        run.log("ended by Stopped: stopped after step 3 of 4")
    states = {str(row["run"]): row["state"] for row in list_runs(root)}
    assert states[str(root / "a" / "1")] == "stopped"
    with Run.open(root / "a" / "1") as run:
        run.log("resume at step 3 of 4 on cpu")
        run.log("finished at step 4: ...")
    assert {str(row["run"]): row["state"] for row in list_runs(root)} == states | {str(run.folder): "finished"}


def test_listing_leaves_no_trace_in_a_run(root: Path) -> None:
    (root / "b" / "1" / ".lock").unlink()
    before = sorted(root.rglob("*"))
    list_runs(root)
    assert sorted(root.rglob("*")) == before


def test_an_unknown_column_is_answered_with_the_nearest(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"--sort val/los: no run has that; possible: run, .*did you mean 'val/loss'"):
        list_runs(root, "val/los")


def test_damaged_and_empty_runs_are_listed_too(root: Path) -> None:
    (root / "a" / "1" / "metrics.jsonl").write_bytes(b'\xff\xfe{"step": 1')
    (root / "a" / "1" / "log.txt").unlink()
    (root / "empty" / "1" / "checkpoints").mkdir(parents=True)
    rows = list_runs(root, "val/loss")
    assert len(rows) == 5
    show(rows, root)


def test_csv_has_the_columns_of_all_runs(root: Path) -> None:
    with (root / "b" / "1" / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": 3, "val/rmse": 1.5}) + "\n")
    text = io.StringIO()
    write_csv(list_runs(root), text)
    rows = list(csv.DictReader(io.StringIO(text.getvalue())))
    assert [row["val/rmse"] for row in rows] == ["1.5", "", "", ""]
    assert rows[0]["val/loss"] == ""


def test_the_table_shows_the_metrics(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(list_runs(root), root)
    out = capsys.readouterr().out
    assert "val/loss" in out
    assert "0.3000" in out


def test_a_run_shows_its_best_row_what_was_set_and_how_it_failed(tmp_path: Path) -> None:
    with Run.create(tmp_path, "a") as run:
        for step, (loss, best) in enumerate([(0.5, True), (0.2, True), (0.9, False)], start=1):
            run.append_metrics({"step": step, "epoch": float(step), "val/loss": loss, "best": best})
    run.write("environment.json", json.dumps({"set": {"optimizer.lr": 0.1}}))
    run.write("log.txt", "2026-01-01 10:00:00 start at step 0 of 9 on cpu\n2026-01-01 10:00:01 ended by TypeError: x\n")
    (row,) = list_runs(tmp_path)
    assert row == {
        "run": str(run.folder),
        "state": "failed",
        "started": "2026-01-01 10:00:00",
        "epoch": 3.0,
        "best_epoch": 2.0,
        "optimizer.lr": 0.1,
        "val/loss": 0.2,
    }
