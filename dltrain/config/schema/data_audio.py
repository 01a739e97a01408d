"""Settings of the source of sounds."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dltrain.config.schema.base import Component
from dltrain.config.schema.data_arrays import FOLDER_OR_CSV, PATH_COLUMN, SPLIT_COLUMN, TARGET_COLUMN, OnBadSample


class Audio(Component):
    """Sound files: a folder for each class, or a CSV of paths; as log-mel spectrograms or waveforms."""

    builds: ClassVar[str] = "dltrain.data.sources.audio:Audio"
    type: Literal["audio"]
    path: str = Field(
        min_length=1,
        description=FOLDER_OR_CSV,
    )
    sample_rate: int = Field(
        16000, ge=1000, le=192000, description="in Hz; sounds with another are converted, in stereo mixed down"
    )
    seconds: float | None = Field(
        None, gt=0, le=3600, description="length of all samples; null: that of the longest training sound"
    )
    align: Literal["centre", "start"] = Field(
        "centre", description="what stays in place when a sound is cropped to the length or gets silence"
    )
    features: Literal["logmel", "waveform"] = Field(
        "logmel",
        description="logmel: spectrograms (1, num_mels, frames), for models of images; waveform: (1, samples)",
    )
    num_mels: int | None = Field(None, ge=1, le=1024, description="bands of a spectrogram; null: 64")
    window_ms: float | None = Field(None, gt=0, le=1000, description="length of a frame; null: 25")
    hop_ms: float | None = Field(None, gt=0, le=1000, description="from one frame to the next; null: 10")
    f_min: float | None = Field(None, ge=0, description="lowest frequency of the bands in Hz; null: 0")
    f_max: float | None = Field(None, gt=0, description="highest frequency in Hz; null: half the sample rate")
    on_bad_sample: OnBadSample = Field(
        "error", description="what happens to files that cannot be read: error names them, skip leaves them out"
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
