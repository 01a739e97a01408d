"""Texts of which to tell the language: numbers in words of twelve languages, some of them near to each other.

Run `python -m tests.make_texts DIR` for languages.csv in DIR. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np

LANGUAGES = ("ca", "da", "de", "en", "es", "fi", "fr", "it", "nl", "pl", "pt", "sv")
FORMS = {"ca": ("cardinal", "year", "currency"), "sv": ("cardinal", "ordinal")}  # the others raise errors
ALL_FORMS = ("cardinal", "ordinal", "year", "currency")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def make_rows(num_texts: int = 500, seed: int = 0) -> list[tuple[str, str]]:
    """Return `num_texts` different texts of each language with its code, in random order."""
    rng = np.random.default_rng(seed)
    labels: dict[str, str] = {}
    for language in LANGUAGES:
        count = 0
        while count < num_texts:
            text = make_text(language, rng)
            if text not in labels:
                labels[text] = language
                count += 1
    rows = list(labels.items())
    return [rows[index] for index in rng.permutation(len(rows))]


def make_text(language: str, rng: np.random.Generator) -> str:
    """Return a few words that say a number: two of them swapped, and a letter of some misspelt."""
    from num2words import num2words

    form = str(rng.choice(FORMS.get(language, ALL_FORMS)))
    number = int(rng.integers(1000, 2100)) if form == "year" else int(10 ** rng.uniform(1.3, 6))
    words = num2words(number, lang=language, to=form).lower().split()
    if len(words) > 1:
        first = int(rng.integers(len(words) - 1))
        words[first], words[first + 1] = words[first + 1], words[first]
    text = " ".join(words)
    if rng.random() < 0.5:
        place = int(rng.integers(len(text)))
        text = text[:place] + str(rng.choice(list(_LETTERS))) + text[place + 1 :]
    return text


def write_csv(path: Path, rows: list[tuple[str, str]]) -> None:
    """Write the columns text and label."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "label"])
        writer.writerows(rows)


def write_json_lines(path: Path, rows: list[tuple[str, str]]) -> None:
    """Write an object with the keys text and label on each line."""
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate texts to try dltrain with.")
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "languages.csv", make_rows())


if __name__ == "__main__":
    main()
