"""Log-mel spectrograms: how strong each band of a sound is, frame by frame, on scales that follow hearing.

Frame i is centred on sample i * hop of the waveform, with silence beyond both ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.errors import ConfigError

EPSILON = 1e-6
"""Added to the power of a band before its logarithm: digital silence is log(EPSILON).

At the default window a full-scale sine has the power 10,000, and the rounding to 16 bits 1e-8.
"""
_BLOCK_FRAMES = 4096  # of an hour's 360,000 frames at once: their spectra would take a gigabyte


@dataclass(frozen=True)
class LogMel:
    """Logarithms of the power in `num_mels` bands between `f_min` and `f_max`, in Hz.

    Frames of `window_ms` under a Hann window, one every `hop_ms`; the FFT is as long as the next power of two.
    Davis & Mermelstein (1980), https://doi.org/10.1109/TASSP.1980.1163420, who go on to cepstra. Raises ConfigError
    for a window below two samples, a hop below one, and bands that are too narrow for the window.
    """

    sample_rate: int
    num_mels: int
    window_ms: float
    hop_ms: float
    f_min: float
    f_max: float

    def __post_init__(self) -> None:
        for name, minimum in (("window", 2), ("hop", 1)):
            if getattr(self, name) < minimum:
                raise ConfigError(
                    f"{name}_ms: {getattr(self, f'{name}_ms'):g} is {getattr(self, name)} samples at "
                    f"{self.sample_rate} Hz; at least {minimum} are needed"
                )
        if not 0 <= self.f_min < self.f_max <= self.sample_rate / 2:
            raise ConfigError(
                f"f_min: {self.f_min:g} and f_max: {self.f_max:g} are no range of frequencies; possible: f_min below "
                f"f_max, both from 0 to half the sample rate, {self.sample_rate / 2:g}"
            )
        num_empty = int((self.filters == 0).all(dim=0).sum())
        if num_empty:
            raise ConfigError(
                f"num_mels: {num_empty} of {self.num_mels} bands lie between two frequencies that a window of "
                f"{self.window_ms:g} ms can tell apart; use fewer bands, or a longer window_ms"
            )

    @property
    def window(self) -> int:
        """Samples of a frame."""
        return round(self.sample_rate * self.window_ms / 1000)

    @property
    def hop(self) -> int:
        """Samples between the centres of two frames."""
        return round(self.sample_rate * self.hop_ms / 1000)

    @property
    def num_bins(self) -> int:
        """Length of the FFT."""
        return 1 << (self.window - 1).bit_length()

    @property
    def silence(self) -> float:
        """The value of every band of a frame of zeros."""
        return math.log(EPSILON)

    def num_frames(self, num_samples: int) -> int:
        """Return the frames of a waveform of `num_samples`."""
        return 1 + num_samples // self.hop

    @cached_property
    def filters(self) -> Tensor:
        """(num_bins / 2 + 1, num_mels) float32: the weights of the frequencies in the bands.

        Triangles of height 1, each from the centre of the band below to that of the band above; the centres are
        equally far apart in mels.
        """
        low, high = hz_to_mel(self.f_min), hz_to_mel(self.f_max)
        mels = [low + (high - low) * i / (self.num_mels + 1) for i in range(self.num_mels + 2)]
        corners = torch.tensor([mel_to_hz(mel) for mel in mels], dtype=torch.float64)
        frequencies = torch.arange(self.num_bins // 2 + 1, dtype=torch.float64) * self.sample_rate / self.num_bins
        lower, centre, upper = corners[:-2], corners[1:-1], corners[2:]
        rising = (frequencies[:, None] - lower) / (centre - lower)
        falling = (upper - frequencies[:, None]) / (upper - centre)
        return torch.minimum(rising, falling).clamp(min=0).float()

    def __call__(self, waveform: Tensor) -> Tensor:
        """Return (num_mels, frames) float32 for one `waveform` (T,) float32."""
        margin = self.window // 2
        frames = F.pad(waveform, (margin, self.window - margin)).unfold(0, self.window, self.hop)
        hann, filters = torch.hann_window(self.window), self.filters
        output = torch.empty(self.num_mels, self.num_frames(len(waveform)))
        for start in range(0, output.shape[1], _BLOCK_FRAMES):
            block = frames[start : start + _BLOCK_FRAMES][: output.shape[1] - start]
            spectrum = torch.view_as_real(torch.fft.rfft(block * hann, self.num_bins))
            power = spectrum.square().sum(dim=-1)
            output[:, start : start + len(block)] = (power @ filters).add_(EPSILON).log_().T
        return output


def hz_to_mel(frequency: float) -> float:
    """Return the pitch in mels of a `frequency` in Hz: 2595 log10(1 + frequency / 700).

    O'Shaughnessy (1987), "Speech Communication", as in HTK; 1000 Hz are 1000 mels.
    """
    return 2595.0 * math.log10(1.0 + frequency / 700.0)


def mel_to_hz(mel: float) -> float:
    """Return the frequency in Hz of a pitch in mels, the inverse of `hz_to_mel`."""
    return float(700.0 * (10.0 ** (mel / 2595.0) - 1.0))
