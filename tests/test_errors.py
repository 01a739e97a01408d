"""Every mistake in a config is one line: where, what was found, what is possible. The texts are exact."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dltrain.config.schema import sections
from dltrain.config.validate import load_config
from dltrain.errors import ConfigError

DATA, MODEL = "data: {type: sklearn, name: digits}\n", "model: {type: mlp}\n"
TABLE = "data: {type: table, path: x.csv, target: y, "
OWN = "or your own as package.module:Name or path/file.py:Name"
MODEL_NAMES = list(sections.MODELS.classes)
MODELS = f"{', '.join(MODEL_NAMES[:-1])} or {MODEL_NAMES[-1]}, {OWN}"
MODEL_SECTION = "{type: " + "|".join(MODEL_NAMES) + ", ...}"
DATA_SECTION = "{type: " + "|".join(sections.DATA.classes) + ", ...}"
TRANSFORM_SECTION = "{type: " + "|".join(sections.TRANSFORMS.classes) + ", ...}"
ROOT_KEYS = ", ".join(sections.Config.model_fields)


def problems_of(text: str, *options: str) -> list[str]:
    """Return the problems of a config, without the name of its file."""
    path = Path("c.yaml")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_config(path, options)
    return [problem.removeprefix("c.yaml:") for problem in error.value.problems]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_all_mistakes_are_said_at_once_in_the_order_of_the_file() -> None:
    text = """\
# A config with a mistake in every section
optimzer: {type: adamw}
data: {type: sklearn, name: digit}
seed: abc
model:
  type: mlp
  hidden: [64, 0]
  dropout: 1.5
  activaton: relu
regularization:
  penalties:
    - {type: l1}
train: {batch_size: 1.5, duration: 10}
"""
    assert problems_of(text) == [
        f"2:1: optimzer: unknown key; possible: {ROOT_KEYS}; did you mean 'optimizer'?",
        "3:29: data.name: is 'digit'; possible: digits, iris, wine, breast_cancer or diabetes; did you mean 'digits'?",
        "4:7: seed: is 'abc'; possible: a whole number >= 0 and < 9223372036854775808",
        "7:16: model.hidden.1: is 0; possible: a whole number > 0",
        "8:12: model.dropout: is 1.5; possible: a number >= 0 and < 1",
        "9:3: model.activaton: unknown key; possible: type, hidden, activation, norm, dropout, embedding_dim, "
        "residual, init, zero_init_head; did you mean 'activation'?",
        "12:7: regularization.penalties.0.strength: is missing; possible: a number > 0",
        "13:21: train.batch_size: is 1.5; possible: a whole number >= 1",
        "13:36: train.duration: is 10; possible: '500 steps', '10 epochs' or a time: '10 min'",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("optimizer: {type: sgd, lrr: 1}", "3:24: optimizer.lrr: unknown key; possible: type, decay_all, groups, lr, "
         "momentum, dampening, weight_decay, nesterov; did you mean 'lr'?"),
        ("regularization: {sam: {rhoo: 1}}",
         "3:24: regularization.sam.rhoo: unknown key; possible: rho, adaptive; did you mean 'rho'?"),
        ("optimizer: {type: sgd, groups: [{params: a, lrs: 1}]}",
         "3:45: optimizer.groups.0.lrs: unknown key; possible: params, lr, lr_scale, weight_decay; did you mean 'lr'?"),
        ("data:{type: a}", "3:1: data:{type: unknown key; a space must follow its ':'"),
        ("3: 1", f"3:1: 3: unknown key; possible: {ROOT_KEYS}"),
        ("k" * 100 + ": 1", f"3:1: {'k' * 57}...: unknown key; possible: {ROOT_KEYS}"),
    ],
)  # fmt: skip
def test_unknown_keys_at_every_depth(text: str, problem: str) -> None:
    assert problems_of(DATA + MODEL + text) == [problem]


def test_missing_keys_are_said_with_what_they_may_be() -> None:
    assert problems_of("seed: 1") == [
        f"1:1: data: is missing; possible: {DATA_SECTION}",
        f"1:1: model: is missing; possible: {MODEL_SECTION}",
    ]
    assert problems_of("data: {type: table}\n" + MODEL) == [
        "1:1: data.path: is missing; possible: text (not empty)",
        "1:1: data.target: is missing; possible: text, or a list of one or more texts",
    ]
    assert problems_of(DATA + "model:\n  type: sequential\n  layers:\n    - {type: Linear}") == [
        "5:7: model.layers.0.out_features: is missing"
    ]


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("mlp", f"2:8: model: is 'mlp'; possible: {MODEL_SECTION}; write {{type: mlp}}"),
        ("mpl", f"2:8: model: is 'mpl'; possible: {MODEL_SECTION}; did you mean {{type: mlp}}?"),
        ("own.py:Net", f"2:8: model: is 'own.py:Net'; possible: {MODEL_SECTION}; write {{type: own.py:Net}}"),
        ("3", f"2:8: model: is 3; possible: {MODEL_SECTION}"),
        ("", f"2:7: model: is null; possible: {MODEL_SECTION}"),
        ("[mlp]", f"2:8: model: is ['mlp']; possible: {MODEL_SECTION}"),
        ("{hidden: [3]}", f"2:1: model.type: is missing; possible: {MODELS}"),
        ("{mlp: {hidden: [3]}}", f"2:1: model.type: is missing; possible: {MODELS}; did you mean {{type: mlp, ...}}?"),
        ("{type: mpl}", f"2:15: model.type: is 'mpl'; possible: {MODELS}; did you mean 'mlp'?"),
        ("{type: 3}", f"2:15: model.type: is 3; possible: {MODELS}"),
        ("{type: [mlp]}", f"2:15: model.type: is ['mlp']; possible: {MODELS}"),
        ("{type: own.py}",
         f"2:15: model.type: is 'own.py'; possible: {MODELS}; say what to take of the file: 'own.py:Name'"),
        ("{type: a.b.Net}", f"2:15: model.type: is 'a.b.Net'; possible: {MODELS}; did you mean 'a.b:Net'?"),
        ("{type: 'a b:Net'}",
         "2:15: model.type: is 'a b:Net'; possible: package.module:Name or path/file.py:Name"),
        ("{type: 'own.py:'}", "2:15: model.type: is 'own.py:'; possible: package.module:Name or path/file.py:Name"),
        ("{type: sequential, layers: []}",
         "2:35: model.layers: is []; possible: a list of one or more {type: class in torch.nn, ...}"),
    ],
)  # fmt: skip
def test_components_are_written_with_a_type(model: str, problem: str) -> None:
    assert problems_of(f"{DATA}model: {model}\n") == [problem]


def test_a_kind_that_is_never_the_users_own_says_so() -> None:
    assert problems_of(DATA + MODEL + "regularization: {clip: {type: 'own:Clip'}}") == [
        "3:31: regularization.clip.type: is 'own:Clip'; possible: norm, value or adaptive"
    ]
    assert problems_of(DATA + MODEL + "task: {type: regresion}") == [
        "3:14: task.type: is 'regresion'; possible: classification, multilabel, regression, language_model or "
        "translation; did you mean 'regression'?"
    ]


@pytest.mark.parametrize(
    ("lr", "problem"),
    [
        ("abc", "is 'abc'; possible: a number > 0"),
        ("-1", "is -1; possible: a number > 0"),
        ("0", "is 0; possible: a number > 0"),
        (".nan", "is .nan; possible: a finite number > 0"),
        (".inf", "is .inf; possible: a finite number > 0"),
        ("1e999", "is 1e999; possible: a finite number > 0"),
        ("true", "is true; possible: a number > 0"),
        ("[1]", "is [1]; possible: a number > 0"),
        ("{a: b}", "is {a: 'b'}; possible: a number > 0"),
        ("~", "is ~; possible: a number > 0; leave the key out for the default"),
        ("'1e-3'", "is '1e-3'; possible: a number > 0; write it without quotes"),
        ("1_000", "is '1_000'; possible: a number > 0"),
        ("${UNSET}", "is '${UNSET}'; possible: a number > 0"),
    ],
)
def test_numbers(lr: str, problem: str) -> None:
    text = f"{DATA}{MODEL}optimizer:\n  type: adamw\n  lr: {lr}"
    assert problems_of(text) == [f"5:7: optimizer.lr: {problem}"]


@pytest.mark.parametrize(
    ("size", "problem"),
    [
        ("0", "is 0; possible: a whole number >= 1"),
        ("64.0", "is 64.0; possible: a whole number >= 1; write 64"),
        ("1e2", "is 1e2; possible: a whole number >= 1; write 100"),
        ("'64'", "is '64'; possible: a whole number >= 1; write it without quotes"),
        ("on", "is 'on'; possible: a whole number >= 1"),
        ("12:30:45", "is '12:30:45'; possible: a whole number >= 1"),
        ("99999999999999999999", "is 99999999999999999999; too large for 64 bits"),
    ],
)
def test_whole_numbers(size: str, problem: str) -> None:
    assert problems_of(f"{DATA}{MODEL}train: {{batch_size: {size}}}") == [f"3:21: train.batch_size: {problem}"]


def test_more_threads_than_a_process_can_have_are_refused() -> None:
    """PyTorch ends the process by a segmentation fault."""
    problem = "is 100000; possible: a whole number >= 1 and <= 1024, or null"
    assert problems_of(f"{DATA}{MODEL}train: {{threads: 100000}}") == [f"3:18: train.threads: {problem}"]


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("train: {compile: on}",
         "3:18: train.compile: is 'on'; possible: true or false, or auto; YAML 1.2 reads on, off, yes and no as text"),
        ("train: {compile: 'true'}",
         "3:18: train.compile: is 'true'; possible: true or false, or auto; write it without quotes"),
        ("train: {compile: 1}", "3:18: train.compile: is 1; possible: true or false, or auto"),
        ("name: 012",
         "3:7: name: is 012; possible: letters and digits, inside also '.', '_' and '-', or null; "
         'write it in quotes: "012"'),
        ("name: a/b", "3:7: name: is 'a/b'; possible: letters and digits, inside also '.', '_' and '-', or null"),
        ("train: {device: gpu}", "3:17: train.device: is 'gpu'; possible: auto, cpu, cuda or cuda:N"),
        ("train: {monitor: accuracy}",
         "3:18: train.monitor: is 'accuracy'; possible: train/ or val/ and a metric, such as 'val/loss', or null"),
        ("train: {precision: bf16}",
         "3:20: train.precision: is 'bf16'; possible: float32, bfloat16 or float16; did you mean 'bfloat16'?"),
        ("split: {val: 1.5}", "3:14: split.val: is 1.5; possible: a number >= 0 and < 1, or a path"),
        ("split: {val: ''}", "3:14: split.val: is ''; possible: a number >= 0 and < 1, or a path"),
        (
            "train: {duration: 50%}",
            "3:19: train.duration: is '50%'; possible: '500 steps', '10 epochs' or a time: '10 min'",
        ),
        ("train: {duration: 0 epochs}", "3:19: train.duration: is '0 epochs'; must be more than nothing"),
        ("train: {checkpoint_every: 10 minutes}",
         "3:27: train.checkpoint_every: is '10 minutes'; possible: '500 steps', '10 epochs' or '5%' of the training, "
         "or a time: '30 s', '10 min', '1 h'"),
        ("schedule: {type: cosine, warmup: 5}",
         "3:34: schedule.warmup: is 5; possible: '500 steps', '10 epochs' or '5%' of the training"),
        ("optimizer: {type: adam, betas: [0.9]}",
         "3:32: optimizer.betas: is [0.9]; possible: a list of 2 numbers >= 0 and < 1"),
        ("optimizer: {type: adam, betas: [0.9, 1]}",
         "3:38: optimizer.betas.1: is 1; possible: a number >= 0 and < 1"),
        ("optimizer: {type: adam, groups: [{params: [a, 3]}]}",
         '3:47: optimizer.groups.0.params.1: is 3; possible: text (not empty); write it in quotes: "3"'),
        ("optimizer: {type: adam, groups: [{params: a, lr: 1, lr_scale: 2}]}",
         "3:34: optimizer.groups.0: lr and lr_scale exclude each other; give one"),
        ("loss: {type: cross_entropy, class_weights: balance}",
         "3:44: loss.class_weights: is 'balance'; possible: a list of one or more numbers > 0, balanced, or null; "
         "did you mean 'balanced'?"),
        ("loss: {type: cross_entropy, class_weights: [1, -1]}",
         "3:48: loss.class_weights.1: is -1; possible: a number > 0"),
        ("augment: flip",
         f"3:10: augment: is 'flip'; possible: a list of {TRANSFORM_SECTION}"),
        ("augment: [{type: erasing, area: [0.5, 0.1]}]",
         "3:33: augment.0.area: is [0.5, 0.1]; the first must not be above the second"),
        ("regularization: {sam: true}", "3:23: regularization.sam: is true; possible: {rho, adaptive}, or null"),
        ("split:",
         "3:7: split: is null; possible: {val, test, stratify, seed}; leave the key out for the default"),
    ],
)  # fmt: skip
def test_other_values(setting: str, problem: str) -> None:
    assert problems_of(DATA + MODEL + setting) == [problem]


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("delimiter: ';;'", "delimiter: is ';;'; possible: a single character, or null"),
        ("columns: {age: number}",
         "columns.age: is 'number'; possible: numeric, category, date or ignore; did you mean 'numeric'?"),
        ("columns: [age]",
         "columns: is ['age']; possible: a mapping of names to numeric, category, date or ignore, or null"),
        ("missing_values: [0]", 'missing_values.0: is 0; possible: text; write it in quotes: "0"'),
    ],
)  # fmt: skip
def test_values_of_the_table_source(setting: str, problem: str) -> None:
    (found,) = problems_of(f"{TABLE}{setting}}}\n{MODEL}")
    assert found.partition(": data.")[2] == problem


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("optimzer.lr=1", f"optimzer: unknown key; possible: {ROOT_KEYS}; did you mean 'optimizer'?"),
        ("model.hiden=[3]", "model.hiden: unknown key; possible: type, hidden, activation, norm, dropout, "
         "embedding_dim, residual, init, zero_init_head; did you mean 'hidden'?"),
        ("model.dropout=1", "model.dropout: is 1; possible: a number >= 0 and < 1"),
        ("model.hidden=[1,x]", "model.hidden.1: is 'x'; possible: a whole number > 0"),
        ("model.type=mpl", f"model.type: is 'mpl'; possible: {MODELS}; did you mean 'mlp'?"),
        ("model=null", f"model: is null; possible: {MODEL_SECTION}"),
        ("seed.x=1", "seed: is {x: 1}; possible: a whole number >= 0 and < 9223372036854775808"),
        ("train.duration", "is not of the form section.key=value"),
        ("optimizer.lr=-1", "optimizer.lr: is -1; possible: a number > 0"),
        ("9=1", f"9: unknown key; possible: {ROOT_KEYS}"),
    ],
)  # fmt: skip
def test_set_is_checked_as_the_file_is_and_named(option: str, problem: str) -> None:
    assert problems_of(DATA + MODEL, option) == [f"--set {option}: {problem}"]


def test_set_accepts_what_the_file_accepts() -> None:
    Path("c.yaml").write_text(DATA + MODEL, encoding="utf-8")
    options = ["model.hidden=[1,2]", "optimizer={type: sgd}", "optimizer.lr=1e-3", "model.embedding_dim=null", "name=x"]
    config = load_config("c.yaml", options).config
    assert config.model.arguments()["hidden"] == [1, 2]
    assert config.optimizer.arguments()["lr"] == 1e-3
    assert config.name == "x"


def test_the_command_line_shows_the_lines_and_nothing_else() -> None:
    """No traceback, nothing on stdout, exit code 2, no folder of runs."""
    Path("c.yaml").write_text("data: {type: sklearn, name: digits}\nmodel: mlp\n", encoding="utf-8")
    command = [sys.executable, "-m", "dltrain", "fit", "c.yaml", "--set", "seed=-1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stderr.splitlines() == [
        "--set seed=-1: seed: is -1; possible: a whole number >= 0 and < 9223372036854775808",
        f"c.yaml:2:8: model: is 'mlp'; possible: {MODEL_SECTION}; write {{type: mlp}}",
    ]
    assert result.stdout == ""
    assert result.returncode == 2
    assert [path.name for path in Path().iterdir()] == ["c.yaml"]
