"""Texts, pairs of texts and running text go through the same loop, and keep the same promises, as everything else."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dltrain import checkpoint as checkpoints
from dltrain.config.validate import ConfigFile, load_config
from dltrain.errors import ConfigError
from dltrain.evaluation import evaluate
from dltrain.inspection import check
from dltrain.prediction import generate, predict
from dltrain.train import fit
from tests.small_runs import dltrain_here, fit_with_stops, result_of, rows_of, weights_of

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CHIFFRES = ("zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf")

DATA: dict[str, dict[str, Any]] = {
    "texts": {
        "data": {"type": "text", "path": "texts.csv", "tokenizer": {"kind": "character"}},
        "model": {"type": "transformer", "dim": 16, "depth": 1, "num_heads": 2, "dropout": 0.1},
    },
    "pairs": {
        "data": {"type": "pairs", "path": "pairs.csv", "tokenizer": {"kind": "character"}},
        "model": {"type": "encoder_decoder", "dim": 16, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2},
    },
    "corpus": {
        "data": {"type": "corpus", "path": "corpus.txt", "tokenizer": {"kind": "byte"}, "block": 16},
        "model": {"type": "causal_transformer", "dim": 16, "depth": 1, "num_heads": 2, "dropout": 0.1},
    },
}
MONITORS = {"texts": "val/accuracy", "pairs": "val/exact_match", "corpus": "val/perplexity"}


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write 100 numbers in words, their translations, and whether they are above 49, where the tests work."""
    monkeypatch.chdir(tmp_path)
    numbers = [(f"{DIGITS[n // 10]} {DIGITS[n % 10]}", f"{CHIFFRES[n // 10]} {CHIFFRES[n % 10]}") for n in range(100)]
    Path("pairs.csv").write_text("source,target\n" + "".join(f"{a},{b}\n" for a, b in numbers), encoding="utf-8")
    rows = "".join(f"{text},{'high' if n > 49 else 'low'}\n" for n, (text, _) in enumerate(numbers))
    Path("texts.csv").write_text("text,label\n" + rows, encoding="utf-8")
    Path("corpus.txt").write_text("".join(f"{a} is {b}.\n" for a, b in numbers), encoding="utf-8")


def config(name: str, **sections: Any) -> ConfigFile:
    """Return a config of two epochs on the data called `name`, with some sections changed, or replaced by a type."""
    train = {"duration": "2 epochs", "batch_size": 16, "device": "cpu"} | sections.pop("train", {})
    tree = {**DATA[name], "optimizer": {"type": "sgd", "lr": 0.1}, "split": {"val": 0.2, "test": 0.1}, "train": train}
    for key, value in sections.items():
        replaces = isinstance(value, list) or "type" in value
        tree[key] = value if replaces else {**tree.get(key, {}), **value}
    Path("c.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return load_config("c.yaml")


def run_of(file: ConfigFile) -> Path:
    return Path(fit(file)["run"])


@pytest.mark.parametrize(("name", "sampler"), [*((name, "shuffle") for name in DATA), ("pairs", "by_length")])
def test_a_run_stopped_in_the_middle_of_an_epoch_goes_on_bit_for_bit(name, sampler):
    train = {"sampler": sampler}
    file = config(name, optimizer={"type": "adamw", "lr": 0.01}, model={"dropout": 0.2}, train=train)
    assert result_of(fit_with_stops(file, Path("stopped"), (2, 7))) == result_of(run_of(file))


@pytest.mark.parametrize("name", DATA)
def test_micro_batches_add_up_although_they_hold_different_numbers_of_tokens(name):
    whole = run_of(config(name, model={"dropout": 0.0}))
    micro = run_of(config(name, model={"dropout": 0.0}, train={"micro_batch_size": 5}))
    for parameter, value in weights_of(micro).items():
        torch.testing.assert_close(value, weights_of(whole)[parameter], rtol=0, atol=1e-5)
    for row, expected in zip(rows_of(micro), rows_of(whole), strict=True):
        assert row == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", DATA)
def test_no_metric_depends_on_the_batch_size_of_the_evaluation(name):
    rows = [rows_of(run_of(config(name, train={"eval_batch_size": size})))[-1] for size in (1, 3, 512)]
    assert MONITORS[name] in rows[0]
    for row in rows[1:]:
        assert row == pytest.approx(rows[0], rel=1e-5)


@pytest.mark.parametrize("name", DATA)
def test_the_loss_of_a_row_is_that_of_evaluate(name):
    run = run_of(config(name, split={"test": 0.1}))
    best = checkpoints.load(checkpoints.find(run)).meta["metrics"]
    result = evaluate(run, split="val")["metrics"]
    assert result["loss"] == pytest.approx(best["val/loss"], rel=1e-6)
    assert result[MONITORS[name].removeprefix("val/")] == pytest.approx(best[MONITORS[name]], rel=1e-6)


def test_perplexity_is_the_exponential_of_the_loss_of_a_token():
    row = rows_of(run_of(config("corpus")))[-1]
    assert row["val/perplexity"] == pytest.approx(math.exp(row["val/loss"]), rel=1e-5)
    smoothed = rows_of(run_of(config("corpus", loss={"type": "cross_entropy", "label_smoothing": 0.2})))[-1]
    assert smoothed["val/perplexity"] < math.exp(smoothed["val/loss"])


@pytest.mark.parametrize("name", DATA)
def test_check_shows_data_and_model(name, capsys):
    check(config(name))
    shown = capsys.readouterr().out
    assert "tokens" in shown
    assert f"monitors {MONITORS[name]}" in shown


@pytest.mark.slow
def test_a_translation_that_is_learnt_by_heart_is_exact_in_every_way():
    file = config(
        "pairs",
        split={"val": 0.05, "test": 0},
        optimizer={"type": "adamw", "lr": 0.004},
        schedule={"type": "cosine", "warmup": "10%"},
        model={"dim": 32, "dropout": 0.0},
        train={"duration": "120 epochs", "evaluate_every": "120 epochs"},
    )
    run = run_of(file)
    metrics = evaluate(run, split="train")["metrics"]
    assert metrics["exact_match"] > 0.95  # decoded; where every token is right given the true ones, both agree
    assert metrics["chrf"] > 95
    assert metrics["bleu"] == 0  # by its definition, where no text has four words
    Path("new.txt").write_text("two three\nnine one\n", encoding="utf-8")
    rows = list(predict(run, ["new.txt"]))
    assert [row["prediction"] for row in rows] == ["deux trois", "neuf un"]
    assert rows[1]["input"] == "new.txt: line 2"


def test_beam_search_is_a_setting_of_the_task():
    run = run_of(config("pairs", task={"type": "translation", "beam_size": 3}))
    assert {"exact_match", "bleu", "chrf"} <= evaluate(run)["metrics"].keys()


def test_a_language_model_goes_on_with_a_text():
    run = run_of(config("corpus", train={"duration": "6 epochs"}, optimizer={"type": "adamw", "lr": 0.02}))
    texts = [generate(run, "four ", max_tokens=30, seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("four ")
    likeliest = {generate(run, "four ", max_tokens=9, temperature=0.0, seed=seed) for seed in (0, 1)}
    assert likeliest == {generate(run, "four ", max_tokens=9, top_k=1, seed=5)}


def test_the_command_line_generates():
    run = run_of(config("corpus"))
    result = dltrain_here("predict", run, "--generate", "one", "--max-tokens", "5", cwd=Path.cwd())
    assert (result.returncode, result.stdout[:3]) == (0, "one")


def test_generating_is_for_language_models_and_files_are_for_others():
    run = run_of(config("corpus"))
    with pytest.raises(ConfigError, match=r"is a language model; it goes on with a text: --generate TEXT"):
        next(predict(run, ["corpus.txt"]))
    other = run_of(config("texts"))
    with pytest.raises(ConfigError, match="--generate is for language models; this is a model of classification"):
        generate(other, "one")
    result = dltrain_here("predict", run, cwd=Path.cwd())
    assert result.returncode == 2
    assert result.stderr == "predict: needs INPUTs, or --generate TEXT for a language model\n"


def test_a_corpus_is_split_in_order():
    run = run_of(config("corpus", split={"val": 0.2, "test": 0.1}))
    facts = checkpoints.load(checkpoints.find(run)).meta["facts"]
    assert facts["num_samples"] == {"train": 70, "val": 20, "test": 10}


ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("corpus", {"task": {"type": "classification"}}, "task.type: data of type corpus are not for classification; "),
    ("texts", {"task": {"type": "translation"}}, "data of type text are not for translation; possible: classification"),
    ("corpus", {"split": {"stratify": True}}, "split.stratify: cannot take effect: "),
    (
        "corpus",
        {"model": {"type": "mlp"}},
        "mlp is for numbers, images or series; the data are a corpus of shape (16,)",
    ),
    ("corpus", {"train": {"monitor": "train/perplexity"}}, "is not measured on training batches; use train/loss or"),
    ("corpus", {"loss": {"type": "focal"}}, "focal is for classification; the task is language_model"),
    ("texts", {"regularization": {"mix": {"type": "mixup"}}}, "regularization.mix: mixup needs numeric inputs"),
    (
        "texts",
        {"augment": [{"type": "noise", "std": 0.1}]},
        "augment.0: noise needs numeric inputs, this data has integers",
    ),
    ("pairs", {"train": {"sampler": "balanced"}}, "balanced needs classes; the task is translation"),
]


@pytest.mark.parametrize(("name", "sections", "message"), ERRORS)
def test_what_does_not_fit_is_one_error_with_its_place(name, sections, message):
    with pytest.raises(ConfigError) as caught:
        fit(config(name, **sections))
    assert message in str(caught.value)
    assert str(caught.value).startswith("c.yaml:")
    assert not Path("runs").exists()


def test_metrics_of_a_run_are_json():
    run = run_of(config("pairs"))
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=lambda constant: pytest.fail(constant))


def test_samples_that_are_left_out_are_counted_in_the_metrics():
    text = Path("pairs.csv").read_text(encoding="utf-8")
    Path("pairs.csv").write_text(text + "one,\n,deux\n", encoding="utf-8")
    data = {**DATA["pairs"]["data"], "on_bad_sample": "skip"}
    rows = rows_of(run_of(config("pairs", data=data)))
    assert [row["skipped_samples"] for row in rows] == [2, 2]
