"""Images as a source: a folder for each class, or a CSV of paths, decoded once into one uint8 array."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dltrain.data.columns import Samples
from dltrain.data.sources.fingerprint import fingerprint_files
from dltrain.data.sources.image_files import ImageFiles, list_csv, list_folder, list_inputs
from dltrain.data.sources.scaling import image_statistics
from dltrain.errors import ConfigError, DataError

BLOCK_IMAGES = 256


class Images:
    """Image files as (N, C, H, W) uint8.

    `path` is a folder with one folder for each class, or with train/, val/ and test/ of such folders; or a
    CSV with the columns `path_column` (default "path", relative to the CSV), `target` (default
    "label"; several are several targets) and, if given, `split_column`. `size`, a side or (H, W), may be None
    if all images have one size. `channels` "auto" is 3 if any image is in colour, one of a later split too, else 1.
    All images are decoded at once: one that is damaged stops the training, whatever its split. Relative paths are
    relative to `base`.
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

    def read(self, path: str | None = None) -> Samples:
        """Read and decode the source's own images, or those of the folder or CSV `path`.

        Raises DataError with the files that cannot be read, or the first of another size if no size is set.
        """
        files = self._list(self.path if path is None else path)
        images = self._decode(files.paths, files.places.__getitem__)
        if self.size is None:
            _check_same_size(images, images[0].shape[-2:], files.places.__getitem__, new=False)
        num_channels = max(len(image) for image in images) if self.channels == "auto" else self.channels
        return Samples(
            inputs=_stack(images, num_channels),
            targets=files.targets,
            place=files.places.__getitem__,
            take_inputs=_take,
            target_names=files.target_names,
            splits=files.splits,
        )

    def fit(self, samples: Samples) -> dict[str, Any]:
        """Return "channels", "size" [H, W], and "normalize": mean and std of each channel of pixels / 255."""
        _, num_channels, height, width = samples.inputs.shape
        normalize = image_statistics(samples.inputs)
        return {"channels": num_channels, "size": [height, width], "normalize": normalize}

    def encode(self, samples: Samples, state: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return one tensor (N, C, H, W) uint8 with the channels of the training images.

        Raises DataError if the size is another than that of the training images.
        """
        from dltrain.data.sources.image_decoding import to_channels

        pixels = samples.inputs
        _check_same_size(pixels[:1], state["size"], samples.place, new=True)
        return (torch.from_numpy(np.ascontiguousarray(to_channels(pixels, state["channels"]))),)

    def read_inputs(self, paths: list[str], state: dict[str, Any]) -> Iterator[Samples]:
        """Yield unlabelled images from files, folders with all below, and CSV files of paths, in blocks."""
        for block in _blocks(list_inputs(paths, self.path_column or "path"), BLOCK_IMAGES):
            images = self._decode(block, block.__getitem__)
            _check_same_size(images, state["size"], block.__getitem__, new=True)
            yield Samples(_stack(images, state["channels"]), None, block.__getitem__, _take)

    def fingerprint(self, path: str | None = None) -> str:
        """Return a hash of the images that `read(path)` reads, and of the CSV that lists them."""
        path = self.path if path is None else path
        files = self._list(path)
        listed_in = [] if os.path.isdir(path) else [(os.path.basename(path), path)]
        return fingerprint_files([*listed_in, *zip(files.names, files.paths, strict=True)])

    def _list(self, path: str) -> ImageFiles:
        if not os.path.isdir(path):
            if not os.path.isfile(path):
                raise DataError(f"{path}: no such file or folder")
            return list_csv(path, self.path_column or "path", self.target or "label", self.split_column)
        for setting in ("path_column", "target", "split_column"):
            if path == self.path and getattr(self, setting) is not None:
                raise ConfigError(f"{setting}: is for a CSV of paths, and {path} is a folder; remove it")
        return list_folder(path)

    def _decode(self, paths: Sequence[str], place: Callable[[int], str]) -> list[np.ndarray]:
        from dltrain.data.sources.image_decoding import decode_all

        return decode_all(paths, self.size, self.resize, place)


def _check_same_size(images: Iterable[np.ndarray], size: Sequence[int], place: Callable[[int], str], new: bool) -> None:
    """Compare with `size` (H, W), that of the training images if these are `new`, else that of the first."""
    expected = f"{size[0]} x {size[1]}"
    for index, image in enumerate(images):
        if tuple(image.shape[-2:]) != tuple(size):
            found = f"{place(index)}: is {image.shape[-2]} x {image.shape[-1]} pixels (height x width)"
            if new:
                raise DataError(f"{found}, the training images are {expected}; resize it, or train with a size set")
            raise DataError(f"{found}, the first image is {expected}; set size, for example size: {size[0]}")


def _stack(images: list[np.ndarray], num_channels: int) -> np.ndarray:
    """Return (N, C, H, W), and empty the list `images` while it is copied, so that memory holds them once."""
    from dltrain.data.sources.image_decoding import to_channels

    stacked = np.empty((len(images), num_channels, *images[0].shape[-2:]), np.uint8)
    images.reverse()
    for index in range(len(images)):
        stacked[index] = to_channels(images.pop(), num_channels)
    return stacked


def _blocks(paths: Iterator[str], num_paths: int) -> Iterator[list[str]]:
    while block := list(islice(paths, num_paths)):
        yield block


def _take(pixels: np.ndarray, indices: np.ndarray) -> Any:
    return pixels[indices]
