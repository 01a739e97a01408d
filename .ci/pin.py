"""Write requirements-ci.txt: every file that CI installs, by its SHA-256. `make pins` runs it where CI runs.

pip tells the files that it would install, and their hashes, without installing them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1]
PINS = FOLDER / "requirements-ci.txt"
HEAD = """\
# What CI installs, for Linux on x86-64 and Python 3.11: written by `make pins` from pyproject.toml and constraints.txt.
# pip takes no other file for these. torch is not among them: one version of it has several builds (for CPUs alone, for
# CUDA with packages of its own), and which one there is depends on the machine. constraints.txt has its version.
"""
BUILD = ["hatchling", "editables"]  # what builds dltrain itself, which --no-build-isolation takes from here


def hashes_now() -> dict[str, str]:
    """Return {"name==version": hash} of all that pip would install for the tests."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    command += ["-c", str(FOLDER / "constraints.txt"), *BUILD, f"{FOLDER}[test]"]
    report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    found = {}
    for item in report["install"]:
        archive, metadata = item["download_info"].get("archive_info"), item["metadata"]
        if archive is not None and not _is_torchs(item):  # else dltrain itself
            version = metadata["version"].partition("+")[0]  # "2.13.0+cpu" is a 2.13.0
            found[f"{metadata['name'].lower()}=={version}"] = archive["hashes"]["sha256"]
    return found


def _is_torchs(item: dict[str, Any]) -> bool:
    """Return whether this is torch, or one of what its build for CUDA brings along."""
    name = item["metadata"]["name"].lower()
    return name in {"torch", "triton"} or name.startswith(("nvidia", "cuda"))


def main() -> None:
    """Write the file."""
    lines = [f"{requirement} \\\n    --hash=sha256:{digest}\n" for requirement, digest in sorted(hashes_now().items())]
    PINS.write_text(HEAD + "".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
