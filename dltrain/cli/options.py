"""Options that several commands share, and how results are printed."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as optimizer.lr=0.1."),
]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
TrustOption = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE", help="Code named by a checkpoint that may run: a .py file or a module."),
]


def print_json(value: Any) -> None:
    """Print a result as one line of JSON on stdout."""
    in_ascii = (sys.stdout.encoding or "").lower() != "utf-8"
    sys.stdout.write(json.dumps(value, ensure_ascii=in_ascii, default=str) + "\n")


def overrides_of(set_: list[str] | None, device: str | None) -> list[str]:
    """Return the `key=value` overrides that --set and --device ask for."""
    return [*(set_ or []), *([f"train.device={device}"] if device else [])]
