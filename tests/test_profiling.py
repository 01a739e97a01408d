"""`dltrain fit --profile`: it changes nothing, accounts for all of a step, and names what takes the time."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from dltrain.errors import Stopped
from dltrain.profiling import Profile
from dltrain.train import fit
from tests.small_runs import (
    Sections,
    StopAt,
    dltrain,
    dltrain_here,
    newest_run,
    result_of,
    small_config,
    write_arrays,
    write_config,
)

pytestmark = pytest.mark.usefixtures("no_curves")

EVERYTHING: Sections = {
    "model": {"dropout": 0.3, "norm": "batch"},
    "train": {"micro_batch_size": 7},
    "regularization": {
        "sam": {},
        "mix": {"type": "mixup"},
        "penalties": [{"type": "l1", "strength": 1e-3}],
        "clip": {"type": "norm", "max_norm": 1.0},
    },
}
SLOW = """
import time
from torch import nn

def slow(x, rng):
    time.sleep(0.03)  # far more than a step takes that has to wait for a core
    return x

class SlowToEvaluate(nn.Linear):
    def forward(self, x):
        if not self.training:
            time.sleep(0.05)
        return super().forward(x)
"""


def parts_of(run: Path) -> dict[str, tuple[float, float]]:
    """Return milliseconds and percent of each part in the table that a profile writes."""
    text = (run / "profile.txt").read_text()
    rows = re.findall(r"^  (\w+) +([\d.]+) ms +([\d.]+) %", text, re.MULTILINE)
    return {name: (float(time_ms), float(percent)) for name, time_ms, percent in rows}


def profiled(folder: Path, sections: Sections) -> tuple[Path, list[str]]:
    """Train with a profile; return the run directory and what was said."""
    said: list[str] = []
    with Profile(said.append) as profile:
        run = fit(small_config(folder, sections), root=folder / "profiled", watcher=profile)["run"]
    return Path(run), said


@pytest.mark.parametrize("sections", [{}, EVERYTHING], ids=["plain", "everything"])
def test_a_profile_changes_no_bit_and_accounts_for_all_of_a_step(tmp_path: Path, sections: Sections) -> None:
    run, said = profiled(tmp_path, sections)
    plain = Path(fit(small_config(tmp_path, sections), root=tmp_path / "plain")["run"])
    assert result_of(run) == result_of(plain)
    parts = parts_of(run)
    step_ms, percent = parts.pop("step")
    assert percent == 100.0
    assert sum(time_ms for time_ms, _ in parts.values()) == pytest.approx(step_ms, abs=0.005)  # each is rounded
    assert sum(percent for _, percent in parts.values()) == pytest.approx(100.0, abs=0.5)
    expected = ["data", "transform", "forward", "loss", "penalty", "backward", "update", "other", "logging"]
    assert list(parts) == [name for name in expected if sections or name != "penalty"]
    assert all(time_ms > 0 for name, (time_ms, _) in parts.items() if name != "logging")
    assert said == ["", *(run / "profile.txt").read_text().splitlines(), ""]


def test_the_trace_names_the_parts(tmp_path: Path) -> None:
    run, _ = profiled(tmp_path, {})
    trace = json.loads(gzip.decompress((run / "profile.json.gz").read_bytes()))
    names = [event.get("name") for event in trace["traceEvents"]]
    for part in ("data", "transform", "forward", "loss", "backward", "update", "logging"):
        assert names.count(part) >= 3, part  # of 12 steps three are traced
    assert "aten::addmm" in names


def test_the_command_shows_the_summary_on_stderr(tmp_path: Path) -> None:
    write_config(tmp_path)
    result = dltrain("fit", "small.yaml", "--profile", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "runs/small/1/profile.txt").read_text()
    assert text in result.stderr
    assert text.startswith("profile of 6 steps of 11.33 samples on cpu, CPU threads: 1\n")
    assert len(text.splitlines()) <= 32
    assert "aten::addmm" in text
    assert "profile.json.gz, for https://ui.perfetto.dev" in text
    assert "profiler_start" not in result.stderr  # torch's own messages
    assert "profile" not in result.stdout


def test_slow_augmentation_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SLOW)
    write_arrays(tmp_path / "data.npz", side=4)
    run, _ = profiled(tmp_path, {"augment": [{"type": "own.py:slow"}]})
    parts = parts_of(run)
    assert parts["transform"][0] >= 10.0
    (line,) = [line for line in (run / "profile.txt").read_text().splitlines() if line.startswith("transform: ")]
    assert line.endswith(
        "% of a step; fewer or cheaper transforms in augment or regularization.mix would make it shorter"
    )


def test_frequent_evaluation_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SLOW)
    model = {"type": "own.py:SlowToEvaluate"}
    run, _ = profiled(tmp_path, {"model": model, "train": {"evaluate_every": "1 steps"}})
    (line,) = [line for line in (run / "profile.txt").read_text().splitlines() if line.startswith("evaluation: ")]
    assert re.fullmatch(
        r"evaluation: [\d.]+ ms each, 6 in these steps; with one every 1 steps that is \d+% of the training; "
        r"a longer train\.evaluate_every would save most of that",
        line,
    )


def test_rare_evaluation_is_not_blamed(tmp_path: Path) -> None:
    run, _ = profiled(tmp_path, {"train": {"evaluate_every": "12 steps"}})
    assert "\nevaluation: none in these steps\n" in (run / "profile.txt").read_text()


def test_a_training_too_short_for_a_profile_says_so(tmp_path: Path) -> None:
    run, said = profiled(tmp_path, {"train": {"duration": "2 steps"}})
    assert said == ["profile: takes 3 steps, and 2 are left; there will be none"]
    assert not (run / "profile.txt").exists()
    run, said = profiled(tmp_path, {"train": {"duration": "3 steps"}})
    assert (run / "profile.txt").read_text().startswith("profile of 1 steps of 16 samples")
    assert (run / "profile.json.gz").exists()


@pytest.mark.parametrize(("stop", "found"), [(1, None), (6, "profile of 3 steps"), (10, "profile of 6 steps")])
def test_a_training_that_is_stopped_tells_what_it_has(tmp_path: Path, stop: int, found: str | None) -> None:
    said: list[str] = []
    with pytest.raises(Stopped), Profile(said.append) as profile:
        fit(small_config(tmp_path), root=tmp_path / "runs", progress=StopAt(stop), watcher=profile)
    run = newest_run(tmp_path / "runs")
    if found is None:
        assert said == ["profile: none, since the training ended before its first steps were over"]
    else:
        assert (run / "profile.txt").read_text().startswith(found)
    assert (run / "profile.json.gz").exists() == (stop == 10)


def test_several_seeds_have_no_profile(tmp_path: Path) -> None:
    write_config(tmp_path)
    result = dltrain_here("fit", "small.yaml", "--seeds", "2", "--profile", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (2, "--profile: is of one training; leave --seeds out\n")
