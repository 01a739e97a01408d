"""What every section and every component of the config is made of.

A section is a pydantic model; a component is a section with a `type`, written flat: `{type: name, ...arguments}`.
The class is the only home of a default, a range and a line of doc; `builds` is the import path of what that is.
Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, GetCoreSchemaHandler, Tag

USER_TYPE = r"([\w.]+|.*\.py):[A-Za-z_]\w*"
"""`package.module:Name` or `path/file.py:Name`: something that is not built in."""


class Settings(BaseModel):
    """A section of the config: unknown keys are errors, values are frozen, nothing is converted silently."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        defer_build=True,
        use_attribute_docstrings=True,
    )


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
        names = [*type(self).model_fields, *(self.model_extra or {})]
        skipped = {"type", *self.build_only}
        return {name: _plain(getattr(self, name)) for name in names if name not in skipped}


class UserComponent(Component):
    """A component that is not built in: its arguments are checked against the signature of what `type` names."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(
        pattern=f"^{USER_TYPE}$", description="package.module:Name or file.py:Name (relative to the config)"
    )


class OneOf:
    """Annotation of a field of type Component: one of `classes` by its `type`, or the user's own."""

    def __init__(self, kind: str, classes: Sequence[type[Component]], *, user: bool = True) -> None:
        self.kind = kind
        self.classes = {type_name(cls): cls for cls in classes}
        self.user = user

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        """Build the tagged union that stands for the field."""
        members = [Annotated[cls, Tag(name)] for name, cls in self.classes.items()]
        if self.user:
            members.append(Annotated[UserComponent, Tag("user")])
        return handler.generate_schema(Annotated[tuple(members), Discriminator(_tag)])


def type_name(cls: type[Component]) -> str:
    """Return the name by which a config calls `cls`."""
    name: str = cls.model_fields["type"].annotation.__args__[0]  # type: ignore[union-attr]
    return name


def _tag(value: Any) -> str | None:
    if isinstance(value, UserComponent):
        return "user"
    name = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "user" if isinstance(name, str) and ":" in name else name if isinstance(name, str) else None


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.model_dump()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
