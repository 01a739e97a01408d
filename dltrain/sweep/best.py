"""The config of a trial as a file to train by: the user's own, with its comments, where that can be done.

The text is changed in the places of the settings; if what it then says is not exactly the trial's config, the resolved
settings are written instead.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dltrain.config.reader import read_text, write_text
from dltrain.config.validate import ConfigFile, validate
from dltrain.console import number_text
from dltrain.errors import ConfigError
from dltrain.names import printable
from dltrain.sweep.journal import EVENTS, Trial, Trials, ranked
from dltrain.sweep.space import SPACE, options_of, text_of, trial_file


def newest(root: Path) -> Path:
    """Return the folder of the newest sweep below `root`. Raises ConfigError if there is none."""
    found = [path.parent for path in root.glob(f"*-sweep/*/{EVENTS}")]
    if not found:
        raise ConfigError(f"{root}: has no folder of a sweep; give one, such as runs/digits-sweep/1")
    return max(found, key=lambda folder: (folder / EVENTS).stat().st_mtime_ns)


def best_text(file: ConfigFile, trials: Trials, goals: Sequence[tuple[str, bool]], number: int | None) -> str:
    """Return the config of trial `number`, or of the best one, as YAML. Raises ConfigError if there is none."""
    trial = _chosen(trials, goals, number)
    chosen = trial_file(file, options_of(trial.params))
    judged = ", ".join(f"{name} {number_text(value)}" for (name, _), value in zip(goals, trial.values, strict=True))
    head = f"# Trial {trial.number} of {len(trials)} of a sweep of {file.document.name}: {judged}.\n"
    if file.folder != ".":
        head += f"# Its paths start where {file.document.name} lies: save it there.\n"
    text = _edited(file.text, chosen)
    return printable(head).strip("\n") + "\n" + (text or write_text(chosen.config.model_dump()))


def _chosen(trials: Trials, goals: Sequence[tuple[str, bool]], number: int | None) -> Trial:
    finished = {trial.number: trial for trial in trials.values() if trial.state == "finished"}
    if not finished:
        raise ConfigError(f"none of {len(trials)} trials has finished yet")
    if number is not None:
        if number not in finished:
            state = trials[number].state if number in trials else "not there"
            raise ConfigError(f"--trial {number}: is {state}; finished: {', '.join(map(str, finished))}")
        return finished[number]
    best = ranked(trials, [higher for _, higher in goals])
    if len(goals) > 1 and len(best) > 1:
        numbers = ", ".join(str(trial.number) for trial in best)
        raise ConfigError(f"no other trial beats these in all objectives: {numbers}; choose one with --trial")
    return best[0]


# ---- the user's text, changed ----------------------------------------------------------------------------------------


def _edited(text: str, chosen: ConfigFile) -> str:
    """Return the text with the settings of the trial and without its sweep; "" where that comes out otherwise."""
    try:
        for key, value in chosen.changes.items():
            text = _with_setting(text, key.split("."), value)
        text = _without_section(text, SPACE[0])
        same = validate(read_text(text, chosen.document.name)).model_dump() == chosen.config.model_dump()
    except (ConfigError, yaml.YAMLError, ValueError, LookupError):
        return ""
    return text if same else ""


def _with_setting(text: str, keys: list[str], value: Any) -> str:
    """Return the text with a value in place of the one at `keys`, or with a new line for it in its section."""
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for depth, key in enumerate(keys):
        found = _entry(node, key)
        if found is None:
            return _with_entry(text, node, key, _nested(keys[depth + 1 :], value))
        name, node = found
    start, colon = node.start_mark.index, ""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:  # it stands on lines of its own
        start, colon = (name.end_mark.index, ": ") if name is not node else (start, "")
    return text[:start] + colon + text_of(value) + text[_end(node) :]


def _nested(keys: list[str], value: Any) -> Any:
    for key in reversed(keys):
        value = {key: value}
    return value


def _entry(node: Any, key: str) -> tuple[Any, Any] | None:
    """Return the nodes of a key and its value in a mapping, or of an item of a list."""
    if isinstance(node, yaml.SequenceNode):
        return node.value[int(key)], node.value[int(key)]
    return next(((name, value) for name, value in node.value if name.value == key), None)


def _with_entry(text: str, section: Any, key: str, value: Any) -> str:
    if section.flow_style:
        end = section.end_mark.index - 1
        comma = ", " if section.value else ""
        return f"{text[:end].rstrip()}{comma}{key}: {text_of(value)}{text[end:]}"
    name, last = section.value[-1]
    end = text.find("\n", _end(last))
    end = len(text) if end < 0 else end
    return f"{text[:end]}\n{' ' * name.start_mark.column}{key}: {text_of(value)}{text[end:]}"


def _end(node: Any) -> int:
    """Return where the text of a node ends; a block ends with its last value, not with what follows."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _without_section(text: str, name: str) -> str:
    """Return the text without a section and the comments right above it."""
    root: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    found = _entry(root, name)
    if found is None:
        return text
    start, end = found[0].start_mark.index, text.find("\n", _end(found[1]))
    above = re.sub(r"(?:^[ \t]*#[^\n]*\n)+\Z", "", text[:start], flags=re.M)
    rest = text[end + 1 :] if end >= 0 else ""
    return (
        (above if above.strip() else text[:start]).rstrip("\n")
        + "\n"
        + ("\n" + rest.lstrip("\n") if rest.strip() else "")
    )
