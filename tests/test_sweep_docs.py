"""The recipes of docs/sweeps.md as they stand there; plans of a sweep, and the config of its best trial."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from dltrain.config.validate import load_config
from dltrain.errors import ConfigError
from dltrain.listing import list_runs
from dltrain.sweep.best import best_text
from dltrain.sweep.folder import config_of
from dltrain.sweep.journal import read_events, trials_of
from dltrain.sweep.listing import commands, plan_text
from dltrain.sweep.sweep import sweep
from dltrain.train import fit
from tests.forked_command import forked_command
from tests.small_runs import Sections, dltrain_here, one_json, weights_of, write_config
from tests.test_recipes import BLOCK, run_shell

pytestmark = pytest.mark.usefixtures("no_curves")

PAGE = Path(__file__).parent.parent / "docs" / "sweeps.md"
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", PAGE.read_text(encoding="utf-8"), re.M))
SPACE = {"optimizer.lr": {"log_uniform": [1e-3, 1e-1]}, "model.hidden": [[4], [8, 8]]}
NUM_RUNS = {
    "The best trial as a config": 5,
    "When it ends early": 4,
    "GNU parallel": 4,
    "SLURM": 4,
    "A queue of your own": 4,
    "Several machines": 4,
}
"""How many runs each recipe makes."""
SBATCH = """#!/bin/bash
# What SLURM does with an array: the script for each task, with its number.
last=$(sed -n 's/^#SBATCH --array=1-//p' "${@: -1}")
for SLURM_ARRAY_TASK_ID in $(seq "$last"); do export SLURM_ARRAY_TASK_ID; bash "${@: -1}"; done
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with config.yaml, and the commands dltrain and sbatch."""
    folder = tmp_path_factory.mktemp("sweeps")
    sections = {"train": {"duration": "1 epochs"}, "sweep": {"space": SPACE, "slots": 1}}
    write_config(folder, sections, name="config.yaml")
    (folder / "bin").mkdir()
    (folder / "bin" / "sbatch").write_text(SBATCH)
    (folder / "bin" / "sbatch").chmod(0o755)
    with forked_command(folder / "bin"):
        yield folder


@pytest.fixture
def folder(start: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(start, tmp_path / "sweep"))


def test_every_recipe_of_the_page_is_tested() -> None:
    assert list(SECTIONS) == list(NUM_RUNS)


@pytest.mark.slow
@pytest.mark.parametrize("title", NUM_RUNS)
def test_a_recipe_does_what_the_page_says(title: str, folder: Path) -> None:
    ((_, text),) = BLOCK.findall(SECTIONS[title])
    if "parallel" in text and shutil.which("parallel") is None:
        pytest.skip(f"NOT TESTED: the recipe '{title}' needs parallel: apt-get install parallel")
    result = run_shell(text, folder, OMP_NUM_THREADS="1", SWEEP_DB="sqlite:///sweep.db")
    assert result.returncode == 0, result.stderr
    rows = list_runs(folder / "runs")
    assert [row["state"] for row in rows] == ["finished"] * NUM_RUNS[title]
    if (folder / "best.yaml").exists():
        assert load_config(folder / "best.yaml").config.sweep is None


# ---- plans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["random", "sobol", "grid"])
def test_a_plan_has_the_trials_of_the_sweep(tmp_path: Path, sampler: str) -> None:
    space = {"optimizer.lr": {"log_uniform": [1e-3, 1e-1], "points": 2}, "model.hidden": [[4], [8, 8]]}
    settings = {"space": space, "sampler": sampler, "trials": 3, "seeds": 2, "slots": 1}
    path = write_config(tmp_path, {"sweep": settings})
    file = load_config(path, ["train.duration=1 epochs", "sweep.trials=2"])
    lines = [shlex.split(line) for line in commands(file, str(path))]
    folder = Path(sweep(file, root=tmp_path / "runs")["sweep"])
    trials = trials_of(read_events(folder), 2)
    assert [line[-1] for line in lines] == ["trial=1", "trial=1", "trial=2", "trial=2"]
    for number, index, line in ((1, 1, lines[1]), (2, 0, lines[2])):
        options = [word for before, word in pairwise(line) if before == "--set"]
        run = Path(fit(load_config(line[2], options), root=tmp_path / "plain")["run"])
        ours, theirs = weights_of(folder / trials[number].runs[index].folder), weights_of(run)
        assert all(ours[name].equal(theirs[name]) for name in ours)


def test_samplers_that_learn_and_pruners_cannot_be_planned(tmp_path: Path) -> None:
    path = write_config(tmp_path, {"sweep": {"space": SPACE, "sampler": "tpe"}})
    with pytest.raises(ConfigError, match=r"small.yaml:\d+:\d+: sweep.sampler: is tpe, which learns from trials; .*"):
        commands(load_config(path), "small.yaml")
    with pytest.raises(ConfigError, match=r"sweep.pruner: is asha, which compares trials while they run; .* none"):
        commands(load_config(path, ["sweep.sampler=random", "sweep.pruner=asha"]), "small.yaml")


def test_a_plan_is_quoted_for_the_shell(tmp_path: Path) -> None:
    path = write_config(tmp_path, {"sweep": {"space": {"model": [{"type": "mlp", "hidden": [4]}]}, "sampler": "grid"}})
    text = plan_text(load_config(path), "my config.yaml", "lines")
    line = """dltrain fit 'my config.yaml' --set 'model={"type": "mlp", "hidden": [4]}' --tag trial=1\n"""
    assert text == line


def test_the_second_word_is_a_command_and_a_config_of_its_name_has_a_folder(tmp_path: Path) -> None:
    settings = {"space": SPACE, "slots": 1, "trials": 1}
    write_config(tmp_path, {"sweep": settings}).rename(tmp_path / "best")
    assert dltrain_here("sweep", "plan", "best", cwd=tmp_path).stdout.startswith("dltrain fit best --set ")
    result = dltrain_here("sweep", "best", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (
        2,
        "runs: has no folder of a sweep; give one, such as runs/digits-sweep/1\n",
    )
    result = dltrain_here("sweep", "./best", "--json", "--quiet", cwd=tmp_path)
    assert one_json(result.stdout)["finished"] == 1
    assert dltrain_here("sweep", "best", cwd=tmp_path).stdout.startswith("# Trial 1 of 1 of a sweep of ")


# ---- the best --------------------------------------------------------------------------------------------------------

COMMENTED = """\
# Mine.

data: {type: arrays, path: data.npz, scale: none}   # where they are
model:
  type: mlp
  hidden:      # how wide
    - 8
    - 4        # and the last
optimizer: {type: adamw, lr: 0.01}  # fast

# What is tried.
sweep:
  space:
    optimizer.lr: [0.02]
    model.hidden: [[5]]
    model.dropout: [0.25]   # not written above
    optimizer.weight_decay: [0]
    regularization.clip: [{type: norm, max_norm: 1.5}]
  slots: 1
  sampler: grid

train:
  duration: 1 epochs
  device: cpu   # anywhere
"""


def best_of(folder: Path, number: int | None = None) -> str:
    events = read_events(folder)
    file = config_of(folder, events)
    assert file.config.sweep is not None
    return best_text(file, trials_of(events, file.config.sweep.seeds), events[0]["goals"], number)


def test_the_best_config_is_the_users_with_the_settings_in_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    (tmp_path / "mine.yaml").write_text(COMMENTED)
    summary = sweep(load_config("mine.yaml", ["train.batch_size=10"]))
    text = best_of(Path(summary["sweep"]))
    value = summary["best"][0]["values"]["val/accuracy"]
    assert text.splitlines() == [
        f"# Trial 1 of 1 of a sweep of mine.yaml: val/accuracy {value:.4f}.",
        "# Mine.",
        "",
        "data: {type: arrays, path: data.npz, scale: none}   # where they are",
        "model:",
        "  type: mlp",
        "  hidden: [5]        # and the last",
        "  dropout: 0.25",
        "optimizer: {type: adamw, lr: 0.02, weight_decay: 0}  # fast",
        "",
        "train:",
        "  duration: 1 epochs",
        "  device: cpu   # anywhere",
        "  batch_size: 10",
        'regularization: {"clip": {"type": "norm", "max_norm": 1.5}}',
    ]
    (tmp_path / "best.yaml").write_text(text)
    ours, theirs = (
        weights_of(Path(fit(load_config("best.yaml"))["run"])),
        weights_of(Path(summary["best"][0]["runs"][0])),
    )
    assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    "sections",
    [{}, {"seed": 3, "sweep": {"seeds": 2}}, {"sweep": {"space": {"model": [{"type": "mlp", "hidden": [3]}]}}}],
)
def test_the_best_config_trains_to_the_weights_of_the_trial(tmp_path: Path, sections: Sections) -> None:
    settings = {"space": SPACE, "trials": 2, "slots": 1, **sections.pop("sweep", {})}
    summary = sweep(load_config(write_config(tmp_path, {**sections, "sweep": settings})), root=tmp_path / "runs")
    (tmp_path / "best.yaml").write_text(best_of(Path(summary["sweep"])))
    assert "its paths start where" in (tmp_path / "best.yaml").read_text().lower()
    run = Path(fit(load_config(tmp_path / "best.yaml"), root=tmp_path / "plain")["run"])
    ours, theirs = weights_of(run), weights_of(Path(summary["best"][0]["runs"][0]))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_an_alias_in_the_way_gives_all_settings(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    (tmp_path / "data.yaml").write_text("")
    text = path.read_text().replace("lr: 0.01", "lr: &lr 0.01").replace("device: cpu", "device: cpu\nseed: 1")
    path.write_text(text + "regularization: {penalties: [{type: l2, strength: *lr}]}\n")
    path.write_text(path.read_text() + "sweep: {space: {optimizer.lr: [0.5]}, sampler: grid, slots: 1}\n")
    summary = sweep(load_config(path), root=tmp_path / "runs")
    (tmp_path / "best.yaml").write_text(best_of(Path(summary["sweep"])))
    config = load_config(tmp_path / "best.yaml").config
    assert (config.optimizer.lr, config.sweep) == (0.5, None)  # type: ignore[union-attr]


def test_without_a_best_trial_that_is_said(tmp_path: Path) -> None:
    settings = {"space": SPACE, "trials": 6, "slots": 1, "objective": ["val/loss", "num_parameters"]}
    folder = Path(sweep(load_config(write_config(tmp_path, {"sweep": settings})), root=tmp_path / "runs")["sweep"])
    with pytest.raises(ConfigError, match=r"no other trial beats these in all objectives: .*; choose one with --trial"):
        best_of(folder)
    assert best_of(folder, 2).startswith("# Trial 2 of 6 of a sweep")
    with pytest.raises(ConfigError, match="--trial 9: is not there; finished: 1, 2, 3, 4, 5, 6"):
        best_of(folder, 9)
    lines = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    (folder / "trials.jsonl").write_text("".join(line for line in lines if '"finished"' not in line))
    with pytest.raises(ConfigError, match="none of 6 trials has finished yet"):
        best_of(folder)
