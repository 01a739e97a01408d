"""One image file -> uint8 pixels, the same for training, evaluation and prediction. Many files: on all cores.

Turned as EXIF says, transparency on white, 16-bit grey scaled to 8 bits; of several frames the first counts.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dltrain.data.progress import progress
from dltrain.data.storage import allocate, blocks_of_rows
from dltrain.errors import DataError
from dltrain.machine import num_cores

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
"""Of Pillow's; a fixed list, since some others start programs (EPS calls Ghostscript)."""
_TASK_IMAGES = 32  # a thread takes as many at once; one by one, small files spend their time on changing threads
_SMALL_BYTES = 2**16  # such a file is read at once; each seek and read of Pillow in it would hand on the GIL


@dataclass
class Decoded:
    """Many images in one array, and which of them are not there."""

    pixels: np.ndarray
    """(N, C, H, W) uint8; undefined for images that are in one of the others."""
    problems: dict[int, str]
    """Why images cannot be read, by index."""
    other_sizes: dict[int, tuple[int, int]]
    """(H, W) of images whose size is another than that of `pixels`, by index."""


def decode_all(
    paths: Sequence[str],
    size: tuple[int, int] | None,
    resize: str,
    num_channels: int | None = None,
    expected_size: tuple[int, int] | None = None,
) -> Decoded:
    """Decode the files as `decode` does, on all cores (Pillow releases the GIL), straight into one array.

    Args:
        paths: of the files.
        size: (H, W) of the results, or None to leave each as it is.
        resize: how `size` is reached.
        num_channels: 1 or 3; None for 3 if any image is in colour, else 1.
        expected_size: where `size` is None, the size of the array; None for that of the first image that can be read.
    """
    with warnings.catch_warnings(), ThreadPoolExecutor(num_cores()) as pool, progress(len(paths), "images") as advance:
        warnings.simplefilter("ignore", UserWarning)  # remarks on EXIF and palettes
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        work = _Decoding(paths, size, resize, grows=num_channels is None)
        for index in range(len(paths)):
            first = pool.submit(work.decode, index).result()
            if first is not None:
                break
        else:
            return Decoded(np.empty((len(paths), num_channels or 1, 0, 0), np.uint8), work.problems, {})
        shape = (len(paths), num_channels or len(first), *(size or expected_size or first.shape[-2:]))
        work.pixels = allocate(shape, np.uint8)
        while True:
            for number in pool.map(work.fill, range(0, len(paths), _TASK_IMAGES)):
                advance(number)
            if not work.needs_colour:
                return Decoded(work.pixels, work.problems, work.other_sizes)
            work.grow()


class _Decoding:
    """Images on their way into an array that begins in grey, if it may grow, and is widened once if a colour turns up.

    What the array has to be is known only when all is decoded; to hold all images beside it would take twice the
    memory, and to look into each file before takes longer than to widen.
    """

    pixels: np.ndarray

    def __init__(self, paths: Sequence[str], size: tuple[int, int] | None, resize: str, grows: bool) -> None:
        self.needs_colour = False
        self.problems: dict[int, str] = {}
        self.other_sizes: dict[int, tuple[int, int]] = {}
        self._paths, self._size, self._resize, self._grows = paths, size, resize, grows
        self._is_done = np.zeros(len(paths), bool)

    def decode(self, index: int) -> np.ndarray | None:
        """Return the pixels of an image, or None, and the reason in `problems`."""
        try:
            return decode(self._paths[index], self._size, self._resize)
        except DataError as error:
            self.problems[index] = str(error)
            return None

    def fill(self, start: int) -> int:
        """Put the images of a task into the array; stop where it has to grow. Return how many were dealt with."""
        num_done = 0
        for index in range(start, min(start + _TASK_IMAGES, len(self._paths))):
            if self.needs_colour:
                break
            if self._is_done[index]:
                continue
            image = self.decode(index)
            if image is not None:
                num_channels, height, width = image.shape
                if (height, width) != self.pixels.shape[2:]:
                    self.other_sizes[index] = (height, width)
                elif self._grows and num_channels > self.pixels.shape[1]:
                    self.needs_colour = True
                    break
                else:
                    self.pixels[index] = to_channels(image, self.pixels.shape[1])
            self._is_done[index] = True
            num_done += 1
        return num_done

    def grow(self) -> None:
        """Make the grey array one of colour."""
        grey = self.pixels
        self.pixels = allocate((len(grey), 3, *grey.shape[2:]), np.uint8)
        for rows in blocks_of_rows(self.pixels):
            self.pixels[rows] = grey[rows]
        self.needs_colour = False


def decode(path: str, size: tuple[int, int] | None, resize: str) -> np.ndarray:
    """Return the pixels of an image file, (C, H, W) uint8: C is 1 if it is grey, 3 (RGB) if in colour.

    `size` (H, W) is reached by `resize`: "stretch", or "crop", which scales the image to cover `size` and
    cuts out the centre; bilinear with antialiasing. Raises DataError with the reason, without the path.
    """
    try:
        image = _load(path, size)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(
            f"has more than {Image.MAX_IMAGE_PIXELS:,} pixels; refused, since such files can fill the memory"
        ) from None
    except UnidentifiedImageError:
        problem = "is not an image of a known format, or damaged" if os.path.getsize(path) else "is empty"
        raise DataError(f"{problem}; possible: {', '.join(FORMATS)}") from None
    except OSError as error:
        raise DataError(error.strerror or f"is damaged: {error}") from None
    except Exception as error:  # Pillow raises a dozen kinds for damaged files
        raise DataError(f"is damaged: {error}") from None
    image = _to_grey_or_rgb(image)
    if size is not None:
        width_height = (size[1], size[0])
        if resize == "crop":
            image = ImageOps.fit(image, width_height, Image.Resampling.BILINEAR)
        else:
            image = image.resize(width_height, Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def to_channels(pixels: np.ndarray, num_channels: int) -> np.ndarray:
    """Return `pixels` (..., C, H, W) uint8 with `num_channels`: grey repeated, or colour as its luma.

    The luma is that of ITU-R BT.601 in fixed-point arithmetic, Pillow's to the bit.
    """
    if pixels.shape[-3] == num_channels:
        return pixels
    if num_channels == 3:
        return np.repeat(pixels, 3, axis=-3)
    weights = np.array([19595, 38470, 7471], np.uint32)
    luma = np.einsum("...chw,c->...hw", pixels.astype(np.uint32), weights) + 0x8000
    return np.expand_dims((luma >> 16).astype(np.uint8), -3)


def _load(path: str, size: tuple[int, int] | None) -> Image.Image:
    is_small = os.path.getsize(path) <= _SMALL_BYTES
    with Image.open(_read(path) if is_small else path, formats=FORMATS) as image:
        if size is not None:
            side = 2 * max(size)  # a JPEG is decoded at 1/2, 1/4 or 1/8 if that leaves twice what is needed
            image.draft(None, (side, side))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return image


def _read(path: str) -> io.BytesIO:
    with open(path, "rb", buffering=0) as file:
        return io.BytesIO(file.read())


def _to_grey_or_rgb(image: Image.Image) -> Image.Image:
    """Convert to mode L if the image is grey, else to RGB."""
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.mode == "F":
        raise DataError("has pixels of float numbers; convert it to 8 or 16 bits, or use arrays")
    grey = image.mode in ("1", "L", "LA") or (image.mode in ("P", "PA") and _has_grey_palette(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if grey else "RGB"
    try:
        return image if image.mode == mode else image.convert(mode)
    except ValueError as error:
        raise DataError(f"has pixels of the mode {image.mode}, which cannot be converted to RGB ({error})") from None


def _from_16_bits(image: Image.Image) -> Image.Image:
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise DataError(f"has values from {levels.min()} to {levels.max()}, beyond 16 bits; convert it, or use arrays")
    return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))


def _has_grey_palette(image: Image.Image) -> bool:
    colours = np.array(image.getpalette("RGB")).reshape(-1, 3)
    return bool((colours == colours[:, :1]).all())
