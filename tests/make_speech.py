"""Spoken digits: `python -m tests.make_speech DIR` lets espeak-ng say zero to nine with many voices, into WAV files.

DIR holds train/, val/ and test/ with a folder for each digit. A voice speaks in one split only, so that what is tested
is understanding a voice never heard. The same voices say the same in every run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VOICES = {
    "train": (
        "en+m1",
        "en-us+m2",
        "en-gb-scotland+m3",
        "en-gb-x-rp+m4",
        "en-029+m5",
        "en-gb-x-gbclan+m6",
        "en-us+f1",
        "en+f2",
        "en-gb-scotland+f3",
        "en-gb-x-gbcwmd+f4",
        "en-us+klatt2",
        "en+Andy",
        "en-us+Annie",
        "en-gb-x-rp+linda",
        "en-us+adam",
        "en+grandma",
    ),
    "val": ("en-gb-x-rp+m8", "en-us+steph", "en+robert"),
    "test": ("en-us+m7", "en+f5"),
}
"""Accents with a colour of the voice each; no colour is in two splits. (Under the name en-gb, colours do nothing.)"""
SPEEDS = (120, 160, 200)
PITCHES = (30, 50, 70)


def sentences(
    split: str,
    digits: tuple[str, ...] = DIGITS,
    speeds: tuple[int, ...] = SPEEDS,
    pitches: tuple[int, ...] = PITCHES,
) -> list[tuple[str, list[str]]]:
    """Return (name of the file, arguments of espeak-ng) of every sound of a split."""
    return [
        (
            f"{digit}/{voice.replace('+', '_')}_{speed}_{pitch}.wav",
            ["-v", voice, "-s", str(speed), "-p", str(pitch), digit],
        )
        for digit in digits
        for voice in VOICES[split]
        for speed in speeds
        for pitch in pitches
    ]


def make_speech(
    root: Path,
    digits: tuple[str, ...] = DIGITS,
    speeds: tuple[int, ...] = SPEEDS,
    pitches: tuple[int, ...] = PITCHES,
) -> None:
    """Write all sounds below `root`. Raises FileNotFoundError if espeak-ng is not there."""
    program = shutil.which("espeak-ng")
    if program is None:
        raise FileNotFoundError("espeak-ng, which speaks the digits, is not installed: apt install espeak-ng")
    commands = []
    for split in VOICES:
        for name, arguments in sentences(split, digits, speeds, pitches):
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            commands.append([program, "-w", str(path), *arguments])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda command: subprocess.run(command, check=True), commands))


def main() -> None:
    parser = argparse.ArgumentParser(description="Speak the digits zero to nine with espeak-ng.")
    parser.add_argument("folder", type=Path, metavar="DIR")
    try:
        make_speech(parser.parse_args().folder)
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
