"""A model in slices: each process holds its part of the weights, and the result is that of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed.fsdp  # once, before processes are forked
from safetensors.torch import load_file, save_file
from torch import nn

from dltrain import checkpoint as checkpoints
from dltrain.build import Builder
from dltrain.checkpoint import BEST, LAST, PREVIOUS, SHARDS
from dltrain.config.validate import load_config
from dltrain.errors import CheckpointError, ConfigError
from dltrain.evaluation import evaluate
from dltrain.plan import make_plan
from dltrain.ranks import Ranks
from dltrain.sharding import _layers
from dltrain.train import fit
from tests.in_ranks import Ended, in_ranks, train_in_ranks
from tests.make_pairs import make_numbers
from tests.small_runs import Sections, StopAt, newest_run, result_of, small_config, weights_of
from tests.test_ranks import CASES, DONE, NOISY, NOISY_TRAIN, OWN, SGD, assert_alike, assert_policy

pytestmark = pytest.mark.usefixtures("no_curves")

REGULARIZED: Sections = {
    "optimizer": {"type": "sgd", "lr": 0.1, "momentum": 0.9},
    "regularization": {
        "penalties": [{"type": kind, "strength": 0.01} for kind in ("l1", "l2", "elastic_net", "group_lasso")],
        "clip": {"type": "norm", "max_norm": 0.5},
    },
}
HERE = {name: sections for name, sections in CASES.items() if name != "penalties, clipping and noise"} | {
    "penalties and clipping": REGULARIZED,
    "clip by value": {**SGD, "regularization": {"clip": {"type": "value", "limit": 0.01}}},
    "small evaluations": {"train": {"eval_batch_size": 3}},
    **{
        f"optimizer {kind}": {"optimizer": {"type": kind}}
        for kind in ("adam", "nadam", "radam", "rmsprop", "adagrad", "lion")
    },
}


def in_slices(sections: Sections | None = None, **train: object) -> Sections:
    """Return `sections` with train.parallel: fsdp."""
    sections = sections or {}
    return {**sections, "train": {**sections.get("train", {}), "parallel": "fsdp", **train}}


# ---- equal to one process -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("name", HERE)
def test_slices_train_the_model_that_one_process_does(name: str, number: int, tmp_path: Path) -> None:
    """The last batch of an epoch holds two samples: of three processes one has none of it."""
    one = Path(fit(small_config(tmp_path, HERE[name]), root=tmp_path / "one")["run"])
    file = small_config(tmp_path, in_slices(HERE[name]))
    assert train_in_ranks(file, tmp_path / "several", number) == [DONE] * number
    run = newest_run(tmp_path / "several")
    assert_alike(run, one)
    for file_name in (LAST, BEST):
        saved, expected = (checkpoints.load(folder / "checkpoints" / file_name).tensors for folder in (run, one))
        assert {key: (t.shape, t.dtype) for key, t in saved.items()} == {
            key: (t.shape, t.dtype) for key, t in expected.items()
        }


def test_slices_train_as_whole_models_on_as_many_processes_do(tmp_path: Path) -> None:
    """With dropout and BatchNorm, whose result depends on how many processes there are."""
    for parallel in ("ddp", "fsdp"):
        file = small_config(tmp_path, {**SGD, **NOISY, "train": {**NOISY_TRAIN, "parallel": parallel}})
        assert train_in_ranks(file, tmp_path / parallel) == [DONE] * 2
    assert_alike(newest_run(tmp_path / "fsdp"), newest_run(tmp_path / "ddp"))


@pytest.mark.parametrize("checkpoint", ["full", "sharded"])
def test_a_transformer_with_tied_weights(checkpoint: str, tmp_path: Path) -> None:
    make_numbers(tmp_path / "numbers.csv", "en", "fr", 60)
    text = """
data: {type: pairs, path: numbers.csv, tokenizer: {kind: character}}
model: {type: encoder_decoder, dim: 16, num_heads: 2, encoder_depth: 2, decoder_depth: 1, dropout: 0.0}
optimizer: {type: sgd, lr: 0.1}
train: {duration: 2 epochs, batch_size: 7, device: cpu, eval_batch_size: 4, micro_batch_size: 2}
"""
    path = tmp_path / "numbers.yaml"
    path.write_text(text, encoding="utf-8")
    one = Path(fit(load_config(path), root=tmp_path / "one")["run"])
    file = load_config(path, ["train.parallel=fsdp", f"train.checkpoint={checkpoint}"])
    assert train_in_ranks(file, tmp_path / "several") == [DONE] * 2
    assert_alike(newest_run(tmp_path / "several"), one)
    results = [evaluate(run, split="val")["metrics"] for run in (newest_run(tmp_path / "several"), one)]
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_images_whose_convolutions_have_their_channels_last(tmp_path: Path) -> None:
    from tests.small_runs import write_arrays

    write_arrays(tmp_path / "data.npz", side=8)
    model: Sections = {"model": {"type": "convnet", "channels": [4, 8], "norm": "none"}, **SGD}
    one = Path(fit(small_config(tmp_path, model), root=tmp_path / "one")["run"])
    assert train_in_ranks(small_config(tmp_path, in_slices(model)), tmp_path / "several") == [DONE] * 2
    assert_alike(newest_run(tmp_path / "several"), one)


def test_one_process_has_nothing_to_slice(tmp_path: Path) -> None:
    runs = [
        Path(fit(small_config(tmp_path, sections), root=tmp_path / "runs")["run"])
        for sections in ({}, in_slices(checkpoint="sharded"))
    ]
    for name, value in weights_of(runs[0]).items():
        assert torch.equal(value, weights_of(runs[1])[name])
    assert not (runs[1] / "checkpoints" / SHARDS).exists()


def test_each_process_holds_its_part_of_weights_and_of_what_the_optimizer_remembers(tmp_path: Path) -> None:
    file = small_config(
        tmp_path, in_slices({"model": {"hidden": [64, 64]}, "regularization": {"average": {"type": "ema"}}})
    )

    def work(ranks: Ranks) -> None:
        plan = make_plan(Builder(file), ranks=ranks)
        state, whole = plan.state, sum(p.numel() for p in plan.network.model.parameters())
        assert state.averaged is not None
        for p in state.model.parameters():
            p.grad = torch.ones_like(p)
        state.optimizer.step()
        for tree in (state.model, state.averaged):
            assert sum(p.numel() for p in tree.parameters()) == pytest.approx(whole / ranks.size, rel=0.02)
        remembered = sum(t.numel() for values in state.optimizer.state.values() for t in values.values() if t.dim())
        assert remembered == pytest.approx(2 * whole / ranks.size, rel=0.02)

    assert in_ranks(work) == [DONE] * 2


# ---- layers that are gathered one after the other -------------------------------------------------------------------


def test_layers_are_the_outermost_elements_of_lists_that_can_be_gathered_alone() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(5))
            self.body.append(nn.Sequential(nn.Flatten(0), nn.Linear(8, 8), nn.Unflatten(0, (2, 4))))
            self.head = nn.Linear(4, 4)
            cast(nn.Sequential, self.body[1])[0].weight = self.head.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            good, tied, twice, in_part, _unused, view = self.body
            x = twice(twice(tied(good(x))))
            return self.head(view(cast(nn.Sequential, in_part)[0](in_part(x))))  # type: ignore[no-any-return]

    model, nested = Model(), nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4)))
    assert _layers(model, (torch.zeros(2, 4),)) == [model.body[0]]
    assert _layers(nested, (torch.zeros(2, 4),)) == [nested[0], nested[2]]


USES = '''
from torch import nn


class Net(nn.Module):
    """Calls a layer twice, and has one that takes no part and one that is frozen."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.body = nn.ModuleList([nn.Linear(in_features, in_features) for _ in range(3)])
        self.body[1].requires_grad_(False)
        self.unused, self.last = nn.Linear(3, 3), nn.Linear(in_features, out_features)

    def forward(self, x):
        return self.last(self.body[1](self.body[0](self.body[0](x)).relu()))
'''


@pytest.mark.parametrize("checkpoint", ["full", "sharded"])
def test_a_model_of_the_users_own(checkpoint: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(USES)
    own: Sections = {"model": {"type": "own.py:Net"}}
    one = Path(fit(small_config(tmp_path, own), root=tmp_path / "one")["run"])
    file = small_config(tmp_path, in_slices(own, checkpoint=checkpoint))
    assert train_in_ranks(file, tmp_path / "several") == [DONE] * 2
    assert_alike(newest_run(tmp_path / "several"), one)


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
@pytest.mark.parametrize("checkpoint", ["full", "sharded"])
def test_what_is_not_finite_on_one_process_is_so_on_all(checkpoint: str, policy: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    sections: Sections = {
        "model": {"type": "own.py:Net"},
        "train": {"on_nonfinite": policy, "checkpoint_every": "1 steps"},
    }
    ended = train_in_ranks(small_config(tmp_path, in_slices(sections, checkpoint=checkpoint)), tmp_path / "several")
    alone, run = small_config(tmp_path, sections), newest_run(tmp_path / "several")
    assert_policy(policy, ended, run, alone, tmp_path / "one", "the loss is not finite")


# ---- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", ["full", "sharded"])
def test_a_resumed_run_ends_with_the_bytes_of_the_uninterrupted_run(checkpoint: str, tmp_path: Path) -> None:
    sections: Sections = {**NOISY, "train": {**NOISY_TRAIN, "checkpoint_every": "2 steps"}}
    file = small_config(tmp_path, in_slices(sections, checkpoint=checkpoint))
    assert train_in_ranks(file, tmp_path / "whole") == [DONE] * 2
    run = None
    for stop in (3, 9):
        first, second = train_in_ranks(file, tmp_path / "stopped", resume=run, progress=StopAt(stop))
        run = newest_run(tmp_path / "stopped")
        assert (first.code, second) == (130, Ended(130, ""))
    assert train_in_ranks(file, tmp_path / "stopped", resume=run) == [DONE] * 2
    assert run is not None
    assert result_of(run) == result_of(newest_run(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, "fsdp", "full"), (1, "ddp", "full")),
        ((2, "fsdp", "full"), (2, "ddp", "full")),
        ((2, "fsdp", "sharded"), (1, "fsdp", "sharded")),
        ((2, "fsdp", "sharded"), (2, "ddp", "full")),
        ((2, "fsdp", "sharded"), (3, "fsdp", "sharded")),
        ((3, "fsdp", "sharded"), (2, "fsdp", "full")),
        ((2, "ddp", "full"), (2, "fsdp", "sharded")),
        ((1, "ddp", "full"), (2, "fsdp", "sharded")),
    ],
)
def test_another_number_and_another_way_go_on_with_the_same_weights(
    before: tuple[int, str, str], after: tuple[int, str, str], tmp_path: Path
) -> None:
    sections: Sections = {"regularization": {"average": {"type": "ema"}}}
    whole = Path(fit(small_config(tmp_path, sections), root=tmp_path / "whole")["run"])
    run = None
    for (number, parallel, checkpoint), progress in ((before, StopAt(5)), (after, None)):
        train = {"parallel": parallel, "checkpoint": checkpoint}
        file = small_config(tmp_path, {**sections, "train": train})
        ended = train_in_ranks(file, tmp_path / "runs", number, resume=run, progress=progress)
        assert [code for code, _ in ended] == [130 if progress else 0] * number, ended
        run = newest_run(tmp_path / "runs")
    assert run is not None
    assert_alike(run, whole)


@pytest.fixture(scope="module")
def sharded_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose last two checkpoints, and whose best, are in shards."""
    folder = tmp_path_factory.mktemp("sharded")
    file = small_config(folder, in_slices({"train": {"checkpoint_every": "2 steps"}}, checkpoint="sharded"))
    assert train_in_ranks(file, folder / "runs") == [DONE] * 2
    return newest_run(folder / "runs")


@pytest.fixture
def copied(sharded_run: Path, tmp_path: Path) -> Path:
    import shutil

    shutil.copytree(sharded_run.parents[2], tmp_path / "copy")
    return tmp_path / "copy" / sharded_run.relative_to(sharded_run.parents[2])


def test_shards_hold_no_weight_twice_and_only_those_in_use_are_kept(sharded_run: Path) -> None:
    folder = sharded_run / "checkpoints"
    used = {name: index_of(folder / name)["folder"] for name in (LAST, PREVIOUS, BEST)}
    assert {entry.name for entry in (folder / SHARDS).iterdir()} == set(used.values())
    for name, number in used.items():
        files = sorted((folder / SHARDS / number).iterdir())
        assert [file.name for file in files] == ["0.safetensors", "1.safetensors"]
        first, second = map(load_file, files)
        whole = checkpoints.load(folder / name).tensors
        assert all(torch.equal(torch.cat([first[key], second[key]]), whole[key]) for key in first)
        assert {key for key in whole if key.startswith("model/")} <= first.keys()
        assert not any(key.startswith("model/") for key in load_file(folder / name))


def test_a_checkpoint_in_shards_is_evaluated_as_one_file_is_and_becomes_one(sharded_run: Path, tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "one.safetensors", checkpoints.load(checkpoints.find(sharded_run)))
    results = [evaluate(path, split="val") for path in (sharded_run, tmp_path / "one.safetensors")]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert not (tmp_path / SHARDS).exists()


@pytest.mark.parametrize("what", ["missing", "damaged"])
def test_with_a_damaged_shard_the_run_goes_on_from_the_checkpoint_before(what: str, copied: Path) -> None:
    folder = copied / "checkpoints"
    step = checkpoints.load(folder / PREVIOUS).meta["step"]
    shard = folder / SHARDS / index_of(folder / LAST)["folder"] / "1.safetensors"
    if what == "missing":
        shard.unlink()
    else:
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    with pytest.raises(CheckpointError, match="no such checkpoint" if what == "missing" else "is damaged: its SHA-256"):
        checkpoints.load(folder / LAST)
    file = load_config(copied.parents[2] / "small.yaml")
    assert train_in_ranks(file, copied.parents[1], resume=copied) == [DONE] * 2
    assert f"going on from the one before it, {PREVIOUS}, at step {step}" in (copied / "log.txt").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folder": "../../elsewhere"}, "its metadata lack shards, or have it in another form"),
        ({"folder": 1}, "its metadata lack shards, or have it in another form"),
        ({"folder": "99"}, "there is no such checkpoint"),
        ({"sha256": []}, "does not hold as many rows as its checkpoint says"),
        ({"sha256": ["", ""]}, "its SHA-256 does not fit its contents"),
        ({"rows": {}}, "it holds other tensors"),
        ({"rows": {"model/x": -1}}, "its metadata lack shards, or have it in another form"),
    ],
)
def test_a_forged_index_of_shards_is_refused(change: dict[str, Any], message: str, copied: Path) -> None:
    path = copied / "checkpoints" / LAST
    index = index_of(path) | change
    tensors, meta = load_file(path), meta_of(path)
    text = json.dumps({**meta, "shards": index}, sort_keys=True)
    save_file(tensors, path, {"dltrain": text, "sha256": checkpoints._digest(tensors, text)})
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(path)


def meta_of(path: Path) -> dict[str, Any]:
    """Return the metadata of a checkpoint as they are in its file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        meta: dict[str, Any] = json.loads(file.metadata()["dltrain"])
    return meta


def index_of(path: Path) -> dict[str, Any]:
    """Return what a checkpoint says of its shards."""
    index: dict[str, Any] = meta_of(path)["shards"]
    return index


# ---- what slices cannot do ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"optimizer": {"type": "muon"}},
            r"optimizer: train.parallel: fsdp does not go with muon; possible: sgd, adam",
        ),
        ({"train": {"precision": "float16"}}, r"train.precision: .* does not go with float16; use bfloat16"),
        ({"train": {"compile": "auto"}}, r"train.compile: .* does not go with compile: auto; set it to false"),
        (
            {"regularization": {"clip": {"type": "adaptive"}}},
            r"regularization.clip: .* does not go with clip of type adaptive; possible: norm, value",
        ),
        (
            {"regularization": {"gradient_noise": {"eta": 0.1}}},
            r"regularization.gradient_noise: .* does not go with gradient_noise; leave it out",
        ),
        (
            {"regularization": {"penalties": [{"type": "own.py:penalty"}]}},
            r"regularization.penalties\[?0?.*: .* does not go with penalties of your own",
        ),
    ],
)
def test_what_needs_whole_weights_is_refused_at_its_place(sections: Sections, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def penalty(parameters):\n    return sum((p**2).sum() for p in parameters)\n")
    with pytest.raises(ConfigError, match=r"small.yaml:\d+:\d+: " + message):
        fit(small_config(tmp_path, in_slices(sections)), root=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_shards_need_fsdp(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"small.yaml:\d+:\d+: train.checkpoint: sharded needs train.parallel: fsdp"):
        fit(small_config(tmp_path, {"train": {"checkpoint": "sharded"}}), root=tmp_path / "runs")


def test_a_model_that_cannot_be_sharded_is_said_to_be_so_once(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Linear):\n"
        "    def __init__(self, in_features, out_features):\n"
        "        super().__init__(in_features, out_features)\n        self.scale = nn.Parameter(torch.tensor(1.0))\n\n"
        "    def forward(self, x):\n        return self.scale * super().forward(x)\n"
    )
    ended = train_in_ranks(small_config(tmp_path, in_slices({"model": {"type": "own.py:Net"}})), tmp_path / "runs")
    assert [code for code, _ in ended] == [2, 2]
    (said,) = [said for _, said in ended if said]
    assert "small.yaml" in said
    assert "train.parallel: fsdp cannot shard own.py:Net: fully_shard doesn't support scalar parameters" in said
    assert not (tmp_path / "runs").exists()
