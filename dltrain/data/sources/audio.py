"""Sound files as a source: a folder for each class, or a CSV of paths, as log-mel spectrograms or as waveforms.

All samples get one length, by silence or by cropping. What takes time, decoding and spectrograms, is done once, file
by file on all cores; in memory a sound is only as long as it is until it is encoded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dltrain.data.columns import Samples
from dltrain.data.sources.audio_decoding import decode, decode_all
from dltrain.data.sources.bad_samples import bad_samples, left_out
from dltrain.data.sources.fingerprint import fingerprint_files
from dltrain.data.sources.labelled_files import FileKind, LabelledFiles, all_files, list_inputs, list_labelled
from dltrain.data.spectrogram import LogMel
from dltrain.errors import ConfigError, DataError

BLOCK_SOUNDS = 256
SOUNDS = FileKind(
    "sound",
    ("wav", "wave", "rf64", "w64", "flac", "ogg", "oga", "opus", "mp3", "aif", "aiff", "au", "snd", "caf"),
)
MAX_PADDED_BYTES = 2**30
MAX_PADDING = 4
"""Training samples that are padded to the longest are refused where they would take more than so many bytes, and
more than so many times those of the sounds themselves."""

_UNREADABLE = "sounds cannot be read"


class Audio:
    """Sound files as (N, 1, num_mels, frames) or (N, 1, T) float32: normalised log-mel spectrograms or waveforms.

    `path` is a folder with one folder for each class, or with train/, val/ and test/ of such folders; or a CSV with
    the columns `path_column` (default "path", relative to the CSV), `target` (default "label"; several are several
    targets) and, if given, `split_column`. Sounds are mixed to mono, converted to `sample_rate` in Hz, and brought to
    `seconds`, or to the longest of training if that is None: shorter ones get silence, of longer ones a part is left
    out. `align` is what both keep in place, the "centre" or the "start".

    With "logmel" the mean and deviation of each band become 0 and 1, those of the training samples with their silence;
    `num_mels` (default 64) bands from `f_min` (default 0 Hz) to `f_max` (default half the sample rate), in frames of
    `window_ms` (default 25), one every `hop_ms` (default 10). With "waveform" the root mean square of all training
    samples becomes 1. A file that cannot be read stops the training, whatever its split, or is left out of it
    if `on_bad_sample` is "skip"; for prediction each must be readable. Relative paths are relative to `base`.
    """

    def __init__(
        self,
        path: str,
        sample_rate: int = 16000,
        seconds: float | None = None,
        align: Literal["centre", "start"] = "centre",
        features: Literal["logmel", "waveform"] = "logmel",
        num_mels: int | None = None,
        window_ms: float | None = None,
        hop_ms: float | None = None,
        f_min: float | None = None,
        f_max: float | None = None,
        on_bad_sample: Literal["error", "skip"] = "error",
        path_column: str | None = None,
        target: str | Sequence[str] | None = None,
        split_column: str | None = None,
        base: str = ".",
    ) -> None:
        self.path = os.path.join(base, path)
        self.sample_rate = sample_rate
        self.seconds = seconds
        self.align = align
        self.on_bad_sample = on_bad_sample
        self.path_column = path_column
        self.target = target
        self.split_column = split_column
        self.notes: list[str] = []
        self.num_skipped = 0
        self.log_mel: LogMel | None = None
        if features == "logmel":
            self.log_mel = LogMel(
                sample_rate=sample_rate,
                num_mels=64 if num_mels is None else num_mels,
                window_ms=25.0 if window_ms is None else window_ms,
                hop_ms=10.0 if hop_ms is None else hop_ms,
                f_min=0.0 if f_min is None else f_min,
                f_max=sample_rate / 2 if f_max is None else f_max,
            )
            return
        given = {"num_mels": num_mels, "window_ms": window_ms, "hop_ms": hop_ms, "f_min": f_min, "f_max": f_max}
        for name, value in given.items():
            if value is not None:
                raise ConfigError(f"{name}: {value:g} has no effect on waveforms; remove it, or set features: logmel")

    def read(self, path: str | None = None) -> Samples:
        """Read and decode the source's own sounds, or those of the folder or CSV `path`.

        Raises DataError with the files that cannot be read.
        """
        if path is None:
            self.notes, self.num_skipped = [], 0
        files = self._list(self.path if path is None else path)
        inputs, good, problems = self._decode(files.paths, files.places.__getitem__)
        if problems and (self.on_bad_sample == "error" or not good):
            raise bad_samples(problems, len(files.paths), _UNREADABLE)
        self._note_skipped(problems, len(files.paths))
        return Samples(
            inputs=inputs,
            targets=files.targets[good],
            place=lambda i: files.places[good[i]],
            take_inputs=_take,
            target_names=files.target_names,
            splits=None if files.splits is None else files.splits[good],
        )

    def fit(self, samples: Samples) -> dict[str, Any]:
        """Return "length", in frames or samples, and "mean" and "std", of each band or of all samples.

        Raises DataError if samples as long as the longest would be mostly silence and fill the memory.
        """
        items = samples.inputs
        if self.seconds is None:
            _check_padding(samples, self._duration)
        length = max(item.shape[-1] for item in items) if self.seconds is None else self._length(self.seconds)
        if self.log_mel is None:
            mean_square = sum(float(_sum(np.square(item[0]))) for item in items) / sum(item.size for item in items)
            return {"length": length, "mean": [0.0], "std": [math.sqrt(mean_square) or 1.0]}
        spectrograms = [self._fit_length(item[0], length) for item in items]
        count = len(items) * length
        mean = np.sum([_sum(x) for x in spectrograms], axis=0) / count
        deviation = np.sqrt(np.sum([_sum(np.square(x - mean[:, None])) for x in spectrograms], axis=0) / count)
        return {"length": length, "mean": mean.tolist(), "std": np.where(deviation > 0, deviation, 1.0).tolist()}

    def encode(self, samples: Samples, state: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return one tensor of (N, 1, num_mels, frames) or (N, 1, T) float32."""
        items, length = samples.inputs, state["length"]
        with np.errstate(over="ignore"):
            mean, std = (np.array(state[key], np.float32)[:, None] for key in ("mean", "std"))
        if items[0].shape[-2] != len(mean):
            found = f"{samples.place(0)}: the features are {items[0].shape[-2]} numbers at a time"
            raise DataError(f"{found}, those of the training {len(mean)}; set the features as the training had them")
        encoded = np.empty((len(items), *items[0].shape[:-1], length), np.float32)
        for row, item in zip(encoded, items, strict=True):
            with np.errstate(all="ignore"):  # what is not finite is noticed with its row
                row[:] = (self._fit_length(item, length) - mean) / std
        self._note_cropped([item.shape[-1] > length for item in items], f"{self._duration(length):.2f} s")
        return (torch.from_numpy(encoded),)

    def read_inputs(self, paths: list[str], state: dict[str, Any]) -> Iterator[Samples]:
        """Yield unlabelled sounds from files, folders with all below, and CSV files of paths, in blocks."""
        files = list_inputs(paths, self.path_column or "path", SOUNDS)
        while block := list(islice(files, BLOCK_SOUNDS)):
            inputs, _, problems = self._decode(block, block.__getitem__)
            if problems:
                raise bad_samples(problems, len(block), _UNREADABLE)
            yield Samples(inputs, None, block.__getitem__, _take)

    def files(self, path: str | None = None) -> list[tuple[str, str]]:
        """Return (name, path) of the sounds that `read(path)` reads, and of the CSV that lists them."""
        path = self.path if path is None else path
        return all_files(path, self._list(path))

    def fingerprint(self, path: str | None = None) -> str:
        """Return a hash of the files that `read(path)` reads."""
        return fingerprint_files(self.files(path))

    def _list(self, path: str) -> LabelledFiles:
        return list_labelled(
            path,
            SOUNDS,
            own_path=self.path,
            path_column=self.path_column,
            target=self.target,
            split_column=self.split_column,
        )

    def _decode(
        self, paths: Sequence[str], place: Callable[[int], str]
    ) -> tuple[list[np.ndarray], list[int], list[str]]:
        """Return the features of the sounds that can be read, their indices, and what is wrong with the others."""
        results = decode_all(paths, self._features)
        problems = [f"{place(i)}: {result}" for i, result in enumerate(results) if isinstance(result, DataError)]
        good = [i for i, result in enumerate(results) if not isinstance(result, DataError)]
        sounds = [result for result in results if not isinstance(result, DataError)]
        if self.seconds is not None:
            self._note_cropped([was_cropped for _, was_cropped in sounds], f"{self.seconds:g} s")
        return [features for features, _ in sounds], good, problems

    def _features(self, path: str) -> tuple[np.ndarray, bool]:
        """Return (1, num_mels, frames) or (1, T) float32, not normalised, and whether the sound was cropped."""
        waveform, was_cropped = decode(path, self.sample_rate, self.seconds, self.align)
        if self.log_mel is None:
            return waveform[None], was_cropped
        return self.log_mel(torch.from_numpy(waveform)).numpy()[None], was_cropped

    def _fit_length(self, item: np.ndarray, length: int) -> np.ndarray:
        """Return `item` (..., L) as (..., length): cropped, or with silence."""
        surplus = item.shape[-1] - length
        before = abs(surplus) // 2 if self.align == "centre" else 0
        if surplus >= 0:
            kept: np.ndarray = item[..., before : before + length]
            return kept
        silence = 0.0 if self.log_mel is None else self.log_mel.silence
        margins = [(0, 0)] * (item.ndim - 1) + [(before, -surplus - before)]
        return np.pad(item, margins, constant_values=silence)

    def _length(self, seconds: float) -> int:
        """Return frames or samples."""
        num_samples = max(1, round(seconds * self.sample_rate))
        return num_samples if self.log_mel is None else self.log_mel.num_frames(num_samples)

    def _duration(self, length: int) -> float:
        """Return the seconds of `length` frames or samples."""
        return length * (1 if self.log_mel is None else self.log_mel.hop) / self.sample_rate

    def _note_skipped(self, problems: list[str], num_files: int) -> None:
        self.num_skipped += len(problems)
        if problems:
            self.notes.append(left_out(problems, num_files, "sounds cannot be read and are left out"))

    def _note_cropped(self, was_cropped: list[bool], limit: str) -> None:
        if any(was_cropped):
            self.notes.append(
                f"{sum(was_cropped):,} of {len(was_cropped):,} sounds are longer than {limit}; "
                f"of those the {self.align} is used"
            )


def _check_padding(samples: Samples, duration: Callable[[int], float]) -> None:
    """Raise DataError if most of the samples would be silence that fills the memory."""
    lengths = [item.shape[-1] for item in samples.inputs]
    longest = int(np.argmax(lengths))
    num_bytes = samples.inputs[0].nbytes // lengths[0] * len(lengths) * lengths[longest]
    if num_bytes > MAX_PADDED_BYTES and num_bytes > MAX_PADDING * sum(item.nbytes for item in samples.inputs):
        raise DataError(
            f"{samples.place(longest)}: lasts {duration(lengths[longest]):,.0f} s, half of the sounds at most "
            f"{duration(int(np.median(lengths))):,.1f} s; as long as the longest, all would take "
            f"{num_bytes / 2**30:,.0f} GiB; set seconds"
        )


def _sum(values: np.ndarray) -> Any:
    """Return the sums over the last axis in float64."""
    return values.sum(axis=-1, dtype=np.float64)


def _take(items: list[np.ndarray], indices: np.ndarray) -> list[np.ndarray]:
    return [items[i] for i in indices]
