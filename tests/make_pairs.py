"""Texts to train on: numbers in words of two languages, and Python source. Nothing is downloaded.

Run `python -m tests.make_pairs DIR` for numbers_en_fr.csv, numbers_en_de.csv and python_code.txt in DIR.
"""

from __future__ import annotations

import argparse
import csv
import sysconfig
from pathlib import Path

NUM_CHARACTERS = 1_000_000


def make_numbers(path: Path, source: str, target: str, num_numbers: int = 10_000) -> None:
    """Write the numbers from 0 in the words of two languages, "en" and "fr" say, as the columns source and target."""
    from num2words import num2words

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "target"])
        for number in range(num_numbers):
            writer.writerow([num2words(number, lang=source), num2words(number, lang=target)])


def make_python_code(path: Path, num_characters: int = NUM_CHARACTERS) -> None:
    """Write modules of Python's standard library, in alphabetical order, until there are `num_characters`."""
    texts: list[str] = []
    for module in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if sum(map(len, texts)) >= num_characters:
            break
        texts.append(module.read_text(encoding="utf-8"))
    path.write_text("".join(texts), encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate texts to try dltrain with.")
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    make_numbers(folder / "numbers_en_fr.csv", "en", "fr")
    make_numbers(folder / "numbers_en_de.csv", "en", "de")
    make_python_code(folder / "python_code.txt")


if __name__ == "__main__":
    main()
