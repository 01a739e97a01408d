"""What a config's text means, and that no text makes the reader do anything but read or say what is wrong."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dltrain.config import reader
from dltrain.config.validate import validate
from dltrain.errors import ConfigError

CONFIGS = sorted(Path(__file__).parent.parent.glob("configs/*.yaml"))


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        reader.read_text(text, "c.yaml")
    return list(error.value.problems)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("-7", -7),
        ("+7", 7),
        ("true", True),
        ("False", False),
        ("on", "on"),
        ("no", "no"),
        ("y", "y"),
        ("12:30:45", "12:30:45"),
        ("2024-01-02", "2024-01-02"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("", None),
        ("~", None),
        ("null", None),
        ("nil", "nil"),
        ("'1e-3'", "1e-3"),
        ('"true"', "true"),
        ("-.inf", -math.inf),
        ("10 epochs", "10 epochs"),
        ("5%", "5%"),
        ("[1, [a, 2.5]]", [1, ["a", 2.5]]),
        ("{a: 1, b: {c: }}", {"a": 1, "b": {"c": None}}),
    ],
)
def test_values_are_read_as_yaml_1_2_has_them(text: str, value: Any) -> None:
    read = reader.read_text(f"key: {text}", "c.yaml").value["key"]
    assert read == value
    assert type(read) is type(value)


def test_keys_are_text_whatever_they_look_like() -> None:
    assert list(reader.read_text("{3: a, true: b, 1e3: c}", "c.yaml").value) == ["3", "true", "1e3"]


def test_every_key_and_value_knows_its_place() -> None:
    document = reader.read_text("# head\na: 1\nb:\n  - c: {d: x}\n", "c.yaml")
    assert document.place_of_key(("a",)) == "c.yaml:2:1"
    assert document.place_of_value(("a",)) == "c.yaml:2:4"
    assert document.place_of_key(("b", 0, "c", "d")) == "c.yaml:4:9"
    assert document.place_of_value(("b", 0, "c", "d")) == "c.yaml:4:12"
    assert document.place_of_value(("b", 0, "c", "missing", 7)) == "c.yaml:4:5"
    assert document.place_of_key(("nowhere",)) == "c.yaml:1:1"


def test_an_alias_means_what_it_names() -> None:
    assert reader.read_text("a: &x {b: 1}\nc: *x\nd: [*x, *x]", "c.yaml").value["d"] == [{"b": 1}, {"b": 1}]


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: x\r\n")
    document = reader.read_file(tmp_path / "c.yaml")
    assert document.value == {"a": 1, "b": "x"}
    assert document.place_of_value(("b",)).endswith("c.yaml:2:4")


def test_environment_variables_are_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDER", "/data")
    monkeypatch.setenv("SIZE", "1e2")
    monkeypatch.delenv("ABSENT", raising=False)
    text = "a: ${env:FOLDER}/x.csv\nb: ${env:SIZE}\nc: '${env:SIZE}'\nd: ${env:ABSENT:7}\ne: '${other}'"
    assert reader.read_text(text, "c.yaml").value == {
        "a": "/data/x.csv",
        "b": 100.0,
        "c": "1e2",
        "d": 7,
        "e": "${other}",
    }
    assert problems_of("a:\n  b: ${env:ABSENT}") == [
        "c.yaml:2:6: environment variable 'ABSENT' is not set; set it or give a default: ${env:ABSENT:default}"
    ]


@pytest.mark.parametrize(
    ("options", "value"),
    [
        (["a.b=1e-3"], {"a": {"b": 1e-3, "c": [1, 2]}}),
        (["a.b=[1,2]"], {"a": {"b": [1, 2], "c": [1, 2]}}),
        (["a.b=null"], {"a": {"b": None, "c": [1, 2]}}),
        (["a.b="], {"a": {"b": None, "c": [1, 2]}}),
        (["a.b='1e-3'"], {"a": {"b": "1e-3", "c": [1, 2]}}),
        (["a.b=x=y"], {"a": {"b": "x=y", "c": [1, 2]}}),
        (["a.c.1=5"], {"a": {"b": "old", "c": [1, 5]}}),
        (["a={c: 3}"], {"a": {"c": 3}}),
        (["new.section.key=3 epochs"], {"a": {"b": "old", "c": [1, 2]}, "new": {"section": {"key": "3 epochs"}}}),
        (["a.b=1", "a.b=2"], {"a": {"b": 2, "c": [1, 2]}}),
        ([" a.b = 5 "], {"a": {"b": 5, "c": [1, 2]}}),
        (["a.7=x"], {"a": {"b": "old", "c": [1, 2], "7": "x"}}),
    ],
)
def test_set_changes_one_setting(options: list[str], value: Any) -> None:
    document = reader.read_text("a: {b: old, c: [1, 2]}", "c.yaml")
    reader.override(document, options)
    assert document.value == value


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("a.b", "is not of the form section.key=value"),
        ("=1", "is not of the form section.key=value"),
        ("a..b=1", "is not of the form section.key=value"),
        ("a.b.c=1", "a.b is 'old', not a section"),
        ("a.c.2=1", "a.c is a list of 2; '2' is none of its positions"),
        ("a.c.-1=1", "a.c is a list of 2; '-1' is none of its positions"),
        ("a.b=[1", "is not YAML: a ',' is missing before this, or the ']' to the bracket opened at --set a.b=[1"),
        ("a.b={x: 1, x: 2}", "key 'x' stands here a second time"),
        ("a.b=!!python/name:os.system x", "tags such as '!!python/name:os.system' are not read; write the plain value"),
    ],
)
def test_a_wrong_set_names_the_option(option: str, problem: str) -> None:
    document = reader.read_text("a: {b: old, c: [1, 2]}", "c.yaml")
    with pytest.raises(ConfigError) as error:
        reader.override(document, [option, "a.ok=1"])
    assert error.value.problems == (f"--set {option}: {problem}",)


def test_values_of_set_are_found_under_the_option() -> None:
    document = reader.read_text("a: {b: {c: 1}}", "c.yaml")
    reader.override(document, ["a.b={d: 2}", "5.x=1"])
    assert document.place_of_value(("a", "b", "d")) == "--set a.b={d: 2}"
    assert document.place_of_key(("a", "b", "c")) == "--set a.b={d: 2}"
    assert document.place_of_key(("5", "x")) == "--set 5.x=1"
    assert document.place_of_key(("a",)) == "c.yaml:1:1"


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "c.yaml:1:1: is empty; a config needs at least 'data' and 'model'"),
        ("# nothing\n---\n", "c.yaml:1:1: is empty; a config needs at least 'data' and 'model'"),
        ("- a\n", "c.yaml:1:1: is a list; a config is a mapping of sections such as 'data:' and 'model:'"),
        ("hello\n", "c.yaml:1:1: is 'hello'; a config is a mapping of sections such as 'data:' and 'model:'"),
        ("a: 1\n---\nb: 2\n", "c.yaml:2:1: a second document begins; a config is one"),
        ("a:\n\tb: 1\n", "c.yaml:2:1: is not YAML: a tab cannot indent YAML; use spaces"),
        ("a:\n  b: 1\n\tc: 2\n", "c.yaml:3:1: is not YAML: a tab cannot indent YAML; use spaces"),
        ("name: a: b\n", "c.yaml:1:8: is not YAML: a second ':' in one line; quote the text"),
        (
            "seed:3\nname: a\n",
            "c.yaml:2:5: is not YAML: a key where none can stand; the line above lacks its ': ', "
            "or this one is indented too far",
        ),
        (
            "a: {b: 1\nc: 2\n",
            "c.yaml:2:2: is not YAML: a ',' is missing before this, or the '}' to the bracket opened at c.yaml:1:4",
        ),
        ("a: 'b\n", "c.yaml:2:1: is not YAML: the quotes opened at c.yaml:1:4 are not closed"),
        (
            'a: "b\\q"\n',
            "c.yaml:1:6: is not YAML: no such escape in double quotes; in single quotes a '\\' stands for itself",
        ),
        ("a: @b\n", "c.yaml:1:4: is not YAML: this character cannot begin a value; quote the text"),
        ("a: *.weight\n", "c.yaml:1:5: is not YAML: '*' and '&' begin names of anchors; quote the text"),
        ("a: *weight\n", "c.yaml:1:4: alias '*weight' names no anchor above it; quote the text if it is a pattern"),
        (
            "a:\n  b: 1\n c: 2\n",
            "c.yaml:3:2: is not YAML: no key where one must stand; check the indentation and the brackets",
        ),
        ("a: \x07\n", "c.yaml:1:4: is not text: it holds the control character U+0007"),
        (
            "a: !!python/object/apply:os.system [true]\n",
            "c.yaml:1:4: tags such as '!!python/object/apply:os.system' are not read; write the plain value",
        ),
        ("a: {<<: {b: 1}}\n", "c.yaml:1:5: merge keys ('<<') are not part of YAML 1.2; write the keys out"),
        ("? [a]\n: 1\n", "c.yaml:1:3: a list or mapping cannot be a key"),
        ("a: " + "9" * 30, f"c.yaml:1:4: a: is {'9' * 30}; too large for 64 bits"),
        (BOMB, "c.yaml:1:5: the config has more than 20000 values once its aliases are expanded"),
        ("a: " + "[" * 5000 + "]" * 5000, "c.yaml:1:1003: is not YAML: is nested deeper than 32 levels"),
        ("{a: " * 500 + "1" + "}" * 500, "c.yaml:1:130: is nested deeper than 32 levels"),
        ("a: [" + "b, " * 30_000 + "]", "c.yaml:1:59996: the config has more than 20000 values"),
    ],
)
def test_what_is_no_config_is_said_with_its_place(text: str, problem: str) -> None:
    assert problems_of(text) == [problem]


def test_keys_given_twice_are_all_found_at_every_depth() -> None:
    assert problems_of("a: 1\nb:\n  - c: 1\n    c: 2\na: 2\na: 3\n") == [
        "c.yaml:4:5: key 'c' stands here a second time; the first is at c.yaml:3:5",
        "c.yaml:5:1: key 'a' stands here a second time; the first is at c.yaml:1:1",
        "c.yaml:6:1: key 'a' stands here a second time; the first is at c.yaml:1:1",
    ]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"a: 1\nb: \xe4\n", ":2:4: is not UTF-8 text"),
        ("a: 1".encode("utf-16"), ":1:1: is not UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n\x00", ":1:1: is not UTF-8 text"),
        (b"a: \x00\n", ":1:4: is not text: it holds the control character U+0000"),
        (b"# " + b"x" * 10_000_000, ": is larger than 1 MiB; this is no config"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as error:
        reader.read_file(path)
    assert str(error.value) == f"{path}{problem}"


def test_a_file_that_is_not_there_brings_up_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").touch()
    with pytest.raises(ConfigError) as error:
        reader.read_file(tmp_path / "digit.yaml")
    assert str(error.value) == (
        f"{tmp_path}/digit.yaml: cannot be read: No such file or directory; did you mean 'digits.yaml'?"
    )
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path}: cannot be read: Is a directory")):
        reader.read_file(tmp_path)


def test_the_parser_written_in_python_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = CONFIGS[0].read_text(encoding="utf-8")
    fast = reader.read_text(text, "c.yaml")
    monkeypatch.setattr(reader, "_Loader", yaml.SafeLoader)
    assert reader.read_text(text, "c.yaml") == fast
    assert problems_of("a:\n\tb: 1\n") == ["c.yaml:2:1: is not YAML: a tab cannot indent YAML; use spaces"]
    for broken in ("a: {b: 1\nc: 2\n", "a: 'b\n", "a: *.weight\n", "a:\n  b: 1\n c: 2\n", "a: @b\n", "[" * 5000):
        assert problems_of(broken)[0].startswith("c.yaml:")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.dictionaries(st.text(min_size=1, max_size=5), VALUES, min_size=1, max_size=4), st.booleans())
@example({"name": "1e3", "text": "012", "on": "no", "null": "~"}, False)
@example({"a": 1e-05, "b": -0.0, "c": 1e300, "d": "a: b # c", "e": "\t\x1b"}, True)
def test_what_is_written_is_read_as_the_same(value: dict[str, Any], flow: bool) -> None:
    if "${" not in str(value):
        assert reader.read_text(reader.write_text(value, flow=flow), "c.yaml").value == value


# ---- fuzzing: any text is a config, or a ConfigError with a place, within bounded time -------------------------------

PIECES = st.sampled_from(
    [
        *"ab:[]{},|>'\"#%@?~\\\n\t\r\0ä😀\u2028",
        ": ",
        "- ",
        "\n  ",
        "&x ",
        "*x",
        "!!str ",
        "!t ",
        "<<",
        "---",
        "...",
        "1e-3",
    ]
)
PLACE = re.compile(r"c\.yaml(:\d+:\d+)?: \S")
FUZZ = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def read_or_refuse(text: str) -> None:
    problems: Sequence[str] = ()
    try:
        validate(reader.read_text(text, "c.yaml"))
    except ConfigError as error:
        problems = error.problems
    assert all(PLACE.match(problem) for problem in problems), problems


@FUZZ
@given(st.lists(PIECES, max_size=60).map("".join))
@example("a: &x [*x]")
@example("? ")
@example("a: '${env:X:1")
def test_any_scraps_of_yaml_are_read_or_refused(text: str) -> None:
    read_or_refuse(text)


@FUZZ
@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    read_or_refuse(text)


@FUZZ
@given(
    st.sampled_from(CONFIGS).map(lambda path: path.read_text(encoding="utf-8")),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 12), PIECES), min_size=1, max_size=4),
)
def test_a_damaged_config_is_read_or_refused(text: str, damages: list[tuple[int, int, str]]) -> None:
    for position, length, piece in damages:
        start = position % len(text)
        text = text[:start] + piece + text[start + length :]
    read_or_refuse(text)


@FUZZ
@given(st.lists(PIECES, max_size=12).map("".join), st.lists(PIECES, max_size=12).map("".join))
def test_any_set_option_is_carried_out_or_refused(path: str, value: str) -> None:
    document = reader.read_text("data: {type: sklearn, name: digits}\nmodel: {type: mlp, hidden: [3]}", "c.yaml")
    option = f"model.{path}={value}"
    problems: Sequence[str] = ()
    try:
        reader.override(document, [option])
        validate(document)
    except ConfigError as error:
        problems = error.problems
    assert all(problem.startswith(("--set model.", "c.yaml:")) for problem in problems)


@pytest.mark.parametrize(
    "text",
    [
        "augment: [" + "[], " * 19_000 + "]",
        "".join(f"key{i}: 1\n" for i in range(9_000)),
        "data: {" + ", ".join(f"k{i}: {{}}" for i in range(9_000)) + "}",
        "a: " + "x" * 1_000_000,
        "? " + "x" * 900_000 + "\n: 1\n",
        "- " * 300_000,
        "a: " + "&b " * 300_000,
        "'" * 999_999,
    ],
)
def test_huge_configs_are_refused_in_bounded_time(text: str) -> None:
    started = time.process_time()  # of this process alone
    read_or_refuse(text)
    assert time.process_time() - started < 20
