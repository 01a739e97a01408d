"""What a run writes about itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dltrain import records
from dltrain.checkpoint import Checkpoint
from dltrain.config.reader import read_text
from dltrain.config.validate import ConfigFile, load_config, validate
from dltrain.errors import ConfigError, DataError, Stopped
from dltrain.records import MAY_CHANGE, check_resumable, meta, resolved_text
from dltrain.train import fit
from tests.small_runs import (
    Sections,
    StopAt,
    dltrain_here,
    newest_run,
    one_json,
    result_of,
    small_config,
    write_config,
)

FACTS: dict[str, Any] = {"fingerprint": "abc", "input_shapes": [[6]], "task": {"classes": ["ja", "nein"]}}


def saved(file: ConfigFile) -> Checkpoint:
    """Return a checkpoint as it comes back from the disk."""
    return Checkpoint({}, json.loads(json.dumps(meta(file, FACTS, Path("runs/small/1")))))


def test_the_resolved_config_is_a_config_that_means_the_same(tmp_path: Path) -> None:
    everything: Sections = {
        "name": "größer",
        "schedule": {"type": "cosine", "warmup": "5%"},
        "regularization": {"penalties": [{"type": "l1", "strength": 1e-5, "params": ["a*", "b*"]}], "sam": {}},
        "optimizer": {"groups": [{"params": "layers.0.*", "lr": 1e-4}]},
        "split": {"val": 0.25},
    }
    everything["name"] = "larger"
    file = small_config(tmp_path, everything)
    assert validate(read_text(resolved_text(file), "resolved.yaml")) == file.config


def test_the_same_config_and_data_are_resumable(tmp_path: Path) -> None:
    file = small_config(tmp_path)
    check_resumable(saved(file), file, FACTS, "here")


@pytest.mark.parametrize("setting", [name for name in MAY_CHANGE if name != "name"])
def test_settings_that_may_change_may_change(setting: str, tmp_path: Path) -> None:
    values = {
        "train.duration": "7 epochs",
        "train.evaluate_every": "2 steps",
        "train.checkpoint_every": "2 steps",
        "train.eval_batch_size": 3,
        "train.on_nonfinite": "skip",
        "train.device": "auto",
        "train.cuda_graphs": True,
        "train.parallel": "fsdp",
        "train.checkpoint": "sharded",
    }
    before = small_config(tmp_path)
    after = small_config(tmp_path, {"train": {setting.removeprefix("train."): values[setting]}})
    assert before.config != after.config
    check_resumable(saved(before), after, FACTS, "here")


def test_every_other_difference_is_named(tmp_path: Path) -> None:
    before = small_config(tmp_path, {"schedule": {"type": "cosine"}})
    after = small_config(tmp_path, {"seed": 3, "regularization": {"penalties": [{"type": "l1", "strength": 1.0}]}})
    with pytest.raises(ConfigError) as caught:
        check_resumable(saved(before), after, FACTS, "last.safetensors")
    text = str(caught.value)
    for name in (
        "seed: is 3",
        "schedule.type: is 'constant', the run was made with 'cosine'",
        "regularization.penalties",
    ):
        assert name in text
    assert text.splitlines()[-1].startswith("last.safetensors: is not resumed with another config; may change: ")


def test_other_data_are_refused(tmp_path: Path) -> None:
    file = small_config(tmp_path)
    with pytest.raises(DataError, match="the data have changed since"):
        check_resumable(saved(file), file, {**FACTS, "fingerprint": "abd"}, "here")


# ---- --resume auto --------------------------------------------------------------------------------------------------


def stopped(file: ConfigFile, root: Path, step: int = 5) -> Path:
    with pytest.raises(Stopped):
        fit(file, root=root, progress=StopAt(step))
    return newest_run(root)


def test_auto_goes_on_with_the_newest_unfinished_run_of_the_config(tmp_path: Path) -> None:
    file = small_config(tmp_path)
    assert records.newest_unfinished(tmp_path / "runs", file) is None
    older, newer = stopped(file, tmp_path / "runs"), stopped(file, tmp_path / "runs")
    assert records.newest_unfinished(tmp_path / "runs", file) == newer != older
    fit(file, root=tmp_path / "runs", resume=newer)
    assert records.newest_unfinished(tmp_path / "runs", file) == older  # the newer one is finished


def test_auto_passes_over_runs_with_other_settings(tmp_path: Path) -> None:
    stopped(small_config(tmp_path), tmp_path / "runs")
    other = small_config(tmp_path, {"optimizer": {"lr": 0.5}})
    assert records.newest_unfinished(tmp_path / "runs", other) is None
    longer = small_config(tmp_path, {"train": {"duration": "9 epochs"}})  # may change
    assert records.newest_unfinished(tmp_path / "runs", longer) is not None


def test_auto_on_the_command_line_starts_and_then_resumes(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    command = ("fit", config, "--resume", "auto", "--json", "--quiet")
    first = one_json(dltrain_here(*command, cwd=tmp_path).stdout)
    assert first["run"] == "runs/small/1"
    expected = result_of(tmp_path / "runs/small/1")
    run = stopped(load_config(config), tmp_path / "others")
    second = one_json(dltrain_here(*command, "--out", "others", cwd=tmp_path).stdout)
    assert tmp_path / second["run"] == run
    assert result_of(run)["rows"] == expected["rows"]
