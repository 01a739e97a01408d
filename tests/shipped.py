"""The shipped configs beside small generated data, for the tests that train each of them for a moment."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.make_data import make_people, make_shapes
from tests.make_pairs import make_numbers, make_python_code
from tests.make_speech import make_speech
from tests.make_texts import make_rows, write_csv
from tests.run_configs import FOLDER

CONFIGS = sorted(FOLDER.glob("*.yaml"))
SHORT = ["train.duration=2 epochs", "train.evaluate_every=1 epochs"]


def copy_shipped(root: Path) -> Path:
    """Copy the configs into `root`, make their data beside them, and return the folder of the copies."""
    shutil.copytree(FOLDER, root / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "data").mkdir()
    make_people(root / "data" / "people.csv", 300, missing=0.05)
    make_shapes(root / "data" / "shapes", 20)
    write_csv(root / "data" / "languages.csv", make_rows(30))
    make_numbers(root / "data" / "numbers_en_fr.csv", "en", "fr", 1000)
    make_numbers(root / "data" / "numbers_en_de.csv", "en", "de", 1000)
    make_python_code(root / "data" / "python_code.txt", 30_000)
    if shutil.which("espeak-ng"):
        make_speech(root / "data" / "spoken_digits", ("one", "two", "three"), speeds=(160,), pitches=(50,))
    return root / "configs"
