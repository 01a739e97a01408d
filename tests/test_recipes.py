"""The recipes of docs/sweeping-from-the-shell.md, each run as it stands there; and many trainings at once."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dltrain.config.validate import load_config
from dltrain.listing import list_runs
from dltrain.train import fit
from tests.forked_command import forked_command
from tests.small_runs import PATIENCE_S, StopAt, write_config

PAGE = Path(__file__).parent.parent / "docs" / "sweeping-from-the-shell.md"
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", PAGE.read_text(encoding="utf-8"), re.M))
BLOCK = re.compile(r"^```(sh|sbatch)\n(.*?)^```$", re.M | re.S)

NEW_RUNS = {
    "One after the other": 2,
    "Several at once with xargs": 3,
    "A grid with GNU parallel": 4,
    "A random search": 4,
    "One GPU for each training": 2,
    "A queue for two GPUs with GNU parallel": 3,
    "A SLURM array": 4,
    "Go on with all that was stopped": 0,
    "The table of a sweep": 0,
    "The best run, measured on the test samples": 0,
    "What two runs differ in": 0,
    "Is it better, or was it luck?": 6,
    "Compare what a filter finds": 4,
}
"""How many runs each recipe adds to the three that are there."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with config.yaml, two finished runs with the tag sweep=lr, one that was stopped, and the command."""
    folder = tmp_path_factory.mktemp("recipes")
    path = write_config(folder, {"train": {"duration": "1 epochs"}}, name="config.yaml")
    (folder / "bin").mkdir()
    for lr in (1e-3, 1e-2):
        file = replace(load_config(path, [f"optimizer.lr={lr}"]), tags={"sweep": "lr"})
        fit(file, root=folder / "runs", curves=False)
    with pytest.raises(Exception, match="stopped at step 2 of 4"):
        fit(load_config(path), root=folder / "runs", progress=StopAt(2), curves=False)
    with forked_command(folder / "bin"):
        yield folder


@pytest.fixture
def folder(start: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(start, tmp_path / "sweep"))


def run_shell(text: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run lines of bash; an error in any command of them ends them, as a person would stop there."""
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(PAGE.parent.parent), **variables}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_recipe(title: str, folder: Path) -> subprocess.CompletedProcess[str]:
    ((language, text),) = BLOCK.findall(SECTIONS[title])
    for tool in ("parallel", "jq"):
        if re.search(rf"\b{tool} ", text) and shutil.which(tool) is None:
            pytest.skip(f"NOT TESTED: the recipe '{title}' needs {tool}: apt-get install {tool}")
    if language == "sbatch":
        (folder / "sweep.sbatch").write_text(text)
        tasks = "seq 0 3 | xargs -P 2 -I{} env SLURM_ARRAY_TASK_ID={} SLURM_ARRAY_JOB_ID=77 SLURM_CPUS_PER_TASK=1"
        return run_shell(f"{tasks} bash sweep.sbatch > results.jsonl", folder)
    return run_shell(text, folder)


def test_every_recipe_of_the_page_is_tested() -> None:
    assert list(SECTIONS) == list(NEW_RUNS)
    assert len(BLOCK.findall(PAGE.read_text(encoding="utf-8"))) == len(SECTIONS)


@pytest.mark.parametrize("title", NEW_RUNS)
def test_a_recipe_does_what_the_page_says(title: str, folder: Path) -> None:
    result = run_recipe(title, folder)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    rows = list_runs(folder / "runs")
    assert len(rows) == 3 + NEW_RUNS[title]
    num_stopped = 0 if title.startswith("Go on") else 1
    assert sorted(str(row["state"]) for row in rows) == sorted(
        ["stopped"] * num_stopped + ["finished"] * (len(rows) - num_stopped)
    )
    if (folder / "results.jsonl").exists():
        lines = lines_of(folder / "results.jsonl")
        assert len({str(line["run"]) for line in lines}) == len(lines) == NEW_RUNS[title]
    if title in CHECKS:
        CHECKS[title](folder, result.stdout.splitlines())


def the_best_comes_last(folder: Path, lines: list[str]) -> None:
    cells = [line.split("\t") for line in lines]
    assert {cell[0] for cell in cells} == {"0.001", "0.01"}
    assert float(cells[0][1]) <= float(cells[1][1])


def the_tasks_share_out_the_grid(folder: Path, lines: list[str]) -> None:
    rows = list_runs(folder / "runs", where=["tag.array == 77"], columns=["optimizer.lr", "seed"])
    assert sorted(tuple(row.values()) for row in rows) == [(0.001, 0), (0.001, 1), (0.01, 0), (0.01, 1)]


def the_tables_hold_the_sweep(folder: Path, lines: list[str]) -> None:
    table = (folder / "sweep.csv").read_text().splitlines()
    assert table[0] == "run,optimizer.lr,val/accuracy,val/loss,elapsed_s"
    assert len(table) == 3
    assert lines[-1].startswith("runs/config/1\t")


def the_last_line_is_the_result(folder: Path, lines: list[str]) -> None:
    assert lines[-1].startswith("val/accuracy ")
    assert "paired t-test, n = " in lines[-1]


CHECKS = {
    "One after the other": the_best_comes_last,
    "A SLURM array": the_tasks_share_out_the_grid,
    "The table of a sweep": the_tables_hold_the_sweep,
    "Is it better, or was it luck?": the_last_line_is_the_result,
    "Compare what a filter finds": the_last_line_is_the_result,
}


def test_eight_trainings_at_once_share_a_folder_and_each_has_its_own_run(folder: Path) -> None:
    line = (
        "seq 8 | xargs -P 8 -I{} dltrain fit config.yaml --set seed={} --tag number={} --json --quiet > results.jsonl"
    )
    result = run_shell(line, folder, OMP_NUM_THREADS="1")
    assert (result.returncode, result.stderr) == (0, "")
    told = {str(line["run"]): line for line in lines_of(folder / "results.jsonl")}
    assert sorted(told) == sorted(f"runs/config/{number}" for number in range(4, 12))
    for run, line in told.items():
        (row,) = list_runs(folder / run, columns=["seed", "tag.number", "state", "step"])
        assert row == {"seed": line["set"]["seed"], "tag.number": str(row["seed"]), "state": "finished", "step": 4}  # type: ignore[index]
