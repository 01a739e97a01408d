"""Sound files: what they become, how they are brought to one form and length, and what is refused in which words."""

from __future__ import annotations

import re
import shutil
import struct
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from dltrain.data.sources import audio, audio_decoding
from dltrain.data.sources.audio import Audio
from dltrain.data.spectrogram import LogMel
from dltrain.errors import ConfigError, DataError
from tests.make_speech import VOICES, make_speech, sentences

RATE = 8000
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 4000).astype(np.float32)

LONG_NOISE = np.tile(NOISE, 10)
"""So long that an Ogg file has several pages."""


def tone(seconds: float, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def save(path: Path, samples: np.ndarray, rate: int = RATE, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


def decode(path: Path, rate: int = RATE, seconds: float | None = None, align: str = "centre") -> np.ndarray:
    return audio_decoding.decode(str(path), rate, seconds, align)[0]


def waveforms(path: Path, **settings: Any) -> Audio:
    return Audio(str(path), **{"sample_rate": RATE, "features": "waveform"} | settings)


def two_classes(root: Path) -> Path:
    """Two classes of two sounds each, and a hidden and a text file that do not count."""
    for name, seconds in (("high/1.wav", 0.5), ("high/2.WAV", 0.3), ("low/1.flac", 0.4), ("low/deep/2.ogg", 0.2)):
        save(root / name, tone(seconds, hertz=1500.0 if name.startswith("high") else 300.0))
    (root / "high/notes.txt").write_text("no sound")
    (root / "high/.hidden.wav").write_text("no sound")
    return root


# Kinds of files


@pytest.mark.parametrize(
    ("extension", "options"),
    [
        ("wav", {"subtype": "PCM_16"}),
        ("wav", {"subtype": "PCM_24"}),
        ("wav", {"subtype": "FLOAT"}),
        ("flac", {}),
        ("aiff", {}),
        ("au", {}),
        ("caf", {}),
        ("w64", {}),
        ("rf64", {}),
    ],
)
def test_lossless_formats(tmp_path: Path, extension: str, options: dict[str, Any]) -> None:
    found = decode(save(tmp_path / f"x.{extension}", NOISE, **options))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, NOISE, atol=1 / 32000)


@pytest.mark.parametrize("extension", ["ogg", "mp3"])
def test_lossy_formats(tmp_path: Path, extension: str) -> None:
    found = decode(save(tmp_path / f"x.{extension}", tone(1.0)))
    spectrum = np.abs(np.fft.rfft(found))
    assert int(spectrum.argmax() / len(found) * RATE) in range(438, 443)


def test_channels_are_averaged(tmp_path: Path) -> None:
    five = np.stack([NOISE, -NOISE, NOISE, NOISE, NOISE], axis=1)
    np.testing.assert_allclose(decode(save(tmp_path / "x.wav", five)), 0.6 * NOISE, atol=1 / 16000)


@pytest.mark.parametrize("rate", [RATE, 11025, 44100, 48000])
def test_sample_rates_are_converted(tmp_path: Path, rate: int) -> None:
    found = decode(save(tmp_path / "x.wav", tone(1.0, rate), rate))
    assert len(found) == RATE
    np.testing.assert_allclose(found[500:-500], tone(1.0)[500:-500], atol=2e-3)


def test_mixed_rates_and_channels_make_one_data_set(tmp_path: Path) -> None:
    save(tmp_path / "a/1.wav", tone(0.5, 44100), 44100)
    save(tmp_path / "a/2.wav", np.stack([tone(0.5, 16000)] * 2, axis=1), 16000)
    save(tmp_path / "b/1.wav", tone(0.5))
    source = waveforms(tmp_path)
    samples = source.read()
    (x,) = source.encode(samples, source.fit(samples))
    assert x.shape == (3, 1, 4000)
    torch.testing.assert_close(x[0, :, 500:-500], x[2, :, 500:-500], atol=1e-2, rtol=0)
    torch.testing.assert_close(x[1, :, 500:-500], x[2, :, 500:-500], atol=1e-2, rtol=0)


def test_a_size_that_a_pipe_left_unknown_is_no_damage(tmp_path: Path) -> None:
    path = save(tmp_path / "x.wav", NOISE)
    content = bytearray(path.read_bytes())
    content[40:44] = struct.pack("<I", 0x7FFFF000)
    path.write_bytes(content)
    assert len(decode(path)) == len(NOISE)


# Length


def test_shorter_sounds_get_silence_and_of_longer_ones_a_part_is_left_out(tmp_path: Path) -> None:
    rising = np.linspace(-1, 1, 1000).astype(np.float32)
    save(tmp_path / "a/1.wav", rising, subtype="FLOAT")
    for align, kept in (("centre", slice(300, 700)), ("start", slice(0, 400))):
        source = waveforms(tmp_path, seconds=0.05, align=align)
        samples = source.read()
        np.testing.assert_array_equal(samples.inputs[0][0], rising[kept])
        assert source.notes == [f"1 of 1 sounds are longer than 0.05 s; of those the {align} is used"]
    for align, before in (("centre", 100), ("start", 0)):
        source = waveforms(tmp_path, seconds=0.15, align=align)
        samples = source.read()
        (x,) = source.encode(samples, {"length": 1200, "mean": [0.0], "std": [1.0]})
        np.testing.assert_array_equal(x[0, 0, before : before + 1000].numpy(), rising)
        assert int((x == 0).sum()) == 200
        assert source.notes == []


def test_without_seconds_all_are_as_long_as_the_longest_of_training(tmp_path: Path) -> None:
    source = waveforms(two_classes(tmp_path / "train"))
    samples = source.read()
    state = source.fit(samples)
    assert state["length"] == RATE // 2
    assert source.encode(samples, state)[0].shape == (4, 1, RATE // 2)
    save(tmp_path / "new/a/1.wav", tone(2.0))
    (x,) = source.encode(source.read(str(tmp_path / "new")), state)
    assert x.shape == (1, 1, RATE // 2)
    assert source.notes == ["1 of 1 sounds are longer than 0.50 s; of those the centre is used"]


def test_silence_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "MAX_PADDED_BYTES", 1 << 20)
    for i in range(20):
        save(tmp_path / f"a/{i:02d}.wav", tone(0.1))
    save(tmp_path / "a/99.wav", tone(3.0))
    source = waveforms(tmp_path)
    message = (
        r"a/99.wav: lasts 3 s, half of the sounds at most 0.1 s; as long as the longest, all would take 0 GiB; set"
    )
    with pytest.raises(DataError, match=message):
        source.fit(source.read())
    with_seconds = waveforms(tmp_path, seconds=0.1)
    assert with_seconds.fit(with_seconds.read())["length"] == 800


# Features


def test_logmel_is_normalised_by_the_bands_of_training(tmp_path: Path) -> None:
    source = Audio(str(two_classes(tmp_path)), sample_rate=RATE, num_mels=40)
    samples = source.read()
    state = source.fit(samples)
    (x,) = source.encode(samples, state)
    assert x.dtype == torch.float32
    assert x.shape == (4, 1, 40, 51)
    torch.testing.assert_close(x.mean(dim=(0, 1, 3)), torch.zeros(40), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(dim=(0, 1, 3), correction=0), torch.ones(40), atol=1e-5, rtol=0)
    raw = LogMel(RATE, 40, 25.0, 10.0, 0.0, 4000.0)(torch.from_numpy(decode(tmp_path / "high/1.wav")))
    mean, std = torch.tensor(state["mean"]), torch.tensor(state["std"])
    torch.testing.assert_close(x[0, 0], (raw - mean[:, None]) / std[:, None], atol=1e-5, rtol=1e-5)
    (one,) = source.encode(samples.take(np.array([2])), state)
    torch.testing.assert_close(one[0], x[2], rtol=0, atol=0)


def test_seconds_give_as_many_frames_as_a_sound_of_that_length(tmp_path: Path) -> None:
    source = Audio(str(two_classes(tmp_path)), sample_rate=RATE, num_mels=40, seconds=0.3)
    samples = source.read()
    state = source.fit(samples)
    assert state["length"] == 31
    assert [item.shape for item in samples.inputs] == [(1, 40, 31), (1, 40, 31), (1, 40, 31), (1, 40, 21)]


def test_waveforms_have_the_root_mean_square_1(tmp_path: Path) -> None:
    save(tmp_path / "a/1.wav", NOISE)
    save(tmp_path / "b/1.wav", NOISE / 10)
    source = waveforms(tmp_path)
    samples = source.read()
    (x,) = source.encode(samples, source.fit(samples))
    assert float(x.square().mean()) == pytest.approx(1)
    assert float(x[0].std() / x[1].std()) == pytest.approx(10, rel=1e-3)


@pytest.mark.parametrize("features", ["waveform", "logmel"])
def test_silence_alone_is_finite(tmp_path: Path, features: Any) -> None:
    save(tmp_path / "a/1.wav", np.zeros(800, np.float32))
    source = Audio(str(tmp_path), sample_rate=RATE, features=features, num_mels=None)
    samples = source.read()
    (x,) = source.encode(samples, source.fit(samples))
    assert float(x.abs().max()) < 1e-3


def test_settings_of_spectrograms_have_no_effect_on_waveforms() -> None:
    with pytest.raises(ConfigError) as caught:
        Audio("x", features="waveform", hop_ms=5.0)
    assert str(caught.value) == "hop_ms: 5 has no effect on waveforms; remove it, or set features: logmel"


# Folders, CSV files, prediction


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    samples = waveforms(root).read()
    assert samples.targets is not None
    assert samples.targets.tolist() == ["high", "high", "low", "low"]
    assert samples.place(3) == f"{root}/low/deep/2.ogg"
    assert samples.splits is None
    assert len(waveforms(Path(root.name), base=str(tmp_path.parent)).read()) == 4


def test_folders_of_splits(tmp_path: Path) -> None:
    for name in ("train/a/1.wav", "train/b/1.wav", "val/a/1.wav", "test/b/1.wav"):
        save(tmp_path / name, NOISE)
    samples = waveforms(tmp_path).read()
    assert samples.splits is not None
    assert samples.splits.tolist() == ["test", "train", "train", "val"]


def test_a_folder_without_sounds_says_so(tmp_path: Path) -> None:
    two_classes(tmp_path)
    (tmp_path / "c").mkdir()
    (tmp_path / "c/x.mid").write_text("")
    with pytest.raises(DataError, match=r"/c: holds no sound, 1 other files, such as 'x.mid'; add sounds of the class"):
        waveforms(tmp_path).read()
    with pytest.raises(DataError, match=r"nothing: no such file or folder$"):
        waveforms(tmp_path / "nothing").read()
    with pytest.raises(ConfigError, match=r"target: is for a CSV of paths, and .* is a folder; remove it"):
        waveforms(tmp_path, target="x").read()


def test_csv_of_paths(tmp_path: Path) -> None:
    two_classes(tmp_path)
    (tmp_path / "list.csv").write_text("file,kind,part\nhigh/1.wav,h,train\nlow/1.flac,l,val\n")
    source = waveforms(tmp_path / "list.csv", path_column="file", target="kind", split_column="part")
    samples = source.read()
    assert samples.targets is not None
    assert samples.splits is not None
    assert (samples.targets.tolist(), samples.splits.tolist()) == (["h", "l"], ["train", "val"])
    assert samples.place(1) == f"{tmp_path}/list.csv: row 2 (low/1.flac)"
    assert [name for name, _ in source.files()] == ["list.csv", "high/1.wav", "low/1.flac"]
    (tmp_path / "list.csv").write_text("path,label\nhigh/9.wav,h\n")
    with pytest.raises(DataError, match=r"list.csv: row 1 \(high/9.wav\): No such file or directory$"):
        waveforms(tmp_path / "list.csv").read()


def test_prediction_sees_what_training_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "BLOCK_SOUNDS", 3)
    root = two_classes(tmp_path / "sounds")
    (tmp_path / "list.csv").write_text("path\nsounds/low/1.flac\n")
    source = Audio(str(root), sample_rate=RATE, num_mels=40)
    samples = source.read()
    state = source.fit(samples)
    (trained,) = source.encode(samples, state)
    blocks = list(source.read_inputs([str(root), str(root / "high/1.wav"), str(tmp_path / "list.csv")], state))
    assert [len(block) for block in blocks] == [3, 3]
    assert blocks[1].targets is None
    assert blocks[1].place(1) == f"{root}/high/1.wav"
    found = torch.cat([source.encode(block, state)[0] for block in blocks])
    torch.testing.assert_close(found, trained[[0, 1, 2, 3, 0, 2]], rtol=0, atol=0)


def test_the_fingerprint_follows_names_and_content(tmp_path: Path) -> None:
    shutil.copytree(two_classes(tmp_path / "one"), tmp_path / "two")
    first, second = (waveforms(tmp_path / name) for name in ("one", "two"))
    assert first.fingerprint() == second.fingerprint()
    save(tmp_path / "two/high/1.wav", NOISE)
    assert first.fingerprint() != second.fingerprint()


def test_decoding_uses_threads_and_keeps_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(40):
        save(tmp_path / f"a/{i:02d}.wav", NOISE[: 100 + i])
    names = set()
    plain = audio.decode

    def watched(*arguments: Any) -> Any:
        names.add(threading.current_thread().name)
        return plain(*arguments)

    monkeypatch.setattr(audio, "decode", watched)
    samples = waveforms(tmp_path).read()
    assert threading.main_thread().name not in names
    assert [item.shape[-1] for item in samples.inputs] == list(range(100, 140))


# Files that cannot be read


def write_bad(path: Path, kind: str) -> None:
    """Write a file that is bad in the way `kind`."""
    whole = save(path.with_name(f"whole{path.suffix}"), LONG_NOISE if path.suffix == ".ogg" else NOISE)
    content = whole.read_bytes()
    whole.unlink()
    if kind == "nothing":
        save(path, NOISE[:0])
    elif kind == "text":
        path.write_text("hello " * 100)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "half":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "header":
        path.write_bytes(content[:44])
    elif kind == "NaN":
        samples = NOISE.copy()
        samples[2000:] = np.nan
        save(path, samples, subtype="FLOAT")
    elif kind == "infinite":
        save(path, np.full(10, np.inf, np.float32), subtype="FLOAT")
    else:
        path.mkdir()


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("x.wav", "nothing", "has no samples"),
        ("x.wav", "text", "is not a sound of a known format, or damaged: Format not recognised."),
        ("x.wav", "empty", "is empty"),
        ("x.wav", "half", "is cut off: its header announces 8,000 bytes, 3,978 are there"),
        ("x.wav", "header", "is cut off: its header announces 8,000 bytes, 0 are there"),
        ("x.au", "half", "is cut off: its header announces 8,000 bytes, "),
        ("x.aiff", "half", "is cut off: its header announces 8,008 bytes, "),
        ("x.rf64", "half", "is cut off: its header announces 4,000 samples, "),
        ("x.flac", "half", "is not a sound of a known format, or damaged: "),
        ("x.ogg", "half", "is cut off: its last page is missing"),
        ("x.wav", "NaN", "holds nan at 0.250 s; possible: finite numbers"),
        ("x.wav", "infinite", "holds inf at 0.000 s; possible: finite numbers"),
        ("x.wav", "folder", "is not a file"),
    ],
)
def test_one_clear_reason_for_each_bad_file(tmp_path: Path, name: str, kind: str, message: str) -> None:
    write_bad(tmp_path / name, kind)
    with pytest.raises(DataError, match=f"^{re.escape(message)}"):
        decode(tmp_path / name)


def test_a_bad_file_is_named_with_its_place(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    write_bad(root / "low/3.wav", "text")
    with pytest.raises(DataError) as caught:
        waveforms(root).read()
    assert str(caught.value) == (
        f"{root}/low/3.wav: is not a sound of a known format, or damaged: Format not recognised."
    )


def test_the_contents_decide_the_format_not_the_name(tmp_path: Path) -> None:
    for name in ("x.raw", "x.mat", "x.flac", "x"):
        shutil.copy(save(tmp_path / "x.wav", NOISE), tmp_path / name)
        assert len(decode(tmp_path / name)) == 4000
    save(tmp_path / "x.wav", NOISE, format="VOC")
    with pytest.raises(DataError, match=r"^is of the format VOC; possible: WAV, WAVEX, "):
        decode(tmp_path / "x.wav")


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "aiff", "au", "caf", "w64", "rf64"])
def test_no_truncation_ends_in_a_traceback_or_goes_unnoticed(tmp_path: Path, extension: str) -> None:
    content = save(tmp_path / f"x.{extension}", NOISE).read_bytes()
    path = tmp_path / f"cut.{extension}"
    for length in range(0, len(content) - 100, len(content) // 12):
        path.write_bytes(content[:length])
        with pytest.raises(DataError):
            decode(path)


def test_what_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_decoding, "MAX_SAMPLES", 2000)
    message = "lasts 0.0 hours at 8,000 Hz; more than 2,000 samples are refused, since they can fill the memory; set"
    path = save(tmp_path / "x.wav", NOISE)
    with pytest.raises(DataError, match=f"^{message}"):
        decode(path)
    assert len(decode(path, seconds=0.2)) == 1600
    with pytest.raises(DataError, match=r"^lasts 0.1 hours at 8 Hz"):
        decode(save(tmp_path / "slow.wav", NOISE[:2000], 8))


def test_a_sound_of_which_nothing_is_left_is_too_short(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^is too short: 1 samples at 192,000 Hz$"):
        decode(save(tmp_path / "x.wav", NOISE[:1], 192000), rate=1000)


def test_all_bad_files_are_named_at_once(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    for i in range(12):
        write_bad(root / f"low/bad{i:02d}.wav", "text")
    with pytest.raises(DataError) as caught:
        waveforms(root).read()
    lines = str(caught.value).splitlines()
    assert lines[0] == "12 of 16 sounds cannot be read:"
    assert lines[1].startswith(f"{root}/low/bad00.wav: is not a sound")
    assert (len(lines), lines[-1]) == (12, "and 2 more")


def test_bad_files_can_be_left_out(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    write_bad(root / "high/0.wav", "empty")
    write_bad(root / "low/0.wav", "text")
    source = waveforms(root, on_bad_sample="skip")
    samples = source.read()
    assert samples.targets is not None
    assert samples.targets.tolist() == ["high", "high", "low", "low"]
    assert samples.place(0) == f"{root}/high/1.wav"
    assert source.num_skipped == 2
    assert source.notes == [f"2 of 6 sounds cannot be read and are left out; the first: {root}/high/0.wav: is empty"]
    source.read()
    assert source.num_skipped == 2
    with pytest.raises(DataError, match=r"^2 of 6 sounds cannot be read:"):  # predictions would not be of all inputs
        list(source.read_inputs([str(root)], source.fit(samples)))


def test_bad_files_alone_are_an_error_all_the_same(tmp_path: Path) -> None:
    write_bad(save(tmp_path / "a/1.wav", NOISE), "empty")
    source = waveforms(tmp_path, on_bad_sample="skip")
    with pytest.raises(DataError, match=r"a/1.wav: is empty$"):
        source.read()


@pytest.mark.parametrize(("package", "purpose"), [("soundfile", "to read sound"), ("soxr", "to convert sample rates")])
def test_missing_packages_are_named_with_their_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, purpose: str
) -> None:
    root = save(tmp_path / "a/1.wav", tone(0.1, 16000), 16000).parent.parent
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as caught:
        waveforms(root).read()
    assert str(caught.value) == f"needs the package {package} {purpose}; install it: pip install 'dltrain[audio]'"


# Speech


def test_no_voice_is_in_two_splits() -> None:
    colours = [voice.partition("+")[2] for voices in VOICES.values() for voice in voices]
    assert len(set(colours)) == len(colours) >= 8
    assert sum(len(sentences(split)) for split in VOICES) == 1890


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_digits_are_spoken(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_speech(tmp_path / name, digits=("seven",), speeds=(160,), pitches=(50,))
    first, second = (waveforms(tmp_path / name) for name in ("one", "two"))
    contents = {Path(path).read_bytes() for _, path in first.files()}
    assert len(contents) == len(first.read()) == 21  # no voice sounds like another
    assert first.fingerprint() == second.fingerprint()


def test_without_the_program_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"espeak-ng, .* is not installed: apt install espeak-ng"):
        make_speech(tmp_path)
