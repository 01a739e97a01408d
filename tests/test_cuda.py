"""All that only a GPU can show: no wait in the loop, its numbers, its memory, graphs. Without one that is said.

`float16` with a fused optimizer does not wait either; with others torch's GradScaler waits once a step.
"""

import gc
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from benchmarks import synthetic
from benchmarks.works import WORKS
from dltrain.config.validate import ConfigFile, load_config
from dltrain.console import Progress
from dltrain.evaluation import evaluate
from dltrain.plan import Plan
from dltrain.profiling import Profile
from dltrain.train import fit
from tests import test_graphs
from tests.small_runs import (
    Sections,
    bytes_of,
    dltrain,
    fit_with_stops,
    result_of,
    rows_of,
    small_config,
    weights_of,
    write_arrays,
    write_config,
)

if not torch.cuda.is_available():
    pytest.skip("NOTHING OF THE GPU IS TESTED HERE: torch sees no CUDA device", allow_module_level=True)

DEVICE = "cuda"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read as the first matrix is multiplied

pytestmark = [
    pytest.mark.usefixtures("no_curves"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
]

IMAGES: Sections = {"model": {"type": "convnet", "channels": [8, 16], "dropout": 0.2}}
AUGMENTED: Sections = {
    **IMAGES,
    "augment": [
        {"type": "flip"},
        {"type": "crop"},
        {"type": "erasing"},
        {"type": "rotation", "degrees": 10},
        {"type": "brightness_contrast"},
        {"type": "time_shift"},
        {"type": "spec_augment"},
        {"type": "noise", "std": 0.1},
    ],
    "regularization": {"mix": {"type": "cutmix"}},
}
ARRAYS: dict[str, Sections] = {
    "plain": {},
    "bfloat16": {"train": {"precision": "bfloat16"}},
    "float16": {"train": {"precision": "float16"}},
    "micro-batches": {"train": {"micro_batch_size": 5}},
    "balanced": {"train": {"sampler": "balanced"}},
    "images": IMAGES,
    "augmented images": AUGMENTED,
    "mixup": {"regularization": {"mix": {"type": "mixup"}}},
    "sam": {"regularization": {"sam": {"adaptive": True}}},
    "penalties": {"regularization": {"penalties": [{"type": "elastic_net", "strength": 0.01}]}},
    "clip norm": {"regularization": {"clip": {"type": "norm", "max_norm": 0.1}}},
    "clip value": {"regularization": {"clip": {"type": "value", "limit": 0.1}}},
    "clip adaptive": {"regularization": {"clip": {"type": "adaptive"}}},
    "noise of gradients": {"regularization": {"gradient_noise": {}}},
    "ema": {"regularization": {"average": {"type": "ema"}}, "model": {"norm": "batch"}},
    "max norm": {"regularization": {"max_norm": {"limit": 1.0}}},
    "class weights": {"loss": {"type": "cross_entropy", "class_weights": "balanced"}},
    "focal": {"loss": {"type": "focal", "class_weights": "balanced"}},
    "hinge": {"loss": {"type": "hinge"}},
    **{
        name: {"optimizer": {"type": name, "lr": 0.01}}
        for name in ("sgd", "adam", "nadam", "radam", "rmsprop", "adagrad", "lion", "muon", "schedule_free_adamw")
    },
}
TEXTS: dict[str, Callable[[Path], Path]] = {
    "transformer": lambda folder: synthetic.texts(folder, 128, 64),
    "translation": lambda folder: synthetic.sentences(folder, 320),
    "language_model": lambda folder: synthetic.corpus(folder, 9000, 1000),
    "categorical": lambda folder: synthetic.table(folder, 2000, 20, 8),
}
NUM_STEPS = 12


@pytest.fixture(params=["on the device", "on the host"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have data that would fit onto the device stay where they are, in half of the tests."""
    if request.param == "on the host":
        monkeypatch.setattr("dltrain.plan._SHARE_OF_DEVICE", 0.0)
    return str(request.param)


@pytest.fixture
def waits_allowed() -> Iterator[None]:
    """Let what comes after a test wait again."""
    yield
    torch.cuda.set_sync_debug_mode("default")


def config(folder: Path, sections: Sections | None = None, **train: Any) -> ConfigFile:
    """Return the small config on the device."""
    sections = sections or {}
    if "channels" in sections.get("model", {}):
        folder.mkdir(parents=True, exist_ok=True)
        write_arrays(folder / "data.npz", side=12)
    steps = dict.fromkeys(("duration", "evaluate_every", "checkpoint_every"), f"{NUM_STEPS} steps")
    train = {**steps, **sections.get("train", {}), "device": DEVICE, **train}
    return small_config(folder, {**sections, "train": train})


class Strict(Progress):
    """Makes every wait for the device an error, from the end of one step to the end of another."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__("off")
        self.first, self.last, self.num_strict = first, last, 0

    def begin(self, folder: Path, plan: Plan) -> None:
        self.plan = plan

    def step(self, state: Any) -> None:
        is_strict = self.first <= state.step < self.last
        torch.cuda.set_sync_debug_mode("error" if is_strict else "default")
        self.num_strict += is_strict


def fit_strictly(file: ConfigFile, root: Path, first: int = 1) -> Strict:
    """Train, with an error where a step after the `first` waits for the device; the first has a look at the loss."""
    strict = Strict(first, NUM_STEPS)
    fit(file, root=root, progress=strict)
    assert strict.num_strict == NUM_STEPS - first
    return strict


@pytest.mark.usefixtures("waits_allowed")
@pytest.mark.parametrize("case", ARRAYS)
def test_no_step_between_two_looks_waits_for_the_device(case: str, place: str, tmp_path: Path) -> None:
    strict = fit_strictly(config(tmp_path, ARRAYS[case]), tmp_path / "runs")
    assert strict.plan.train.device.type == (DEVICE if place == "on the device" else "cpu")


@pytest.mark.usefixtures("waits_allowed")
@pytest.mark.parametrize("targets", ["labels", "numbers", "counts"])
def test_no_step_waits_whatever_the_task(targets: str, tmp_path: Path) -> None:
    write_arrays(tmp_path / "data.npz", targets=targets)
    loss = {"loss": {"type": "poisson_nll"}, "task": {"type": "regression"}} if targets == "counts" else {}
    fit_strictly(config(tmp_path, loss), tmp_path / "runs")


@pytest.mark.usefixtures("waits_allowed")
@pytest.mark.parametrize("name", TEXTS)
def test_no_step_on_texts_or_categories_waits(name: str, tmp_path: Path) -> None:
    fit_strictly(work_config(name, tmp_path), tmp_path / "runs")


def work_config(name: str, folder: Path) -> ConfigFile:
    """Return the config of a work of the benchmark, on few data and on the device."""
    tree = WORKS[name].config(TEXTS[name](folder))
    steps = dict.fromkeys(("duration", "evaluate_every", "checkpoint_every"), f"{NUM_STEPS} steps")
    tree["train"] |= {**steps, "device": DEVICE, "batch_size": 32}  # torch embeds more than 3,072 tokens in another way
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return load_config(path)


def trained(file: ConfigFile, root: Path) -> tuple[Any, dict[str, bytes]]:
    """Return the metrics and the bits of the weights."""
    run = Path(fit(file, root=root)["run"])
    return rows_of(run), {name: bytes_of(tensor) for name, tensor in weights_of(run).items()}


@pytest.mark.parametrize("case", ["images", "augmented images", "balanced"])
def test_data_on_the_host_give_the_bits_of_data_on_the_device(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = config(tmp_path, ARRAYS[case], deterministic=True)
    on_device = trained(file, tmp_path / "device")
    monkeypatch.setattr("dltrain.plan._SHARE_OF_DEVICE", 0.0)
    assert trained(file, tmp_path / "host") == on_device


@pytest.mark.parametrize("case", ["plain", "images", "bfloat16", "float16", "augmented images"])
def test_a_resumed_run_has_the_bits_of_the_whole_one(case: str, place: str, tmp_path: Path) -> None:
    file = config(tmp_path, ARRAYS[case], deterministic=True, evaluate_every="4 steps")
    whole = result_of(Path(fit(file, root=tmp_path / "whole")["run"]))
    assert result_of(fit_with_stops(file, tmp_path / "resumed", (3, 6))) == whole


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_fused_update_is_that_of_the_cpu(name: str, tmp_path: Path) -> None:
    sections: Sections = {"optimizer": {"type": name, "lr": 0.01, "weight_decay": 0.1}}
    strict = Strict(NUM_STEPS, NUM_STEPS)
    here = Path(fit(config(tmp_path, sections), root=tmp_path / "device", progress=strict)["run"])
    assert strict.plan.state.optimizer.param_groups[0]["fused"]
    there = Path(fit(config(tmp_path, sections, device="cpu"), root=tmp_path / "cpu")["run"])
    for name, expected in weights_of(there).items():
        torch.testing.assert_close(weights_of(here)[name], expected, rtol=1e-3, atol=1e-4)


def test_bfloat16_keeps_float32_weights_and_ends_near_float32(tmp_path: Path) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        file = config(tmp_path, IMAGES, precision=precision, duration="100 steps", evaluate_every="100 steps")
        run = Path(fit(file, root=tmp_path / precision)["run"])
        losses[precision] = rows_of(run)[-1]["train/loss"]
        assert {tensor.dtype for tensor in weights_of(run).values()} <= {torch.float32, torch.int64}
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1)


def test_convolutions_work_with_channels_last(tmp_path: Path) -> None:
    class Layouts(Strict):
        def begin(self, folder: Path, plan: Plan) -> None:
            self.seen: list[bool] = []
            for layer in plan.network.model.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.register_forward_hook(lambda _, inputs, output: self.seen.append(is_last(output)))

    def is_last(x: Tensor) -> bool:
        return x.is_contiguous(memory_format=torch.channels_last)

    layouts = Layouts(NUM_STEPS, NUM_STEPS)
    fit(config(tmp_path, IMAGES, precision="bfloat16"), root=tmp_path / "runs", progress=layouts)
    assert layouts.seen
    assert all(layouts.seen)


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_fastest_convolutions_are_looked_for_where_bits_may_differ(deterministic: bool, tmp_path: Path) -> None:
    fit(config(tmp_path, IMAGES, deterministic=deterministic), root=tmp_path / "runs")
    assert torch.backends.cudnn.benchmark is not deterministic


def test_where_memory_runs_out_the_micro_batch_is_halved(tmp_path: Path) -> None:
    sections: Sections = {"model": {"type": "mlp", "hidden": [2_000_000]}, "optimizer": {"type": "sgd", "lr": 1e-3}}
    file = config(tmp_path, sections, batch_size=50, duration="2 steps", evaluate_every="2 steps")
    whole = weights_of(Path(fit(file, root=tmp_path / "whole")["run"]))
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**30) / total)
    try:
        run = Path(fit(file, root=tmp_path / "halved")["run"])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory; going on with a micro_batch_size of " in (run / "log.txt").read_text()
    for name, tensor in weights_of(run).items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-4, atol=1e-5)


GRAPHS = {**test_graphs.CASES, **{name: ARRAYS[name] for name in ("bfloat16", "float16", "images", "clip norm")}}


@pytest.mark.parametrize("case", GRAPHS)
def test_a_recorded_training_has_the_bits_of_the_same_training(case: str, tmp_path: Path) -> None:
    make = partial(config, tmp_path, GRAPHS[case], deterministic=True)
    assert trained(make(cuda_graphs=True), tmp_path / "recorded") == trained(make(), tmp_path / "plain")


@pytest.mark.parametrize("name", ["language_model", "transformer"])
def test_a_recorded_training_on_texts_has_the_bits_of_the_same_training(name: str, tmp_path: Path) -> None:
    file = work_config(name, tmp_path)
    plain = trained(file, tmp_path / "plain")
    recorded = load_config(tmp_path / "config.yaml", ["train.cuda_graphs=true"])
    assert trained(recorded, tmp_path / "recorded") == plain


@pytest.mark.usefixtures("waits_allowed")
def test_no_replay_waits_for_the_device(place: str, tmp_path: Path) -> None:
    file = config(tmp_path, IMAGES, cuda_graphs=True)
    fit_strictly(file, tmp_path / "runs", first=5)  # the last batch of an epoch is recorded in the fourth step


def test_a_model_that_waits_cannot_be_recorded_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\n\n\nclass Waits(nn.Linear):\n    def forward(self, x):\n"
        "        return super().forward(x) * (1.0 if x.sum().item() > 0 else 0.5)\n"
    )
    # torch does not leave a stream as it was after a recording that failed: in a process of its own.
    model = {"type": "own.py:Waits", "in_features": 6, "out_features": 3}
    write_config(tmp_path, {"model": model, "train": {"device": DEVICE, "cuda_graphs": True}})
    result = dltrain("fit", "small.yaml", cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert "train.cuda_graphs: a step cannot be recorded as a CUDA graph: " in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_profile_accounts_for_the_device(cuda_graphs: bool, tmp_path: Path) -> None:
    said: list[str] = []
    file = config(tmp_path, IMAGES, cuda_graphs=cuda_graphs, duration="40 steps")
    with Profile(said.append) as profile:
        fit(file, root=tmp_path / "runs", watcher=profile)
    assert f"on {DEVICE}" in "\n".join(said)


def test_what_was_trained_here_is_measured_alike_on_a_cpu(tmp_path: Path) -> None:
    run = fit(config(tmp_path, IMAGES), root=tmp_path / "runs")["run"]
    here, there = (evaluate(run, device=device)["metrics"] for device in (DEVICE, "cpu"))
    assert here["loss"] == pytest.approx(there["loss"], rel=1e-2)


@pytest.mark.slow
def test_a_compiled_training_ends_near_the_same_weights(tmp_path: Path) -> None:
    plain = weights_of(Path(fit(config(tmp_path), root=tmp_path / "plain")["run"]))
    compiled = Path(fit(config(tmp_path, compile=True), root=tmp_path / "compiled")["run"])
    for name, tensor in weights_of(compiled).items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-2, atol=1e-3)
