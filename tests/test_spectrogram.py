"""Log-mel spectrograms against the formulas, written out anew with numpy, and against the published mel scale."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from dltrain.data import spectrogram
from dltrain.data.spectrogram import EPSILON, LogMel, hz_to_mel, mel_to_hz
from dltrain.errors import ConfigError


def log_mel(**settings: float) -> LogMel:
    values = {"num_mels": 64, "window_ms": 25.0, "hop_ms": 10.0, "f_min": 0.0, "f_max": 8000.0} | settings
    return LogMel(16000, **values)  # type: ignore[arg-type]


def reference(
    waveform: np.ndarray, rate: int, num_mels: int, window: int, hop: int, low: float, high: float
) -> np.ndarray:
    """Return (num_mels, frames) by a discrete Fourier transform term by term, and triangles corner by corner."""
    size = 2 ** math.ceil(math.log2(window))
    hann = np.array([0.5 - 0.5 * math.cos(2 * math.pi * n / window) for n in range(window)])
    bins = np.arange(size // 2 + 1)
    fourier = np.exp(-2j * np.pi * np.outer(bins, np.arange(window)) / size)
    bottom, top = (2595 * math.log10(1 + f / 700) for f in (low, high))
    corners = [700 * (10 ** (mel / 2595) - 1) for mel in np.linspace(bottom, top, num_mels + 2)]
    hertz = bins * rate / size
    bands = [np.interp(hertz, corners[m : m + 3], [0, 1, 0], left=0, right=0) for m in range(num_mels)]
    padded = np.concatenate([np.zeros(window // 2), waveform, np.zeros(window)])
    columns = []
    for frame in range(1 + len(waveform) // hop):
        power = np.abs(fourier @ (padded[frame * hop : frame * hop + window] * hann)) ** 2
        columns.append([math.log(band @ power + EPSILON) for band in bands])
    return np.array(columns).T


@pytest.mark.parametrize(
    ("rate", "settings", "num_samples"),
    [
        (16000, {}, 4000),
        (16000, {"num_mels": 40, "hop_ms": 20.0, "f_min": 60.0, "f_max": 7600.0}, 3999),
        (8000, {"num_mels": 20, "window_ms": 32.0, "f_max": 4000.0}, 2001),
        (22050, {"f_max": 11025.0}, 100),
    ],
)
def test_values_are_those_of_the_formulas(rate: int, settings: dict[str, float], num_samples: int) -> None:
    waveform = np.random.default_rng(0).normal(0, 0.1, num_samples).astype(np.float32)
    values = {"num_mels": 64, "window_ms": 25.0, "hop_ms": 10.0, "f_min": 0.0, "f_max": 8000.0} | settings
    found = LogMel(rate, **values)(torch.from_numpy(waveform))  # type: ignore[arg-type]
    window, hop = round(rate * values["window_ms"] / 1000), round(rate * values["hop_ms"] / 1000)
    expected = reference(
        waveform.astype(np.float64), rate, int(values["num_mels"]), window, hop, values["f_min"], values["f_max"]
    )
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-4)


def test_the_mel_scale_has_its_published_values() -> None:
    assert hz_to_mel(0.0) == 0
    assert hz_to_mel(1000.0) == pytest.approx(1000, abs=0.02)  # by which the scale is defined
    assert hz_to_mel(700.0) == pytest.approx(2595 * math.log10(2))
    assert hz_to_mel(8000.0) == pytest.approx(2840.02, abs=0.01)
    for frequency in (0.0, 440.0, 12345.0):
        assert mel_to_hz(hz_to_mel(frequency)) == pytest.approx(frequency)


def test_a_tone_is_loudest_in_its_band_and_when_it_sounds() -> None:
    waveform = torch.zeros(16000)
    waveform[8000:12000] = 0.5 * torch.sin(2 * math.pi * 1000 * torch.arange(4000) / 16000)
    found = log_mel()(waveform)
    band, frame = divmod(int(found.argmax()), found.shape[1])
    centres = [mel_to_hz(hz_to_mel(8000.0) * (i + 1) / 65) for i in range(64)]
    assert band == int(np.argmin([abs(centre - 1000) for centre in centres]))
    assert 50 <= frame <= 75
    assert found[band, :45].max() == pytest.approx(math.log(EPSILON))


def test_a_frame_is_centred_on_its_sample() -> None:
    waveform = torch.zeros(3200)
    waveform[1600] = 1.0
    assert int(log_mel()(waveform).sum(dim=0).argmax()) == 10


@pytest.mark.parametrize("num_samples", [1, 159, 160, 16000])
def test_silence_is_the_logarithm_of_epsilon_in_as_many_frames_as_promised(num_samples: int) -> None:
    settings = log_mel()
    found = settings(torch.zeros(num_samples))
    assert found.shape == (64, settings.num_frames(num_samples)) == (64, 1 + num_samples // 160)
    torch.testing.assert_close(found, torch.full_like(found, settings.silence))


def test_long_sounds_are_computed_in_blocks_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    waveform = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    whole = log_mel()(waveform)
    monkeypatch.setattr(spectrogram, "_BLOCK_FRAMES", 7)
    torch.testing.assert_close(log_mel()(waveform), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_ms": 0.05}, "window_ms: 0.05 is 1 samples at 16000 Hz; at least 2 are needed"),
        ({"hop_ms": 0.01}, "hop_ms: 0.01 is 0 samples at 16000 Hz; at least 1 are needed"),
        (
            {"f_max": 9000.0},
            "f_min: 0 and f_max: 9000 are no range of frequencies; possible: f_min below f_max, both from 0 to half "
            "the sample rate, 8000",
        ),
        ({"f_min": 300.0, "f_max": 300.0}, "f_min: 300 and f_max: 300 are no range of frequencies"),
        (
            {"num_mels": 256},
            "bands lie between two frequencies that a window of 25 ms can tell apart; use fewer bands, or a longer",
        ),
    ],
)
def test_settings_that_make_no_spectrogram_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        log_mel(**settings)
