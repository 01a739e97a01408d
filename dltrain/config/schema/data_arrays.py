"""Settings of the sources of images, arrays and scikit-learn's data sets."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dltrain.config.schema.base import Component

Side = Annotated[int, Field(ge=1, le=8192)]
Scale = Literal["standard", "minmax", "none"]
OnBadSample = Literal["error", "skip"]

FOLDER_OR_CSV = "folder with a folder for each class, perhaps in train/, val/, test/; or a CSV of paths"
PATH_COLUMN = "column of the CSV with paths, relative to the CSV; null: 'path'"
TARGET_COLUMN = "column of the CSV with the target, or a list of several; null: 'label'"
SPLIT_COLUMN = "column of the CSV with train, val or test; null: none, the section split decides"
"""What the settings of files for each class mean, images or others."""


class Sklearn(Component):
    """A data set inside scikit-learn: small, real, no download."""

    builds: ClassVar[str] = "dltrain.data.sources.sklearn_data:Sklearn"
    type: Literal["sklearn"]
    name: Literal["digits", "iris", "wine", "breast_cancer", "diabetes"] = Field(description="which data set")
    images: bool = Field(False, description="digits only: as images (1, 8, 8) for convolutions instead of 64 numbers")
    scale: Scale = Field(
        "standard",
        description="of each feature or channel: standard (mean 0, deviation 1), minmax (0 to 1) or none",
    )


class Images(Component):
    """Image files: a folder for each class, or a CSV of paths."""

    builds: ClassVar[str] = "dltrain.data.sources.images:Images"
    type: Literal["images"]
    path: str = Field(
        min_length=1,
        description=FOLDER_OR_CSV,
    )
    size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None = Field(
        None,
        description="side, or [height, width], in pixels, to resize all images to; null: they have one size",
    )
    channels: Literal["auto", 1, 3] = Field(
        "auto", description="1 (grey) or 3 (colour); auto: 3 if any image is in colour"
    )
    resize: Literal["stretch", "crop"] = Field(
        "stretch", description="to the size: stretch both sides, or scale to cover it and crop the centre"
    )
    path_column: str | None = Field(None, min_length=1, description=PATH_COLUMN)
    target: str | Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description=TARGET_COLUMN,
    )
    split_column: str | None = Field(
        None,
        min_length=1,
        description=SPLIT_COLUMN,
    )
    on_bad_sample: OnBadSample = Field(
        "error", description="for images that cannot be read: an error that names them, or leave them out with a note"
    )


class Arrays(Component):
    """Arrays in .npz and .npy files and the IDX files of MNIST."""

    builds: ClassVar[str] = "dltrain.data.sources.arrays:Arrays"
    type: Literal["arrays"]
    path: str = Field(
        min_length=1,
        description="an .npz, a .npy, a folder with the IDX files of MNIST (or .gz), or one of its files",
    )
    inputs: str = Field(
        "x",
        min_length=1,
        description="array of an .npz with the inputs; or what stands before _train, _val and _test",
    )
    target: str = Field(
        "y",
        min_length=1,
        description="array of an .npz with the targets, likewise; for a .npy, path of their .npy",
    )
    scale: Scale = Field(
        "standard",
        description="of each feature or channel: standard (mean 0, deviation 1), minmax (0 to 1) or none",
    )
    channels_last: bool = Field(False, description="images are (N, H, W, C) instead of (N, C, H, W)")


ALL: tuple[type[Component], ...] = (Sklearn, Images, Arrays)
