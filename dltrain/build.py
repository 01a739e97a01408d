"""Component settings to objects: the only dynamic import.

What the config says goes to the target by parameter name; parameters that the data decide (in_features, num_classes,
...) are offered, and go to whoever has a parameter of that name which the config does not set.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dltrain.config.durations import DurationValue, to_steps
from dltrain.config.schema.base import Component, UserComponent
from dltrain.config.validate import ConfigFile
from dltrain.errors import CheckpointError, ConfigError, DltrainError
from dltrain.names import did_you_mean

_CALLED_WITH: dict[str | int, tuple[str, ...]] = {
    "data": (),
    "augment": ("x", "rng"),
    "loss": ("output", "target"),
    "schedule": ("step", "total"),
    "penalties": ("parameters",),
}
"""What a function of the user's own is called with, by where it stands in the config; the rest are its settings."""

_PREFIX = "dltrain_user_"
"""Of the names of modules that are imported from a user's file."""


@dataclass(frozen=True)
class Clock:
    """What turns durations into steps."""

    steps_per_epoch: int
    total_steps: int
    """Of the training, or the parts of one whose length is a time: then durations are shares of it."""
    is_timed: bool = False

    def steps(self, duration: DurationValue) -> int:
        """Return `duration` in steps, or in parts. Raises ConfigError where they are not known."""
        if self.is_timed and duration.unit != "%" and duration.amount:
            raise ConfigError(f"'{duration}' is no known share of a training whose length is a time; give '5%'")
        return to_steps(duration, self.steps_per_epoch, self.total_steps)


@dataclass(frozen=True)
class Builder:
    """Builds the components of one config."""

    file: ConfigFile
    trusted: Sequence[str] | None = None
    """None: the user gave the config. Else it came with a checkpoint or a study: code runs only if listed here."""

    @contextlib.contextmanager
    def at(self, *keys: str | int, only: type[DltrainError] = DltrainError) -> Iterator[None]:
        """Context in which our errors, or `only` those of one kind, get the place of `keys` in the config.

        One that begins with a setting that the user wrote there, such as "warmup: is too long", gets that one's place.
        """
        try:
            yield
        except only as error:
            name, _, what = str(error).partition(": ")
            inner = (*keys, *(int(key) if key.isdecimal() else key for key in name.split(".")))
            is_written = bool(what) and inner in self.file.document.value_places
            message = f"{self.file.place(*inner)}: {what}" if is_written else f"{self.file.place(*keys)}: {error}"
            raise type(error)(message) from error.__cause__

    def build(
        self,
        component: Component,
        keys: tuple[str | int, ...],
        offered: Mapping[str, Any],
        clock: Clock | None = None,
    ) -> Any:
        """Build what `component` describes: call its target with its arguments and what it takes of `offered`.

        Args:
            component: the settings.
            keys: where they stand in the config, for messages.
            offered: parameters that the data decide, by name.
            clock: turns durations among the arguments to steps.

        Raises:
            ConfigError: with the place, if an argument is unknown, missing, or refused by the target.
        """
        target, arguments = self.target_and_arguments(component, keys, offered, clock)
        with self.at(*keys):
            try:
                return target(**arguments)
            except DltrainError:
                raise
            except Exception as error:  # whatever a user's code does
                if not isinstance(component, UserComponent):
                    raise
                raise ConfigError(f"{component.type} failed: {user_failure(error)}") from error

    def build_callable(
        self, component: Component, keys: tuple[str | int, ...], offered: Mapping[str, Any]
    ) -> Callable[..., Any]:
        """Return what is called in each step: a class is built with its arguments, a function has them bound."""
        if inspect.isclass(self.target(component, keys)):
            return self.build(component, keys, offered)  # type: ignore[no-any-return]
        return self.partial(component, keys, offered=offered)

    def partial(
        self,
        component: Component,
        keys: tuple[str | int, ...],
        clock: Clock | None = None,
        offered: Mapping[str, Any] = MappingProxyType({}),
    ) -> Callable[..., Any]:
        """Return the function that `component` names, with its arguments bound and its attributes kept."""
        called_with = next((_CALLED_WITH[key] for key in keys if key in _CALLED_WITH), ())
        target, arguments = self.target_and_arguments(component, keys, offered, clock, called_with=called_with)
        return functools.update_wrapper(functools.partial(target, **arguments), target) if arguments else target

    def target_and_arguments(
        self,
        component: Component,
        keys: tuple[str | int, ...],
        offered: Mapping[str, Any],
        clock: Clock | None,
        *,
        called_with: Sequence[str] = (),
    ) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Return what to call and with which arguments, beside those that it is `called_with` by position.

        Raises ConfigError as `build` does.
        """
        target = self.target(component, keys)
        arguments: dict[str, Any] = {}
        for key, value in component.arguments().items():
            with self.at(*keys, key):
                arguments[key] = _in_steps(value, clock)
        parameters = parameters_of(target)
        if parameters is not None:
            free = _without_first(parameters, len(called_with))
            arguments |= {k: v for k, v in offered.items() if k in free and k not in arguments}
            if isinstance(component, UserComponent):
                self._check_signature(component, keys, parameters, arguments, offered, called_with)
        return target, arguments

    def _check_signature(
        self,
        component: UserComponent,
        keys: tuple[str | int, ...],
        parameters: Mapping[str, inspect.Parameter],
        arguments: Mapping[str, Any],
        offered: Mapping[str, Any],
        called_with: Sequence[str],
    ) -> None:
        kinds = inspect.Parameter
        free = _without_first(parameters, len(called_with))
        named = {n: p for n, p in free.items() if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)}
        kinds_of_all = {p.kind for p in parameters.values()}
        call = f"it is called with ({', '.join(called_with)})"
        problems = []
        if len(parameters) - len(free) < len(called_with) and kinds.VAR_POSITIONAL not in kinds_of_all:
            possible = ", ".join(parameters) or "nothing"
            problems.append(f"{self.file.place(*keys, 'type')}: {component.type} takes {possible}; {call}")
        for name in arguments:
            is_free = name in named or (kinds.VAR_KEYWORD in kinds_of_all and name not in parameters)
            if not is_free:
                place = self.file.document.place_of_key((*keys, name))
                possible = ", ".join(named) or "none"
                problems.append(
                    f"{place}: {'.'.join(map(str, (*keys, name)))}: {component.type} has no such argument; "
                    f"possible: {possible}{did_you_mean(name, named)}"
                )
        missing = [n for n, p in free.items() if _is_needed(p) and n not in arguments]
        if missing:
            whence = call if called_with else f"the data offer {', '.join(offered) or 'nothing'}"
            problems.append(f"{self.file.place(*keys)}: {component.type} needs {', '.join(missing)}; {whence}")
        if problems:
            raise ConfigError(*problems)

    def target(self, component: Component, keys: tuple[str | int, ...]) -> Callable[..., Any]:
        """Import what `component` names. Raises ConfigError where there is no such thing."""
        path = component.type if isinstance(component, UserComponent) else component.builds
        module_name, _, name = path.rpartition(":")
        place = self.file.place(*keys, "type")
        if isinstance(component, UserComponent):
            module_name = self._allowed(module_name, place)
        try:
            if not module_name.endswith(".py"):
                with _importable(Path.cwd(), len(sys.path)):  # behind what is installed
                    module = importlib.import_module(module_name)
            elif Path(module_name).is_file():
                module = _module_from_file(module_name)
            else:
                raise ConfigError(f"{place}: there is no file '{module_name}'; paths are relative to the config file")
        except DltrainError:
            raise
        except Exception as error:  # whatever a user's module does at import
            if not isinstance(component, UserComponent):
                raise
            hint = "" if module_name.endswith(".py") else "; a file of your own is written path/file.py:Name"
            raise ConfigError(f"{place}: '{module_name}' cannot be imported: {user_failure(error)}{hint}") from error
        found: Any = getattr(module, name, None)
        if not callable(found):
            names = [entry for entry in dir(module) if not entry.startswith("_") and callable(getattr(module, entry))]
            raise ConfigError(f"{place}: '{module_name}' has no '{name}' to call{did_you_mean(name, names)}")
        return found  # type: ignore[no-any-return]

    def _allowed(self, module: str, place: str) -> str:
        """Return the file or module to import: of a config that is not the user's, the one that the user trusts."""
        if self.trusted is None:
            return str(Path(self.file.folder, module)) if module.endswith(".py") else module
        for given in self.trusted:
            if given == module or (module.endswith(".py") and Path(given).name == Path(module).name):
                return given
        raise CheckpointError(
            f"{place}: names code of its own, '{module}', which runs only if you trust it: "
            f"read the file, then add --trust {module}"
        )


def _module_from_file(path: str) -> Any:
    """Import the module at `path` once a process."""
    file = Path(path).resolve()
    name = f"{_PREFIX}{file.stem}_{abs(hash(str(file))):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _importable(file.parent, 0):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _importable(folder: Path, position: int) -> Iterator[None]:
    """Context in which modules of `folder` can be imported, as those beside a script can."""
    entry = str(folder)
    sys.path.insert(position, entry)
    try:
        yield
    finally:  # of equal entries, the one from here
        sys.path[:] = [other for other in sys.path if other is not entry]


def parameters_of(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """Return the parameters of `target` by name, or None where it does not tell, as some classes in C."""
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):
        return None


def _without_first(parameters: Mapping[str, inspect.Parameter], number: int) -> dict[str, inspect.Parameter]:
    """Return `parameters` without the first `number` that can be given by position."""
    kinds = inspect.Parameter
    positional = [n for n, p in parameters.items() if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    return {name: p for name, p in parameters.items() if name not in positional[:number]}


def _is_needed(parameter: inspect.Parameter) -> bool:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is inspect.Parameter.empty and parameter.kind not in variadic


def _in_steps(value: Any, clock: Clock | None) -> Any:
    if isinstance(value, DurationValue):
        if clock is None:
            raise ConfigError(f"a duration such as '{value}' has no meaning here")
        return clock.steps(value)
    return [_in_steps(item, clock) for item in value] if isinstance(value, list) else value


def is_users(error: BaseException) -> bool:
    """Return whether an error was raised in, or on the way through, a file that a config names."""
    files = {getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith(_PREFIX)}
    return any(frame.filename in files for frame in traceback.extract_tb(error.__traceback__))


def user_failure(error: BaseException) -> str:
    """Return what went wrong in a user's code, and the last of its lines that led there."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    not_theirs = ("site-packages", "<frozen", str(Path(__file__).parent), importlib.__file__)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(place in frame.filename for place in not_theirs)
    ]
    return f"{text} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else text
