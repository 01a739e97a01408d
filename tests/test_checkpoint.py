"""Checkpoints: written whole or not at all, damage noticed, and whatever they hold, no code of theirs runs."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from dltrain import checkpoint as checkpoints
from dltrain.checkpoint import BEST, LAST, Checkpoint
from dltrain.errors import CheckpointError, DltrainError
from dltrain.evaluation import evaluate
from dltrain.prediction import predict
from dltrain.train import fit
from tests.small_runs import bytes_of, in_child, small_config

META: dict[str, Any] = {
    "config": {"seed": 0},
    "facts": {
        "source": {"shape": [6], "scaling": None},
        "task": {"type": "classification", "classes": [0, 1, 2]},
        "input_shapes": [[6]],
        "input_types": ["float32"],
        "num_samples": {"train": 50, "val": 20, "test": 15},
    },
    "folder": ".",
    "metrics": {},
    "step": 3,
}


def example(fill: float = 1.0) -> Checkpoint:
    tensors = {"model/weight": torch.full((3, 4), fill), "model/bias": torch.full((3,), -fill)}
    return Checkpoint(tensors, META)


@pytest.fixture
def run(tmp_path: Path, no_curves: None) -> Path:
    """A finished run."""
    return Path(fit(small_config(tmp_path, {"train": {"duration": "1 epochs"}}), root=tmp_path / "runs")["run"])


# ---- what is written is what is read --------------------------------------------------------------------------------


def test_every_kind_of_tensor_comes_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {
        "model/float": torch.randn(3, 4),
        "model/bfloat16": torch.randn(5).bfloat16(),
        "model/half": torch.randn(5).half(),
        "model/double": torch.randn(2, dtype=torch.float64),
        "model/int": torch.arange(7),
        "model/bool": torch.tensor([True, False]),
        "model/scalar": torch.tensor(3.0),
        "model/empty": torch.empty(0, 3),
        "model/special": torch.tensor([float("nan"), float("inf"), -0.0]),
        "model/transposed": torch.randn(3, 5).t(),
        "model/expanded": torch.randn(1, 4).expand(3, 4),
    }
    checkpoints.save(tmp_path / LAST, Checkpoint(tensors, META))
    loaded = checkpoints.load(tmp_path / LAST)
    assert loaded.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (loaded.tensors[name].dtype, loaded.tensors[name].shape) == (tensor.dtype, tensor.shape)
        assert bytes_of(loaded.tensors[name]) == bytes_of(tensor), name
    assert loaded.meta.items() >= META.items()


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(1000, 8), nn.Linear(8, 1000, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    checkpoints.save(tmp_path / LAST, Checkpoint(tensors, META))
    assert (tmp_path / LAST).stat().st_size < 1.5 * 1000 * 8 * 4
    loaded = checkpoints.load(tmp_path / LAST).part("model")
    other = Tied()
    checkpoints.load_weights(other, loaded, "here")
    assert torch.equal(other.embed.weight, model.embed.weight)
    assert other.head.weight is other.embed.weight


def test_a_buffer_that_is_a_part_of_a_weight_is_saved(tmp_path: Path) -> None:
    weight = torch.randn(6, 4)
    tensors = {
        "model/weight": weight,
        "model/first": weight[:2],
        "model/flat": weight.view(-1),
        "model/last": weight[5],
    }
    checkpoints.save(tmp_path / LAST, Checkpoint(tensors, META))
    loaded = checkpoints.load(tmp_path / LAST)
    for name, tensor in tensors.items():
        assert torch.equal(loaded.tensors[name], tensor)


def test_a_checkpoint_holds_no_pickle_and_any_safetensors_reader_reads_it(run: Path) -> None:
    tensors = safetensors.torch.load_file(run / "checkpoints" / BEST)
    assert set(tensors) == {
        "model/layers.0.weight",
        "model/layers.0.bias",
        "model/layers.2.weight",
        "model/layers.2.bias",
    }


def test_weights_that_do_not_fit_are_listed_and_nothing_is_loaded() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {
        "0.weight": torch.zeros(2, 3),
        "0.bias": torch.zeros(5),
        "1.weight": torch.zeros(2, 2),
        "2.bias": torch.zeros(1),
    }
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load_weights(model, weights, "a.safetensors")
    assert str(caught.value) == (
        "a.safetensors: does not fit the model: missing 1.bias; unexpected 2.bias; 0.bias is (5,), the model has (2,)"
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_optimizer_that_keeps_what_no_checkpoint_can_hold_is_named() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model.weight]["history"] = [1, 2]
    with pytest.raises(CheckpointError, match="keeps 'history', a list, for weight"):
        checkpoints.optimizer_state(optimizer, model)


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 4, 10, 0.5, -10, -1], ids=lambda length: f"to {length}")
def test_a_truncated_checkpoint_is_refused(length: float, run: Path) -> None:
    path = run / "checkpoints" / BEST
    content = path.read_bytes()
    end = int(length * len(content)) if isinstance(length, float) else length
    path.write_bytes(content[:end])
    with pytest.raises(CheckpointError, match=r"best\.safetensors: is damaged") as caught:
        evaluate(run)
    assert caught.value.exit_code == 5


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / LAST
    checkpoints.save(path, example())
    content = path.read_bytes()
    for position in range(len(content)):
        flipped = content[position] ^ (1 << position % 8)
        path.write_bytes(content[:position] + bytes([flipped]) + content[position + 1 :])
        with pytest.raises(CheckpointError):
            checkpoints.load(path)


def test_what_is_no_checkpoint_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        checkpoints.load(tmp_path / "missing.safetensors")
    with pytest.raises(CheckpointError, match="holds no checkpoint; is it a run directory"):
        checkpoints.find(tmp_path)
    (tmp_path / "text.safetensors").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match="is damaged or no safetensors file"):
        checkpoints.load(tmp_path / "text.safetensors")
    torch.save({"a": torch.ones(2)}, tmp_path / "pickle.pt")
    with pytest.raises(CheckpointError, match="is damaged or no safetensors file"):
        checkpoints.load(tmp_path / "pickle.pt")
    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "foreign.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="is a safetensors file, but no checkpoint of dltrain"):
        checkpoints.load(tmp_path / "foreign.safetensors")


# ---- forgeries: a right SHA-256 over wrong contents -----------------------------------------------------------------


def forge(path: Path, text: str, tensors: dict[str, Tensor]) -> Path:
    """Write a checkpoint whose metadata are `text`, with the checksum that the format asks for."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + bytes_of(tensor))
    safetensors.torch.save_file(tensors, path, metadata={"dltrain": text, "sha256": digest.hexdigest()})
    return path


def whole(**changes: Any) -> str:
    return json.dumps({"format_version": 1, "aliases": {}, **META, **changes})


def test_a_forgery_with_nothing_wrong_is_read(tmp_path: Path) -> None:
    tensors = {"model/weight": torch.ones(2)}
    assert checkpoints.load(forge(tmp_path / LAST, whole(), tensors)).meta["step"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its metadata are no JSON"),
        ("{", "its metadata are no JSON"),
        ("[" * 100_000, "its metadata are no JSON"),
        ("null", "has checkpoint format None; this dltrain reads format 1"),
        ("[]", "has checkpoint format None"),
        ("{}", "has checkpoint format None"),
        ('"text"', "has checkpoint format None"),
        (whole(format_version=2), "has checkpoint format 2; this dltrain reads format 1"),
        (whole(format_version="1"), "has checkpoint format 1"),
        (json.dumps({"format_version": 1}), "lack aliases, config, facts, folder, metrics, step"),
        (whole(step="three"), "lack step, or have it in another form"),
        (whole(config=[]), "lack config"),
        (whole(facts=None), "lack facts"),
        (whole(facts={}), "lack source, task, input_shapes, input_types, num_samples"),
        (whole(aliases={"model/other": "model/none"}), "an alias names 'model/none', and there is no such tensor"),
        (whole(aliases={"model/other": ["model/weight"]}), "an alias names"),
        (whole(aliases={"model/other": {}}), "an alias names"),
    ],
)
def test_forged_metadata_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = forge(tmp_path / LAST, text, {"model/weight": torch.ones(2)})
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"facts": {"task": {"type": "nothing"}}},
        {"facts": {"task": {}}},
        {"facts": {"task": {"type": "classification", "classes": 7}}},
        {"facts": {"input_shapes": []}},
        {"facts": {"input_shapes": ["wide"]}},
        {"facts": {"input_shapes": [[-3]]}},
        {"facts": {"input_types": ["nothing"]}},
        {"facts": {"input_types": [7]}},
        {"facts": {"num_samples": {}}},
        {"facts": {"task": {"type": "classification", "classes": [0, 1]}}},
        {"config": {}},
        {"config": {"model": {"type": "mlp", "hidden": [9]}}},
        {"config": {"model": {"type": "mlp", "hidden": "many"}}},
    ],
    ids=json.dumps,
)
def test_a_forged_run_is_refused_with_a_message_by_evaluate_and_predict(
    change: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    saved = checkpoints.load(run / "checkpoints" / BEST)
    meta = {**saved.meta}
    for part, values in change.items():
        meta[part] = {**meta[part], **values} if values else {}
    path = forge(tmp_path / "forged.safetensors", json.dumps(meta), saved.tensors)
    with pytest.raises(DltrainError, match="forged"):
        evaluate(path)
    with pytest.raises(DltrainError, match="forged"):
        list(predict(path, [str(tmp_path / "data.npz")]))


CODE = """
from pathlib import Path
from torch import nn

Path(__file__).with_name("ran").touch()

class Model(nn.Linear):
    def __init__(self, in_features, num_classes):
        super().__init__(in_features, num_classes)

class Loss(nn.CrossEntropyLoss):
    pass

def load():
    raise AssertionError("the data are not needed")
"""


@pytest.mark.parametrize("section", ["model", "loss"])
def test_code_named_by_a_checkpoint_runs_only_if_trusted(section: str, tmp_path: Path, no_curves: None) -> None:
    name = {"model": "Model", "loss": "Loss"}[section]
    (tmp_path / f"own_{section}.py").write_text(CODE)
    file = small_config(tmp_path, {section: {"type": f"own_{section}.py:{name}"}})
    run = fit(file, root=tmp_path / "runs")["run"]
    (tmp_path / "ran").unlink()
    before = set(os.listdir(tmp_path))
    with pytest.raises(CheckpointError, match=f"add --trust own_{section}.py"):
        evaluate(run)
    with pytest.raises(CheckpointError, match=f"add --trust own_{section}.py"):
        list(predict(run, [str(tmp_path / "data.npz")]))
    with pytest.raises(CheckpointError, match=f"add --trust own_{section}.py"):
        evaluate(run, trusted=["other.py"])
    assert set(os.listdir(tmp_path)) == before
    assert evaluate(run, trusted=[str(tmp_path / f"own_{section}.py")])["num_samples"] == 15


@pytest.mark.parametrize("kind", ["os:system", "subprocess:run", "builtins:eval", "../../evil.py:f", "/tmp/evil.py:f"])
def test_a_forged_config_that_names_foreign_code_is_refused(kind: str, run: Path, tmp_path: Path) -> None:
    saved = checkpoints.load(run / "checkpoints" / BEST)
    for section, value in (("model", {"type": kind}), ("loss", {"type": kind}), ("data", {"type": kind})):
        meta = {**saved.meta, "config": {**saved.meta["config"], section: value}}
        path = forge(tmp_path / "forged.safetensors", json.dumps(meta), saved.tensors)
        with pytest.raises(CheckpointError, match="runs only if you trust it"):
            evaluate(path)
        with pytest.raises(CheckpointError, match="runs only if you trust it"):
            list(predict(path, [str(tmp_path / "data.npz")]))


# ---- a save that is interrupted -------------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_old_checkpoint_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / LAST
    checkpoints.save(path, example(1.0))
    large = Checkpoint({"model/weight": torch.zeros(100_000)}, META)

    def save_with_little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with pytest.raises(CheckpointError, match=r"last\.safetensors: cannot be written: .*MiB free"):
            checkpoints.save(path, large)

    assert in_child(save_with_little_room) == 0
    assert os.listdir(tmp_path) == [LAST]
    assert torch.equal(checkpoints.load(path).tensors["model/weight"], torch.ones(3, 4))


def test_a_folder_that_is_gone_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        checkpoints.save(tmp_path / "gone" / LAST, example())


_OPERATIONS = ((os, "open"), (os, "fsync"), (os, "close"), (os, "replace"), (checkpoints, "save_file"))


def kill_at(operation: int, *, half_written: bool) -> None:
    """Let this process kill itself before operation number `operation` on files, or in the middle of its writing."""
    counted = 0

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal counted
            counted += 1
            if counted == operation:
                if half_written and function is safetensors.torch.save_file:
                    function(*args, **kwargs)
                    os.truncate(args[1], Path(args[1]).stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapper

    for module, name in _OPERATIONS:
        setattr(module, name, counting(getattr(module, name)))


@pytest.mark.parametrize("half_written", [False, True])
def test_a_kill_at_any_operation_of_a_save_leaves_a_good_checkpoint(half_written: bool, tmp_path: Path) -> None:
    path, number_of_kills = tmp_path / LAST, 0
    checkpoints.save(path, example(0.0))
    old = 0.0
    for operation in range(1, 100):

        def save(operation: int = operation) -> None:
            kill_at(operation, half_written=half_written)
            checkpoints.save(path, example(float(operation)))

        status = in_child(save)
        found = float(checkpoints.load(path).tensors["model/weight"][0, 0])
        assert found in (old, float(operation))
        old = found
        if status == 0:
            assert found == operation
            break
        assert status == -signal.SIGKILL
        number_of_kills += 1
    assert number_of_kills >= 6  # write, open, fsync and close of the file, rename, the same of the folder
    checkpoints.save(path, example(-1.0))
    assert os.listdir(tmp_path) == [LAST]  # the next save has swept what the kills left


def test_data_reach_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noting_fsync(descriptor: int) -> None:
        done.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def noting_replace(source: Path, target: Path) -> None:
        done.append(f"rename to {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    checkpoints.save(tmp_path / LAST, example())
    assert done == [f"fsync {LAST}.tmp", f"rename to {LAST}", f"fsync {tmp_path.name}"]


def test_who_can_read_the_run_can_read_its_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoints.save(path, Checkpoint({"model/w": torch.zeros(1)}, {}))
    assert path.stat().st_mode & 0o777 == tmp_path.stat().st_mode & 0o666


def test_a_folder_of_runs_is_answered_with_the_runs_in_it(tmp_path: Path) -> None:
    for number in ("1", "2"):
        (tmp_path / number / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="holds no checkpoint; it holds runs: 1, 2"):
        checkpoints.find(tmp_path)
