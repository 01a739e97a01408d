"""Images as a source: a folder for each class, or a CSV of paths, decoded once into one uint8 array."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from dltrain.data.columns import Samples
from dltrain.data.sources.bad_samples import bad_samples, left_out
from dltrain.data.sources.fingerprint import fingerprint_files
from dltrain.data.sources.labelled_files import FileKind, LabelledFiles, all_files, list_inputs, list_labelled
from dltrain.data.sources.scaling import image_statistics
from dltrain.data.storage import allocate, blocks_of_rows, gather
from dltrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    from dltrain.data.sources.image_decoding import Decoded

BLOCK_IMAGES = 256
IMAGES = FileKind(
    "image",
    ("png", "jpg", "jpeg", "jpe", "jfif", "gif", "bmp", "dib", "webp", "tif", "tiff", "pbm", "pgm", "pnm", "ppm"),
)


class Images:
    """Image files as (N, C, H, W) uint8.

    `path` is a folder with one folder for each class, or with train/, val/ and test/ of such folders; or a
    CSV with the columns `path_column` (default "path", relative to the CSV), `target` (default
    "label"; several are several targets) and, if given, `split_column`. `size`, a side or (H, W), may be None
    if all images have one size. `channels` "auto" is 3 if any image is in colour, one of a later split too, else 1.
    All images are decoded at once: one that cannot be read stops the training, whatever its split, or is left out of
    it if `on_bad_sample` is "skip". For prediction each image must be readable. Relative paths are relative to `base`.
    """

    def __init__(
        self,
        path: str,
        size: int | Sequence[int] | None = None,
        channels: Literal["auto", 1, 3] = "auto",
        resize: Literal["stretch", "crop"] = "stretch",
        path_column: str | None = None,
        target: str | Sequence[str] | None = None,
        split_column: str | None = None,
        on_bad_sample: Literal["error", "skip"] = "error",
        base: str = ".",
    ) -> None:
        if size is None and resize != "stretch":
            raise ConfigError(f"resize: {resize!r} has no effect without a size; set size or remove resize")
        self.path = os.path.join(base, path)
        self.size = None if size is None else (size, size) if isinstance(size, int) else (size[0], size[1])
        self.channels = channels
        self.resize = resize
        self.path_column = path_column
        self.target = target
        self.split_column = split_column
        self.on_bad_sample = on_bad_sample
        self.num_skipped = 0
        self.notes: list[str] = []
        """What the user should be told about what was read: the images that were left out."""

    def read(self, path: str | None = None) -> Samples:
        """Read and decode the source's own images, or those of the folder or CSV `path`.

        Raises DataError with the files that cannot be read, or the first of another size if no size is set.
        """
        from dltrain.data.sources.image_decoding import decode_all

        files = self._list(self.path if path is None else path)
        num_channels = None if self.channels == "auto" else self.channels
        decoded = decode_all(files.paths, self.size, self.resize, num_channels)
        place = files.places.__getitem__
        self._check_readable(decoded, len(files.paths), place, self.on_bad_sample)
        samples = Samples(
            inputs=decoded.pixels,
            targets=files.targets,
            place=place,
            take_inputs=gather,
            target_names=files.target_names,
            splits=files.splits,
        )
        if not decoded.problems:
            return samples
        return samples.take(np.array([i for i in range(len(samples)) if i not in decoded.problems]))

    def fit(self, samples: Samples) -> dict[str, Any]:
        """Return "channels", "size" [H, W], and "normalize": mean and std of each channel of pixels / 255."""
        _, num_channels, height, width = samples.inputs.shape
        normalize = image_statistics(samples.inputs)
        return {"channels": num_channels, "size": [height, width], "normalize": normalize}

    def encode(self, samples: Samples, state: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return one tensor (N, C, H, W) uint8 with the channels of the training images.

        Raises DataError if the size is another than that of the training images.
        """
        pixels: np.ndarray = samples.inputs
        if list(pixels.shape[2:]) != state["size"]:
            raise _other_size(samples.place(0), pixels.shape[2:], state["size"])
        return (torch.from_numpy(_with_channels(pixels, state["channels"])),)

    def read_inputs(self, paths: list[str], state: dict[str, Any]) -> Iterator[Samples]:
        """Yield unlabelled images from files, folders with all below, and CSV files of paths, in blocks."""
        from dltrain.data.sources.image_decoding import decode_all

        for block in _blocks(list_inputs(paths, self.path_column or "path", IMAGES), BLOCK_IMAGES):
            height, width = state["size"]
            decoded = decode_all(block, self.size, self.resize, state["channels"], expected_size=(height, width))
            self._check_readable(decoded, len(block), block.__getitem__, "error", trained_size=(height, width))
            yield Samples(decoded.pixels, None, block.__getitem__, gather)

    def files(self, path: str | None = None) -> list[tuple[str, str]]:
        """Return (name, path) of the images that `read(path)` reads, and of the CSV that lists them."""
        path = self.path if path is None else path
        return all_files(path, self._list(path))

    def fingerprint(self, path: str | None = None) -> str:
        """Return a hash of the files that `read(path)` reads."""
        return fingerprint_files(self.files(path))

    def _list(self, path: str) -> LabelledFiles:
        return list_labelled(
            path,
            IMAGES,
            own_path=self.path,
            path_column=self.path_column,
            target=self.target,
            split_column=self.split_column,
        )

    def _check_readable(
        self,
        decoded: Decoded,
        num_images: int,
        place: Callable[[int], str],
        on_bad_sample: str,
        trained_size: Sequence[int] | None = None,
    ) -> None:
        """Raise DataError for images that cannot be read, or note that they are left out; and for another size."""
        problems = [f"{place(index)}: {reason}" for index, reason in sorted(decoded.problems.items())]
        if problems and (on_bad_sample == "error" or len(problems) == num_images):
            raise bad_samples(problems, num_images, "images cannot be read")
        if decoded.other_sizes:
            index, size = min(decoded.other_sizes.items())
            raise _other_size(place(index), size, trained_size, decoded.pixels.shape[2:])
        if problems:
            self.num_skipped += len(problems)
            self.notes.append(left_out(problems, num_images, "images cannot be read and are left out"))


def _other_size(
    place: str, size: Sequence[int], trained_size: Sequence[int] | None, first_size: Sequence[int] = ()
) -> DataError:
    """Return the error for an image whose `size` (H, W) is not that of the training images, or not of the first."""
    found = f"{place}: is {size[0]} x {size[1]} pixels (height x width)"
    if trained_size is not None:
        expected = f"{trained_size[0]} x {trained_size[1]}"
        return DataError(f"{found}, the training images are {expected}; resize it, or train with a size set")
    expected = f"{first_size[0]} x {first_size[1]}"
    return DataError(f"{found}, the first image is {expected}; set size, for example size: {first_size[0]}")


def _with_channels(pixels: np.ndarray, num_channels: int) -> np.ndarray:
    """Return (N, C, H, W) with `num_channels`: the same array if it has them."""
    from dltrain.data.sources.image_decoding import to_channels

    if pixels.shape[1] == num_channels:
        return np.ascontiguousarray(pixels)
    result = allocate((len(pixels), num_channels, *pixels.shape[2:]), np.uint8)
    for rows in blocks_of_rows(result):
        result[rows] = to_channels(pixels[rows], num_channels)
    return result


def _blocks(paths: Iterator[str], num_paths: int) -> Iterator[list[str]]:
    while block := list(islice(paths, num_paths)):
        yield block
