"""The commands as a shell sees them: exit codes, stdout, stderr, and what becomes of closed or odd outputs."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dltrain import checkpoint as checkpoints
from dltrain.checkpoint import LAST
from dltrain.config.validate import load_config
from dltrain.run import Run, read_metrics
from dltrain.train import fit
from tests.small_runs import NUM_TEST, PATIENCE_S, command, dltrain, dltrain_here, one_json, small_config, write_config

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and its finished run runs/small/1."""
    folder = tmp_path_factory.mktemp("cli")
    write_config(folder)
    result = dltrain("fit", "small.yaml", cwd=folder)
    assert result.returncode == 0, result.stderr
    (folder / "stdout").write_text(result.stdout)
    (folder / "stderr").write_text(result.stderr)
    with np.load(folder / "data.npz") as data:
        np.savez(folder / "new.npz", x=data["x_test"], y=data["y_test"])
        np.save(folder / "new.npy", data["x_test"])
    return folder


# ---- fit ------------------------------------------------------------------------------------------------------------


def test_fit_puts_the_result_on_stdout_and_all_else_on_stderr(folder: Path) -> None:
    out, err = (folder / "stdout").read_text(), (folder / "stderr").read_text()
    assert "best val/accuracy" in out
    assert "next dltrain evaluate runs/small/1" in out
    assert "runs/small/1" in err
    assert err.count("\n") >= 3 + 3  # what is trained on what, and a line for each epoch


def test_without_a_terminal_there_are_no_control_codes(folder: Path) -> None:
    for text in ((folder / "stdout").read_text(), (folder / "stderr").read_text()):
        assert not [character for character in text if not character.isprintable() and character != "\n"]


def test_ctrl_c_while_data_load_ends_with_one_line(tmp_path: Path) -> None:
    code = "import signal\ndef load():\n    signal.raise_signal(signal.SIGINT)\n    raise ValueError('went on')\n"
    (tmp_path / "own.py").write_text(code)
    write_config(tmp_path, {"data": {"type": "own.py:load"}})
    result = dltrain_here("fit", "small.yaml", cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "stopped\n")


def test_fit_json_is_one_object_and_quiet_is_quiet(folder: Path) -> None:
    arguments = ("--json", "--quiet", "--set", "optimizer.lr=1e-3", "--set", "model.hidden=[4]", "--out", "sets")
    result = dltrain_here("fit", "small.yaml", *arguments, cwd=folder)
    assert (result.returncode, result.stderr) == (0, "")
    summary = one_json(result.stdout)
    assert summary["set"] == {"optimizer.lr": 1e-3, "model.hidden": [4]}
    assert summary["run"] == "sets/small/1"
    assert summary["step"] == summary["total_steps"] == 12
    saved = checkpoints.load(folder / "sets" / "small" / "1" / "checkpoints" / LAST)
    assert saved.meta["config"]["optimizer"]["lr"] == 1e-3
    assert saved.part("model")["layers.0.weight"].shape == (4, 6)


def test_a_second_run_gets_the_next_number_and_leaves_the_first_alone(folder: Path) -> None:
    before = {path: path.read_bytes() for path in (folder / "runs" / "small" / "1").rglob("*") if path.is_file()}
    result = dltrain_here("fit", "small.yaml", "--quiet", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert (folder / "runs" / "small" / "2" / "checkpoints" / LAST).is_file()
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["fit", "missing.yaml"], 2, "missing.yaml: cannot be read"),
        (["fit", "small.yaml", "--set", "optimizer.lrr=1"], 2, "--set optimizer.lrr=1"),
        (["fit", "small.yaml", "--set", "train.batch_size=0"], 2, "train.batch_size"),
        (["fit", "small.yaml", "--set", "data.path=none.npz"], 3, "none.npz: no such file"),
        (["fit", "small.yaml", "--set", "optimizer={type: sgd, lr: 1e30}"], 4, "Try a lower optimizer.lr"),
        (["fit", "small.yaml", "--device", "banana"], 2, "train.device"),
        (["fit"], 2, "needs a CONFIG, or --resume RUN"),
        (["fit", "small.yaml", "--unknown"], 2, "--unknown"),
        (["fit", "small.yaml", "--resume", "nowhere"], 2, "is no run directory"),
        (["fit", "--resume", "nowhere"], 5, "nowhere: there is no such checkpoint"),
        (
            ["fit", "small.yaml", "--resume", "runs/small/1", "--set", "seed=1"],
            2,
            "seed: is 1, the run was made with 0",
        ),
        (["fit", "small.yaml", "--out", "small.yaml"], 2, "--out small.yaml: no run directory can be made there"),
        (["evaluate", "nowhere"], 5, "nowhere: there is no such checkpoint"),
        (["evaluate", "small.yaml"], 5, "is damaged or no safetensors file"),
        (["evaluate", "runs/small/1", "--data", "none.npz"], 2, "--data none.npz: there is no such file or folder"),
        (["evaluate", "runs/small/1", "--device", "banana"], 2, "device: is 'banana'; possible: auto, cpu, cuda"),
        (["predict", "runs/small/1", "none.npz"], 3, "none.npz"),
        (["predict", "runs/small/1", "new.npz", "-o", "out.txt"], 2, "must end in .csv or .jsonl"),
        (["predict", "runs/small/1", "new.npz", "-o", "no/out.csv"], 2, "-o no/out.csv: cannot be written"),
        (["runs", "nowhere"], 2, "nowhere: there is no such folder of runs"),
        (["runs", "runs", "--sort", "val/accurcy"], 2, "did you mean 'val/accuracy'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_has_its_exit_code_and_no_traceback(
    arguments: list[str], code: int, message: str, folder: Path
) -> None:
    result = dltrain_here(*arguments, cwd=folder)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize(
    "arguments", [["fit", "small.yaml"], ["evaluate", "runs/small/1"], ["predict", "runs/small/1", "new.npz"]]
)
def test_cuda_on_a_machine_without_it_is_said_clearly(arguments: list[str], folder: Path) -> None:
    result = dltrain_here(*arguments, "--device", "cuda", cwd=folder)
    assert result.returncode == 2
    assert "'cuda' asks for a CUDA device and this machine has none" in result.stderr
    assert "use cpu or auto" in result.stderr
    assert "Traceback" not in result.stderr


# ---- evaluate -------------------------------------------------------------------------------------------------------


def evaluated(folder: Path, *arguments: str) -> dict[str, Any]:
    result = dltrain_here("evaluate", *arguments, "--json", cwd=folder)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = one_json(result.stdout)
    return found


def test_evaluate_takes_a_run_a_checkpoint_a_split_a_file_and_a_config(folder: Path) -> None:
    best = evaluated(folder, "runs/small/1")
    assert (best["split"], best["num_samples"]) == ("test", NUM_TEST)
    file = evaluated(folder, "runs/small/1/checkpoints/best.safetensors")
    assert file == best
    last = evaluated(folder, "runs/small/1/checkpoints/last.safetensors", "--split", "val")
    row = read_metrics(folder / "runs" / "small" / "1")[-1]
    assert last["metrics"] == {name.removeprefix("val/"): row[name] for name in row if name.startswith("val/")}
    other = evaluated(folder, "runs/small/1", "--data", "new.npz")
    assert (other["metrics"], other["report"]) == (best["metrics"], best["report"])
    by_config = evaluated(folder, "runs/small/1", "--data", "small.yaml")
    assert (by_config["metrics"], by_config["report"]) == (best["metrics"], best["report"])


def test_evaluate_shows_the_confusion_matrix_and_the_scores_of_each_class(folder: Path) -> None:
    result = dltrain_here("evaluate", "runs/small/1", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "confusion matrix: rows are targets, columns predictions" in result.stdout
    for word in ("accuracy", "precision", "recall", "f1", "support"):
        assert word in result.stdout
    report = evaluated(folder, "runs/small/1")["report"]
    assert sum(map(sum, report["confusion_matrix"])) == NUM_TEST
    assert [scores["support"] for scores in report["per_class"]] == [5, 5, 5]


def test_evaluate_works_from_another_folder_on_a_moved_run(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    subprocess.run(["cp", "-r", folder / "runs" / "small" / "1", moved], check=True)
    (tmp_path / "data.npz").write_bytes((folder / "new.npz").read_bytes())
    assert evaluated(tmp_path, "moved", "--data", "data.npz")["metrics"] == evaluated(folder, "runs/small/1")["metrics"]


# ---- predict --------------------------------------------------------------------------------------------------------


def rows_in(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("name", ["new.npz", "new.npy"])
def test_predictions_for_arrays_are_those_that_were_evaluated(name: str, folder: Path) -> None:
    to_stdout = dltrain_here("predict", "runs/small/1", name, cwd=folder)
    assert to_stdout.returncode == 0, to_stdout.stderr
    rows = rows_in(to_stdout.stdout)
    assert len(rows) == NUM_TEST
    for row in rows:
        probabilities = [float(row[f"probability_{label}"]) for label in (0, 1, 2)]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert int(row["prediction"]) == int(np.argmax(probabilities))
    with np.load(folder / "new.npz") as data:
        matrix = np.zeros((3, 3), int)
        np.add.at(matrix, (data["y"], [int(row["prediction"]) for row in rows]), 1)
    assert matrix.tolist() == evaluated(folder, "runs/small/1")["report"]["confusion_matrix"]


def test_predict_writes_csv_and_json_lines_with_the_same_content(folder: Path) -> None:
    for name in ("out.csv", "out.jsonl"):
        result = dltrain_here("predict", "runs/small/1", "new.npz", "-o", name, cwd=folder)
        assert result.returncode == 0, result.stderr
        assert result.stdout == ""
        assert f"{NUM_TEST} predictions in {name}" in result.stderr
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    table = rows_in((folder / "out.csv").read_text())
    assert [{key: str(value) for key, value in line.items()} for line in lines] == table
    assert not list(folder.glob("*.tmp"))


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table whose classes are not ASCII, a run on it, and new rows without the target."""
    folder = tmp_path_factory.mktemp("town")
    rng = np.random.default_rng(0)
    with (folder / "town.csv").open("w", encoding="utf-8") as all_rows, (folder / "new.csv").open("w") as new:
        all_rows.write("größe,farbe,stadt\n")
        new.write("größe,farbe\n")
        for _ in range(90):
            large = rng.random() > 0.5
            features = f"{rng.normal() + 3 * large:.3f},{rng.choice(['rot', 'grün', 'blau'])}"
            all_rows.write(f"{features},{'Zürich' if large else '東京'}\n")
            new.write(f"{features}\n")
    write_config(
        folder, {"data": {"type": "table", "path": "town.csv", "target": "stadt"}, "split": {"val": 0.2, "test": 0.2}}
    )
    result = dltrain_here("fit", "small.yaml", "--quiet", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_predictions_for_a_table_are_those_that_were_evaluated(town: Path) -> None:
    result = dltrain_here("predict", "runs/small/1", "new.csv", "-o", "out.jsonl", cwd=town)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (town / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    with (town / "town.csv").open(encoding="utf-8") as stream:
        targets = [row["stadt"] for row in csv.DictReader(stream)]
    assert {row["prediction"] for row in rows} <= {"Zürich", "東京"}
    right = sum(row["prediction"] == target for row, target in zip(rows, targets, strict=True))
    found = evaluated(town, "runs/small/1", "--data", "town.csv")
    assert right / len(targets) == pytest.approx(found["metrics"]["accuracy"])
    assert rows[4]["input"] == "new.csv: row 5"


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C", "COLUMNS": "1", "TERM": "dumb"},
        {"PYTHONIOENCODING": "ascii", "COLUMNS": "no number"},
    ],
    ids=str,
)
def test_odd_terminals_and_locales_do_no_harm(variables: dict[str, str], town: Path) -> None:
    """Both outputs in one process, which takes seconds to start."""
    code = (
        "import sys\nfrom dltrain.cli import main\n\nfor options in ([], ['--json']):\n"
        "    sys.argv = ['dltrain', 'evaluate', 'runs/small/1', *options]\n"
        "    try:\n        main()\n    except SystemExit as exit_:\n        assert not exit_.code\n"
        "    print(end='\\f')\n"
    )
    environment = {**os.environ, **variables}
    result = subprocess.run([sys.executable, "-c", code], cwd=town, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    shown, as_json, _ = result.stdout.split("\f")
    assert "confusion matrix" in shown
    assert one_json(as_json)["labels"] == ["Zürich", "東京"]


def test_predictions_for_images_are_those_that_were_evaluated(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label, value in (("dark", 60), ("light", 180)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(30):
            pixels = (value + rng.integers(-50, 50, (8, 8))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{i}.png")
    sections = {
        "data": {"type": "images", "path": "images"},
        "split": {"val": 0.2, "test": 0.2},
        "model": {"type": "convnet", "channels": [4]},
    }
    write_config(tmp_path, sections)
    assert dltrain_here("fit", "small.yaml", "--quiet", cwd=tmp_path).returncode == 0
    result = dltrain_here("predict", "runs/small/1", "images", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = rows_in(result.stdout)
    right = sum(f"/{row['prediction']}/" in row["input"] for row in rows)
    found = evaluated(tmp_path, "runs/small/1", "--data", "images")
    assert len(rows) == found["num_samples"] == 60
    assert right / 60 == pytest.approx(found["metrics"]["accuracy"])
    one = dltrain_here("predict", "runs/small/1", "images/dark/7.png", cwd=tmp_path)
    assert rows_in(one.stdout) == [row for row in rows if row["input"] == "images/dark/7.png"]


# ---- runs -----------------------------------------------------------------------------------------------------------


def test_runs_lists_sorts_and_prints_as_csv_and_json(tmp_path: Path, no_curves: None) -> None:
    for lr in (1e-6, 0.1, 0.01):
        write_config(tmp_path)
        fit(load_config(tmp_path / "small.yaml", [f"optimizer.lr={lr}"]), root=tmp_path / "runs")
    result = dltrain_here("runs", "runs", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = one_json(result.stdout)
    assert [row["run"] for row in rows] == ["runs/small/3", "runs/small/2", "runs/small/1"]
    assert {row["state"] for row in rows} == {"finished"}
    downwards = dltrain_here("runs", "runs", "--csv", "--sort", "-val/loss", cwd=tmp_path)
    values = [float(row["val/loss"]) for row in rows_in(downwards.stdout)]
    assert values == sorted((row["val/loss"] for row in rows), reverse=True)
    table = dltrain_here("runs", cwd=tmp_path)  # the folder runs is the default
    assert table.stdout.count("runs/small/") == 3


def test_runs_of_an_empty_folder_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    assert one_json(dltrain_here("runs", "--json", cwd=tmp_path).stdout) == []
    result = dltrain_here("runs", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, "")
    assert "no runs in runs" in result.stderr


# ---- closed and cut outputs -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "streams", "code"),
    [
        ("evaluate runs/small/1 --json", ">&-", 0),
        ("fit small.yaml --out closed", ">&- 2>&-", 0),
        ("evaluate nowhere", "2>&-", 5),
    ],
)
def test_closed_streams_do_no_harm(arguments: str, streams: str, code: int, folder: Path) -> None:
    line = " ".join(command(*arguments.split())) + f" {streams}"
    result = subprocess.run(["sh", "-c", line], cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["schema", "predict runs/small/1 many.npy"])
def test_a_reader_that_leaves_early_is_no_error_message(arguments: str, folder: Path) -> None:
    np.save(folder / "many.npy", np.zeros((5000, 6), np.float32))
    line = " ".join(command(*arguments.split())) + " | head -c 1 >/dev/null"
    result = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_package_can_be_used_from_python_as_from_the_shell(tmp_path: Path, no_curves: None) -> None:
    import dltrain as package

    file = small_config(tmp_path)
    run = package.fit(file, root=tmp_path / "runs")["run"]
    assert package.evaluate(run)["num_samples"] == NUM_TEST
    with np.load(tmp_path / "data.npz") as data:
        np.save(tmp_path / "x.npy", data["x_test"])
    assert len(list(package.predict(run, [os.fspath(tmp_path / "x.npy")]))) == NUM_TEST
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing


@pytest.mark.slow
def test_code_of_ones_own_that_fails_in_the_loop_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "calls = 0\ndef jitter(x, rng):\n    global calls\n    calls += 1\n    return x if calls < 4 else x[:, 100]\n"
    )
    write_config(tmp_path, {"augment": [{"type": "own.py:jitter"}]})
    ended = dltrain_here("fit", "small.yaml", "--quiet", cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("your own code failed: IndexError: index 100 is out of bounds")
    assert ended.stderr.rstrip().endswith("(own.py:5)")
    assert len(ended.stderr.splitlines()) == 1
    assert "failed" in dltrain_here("runs", cwd=tmp_path).stdout


def test_a_run_that_is_at_work_is_not_resumed(tmp_path: Path, no_curves: None) -> None:
    run = Path(fit(small_config(tmp_path), root=tmp_path / "runs")["run"])
    with Run.open(run):
        ended = dltrain_here("fit", "--resume", str(run), cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == f"--resume {run}: another process is at work in this run directory\n"
