"""What every section and every component of the config is made of.

A section is a pydantic model; a component is a section with a `type`, written flat: `{type: name, ...arguments}`.
The class is the only home of a default, a range and a line of doc; `builds` is the import path of what that is.
Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

USER_PATH = r"([\w.]+|.*\.py):[A-Za-z_]\w*"
USER_WORDS = "package.module:Name or path/file.py:Name"
"""What names something that is not built in, as a pattern and in words."""


@dataclass(frozen=True)
class InWords:
    """Annotation of a field whose type says too little: what is possible, as a message says it."""

    text: str


class Settings(BaseModel):
    """A section of the config: unknown keys are errors, values are frozen, nothing is converted silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)


class Component(Settings):
    """Settings of one component. Built-in ones define `type: Literal[name]` and their arguments.

    Arguments have the names of the parameters of what `builds` names. Parameters that the data decide
    (in_features, num_classes, ...) are not settings; the build offers them by name.
    """

    builds: ClassVar[str] = ""
    """Import path of what is built, `package.module:Name`."""
    build_only: ClassVar[tuple[str, ...]] = ()
    """Settings that the build reads itself and does not hand to the target."""

    type: str

    def arguments(self) -> dict[str, Any]:
        """Return what the target is called with, by parameter name; nested settings become plain values."""
        own = {name: getattr(self, name) for name in type(self).model_fields}
        skipped = {"type", *self.build_only}
        return {name: _plain(value) for name, value in (own | (self.model_extra or {})).items() if name not in skipped}


def _finite(value: Any) -> Any:
    """Return `value` if no number in it is infinite or NaN, which a checkpoint, being JSON, could not hold."""
    if isinstance(value, float) and not math.isfinite(value):
        raise PydanticCustomError("not_finite", "holds a number that is not finite")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _finite(item)
    return value


class UserComponent(Component):
    """A component that is not built in: its arguments are checked against the signature of what `type` names."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_finite)]] = Field(init=False)

    type: Annotated[str, Field(pattern=f"^{USER_PATH}$"), InWords(USER_WORDS)] = Field(
        description="package.module:Name or file.py:Name (relative to the config)"
    )


class OneOf:
    """Annotation of a field of type Component: one of `classes` by its `type`, or the user's own.

    Only the class that a config names is validated, and so prepared by pydantic: preparing all of them takes longer
    than all else between the command and its first error.
    """

    def __init__(
        self, kind: str, classes: Sequence[type[Component]], *, user: bool = True, default: str | None = None
    ) -> None:
        self.kind = kind
        self.default = default
        self.classes = {type_name(cls): cls for cls in classes}
        self.user = user

    def class_of(self, value: Any) -> type[Component] | None:
        """Return the class of what a config says at this place; None if its `type` is unknown or missing."""
        name = value.get("type", self.default) if isinstance(value, dict) else None
        if not isinstance(name, str):
            return None
        return UserComponent if self.user and ":" in name else self.classes.get(name)

    def validate(self, value: Any) -> Component:
        """Return the settings that `value` holds. Raises pydantic's ValidationError."""
        if isinstance(value, Component):
            return value
        cls = self.class_of(value)
        if cls is not None:
            return cls.model_validate({"type": self.default, **value})
        if not isinstance(value, dict):
            problem = InitErrorDetails(type="dict_type", input=value)
        elif "type" not in value:
            problem = InitErrorDetails(type="missing", loc=("type",), input=value)
        else:
            names = {"expected": ", ".join(self.classes)}
            problem = InitErrorDetails(type="literal_error", loc=("type",), input=value["type"], ctx=names)
        raise ValidationError.from_exception_data(self.kind, [problem])

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Let `validate` decide."""
        return core_schema.no_info_plain_validator_function(self.validate)

    def __get_pydantic_json_schema__(self, _: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Offer every class, so that editors complete the arguments of each."""
        classes: list[type[Component]] = [*self.classes.values(), *([UserComponent] if self.user else [])]
        for cls in classes:
            cls.model_rebuild()
        return {"oneOf": [handler(cls.__pydantic_core_schema__) for cls in classes]}


def type_name(cls: type[Component]) -> str:
    """Return the name by which a config calls `cls`."""
    name: str = cls.model_fields["type"].annotation.__args__[0]  # type: ignore[union-attr]
    return name


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.model_dump()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
