"""Libraries that only some configs need: imported where they are used, and named with their extra when missing."""

from __future__ import annotations

import importlib
from typing import Any

from dltrain.errors import ConfigError


def require(package: str, extra: str, purpose: str) -> Any:
    """Return the module `package`. Raises ConfigError with the command that installs it where it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] != package:
            raise  # it is there, and something that it imports is not
        raise ConfigError(
            f"needs the package {package} {purpose}; install it: pip install 'dltrain[{extra}]'"
        ) from None
