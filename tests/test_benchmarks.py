"""The claim that dltrain computes what the hand-tuned loop computes, and the benchmark's own arithmetic."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks import (
    comparison,
    gpu,
    growth,
    images,
    imports,
    memory,
    neighbours,
    peers,
    plots,
    sweeps,
    synthetic,
    tensors,
)
from benchmarks.comparison import Comparison, Figures
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.options import Options
from benchmarks.works import WORKS, Work
from dltrain.config.validate import load_config

SMALL_DATA = {
    "tabular": lambda folder: synthetic.numbers(folder, 1000, 32),
    "categorical": lambda folder: synthetic.table(folder, 2000, 20, 8),
    "convnet": lambda folder: synthetic.images(folder, 256, 1, 28, 28),
    "resnet18": lambda folder: synthetic.images(folder, 64, 3, 32, 32),
    "transformer": lambda folder: synthetic.texts(folder, 128, 64),
    "translation": lambda folder: synthetic.sentences(folder, 320),
    "language_model": lambda folder: synthetic.corpus(folder, 5000, 1000),
}
"""Quick to make; the model of each work but the vocabulary is the work's own."""


@pytest.fixture(params=WORKS)
def work(request: pytest.FixtureRequest) -> Work:
    """Return a work of few samples and steps; those of tables go over the end of an epoch."""
    full = WORKS[request.param]
    small = {"resnet18": (2, 2), "language_model": (2, 1), "transformer": (3, 8)}
    steps, batch_size = small.get(full.name, (5, full.batch_size))
    return dataclasses.replace(full, make=SMALL_DATA.get(full.name, full.make), steps=steps, batch_size=batch_size)


@pytest.mark.slow
@pytest.mark.usefixtures("no_curves")
def test_dltrain_ends_with_the_very_weights_of_the_hand_tuned_loop(work: Work, tmp_path: Path) -> None:
    _, path = tensors.save(work, tmp_path)
    weights = {}
    for name in ("bare_mem", "dltrain"):
        out = tmp_path / name
        out.mkdir()
        weights[name] = comparison.read_weights(IMPLEMENTATIONS[name].train(work, tmp_path, out).weights)
    data = tensors.load(path)
    initial = {n.removeprefix("layers."): x for n, x in work.initial_model(data.sizes).state_dict().items()}
    assert comparison.distance(weights["bare_mem"], initial) > 1e-3  # something was learnt
    assert comparison.distance(weights["dltrain"], weights["bare_mem"]) == 0.0
    assert comparison.final_loss(work, weights["dltrain"], data) < comparison.final_loss(work, initial, data) + 1


@pytest.mark.parametrize("name", WORKS)
def test_the_config_of_every_work_is_valid(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(WORKS[name].config(tmp_path / "data.csv")))
    assert load_config(tmp_path / "config.yaml").config.train.batch_size == WORKS[name].batch_size


def test_a_batch_of_the_tutorials_loader_is_that_of_the_hand_tuned_loop(tmp_path: Path) -> None:
    work = dataclasses.replace(WORKS["translation"], make=SMALL_DATA["translation"])
    data = tensors.load(tensors.save(work, tmp_path)[1])
    assert data.longest is not None
    chosen = data.longest.argsort()[:3]
    gathered = data.batch(chosen)
    collated = data.collate([tuple(column[i] for column in data.columns) for i in chosen])
    assert all(torch.equal(x, y) for x, y in zip(gathered, collated, strict=True))
    assert data.columns[0].shape[1] > gathered[0].shape[1]


@pytest.mark.parametrize("name", WORKS)
def test_keras_own_layers_stand_in_for_plain_perceptrons_alone(name: str, tmp_path: Path) -> None:
    work = dataclasses.replace(WORKS[name], make=SMALL_DATA.get(name, WORKS[name].make))
    data = tensors.load(tensors.save(work, tmp_path)[1])
    expected = {"digits": [128, 128, 10], "tabular": [256, 256, 10]}.get(name, [])
    assert [layer.out_features for layer in peers.perceptron(work.initial_model(data.sizes))] == expected


def test_the_samples_of_batches_that_are_not_full_are_counted_once() -> None:
    work = dataclasses.replace(WORKS["digits"], batch_size=64, steps=29 + 2)
    assert work.samples_trained(1797) == 1797 + 2 * 64


def compared(loops_s: dict[str, list[float]], distance: float = 0.0, loss: float = 0.5) -> Comparison:
    """Return a comparison of trainings that took so long in each round; dltrain's result differs from bare_mem's."""
    rounds = [
        {name: Figures(s, samples_per_s=1 / s, process_s=1.0, cpu_s=1.0, peak_mib=100.0) for name, s in row.items()}
        for row in (dict(zip(loops_s, values, strict=True)) for values in zip(*loops_s.values(), strict=True))
    ]
    losses = dict.fromkeys(loops_s, loss) | {"bare_mem": 0.5}
    distances = dict.fromkeys(loops_s, distance) | {"bare_mem": 0.0}
    return Comparison(WORKS["digits"], dict.fromkeys(loops_s, 1), rounds, losses, distances)


def test_a_round_on_a_slow_moment_does_not_change_the_ratio() -> None:
    one = compared({"bare_mem": [1.0, 7.0, 1.0], "dltrain": [1.5, 10.5, 1.5]})
    assert one.ratio("dltrain", "loop_s") == pytest.approx((1.5, 1.5, 1.5))
    assert one.ratio("bare_mem", "loop_s", "dltrain")[0] == pytest.approx(1 / 1.5)


@pytest.mark.parametrize(
    ("name", "distance", "loss", "expected"),
    [
        ("dltrain", 0.0, 0.5, "bit-equal"),
        ("dltrain", 1e-7, 0.500004, "same loss"),
        ("dltrain", 1e-2, 0.51, "DIFFERENT"),
        ("lightning", 1e-2, 0.51, "other order"),
    ],
)
def test_whether_a_result_is_the_one_it_must_be(name: str, distance: float, loss: float, expected: str) -> None:
    assert compared({"bare_mem": [1.0], name: [1.0]}, distance, loss).equality(name) == expected


def test_with_other_threads_a_result_may_drift() -> None:
    one = compared({"bare_mem": [1.0], "dltrain": [1.0]}, 1e-2, 0.51)
    one.num_threads["bare_mem"] = 2
    assert one.equality("dltrain") == "other threads"


def test_weights_that_differ_in_one_bit_are_not_called_equal() -> None:
    one = {"weight": torch.ones(3)}
    other = {"weight": torch.tensor([1.0, 1.0, 1.0 + 2**-23])}
    assert comparison.distance(one, one) == 0.0
    assert comparison.distance(one, other) == 2**-23


def test_tables_and_plot_show_every_implementation(tmp_path: Path) -> None:
    one = compared({"bare_mem": [1.0, 2.0], "dltrain": [1.0, 2.0], "lightning": [3.0, 6.0]})
    assert [*comparison.table(one).columns[0].cells] == ["bare_mem", "dltrain", "lightning"]
    row = [next(iter(column.cells)) for column in comparison.summary([one]).columns]
    assert row == ["digits", "1.00", "1.00", "3.00 (3.00)", "1.00", "1.00", "bit-equal"]
    plots.ratios([one], tmp_path / "ratios.png")
    assert (tmp_path / "ratios.png").read_bytes().startswith(b"\x89PNG")


def test_the_slope_is_the_exponent_of_growth(tmp_path: Path) -> None:
    series = {"cubes": {1: 1.0, 10: 1000.0, 100: 1e6}, "constant, then linear": {1: 5.0, 10: 5.0, 100: 50.0}}
    assert plots.slope(series["cubes"]) == pytest.approx(3)
    assert plots.last_slope(series["constant, then linear"]) == pytest.approx(1)
    plots.growths(series, "us", tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_what_a_neighbour_costs_is_taken_within_rounds() -> None:
    cost = neighbours.Cost("digits", "default", [1.0, 4.0, 1.0], [2.0, 8.0, 2.0], [1.0] * 3, [1.5] * 3)
    assert (cost.loop_ratio, cost.process_ratio) == (2.0, 1.5)


def test_loops_are_scaled_to_the_trials_of_a_sweep_and_a_trial_has_its_share_of_what_is_no_step() -> None:
    sweep = sweeps.Figures(64, process_s=8.0, startup_s=1.6, end_s=0.8, loops_s=6.4)
    assert sweep.overhead_ms == pytest.approx(1000 * (8.0 - 1.6 - 6.4 / 2) / 64)
    rounds = [{sweeps.SWEEP: sweep, sweeps.LOOP: sweeps.Figures(8, process_s=20.0)}]
    rows = list(zip(*(column.cells for column in sweeps.table(3, rounds, {sweeps.LOOP: 8}).columns), strict=True))
    assert rows[0] == (sweeps.SWEEP, "64", "8.00", "8.0", "1.00", "", "1.60", "0.80", "50", "")
    loop = ("8", "20.00", "160.0, scaled", "20.00", ">= 10", "", "", "", "8 byte-identical")
    assert rows[1] == (sweeps.LOOP, *loop)


def test_a_trial_with_other_weights_than_in_the_sweep_is_an_error() -> None:
    of_sweep = {"lr: 1": "a", "lr: 2": "b", "lr: 3": "c"}
    assert sweeps.num_equal_weights({"lr: 2": "b", "lr: 3": "c"}, of_sweep) == 2
    with pytest.raises(RuntimeError, match="1 of 2 trials have other weights than in the sweep"):
        sweeps.num_equal_weights({"lr: 2": "b", "lr: 3": "x"}, of_sweep)
    with pytest.raises(RuntimeError, match="1 of 1 trials"):
        sweeps.num_equal_weights({"lr: 4": "a"}, of_sweep)


def test_an_optimizers_state_is_counted_in_bytes_of_a_parameter() -> None:
    sizes = memory.bytes_per_parameter()
    assert sizes["sgd"] == pytest.approx({"weights": 4, "gradients": 4, "state": 0}, abs=0.01)
    assert sizes["adamw"]["state"] == pytest.approx(8, abs=0.01)


def test_imports_are_summed_by_package() -> None:
    lines = [
        "import time: self [us] | cumulative | imported package",
        "import time:       100 |        100 |   json.decoder",
        "import time:      2000 |       2100 | torch",
        "import time:       500 |        500 |   torch.nn",
    ]
    sums = imports.by_package("\n".join(lines))
    assert sums == pytest.approx({"torch": 2.5, "(standard library)": 0.1})
    assert [*sums] == ["torch", "(standard library)"]
    rows = [[*column.cells] for column in imports.table({"--help": {}, "fit": sums}).columns]
    assert rows == [["torch", "all"], ["-", "0"], ["2", "3"]]


def test_numbers_in_words() -> None:
    assert synthetic.english(0) == "zero"
    assert synthetic.english(12) == "twelve"
    assert synthetic.english(380_417) == "three hundred eighty thousand four hundred seventeen"


def test_cold_decoding_is_compared_within_rounds() -> None:
    seconds = {"pillow": [1.0, 5.0], "cold": [1.2, 6.0], "cached": [0.1, 0.1], "one step": [0.2, 0.2]}
    assert images.cold_ratio(seconds) == pytest.approx(1.2)


@pytest.mark.slow
def test_a_watched_run_tells_what_it_holds(tmp_path: Path) -> None:
    options = Options(1, {}, lambda text: None, lambda *results: None, tmp_path)
    looks, sizes = growth.long_run(tmp_path, 8_000, options)
    assert sizes["metrics.jsonl"] > 0
    assert all(look.held.rss_mib > 10 and look.held.num_files > 2 for look in looks)
    assert looks


def test_the_benchmark_of_a_gpu_runs_whole_with_tiny_sizes_on_a_cpu(tmp_path: Path) -> None:
    shown: list[object] = []
    options = Options(1, {}, lambda text: None, lambda *results: shown.extend(results), tmp_path, device="cpu")
    figures = gpu.run(options)
    assert [list(one["units_per_s"]) for one in figures["trainings"]] == [["by hand", "dltrain"]] * 2
    assert all(rates[0] > 0 for one in figures["trainings"] for rates in one["units_per_s"].values())
    assert len(shown[0].rows) == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_without_a_gpu_its_benchmark_says_so_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^gpu: torch sees no CUDA device; --device cpu runs tiny sizes"):
        gpu.run(Options(1, {}, print, print, tmp_path))


def test_the_flops_of_a_resnet_50_and_their_share_of_a_peak_are_those_of_the_literature() -> None:
    training = gpu.images(50, 224, 1000, 2, 2)
    flops = gpu.flops_per_unit(training, training.data())
    assert flops == pytest.approx(2 * 4.09e9, rel=0.01)
    assert gpu.mfu(1000.0, flops, 989.4) == pytest.approx(3 * 8.18e12 / 989.4e12, rel=0.01)
    assert gpu.mfu(1000.0, flops, None) is None


def test_the_flops_of_a_language_model_are_two_a_weight_and_those_of_attention() -> None:
    dim, depth, vocabulary, block = 64, 2, 100, 32
    training = gpu.language(dim, depth, 2, vocabulary, block, 2, 2)
    weights = depth * 12 * dim**2 + vocabulary * dim
    attention = depth * 4 * block * dim
    assert gpu.flops_per_unit(training, training.data()) == pytest.approx(2 * weights + attention, rel=1e-6)
