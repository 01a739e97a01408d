"""Settings become objects: built-in or the user's own, with what the data decide offered by name."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dltrain.build import Builder, Clock
from dltrain.config.validate import load_config
from dltrain.errors import CheckpointError, ConfigError, DataError

OFFERED = {"in_features": 4, "out_features": 3, "num_classes": 3}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def builder_of(model: str, code: str = "", rest: str = "", trusted: list[str] | None = None) -> Builder:
    """Return the builder of a config in configs/, beside which stands own.py with `code`."""
    folder = Path("configs")
    folder.mkdir(exist_ok=True)
    (folder / "own.py").write_text(textwrap.dedent(code))
    (folder / "c.yaml").write_text(f"data: {{type: sklearn, name: iris}}\nmodel: {model}\n{rest}")
    return Builder(load_config(folder / "c.yaml"), trusted)


def build_model(model: str, code: str = "", trusted: list[str] | None = None) -> object:
    builder = builder_of(model, code, trusted=trusted)
    return builder.build(builder.file.config.model, ("model",), OFFERED)


def problem_of(model: str, code: str = "") -> str:
    with pytest.raises(ConfigError) as error:
        build_model(model, code)
    return str(error.value)


def test_a_built_in_model_gets_its_settings_and_what_the_data_decide() -> None:
    model = build_model("{type: mlp, hidden: [7]}")
    assert isinstance(model, nn.Module)
    assert [tuple(p.shape) for p in model.parameters()] == [(7, 4), (7,), (3, 7), (3,)]


def test_a_file_beside_the_config_is_imported_from_anywhere() -> None:
    code = """
    import helper_beside_it
    class Net:
        def __init__(self, num_classes, width=2, in_features=None):
            self.sizes = (num_classes, width, in_features, helper_beside_it.VALUE)
    """
    Path("configs").mkdir()
    Path("configs/helper_beside_it.py").write_text("VALUE = 9")
    before = list(sys.path)
    assert build_model("{type: own.py:Net, width: 5}", code).sizes == (3, 5, 4, 9)  # type: ignore[attr-defined]
    assert sys.path == before


def test_what_the_config_sets_goes_before_what_the_data_offer() -> None:
    assert build_model("{type: own.py:f, num_classes: 8}", "def f(num_classes): return num_classes") == 8


def test_anything_installed_is_a_component() -> None:
    model = build_model("{type: 'torch.nn:Linear', bias: false}")
    assert isinstance(model, nn.Linear)
    assert model.bias is None
    assert (model.in_features, model.out_features) == (4, 3)


def test_a_module_is_run_once_a_process() -> None:
    code = "import torch\ncount = []\ndef f():\n    count.append(1)\n    return len(count)"
    builder = builder_of("{type: own.py:f}", code)
    results = [builder.build(builder.file.config.model, ("model",), {}) for _ in range(2)]
    assert results == [1, 2]


def test_durations_become_steps() -> None:
    builder = builder_of("{type: mlp}", rest="schedule: {type: cosine, warmup: 10%}")
    schedule = builder.partial(builder.file.config.schedule, ("schedule",), Clock(steps_per_epoch=10, total_steps=200))
    assert schedule(9, 200) == pytest.approx(10 / 20)
    assert schedule(200, 200) == pytest.approx(0.0)


def test_a_class_is_built_and_a_function_has_its_arguments_bound() -> None:
    code = """
    class Loss:
        def __init__(self, num_classes, weight=1):
            self.scale = num_classes * weight
        def __call__(self, output, target):
            return self.scale * (output - target)
    def loss(output, target, weight=1):
        return weight * (output - target)
    """
    for name, expected in (("Loss", 6.0), ("loss", 2.0)):
        builder = builder_of("{type: mlp}", code, rest=f"loss: {{type: 'own.py:{name}', weight: 2}}")
        settings = builder.file.config.loss
        assert settings is not None
        loss = builder.build_callable(settings, ("loss",), OFFERED)
        assert loss(torch.tensor(2.0), torch.tensor(1.0)) == expected


def test_a_function_keeps_its_attributes_when_it_has_arguments() -> None:
    code = """
    def loss(output, target, weight=1):
        return weight * (output - target)
    loss.outputs_per_target = 2
    """
    builder = builder_of("{type: mlp}", code, rest="loss: {type: 'own.py:loss', weight: 2}")
    assert builder.file.config.loss is not None
    assert builder.build_callable(builder.file.config.loss, ("loss",), OFFERED).outputs_per_target == 2  # type: ignore[attr-defined]


def test_a_folder_that_was_importable_before_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    path = [str(Path.cwd()), *sys.path]
    monkeypatch.setattr(sys, "path", list(path))
    build_model("{type: 'torch.nn:Linear'}")
    assert sys.path == path


@pytest.mark.parametrize(
    ("section", "keys", "code", "problem"),
    [
        (
            "schedule: {type: own.py:f}",
            ("schedule",),
            "def f(step, total, every): return 1.0",
            "3:11: schedule: own.py:f needs every; it is called with (step, total)",
        ),
        (
            "schedule: {type: own.py:f}",
            ("schedule",),
            "def f(step): return 1.0",
            "3:18: schedule.type: own.py:f takes step; it is called with (step, total)",
        ),
        (
            "schedule: {type: own.py:f, total: 5}",
            ("schedule",),
            "def f(step, total, every=1): return 1.0",
            "3:28: schedule.total: own.py:f has no such argument; possible: every",
        ),
        (
            "loss: {type: own.py:f}",
            ("loss",),
            "def f(output, target, num_classes, scale): return 1.0",
            "3:7: loss: own.py:f needs scale; it is called with (output, target)",
        ),
        (
            "regularization: {penalties: [{type: own.py:f}]}",
            ("regularization", "penalties", 0),
            "def f(parameters, *, scale): return 1.0",
            "3:30: regularization.penalties.0: own.py:f needs scale; it is called with (parameters)",
        ),
        (
            "augment: [{type: own.py:f}]",
            ("augment", 0),
            "def f(x, rng, amount, /): return x",
            "3:11: augment.0: own.py:f needs amount; it is called with (x, rng)",
        ),
    ],
)
def test_a_function_that_the_loop_could_not_call_is_an_error(
    section: str, keys: tuple[str | int, ...], code: str, problem: str
) -> None:
    builder = builder_of("{type: mlp}", code, rest=section)
    settings: Any = builder.file.config
    for key in keys:
        settings = settings[key] if isinstance(key, int) else getattr(settings, key)
    with pytest.raises(ConfigError) as error:
        builder.build_callable(settings, keys, OFFERED)
    assert str(error.value) == f"configs/c.yaml:{problem}"


@pytest.mark.parametrize(
    "code",
    [
        "def f(*arguments, every=1): return every",
        "def f(step, total_steps, *, every=1, **others): return every",
        "class F:\n    @staticmethod\n    def f(step, total_steps, every): return every\nf = F.f",
    ],
)
def test_a_schedule_of_ones_own_is_called_with_step_and_total(code: str) -> None:
    builder = builder_of("{type: mlp}", code, rest="schedule: {type: own.py:f, every: 3}")
    assert builder.build_callable(builder.file.config.schedule, ("schedule",), {})(0, 10) == 3


PLACE, TYPE_PLACE = "configs/c.yaml:2:8: model", "configs/c.yaml:2:15: model.type"
FUNCTION = "def f(num_classes, width=2, *, depth): return 0"


@pytest.mark.parametrize(
    ("model", "code", "problem"),
    [
        (
            "{type: own.py:f, depth: 1, widht: 3}",
            FUNCTION,
            "configs/c.yaml:2:35: model.widht: own.py:f has no such argument; possible: num_classes, width, depth; "
            "did you mean 'width'?",
        ),
        (
            "{type: own.py:f}",
            FUNCTION,
            f"{PLACE}: own.py:f needs depth; the data offer in_features, out_features, num_classes",
        ),
        (
            "{type: own.py:Nett}",
            "class Net: pass",
            f"{TYPE_PLACE}: 'configs/own.py' has no 'Nett' to call; did you mean 'Net'?",
        ),
        ("{type: own.py:VALUE}", "VALUE = 3", f"{TYPE_PLACE}: 'configs/own.py' has no 'VALUE' to call"),
        (
            "{type: other.py:f}",
            "",
            f"{TYPE_PLACE}: there is no file 'configs/other.py'; paths are relative to the config file",
        ),
        (
            "{type: no_such_package.nets:Net}",
            "",
            f"{TYPE_PLACE}: 'no_such_package.nets' cannot be imported: ModuleNotFoundError: "
            "No module named 'no_such_package'; a file of your own is written path/file.py:Name",
        ),
        (
            "{type: own.py:f}",
            "\nopen('missing.txt')",
            f"{TYPE_PLACE}: 'configs/own.py' cannot be imported: FileNotFoundError: "
            "[Errno 2] No such file or directory: 'missing.txt' (own.py:2)",
        ),
        (
            "{type: own.py:f}",
            "def f(:",
            f"{TYPE_PLACE}: 'configs/own.py' cannot be imported: SyntaxError: invalid syntax (own.py, line 1)",
        ),
        (
            "{type: own.py:f}",
            "def f(num_classes):\n    assert num_classes == 2, 'only two classes'",
            f"{PLACE}: own.py:f failed: AssertionError: only two classes (own.py:2)",
        ),
        (
            "{type: 'torch.nn:Conv2d', in_channels: 1, out_channels: 3, kernel_size: 3, groups: 2}",
            "",
            f"{PLACE}: torch.nn:Conv2d failed: ValueError: in_channels must be divisible by groups",
        ),
    ],
)
def test_a_mistake_in_a_users_component_is_said_with_its_place(model: str, code: str, problem: str) -> None:
    assert problem_of(model, code) == problem


def test_all_mistakes_of_a_users_component_are_said_at_once() -> None:
    assert len(problem_of("{type: own.py:f, a: 1, b: 2}", FUNCTION).splitlines()) == 3


def test_errors_of_components_get_the_place() -> None:
    code = """
    from dltrain.errors import DataError
    def f():
        raise DataError("x.csv:3: is empty")
    """
    with pytest.raises(DataError, match=r"^configs/c\.yaml:2:8: model: x\.csv:3: is empty$"):
        build_model("{type: own.py:f}", code)


def test_a_duration_where_no_training_is_known_is_an_error() -> None:
    builder = builder_of("{type: mlp}", rest="schedule: {type: cosine, warmup: 10%}")
    with pytest.raises(ConfigError, match="a duration such as '10%' has no meaning here"):
        builder.partial(builder.file.config.schedule, ("schedule",))


CODE_THAT_RUNS = "from pathlib import Path\nPath('it_ran').touch()\ndef f(): return 5"


def test_code_that_a_checkpoint_names_runs_only_if_it_is_trusted() -> None:
    with pytest.raises(CheckpointError) as error:
        build_model("{type: own.py:f}", CODE_THAT_RUNS, trusted=["configs/other.py", "os"])
    assert str(error.value) == (
        f"{TYPE_PLACE}: names code of its own, 'own.py', which runs only if you trust it: "
        "read the file, then add --trust own.py"
    )
    assert not Path("it_ran").exists()
    with pytest.raises(CheckpointError, match=r"names code of its own, 'os'"):
        build_model("{type: 'os:getcwd'}", trusted=[])
    assert build_model("{type: own.py:f}", CODE_THAT_RUNS, trusted=["configs/own.py"]) == 5
    assert Path("it_ran").exists()


def test_what_a_target_says_of_a_setting_has_the_place_of_that_setting() -> None:
    assert problem_of("{type: mlp, hidden: [8], norm: batch, embedding_dim: 3}").startswith(
        "configs/c.yaml:2:61: model.embedding_dim: the data have no categorical columns"
    )
    # With all defaults, `norm` is nowhere in the config.
    code = "from dltrain.errors import ConfigError\ndef f(): raise ConfigError('norm: is bad')"
    assert problem_of("{type: own.py:f}", code) == "configs/c.yaml:2:8: model: norm: is bad"
