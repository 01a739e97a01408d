"""One image file -> uint8 pixels, the same for training, evaluation and prediction. Many files: on all cores.

Turned as EXIF says, transparency on white, 16-bit grey scaled to 8 bits; of several frames the first counts.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dltrain.errors import DataError

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
"""Of Pillow's; a fixed list, since some others start programs (EPS calls Ghostscript)."""
MAX_NAMED = 10
_TASK_IMAGES = 32  # a thread takes as many at once; one by one, small files spend their time on changing threads


def decode_all(
    paths: Sequence[str], size: tuple[int, int] | None, resize: str, place: Callable[[int], str]
) -> list[np.ndarray]:
    """Decode the files as `decode` does, in order, on all cores (Pillow releases the GIL).

    Raises one DataError for all files that cannot be read: their number, and the first ten by `place(index)`.
    """

    def attempt(start: int) -> list[np.ndarray | DataError]:
        return [_decode_or_error(path, size, resize) for path in paths[start : start + _TASK_IMAGES]]

    images: list[np.ndarray] = []
    problems: list[str] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(_num_cores()) as pool:
        warnings.simplefilter("ignore", UserWarning)  # remarks on EXIF and palettes
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        tasks = pool.map(attempt, range(0, len(paths), _TASK_IMAGES))
        for index, image in enumerate(chain.from_iterable(tasks)):
            if isinstance(image, DataError):
                problems.append(f"{place(index)}: {image}")
            else:
                images.append(image)
    if problems:
        more = f"\nand {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        head = f"{len(problems)} of {len(paths)} images cannot be read:\n" if len(problems) > 1 else ""
        raise DataError(head + "\n".join(problems[:MAX_NAMED]) + more)
    return images


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


def _decode_or_error(path: str, size: tuple[int, int] | None, resize: str) -> np.ndarray | DataError:
    try:
        return decode(path, size, resize)
    except DataError as error:
        return error


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
    with Image.open(path, formats=FORMATS) as image:
        if size is not None:
            side = 2 * max(size)  # a JPEG is decoded at 1/2, 1/4 or 1/8 if that leaves twice what is needed
            image.draft(None, (side, side))
        image.load()
        return ImageOps.exif_transpose(image)


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
    try:
        return image.convert("L" if grey else "RGB")
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


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
