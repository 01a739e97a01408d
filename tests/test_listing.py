"""`dltrain runs`: what lies in a folder, whatever else lies there."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from dltrain.config.reader import write_text
from dltrain.errors import ConfigError
from dltrain.listing import flat, list_runs, read_tags, show, write_csv
from dltrain.run import Run
from tests.small_runs import fit_with_stops, small_config


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


def test_a_run_that_lost_a_process_is_one_to_go_on_with(tmp_path: Path) -> None:
    with Run.create(tmp_path, "a") as run:
        run.log("start at step 0 of 9 on 2 processes on cpu")
        run.log("ended by Lost: another process of this training does not answer any more: Connection reset by peer")
    assert list_runs(tmp_path)[0]["state"] == "stopped"


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


# ---- filters, settings, tags -----------------------------------------------------------------------------------------


def make_trained(
    root: Path,
    lr: float,
    accuracy: float | None,
    tags: dict[str, str] | None = None,
    changed: bool = True,
    **more: object,
) -> Path:
    """Make a run of the config "sweep" with a resolved.yaml; `more` are settings of the model."""
    with Run.create(root, "sweep") as run:
        run.append_metrics({"step": 1, "epoch": 1.0, "val/accuracy": accuracy, "best": True, "elapsed_s": 2.5})
    model = {"type": "mlp", "hidden": [8, 8], "bias": True, **more}
    run.write("resolved.yaml", write_text({"name": None, "seed": 0, "model": model, "optimizer": {"lr": lr}}))
    given = {"optimizer.lr": lr} if changed else {}
    run.write("environment.json", json.dumps({"set": given, "tags": tags or {}}))
    run.write("log.txt", f"2026-01-0{run.folder.name} 10:00:00 start\n2026-01-01 10:00:01 finished\n")
    return run.folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    make_trained(tmp_path, 1e-3, 0.8, {"owner": "ana", "fold": "1"})
    make_trained(tmp_path, 1e-2, 0.95, {"owner": "bo", "fold": "10"})
    make_trained(tmp_path, 1e-1, None, {"owner": "ana", "fold": "2"}, dropout=0.5)
    return tmp_path


@pytest.mark.parametrize(
    ("where", "numbers"),
    [
        (["val/accuracy > 0.9"], "2"),
        (["val/accuracy>=0.8"], "12"),
        (["val/accuracy == null"], "3"),
        (["val/accuracy != 0.8"], "23"),
        (["optimizer.lr < 0.01"], "1"),
        (["optimizer.lr <= 1e-2"], "12"),
        (["optimizer.lr = 0.1"], "3"),
        (["model.hidden == [8, 8]", "optimizer.lr != 0.1"], "12"),
        (["model.hidden == [8,8]"], "123"),
        (["model.bias == true"], "123"),
        (["model.bias == 1"], ""),
        (["model.dropout == 0.5"], "3"),
        (["model.dropout != 0.5"], "12"),
        (["tag.owner == ana"], "13"),
        (["tag.owner == 'ana'"], "13"),
        (["tag.fold == 10"], "2"),
        (["tag.fold > 1"], "23"),
        (["name == sweep"], "123"),
        (["state == finished", "started > 2026-01-02"], "23"),
        (["state == stopped"], ""),
        (["seed < 1", "tag.owner == ana", "val/accuracy < 1"], "1"),
    ],
    ids=" and ".join,
)
def test_conditions_choose_runs_and_all_must_hold(where: list[str], numbers: str, sweep: Path) -> None:
    assert "".join(sorted(Path(str(row["run"])).name for row in list_runs(sweep, where=where))) == numbers


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("val/acuracy > 0.9", "--where val/acuracy > 0.9: no run has 'val/acuracy'; did you mean 'val/accuracy'?"),
        ("accuracy > 0.9", "--where accuracy > 0.9: no run has 'accuracy'; did you mean 'val/accuracy'?"),
        ("lr < 0.1", "--where lr < 0.1: no run has 'lr'; did you mean 'optimizer.lr'?"),
        ("tag.ownr == ana", "--where tag.ownr == ana: no run has 'tag.ownr'; did you mean 'tag.owner'?"),
        (
            "val/accuracy",
            "--where val/accuracy: is not of the form 'KEY OP VALUE', such as 'val/accuracy > 0.9', in quotes; "
            "possible OP: ==, !=, <, <=, >, >=",
        ),
        (
            "__import__('os').getcwd() == 1",
            "--where __import__('os').getcwd() == 1: no run has '__import__('os').getcwd()'",
        ),
        (
            "optimizer.lr < small",
            "--where optimizer.lr < small: optimizer.lr is 0.1, which is neither less nor more than 'small'",
        ),
    ],
)
def test_a_condition_that_cannot_be_meant_is_answered_exactly(where: str, message: str, sweep: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        list_runs(sweep, where=[where])
    assert str(caught.value) == message


def test_a_condition_on_an_empty_folder_is_no_error(tmp_path: Path) -> None:
    assert list_runs(tmp_path, where=["val/accuracy > 0.9"]) == []


def test_rows_have_the_settings_in_which_runs_of_one_name_differ_though_nobody_set_them(tmp_path: Path) -> None:
    make_trained(tmp_path, 0.1, 0.5, changed=False)
    make_trained(tmp_path, 0.2, 0.5, changed=False, hidden=[4])
    other = make_run(tmp_path, "other", "2026-01-01 10:00:00", [0.5])
    (other / "resolved.yaml").write_text("seed: 9\noptimizer: {lr: 0.7}\n")
    rows = list_runs(tmp_path, sort="run")
    settings = [{key: value for key, value in row.items() if "." in key or key == "seed"} for row in rows]
    assert settings == [
        {"optimizer.lr": 0.7},
        {"model.hidden": [8, 8], "optimizer.lr": 0.1},
        {"model.hidden": [4], "optimizer.lr": 0.2},
    ]


def test_the_table_leaves_out_settings_and_tags_that_are_the_same_everywhere(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(list_runs(sweep), sweep)
    head = capsys.readouterr().out.splitlines()[0].split()
    assert head[:6] == ["run", "state", "started", "epoch", "best_epoch", "optimizer.lr"]
    assert "tag.owner" in head
    show(list_runs(sweep, where=["tag.owner == ana"]), sweep)
    head = capsys.readouterr().out.splitlines()[0].split()
    assert "optimizer.lr" in head
    assert "tag.owner" not in head


def test_a_sweep_over_seeds_shows_the_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (3, 4):
        run = make_trained(tmp_path, 0.1, 0.5)
        (run / "resolved.yaml").write_text(f"seed: {seed}\n")
    show(list_runs(tmp_path), tmp_path)
    assert "seed" in capsys.readouterr().out.splitlines()[0].split()


def test_chosen_columns_come_alone_and_in_their_order(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list_runs(sweep, sort="optimizer.lr", columns=["model.dropout", "elapsed_s", "optimizer.lr"])
    assert [list(row.items()) for row in rows] == [
        [("model.dropout", None), ("elapsed_s", 2.5), ("optimizer.lr", 0.001)],
        [("model.dropout", None), ("elapsed_s", 2.5), ("optimizer.lr", 0.01)],
        [("model.dropout", 0.5), ("elapsed_s", 2.5), ("optimizer.lr", 0.1)],
    ]
    show(rows, sweep, whole=True)
    assert capsys.readouterr().out.splitlines()[1].split() == ["-", "2.5000", "0.001"]
    with pytest.raises(ConfigError) as caught:
        list_runs(sweep, columns=["run", "lr"])
    assert str(caught.value) == "--columns lr: no run has that; did you mean 'optimizer.lr'?"


def test_tags_that_are_numbers_sort_as_numbers(sweep: Path) -> None:
    assert [row["tag.fold"] for row in list_runs(sweep, sort="-tag.fold")] == ["10", "2", "1"]


def test_sorting_by_a_setting_shows_it(sweep: Path) -> None:
    assert [row["model.bias"] for row in list_runs(sweep, sort="model.bias")] == [True] * 3


def test_csv_writes_lists_and_truth_as_yaml_does_and_nothing_for_no_runs(sweep: Path) -> None:
    text = io.StringIO()
    write_csv(list_runs(sweep, columns=["model.hidden", "model.bias"]), text)
    assert text.getvalue().splitlines()[:2] == ["model.hidden,model.bias", '"[8, 8]",true']
    empty = io.StringIO()
    write_csv([], empty)
    assert empty.getvalue() == ""


@pytest.mark.parametrize("name", ["environment.json", "resolved.yaml", "metrics.jsonl", "log.txt"])
def test_a_file_that_is_torn_takes_nothing_else_with_it(name: str, sweep: Path) -> None:
    path = sweep / "sweep" / "2" / name
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2] + b"\xff")
    rows = list_runs(sweep, where=["name == sweep"])
    assert len(rows) == 3


def test_lists_of_components_are_named_by_position_as_set_names_them() -> None:
    tree = {"a": {"b": [{"c": 1}, {"d": [1, 2]}]}, "e": [], "f": {}}
    assert flat(tree) == {"a.b.0.c": 1, "a.b.1.d": [1, 2], "e": [], "f": {}}


@pytest.mark.parametrize("option", ["owner", "=ana", "a b=c", "a.b=c", "a=\x1b[0m"])
def test_a_tag_has_a_name_and_a_value(option: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_tags([option])
    assert str(caught.value) == f"--tag {option}: is not of the form NAME=VALUE; a name has letters, digits, - and _"


def test_the_last_tag_of_a_name_counts() -> None:
    assert read_tags(["a=1", "b=x=y", "a="]) == {"a": "", "b": "x=y"}


def test_tags_are_kept_by_a_run_that_is_stopped_and_resumed_and_are_no_settings(
    tmp_path: Path, no_curves: None
) -> None:
    file = replace(small_config(tmp_path, {}), tags={"owner": "ana", "note": "0x10"})
    run = fit_with_stops(file, tmp_path / "runs", stops=(5,))
    (row,) = list_runs(tmp_path / "runs")
    assert (row["tag.owner"], row["tag.note"], row["state"]) == ("ana", "0x10", "finished")
    assert "tag" not in (run / "resolved.yaml").read_text()
    assert "tag" not in (run / "config.yaml").read_text()


def test_the_tags_of_the_first_runs_are_read(tmp_path: Path) -> None:
    run = make_trained(tmp_path, 0.1, 0.5)
    (run / "environment.json").write_text(json.dumps({"set": {"optimizer.lr": 0.1, "tag.owner": "ana"}}))
    (row,) = list_runs(tmp_path)
    assert (row["tag.owner"], row["optimizer.lr"]) == ("ana", 0.1)
