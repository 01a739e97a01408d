"""`train.compile`: auto tries only what can pay and leaves all as it was; a compiled training is exact, too."""

from __future__ import annotations

import functools
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dltrain import checkpoint as checkpoints
from dltrain import compilation
from dltrain.checkpoint import LAST
from dltrain.errors import ConfigError, TrainingError
from dltrain.train import fit
from dltrain.verification import verify
from tests.small_runs import Sections, bytes_of, fit_with_stops, result_of, rows_of, small_config, weights_of

pytestmark = [
    pytest.mark.usefixtures("no_curves"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning"),  # torch's compiler uses it
]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="NO g++: COMPILED TRAININGS ARE NOT TESTED")

MODEL: Sections = {"model": {"dropout": 0.3, "norm": "batch"}}


def with_compile(setting: bool | str, **train: Any) -> Sections:
    """Return sections with dropout and batch statistics, which a trial must leave as they are."""
    return {**MODEL, "train": {"compile": setting, **train}}


def weights_and_rows(run: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    return {name: bytes_of(tensor) for name, tensor in weights_of(run).items()}, rows_of(run)


def log_line(run: Path) -> str:
    """Return what the log says of compiling."""
    (line,) = re.findall(r"compile: .*", (run / "log.txt").read_text())
    return str(line)


def train(folder: Path, setting: bool | str, **settings: Any) -> Path:
    return Path(fit(small_config(folder, with_compile(setting, **settings)), root=folder / str(setting))["run"])


class Trial:
    """Stands in for the compiler and the clock: the compiled form is the model itself, or one that fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, eager_s: float = 2.0, compiled_s: float = 1.0) -> None:
        self.error: Exception | None = None
        self.calls = 0

        def compiled(model: nn.Module, *, dynamic: bool) -> nn.Module:
            self.calls += 1
            return Fails(self.error) if self.error is not None else model

        def fastest(pass_s: Any, forms: list[nn.Module]) -> list[float]:
            for form in forms:
                pass_s(form)
            return [eager_s, compiled_s][: len(forms)]

        monkeypatch.setattr(compilation, "_compiled", compiled)
        monkeypatch.setattr(compilation, "_fastest", fastest)
        monkeypatch.setattr(compilation, "_COST_S", 1.0)
        monkeypatch.setattr(compilation, "missing_compiler", lambda device: "")
        monkeypatch.setattr("dltrain.plan.missing_compiler", lambda device: "")


class Fails(nn.Module):
    """A form that cannot be called."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise self.error


def test_a_short_training_is_not_compiled_and_is_what_it_is_without(tmp_path: Path) -> None:
    run = train(tmp_path, "auto")
    assert re.fullmatch(
        r"compile: no, forward and backward take about \S+ s in all; compiling takes some 20 s and saves hardly more "
        r"than 25%",
        log_line(run),
    )
    assert weights_and_rows(run) == weights_and_rows(train(tmp_path, False))
    assert checkpoints.load(run / "checkpoints" / LAST).meta["compiled"] is False


@pytest.mark.parametrize(
    ("compiled_s", "said"),
    [
        (1.0, "compile: yes, forward and backward take 1e+03 ms compiled and 2e+03 ms as they are; compiling took 0 s"),
        (3.0, "compile: no, forward and backward take 3e+03 ms compiled and 2e+03 ms as they are; compiling took 0 s"),
    ],
)
def test_a_trial_chooses_the_faster_form_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled_s: float, said: str
) -> None:
    plain = weights_and_rows(train(tmp_path, False))
    Trial(monkeypatch, compiled_s=compiled_s)
    run = train(tmp_path, "auto")
    assert log_line(run) == said
    assert weights_and_rows(run) == plain
    assert checkpoints.load(run / "checkpoints" / LAST).meta["compiled"] is (compiled_s == 1.0)


def test_a_gain_below_the_cost_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trial(monkeypatch, eager_s=1.0, compiled_s=0.9999999)
    assert log_line(train(tmp_path, "auto")).startswith("compile: no, forward and backward take 1e+03 ms compiled")


@pytest.mark.parametrize("faster", [True, False])
def test_a_resumed_run_keeps_its_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faster: bool) -> None:
    Trial(monkeypatch, compiled_s=1.0 if faster else 3.0)
    run = fit_with_stops(small_config(tmp_path, with_compile("auto")), tmp_path / "runs", (5,))
    trial = Trial(monkeypatch, compiled_s=3.0 if faster else 1.0)  # it would now be decided otherwise
    fit(small_config(tmp_path, with_compile("auto", duration="4 epochs")), resume=run)
    assert trial.calls == faster
    assert checkpoints.load(run / "checkpoints" / LAST).meta["compiled"] is faster


def test_without_a_compiler_auto_says_so_and_true_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    missing = "there is no C++ compiler (no-such-compiler), which torch compiles with"
    assert log_line(train(tmp_path, "auto")) == f"compile: no, {missing}"
    with pytest.raises(ConfigError) as caught:
        train(tmp_path, True)
    assert str(caught.value).endswith(f": train.compile: is true, and {missing}; set it to auto or false")
    assert ":1" in str(caught.value)
    assert not (tmp_path / "True").exists()


def test_what_cannot_be_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(monkeypatch)
    trial.error = RuntimeError("no such kernel\nand more")
    run = train(tmp_path, "auto")
    assert log_line(run) == "compile: no, torch cannot compile the model: no such kernel"
    with pytest.raises(
        TrainingError,
        match=r"^train\.compile: torch cannot compile the model: no such kernel; false trains it as it is$",
    ):
        train(tmp_path, True)
    assert weights_and_rows(run) == weights_and_rows(train(tmp_path, False))


def test_sequences_of_all_lengths_are_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    lines = [f"{' '.join(words[: 1 + i % 7])},{i % 2}" for i in range(140)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *lines]))
    sections: Sections = {
        "data": {"type": "text", "path": "texts.csv"},
        "model": {"type": "transformer", "dim": 8, "depth": 1, "num_heads": 2},
        "train": {"compile": True, "batch_size": 4, "duration": "2 epochs"},
    }
    tree = small_config(tmp_path, sections)
    run = Path(fit(tree, root=tmp_path / "runs")["run"])
    assert log_line(run).startswith("compile: took ")
    assert 1 <= counter.frame_count <= 2  # sizes of one are a case of their own


@pytest.mark.parametrize("cache", ["on", "off"])
def test_where_the_user_has_a_say_in_the_cache_of_torch_it_stays(monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    place = "/elsewhere" if cache == "on" else default_cache_dir()
    monkeypatch.setenv("DLTRAIN_CACHE", "/cache" if cache == "on" else "off")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", place)
    compilation._compiled(nn.Linear(2, 2), dynamic=False)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == place


@needs_compiler
def test_a_compiled_training_is_resumed_and_verified_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.utils import counters
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    monkeypatch.setenv("DLTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())
    file = small_config(tmp_path, with_compile(True, checkpoint_every="5 steps"))
    whole = Path(fit(file, root=tmp_path / "whole")["run"])
    assert log_line(whole).startswith("compile: took ")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "cache" / "compiled")
    assert any((tmp_path / "cache" / "compiled").iterdir())
    counters.clear()
    assert result_of(fit_with_stops(file, tmp_path / "stopped", (5,))) == result_of(whole)
    assert counters["inductor"]["fxgraph_cache_hit"] >= 1
    assert counters["inductor"]["fxgraph_cache_miss"] == 0
    assert "are equal, bit for bit" in verify(whole)
