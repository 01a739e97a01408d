"""One sound file -> mono samples at one rate, the same for training, evaluation and prediction.

Channels are averaged; another sample rate is converted with soxr. Only the part that is wanted is read.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, TypeVar

import numpy as np

from dltrain.data.progress import progress
from dltrain.errors import DataError
from dltrain.extras import require
from dltrain.machine import num_cores

FORMATS = ("WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF")
"""Of libsndfile's; a fixed list, since some others take any file for a sound or need to be told how to read it."""
MAX_SAMPLES = 2**28
"""In one sound, read or converted: 1 GiB, 4.7 hours at 16 kHz."""
_BLOCK_SAMPLES = 2**20  # of all channels, so that many channels do not multiply the memory
_TASK_FILES = 16  # a thread takes as many at once; one by one, short sounds spend their time on changing threads
_CUT = re.compile(r"^\s*(?:data|SSND|Data Size|riff)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_CUT_RF64 = re.compile(r"Calculated frame count (\d+) does not match value from 'ds64' chunk of (\d+)")
_UNKNOWN_SIZE = 0x7FF00000
"""From here on a size in a header stands for "unknown yet": programs that write into a pipe leave it so."""

T = TypeVar("T")


def decode_all(paths: Sequence[str], decode_one: Callable[[str], T]) -> list[T | DataError]:
    """Return what `decode_one` returns or the DataError that it raises, for each path in order, on all cores."""

    def attempt(start: int) -> list[T | DataError]:
        return [_result_or_error(path, decode_one) for path in paths[start : start + _TASK_FILES]]

    # Threads: soundfile, soxr and torch release the GIL.
    with ThreadPoolExecutor(num_cores()) as pool, progress(len(paths), "sounds") as advance:
        results = []
        for block in pool.map(attempt, range(0, len(paths), _TASK_FILES)):
            results += block
            advance(len(block))
        return results


def decode(path: str, sample_rate: int, seconds: float | None, align: str) -> tuple[np.ndarray, bool]:
    """Return the sound (T,) float32 at `sample_rate`, full scale being -1..1, and whether it was cropped.

    At most `seconds` are kept, of the "start" or the "centre", as `align` says; they are cut out before the rate is
    converted. Raises DataError with the reason, without the path.
    """
    soundfile = require("soundfile", "audio", "to read sound")
    try:
        _check_file(path)
        with (
            open(path, "rb", buffering=0) as opened,
            soundfile.SoundFile(opened.fileno(), closefd=False) as file,  # its name says nothing of its format
        ):
            _check_header(file, opened)
            rate, num_samples = file.samplerate, file.frames
            wanted = num_samples if seconds is None else min(num_samples, max(1, round(seconds * rate)))
            _check_size(wanted, rate, sample_rate)
            first = (num_samples - wanted) // 2 if align == "centre" else 0
            samples = _read_mono(file, first, wanted)
    except OSError as error:
        raise DataError(error.strerror or str(error)) from None
    except soundfile.LibsndfileError as error:
        raise DataError(f"is not a sound of a known format, or damaged: {error.error_string}") from None
    finite = np.isfinite(samples)
    if not finite.all():
        index = int(np.argmin(finite))
        raise DataError(f"holds {samples[index]} at {(first + index) / rate:.3f} s; possible: finite numbers")
    return _resample(samples, rate, sample_rate), wanted < num_samples


def _result_or_error(path: str, decode_one: Callable[[str], T]) -> T | DataError:
    try:
        return decode_one(path)
    except DataError as error:
        return error


def _check_file(path: str) -> None:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
        raise DataError("is not a file")
    if status.st_size == 0:
        raise DataError("is empty")


def _check_header(file: Any, opened: BinaryIO) -> None:
    """Raise DataError for a format not in FORMATS, for a sound that is cut off, and for one without samples."""
    if file.format not in FORMATS:
        raise DataError(f"is of the format {file.format}; possible: {', '.join(FORMATS)}")
    cut = _CUT.search(file.extra_info)
    if cut and int(cut[2]) < int(cut[1]) < _UNKNOWN_SIZE:
        raise DataError(f"is cut off: its header announces {int(cut[1]):,} bytes, {int(cut[2]):,} are there")
    cut = _CUT_RF64.search(file.extra_info)
    if cut and int(cut[1]) < int(cut[2]):
        raise DataError(f"is cut off: its header announces {int(cut[2]):,} samples, {int(cut[1]):,} are there")
    if file.format == "OGG" and not _has_last_page(opened.fileno()):
        raise DataError("is cut off: its last page is missing")
    if file.frames == 0:
        raise DataError("has no samples")


def _has_last_page(descriptor: int) -> bool:
    """Return whether the last page of an Ogg file has the flag of the last (RFC 3533, section 6)."""
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, max(0, os.fstat(descriptor).st_size - 2**16), os.SEEK_SET)  # a page has less than 64 KiB
    end = os.read(descriptor, 2**16)
    os.lseek(descriptor, position, os.SEEK_SET)
    page = end[end.rfind(b"OggS") :]
    return len(page) > 5 and bool(page[5] & 4)


def _check_size(num_samples: int, rate: int, sample_rate: int) -> None:
    if max(num_samples, num_samples * sample_rate / rate) > MAX_SAMPLES:
        raise DataError(
            f"lasts {num_samples / rate / 3600:,.1f} hours at {rate:,} Hz; more than {MAX_SAMPLES:,} samples are "
            "refused, since they can fill the memory; set seconds, or cut the sound"
        )


def _read_mono(file: Any, first: int, wanted: int) -> np.ndarray:
    """Return the mean of the channels (wanted,) float32. Raises DataError if fewer samples are there."""
    mono = np.empty(wanted, np.float32)
    done = file.seek(first) - first
    block = max(1, _BLOCK_SAMPLES // file.channels)
    while done < wanted:
        samples = file.read(min(block, wanted - done), dtype="float32", always_2d=True)
        if len(samples) == 0:
            raise DataError(f"is cut off: {file.frames:,} samples are announced, {first + done:,} are there")
        mono[done : done + len(samples)] = samples.mean(axis=1)
        done += len(samples)
    return mono


def _resample(samples: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    if rate == sample_rate:
        return samples
    soxr = require("soxr", "audio", "to convert sample rates")
    converted: np.ndarray = soxr.resample(samples, rate, sample_rate)
    if len(converted) == 0:
        raise DataError(f"is too short: {len(samples):,} samples at {rate:,} Hz")
    return converted
