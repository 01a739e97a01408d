"""Augmentation in the config: what `dltrain.data.transforms` does to each training batch, in this order."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from dltrain.config.schema.base import Component


def _ascending(bounds: list[float]) -> list[float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the first must not be above the second")
    return bounds


AreaRange = Annotated[
    list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2), AfterValidator(_ascending)
]


class Flip(Component):
    """Mirrors images (Krizhevsky et al. 2012)."""

    builds: ClassVar[str] = "dltrain.data.transforms:Flip"
    type: Literal["flip"]
    horizontal: float = Field(0.5, ge=0, le=1, description="probability of mirroring an image left to right")
    vertical: float = Field(0.0, ge=0, le=1, description="probability of turning an image upside down")


class Crop(Component):
    """Shifts images by a few pixels: pads them and cuts the old size out (He et al. 2015)."""

    builds: ClassVar[str] = "dltrain.data.transforms:Crop"
    type: Literal["crop"]
    padding: int = Field(4, ge=1, description="largest shift in pixels")
    mode: Literal["zeros", "reflect"] = Field(
        "zeros", description="what comes in at the border: mean colour or reflection"
    )


class Erasing(Component):
    """Erases a random box of an image (Zhong et al. 2017)."""

    builds: ClassVar[str] = "dltrain.data.transforms:Erasing"
    type: Literal["erasing"]
    p: float = Field(0.5, ge=0, le=1, description="probability that an image loses a box")
    area: AreaRange = Field([0.02, 0.4], description="smallest and largest share of the image that is erased")
    ratio: float = Field(0.3, gt=0, le=1, description="narrowest aspect of the box; the widest is its inverse")


class BrightnessContrast(Component):
    """Changes the brightness and contrast of images (after Howard 2013)."""

    builds: ClassVar[str] = "dltrain.data.transforms:BrightnessContrast"
    type: Literal["brightness_contrast"]
    brightness: float = Field(
        0.2, ge=0, description="largest change of brightness, in standard deviations of the pixels"
    )
    contrast: float = Field(0.2, ge=0, le=1, description="largest change of contrast, as a share of it")


class Rotation(Component):
    """Turns images about their centre (Simard et al. 2003)."""

    builds: ClassVar[str] = "dltrain.data.transforms:Rotation"
    type: Literal["rotation"]
    degrees: float = Field(gt=0, le=180, description="largest angle either way")


class SpecAugment(Component):
    """Masks bands and stretches of time of spectrograms (Park et al. 2019)."""

    builds: ClassVar[str] = "dltrain.data.transforms:SpecAugment"
    type: Literal["spec_augment"]
    frequency_masks: int = Field(2, ge=0, description="masks of neighbouring bands")
    frequency_width: float = Field(0.2, gt=0, le=1, description="largest width of one, as a share of the bands")
    time_masks: int = Field(2, ge=0, description="masks of neighbouring frames")
    time_width: float = Field(0.2, gt=0, le=1, description="largest width of one, as a share of the frames")


class TimeShift(Component):
    """Shifts waveforms, other series and spectrograms along time."""

    builds: ClassVar[str] = "dltrain.data.transforms:TimeShift"
    type: Literal["time_shift"]
    shift: float = Field(0.1, gt=0, le=1, description="largest shift either way, as a share of the length")


class Noise(Component):
    """Adds normal noise to numeric inputs (Bishop 1995)."""

    builds: ClassVar[str] = "dltrain.data.transforms:Noise"
    type: Literal["noise"]
    std: float = Field(gt=0, description="standard deviation of the noise, in the units of the scaled inputs")


ALL: tuple[type[Component], ...] = (Flip, Crop, Erasing, BrightnessContrast, Rotation, SpecAugment, TimeShift, Noise)
