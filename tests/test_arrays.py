"""Arrays in files and from a user's function: what is read, scaled, refused, and in which words."""

from __future__ import annotations

import gzip
import re
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from dltrain.data.columns import Samples
from dltrain.data.sources.arrays import Arrays, UserArrays
from dltrain.data.sources.scaling import image_statistics
from dltrain.errors import ConfigError, DataError
from tests.make_data import make_mnist_like, write_idx

RNG = np.random.default_rng(0)
X = RNG.normal(3, 5, (20, 4))
Y = RNG.integers(0, 3, 20)
PIXELS = RNG.integers(0, 256, (20, 3, 5, 6), dtype=np.uint8)


def npz(folder: Path, **arrays: Any) -> str:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return str(path)


def read(path: str, **settings: Any) -> Samples:
    return Arrays(path, **settings).read()


def all_inputs(source: Any, paths: list[str], state: dict[str, Any]) -> np.ndarray:
    return np.concatenate([source.encode(block, state)[0].numpy() for block in source.read_inputs(paths, state)])


def test_npz_gives_inputs_targets_and_places(tmp_path: Path) -> None:
    samples = read(npz(tmp_path, x=X, y=Y))
    np.testing.assert_array_equal(samples.inputs, X)
    assert samples.targets is not None
    assert samples.targets.dtype == np.int64
    np.testing.assert_array_equal(samples.targets, Y)
    assert samples.splits is None
    assert samples.place(3) == f"{tmp_path}/data.npz: x[3]"
    assert samples.take(np.array([7, 3])).place(1) == f"{tmp_path}/data.npz: x[3]"


@pytest.mark.parametrize("pattern", ["{}_{}", "{1}_{0}"])
def test_npz_with_one_pair_for_each_split(tmp_path: Path, pattern: str) -> None:
    arrays = {}
    for split, rows in {"train": slice(0, 12), "val": slice(12, 15), "test": slice(15, 20)}.items():
        arrays[pattern.format("x", split)], arrays[pattern.format("y", split)] = X[rows], Y[rows]
    samples = read(npz(tmp_path, **arrays))
    np.testing.assert_array_equal(samples.inputs, X)
    assert samples.splits is not None
    assert samples.splits.tolist() == ["train"] * 12 + ["val"] * 3 + ["test"] * 5
    assert samples.place(13).endswith(f"{pattern.format('x', 'val')}[1]")


def test_other_names_of_arrays(tmp_path: Path) -> None:
    samples = read(npz(tmp_path, features=X, labels=Y), inputs="features", target="labels")
    assert len(samples) == 20


@pytest.mark.parametrize("array", [X, np.asfortranarray(X), X.astype(">f4"), X.astype(np.float16)])
def test_npy_of_any_layout_with_the_file_of_its_targets(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", array)
    np.save(tmp_path / "labels.npy", Y)
    source = Arrays("x.npy", target="labels.npy", base=str(tmp_path))
    samples = source.read()
    np.testing.assert_array_equal(samples.inputs, array)
    state = source.fit(samples)
    again = all_inputs(source, [str(tmp_path / "x.npy")], state)
    np.testing.assert_array_equal(again, source.encode(samples, state)[0].numpy())


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_of_mnist(tmp_path: Path, zipped: bool) -> None:
    make_mnist_like(tmp_path, 30, 10, zipped)
    source = Arrays(str(tmp_path))
    samples = source.read()
    assert samples.inputs.shape == (40, 1, 28, 28)
    assert samples.splits is not None
    assert samples.targets is not None
    assert samples.splits.tolist() == ["train"] * 30 + ["test"] * 10
    assert samples.targets[:5].tolist() == [0, 1, 2, 3, 4]
    state = source.fit(samples)
    images = next(tmp_path.glob("t10k-images*"))
    assert Arrays(str(images)).read().splits is None
    inputs = all_inputs(source, [str(images)], state)
    assert inputs.dtype == np.uint8
    np.testing.assert_array_equal(inputs, samples.inputs[30:])


@pytest.mark.parametrize(("scale", "scaler"), [("standard", StandardScaler()), ("minmax", MinMaxScaler())])
def test_scaling_of_features_is_that_of_scikit_learn(tmp_path: Path, scale: str, scaler: Any) -> None:
    source = Arrays(npz(tmp_path, x=X, y=Y), scale=scale)  # type: ignore[arg-type]
    samples = source.read()
    training = samples.take(np.arange(10))
    (encoded,) = source.encode(samples, source.fit(training))
    assert encoded.dtype == torch.float32
    np.testing.assert_allclose(encoded, scaler.fit(X[:10]).transform(X), rtol=1e-5, atol=1e-6)


def test_scale_none_keeps_the_numbers_and_a_constant_feature_is_not_blown_up(tmp_path: Path) -> None:
    x = np.column_stack([np.full(20, 0.1), X])
    path = npz(tmp_path, x=x, y=Y)
    for scale, expected in (
        ("none", x[:, 0].astype(np.float32)),
        ("standard", np.zeros(20)),
        ("minmax", np.zeros(20)),
    ):
        source = Arrays(path, scale=scale)  # type: ignore[arg-type]
        samples = source.read()
        np.testing.assert_allclose(source.encode(samples, source.fit(samples))[0][:, 0], expected, atol=1e-6)


def test_float_images_are_scaled_by_channel(tmp_path: Path) -> None:
    source = Arrays(npz(tmp_path, x=PIXELS.astype(np.float32), y=Y))
    samples = source.read()
    (encoded,) = source.encode(samples, source.fit(samples))
    np.testing.assert_allclose(encoded.mean((0, 2, 3)), np.zeros(3), atol=1e-5)
    np.testing.assert_allclose(encoded.std((0, 2, 3), correction=0), np.ones(3), atol=1e-5)


def test_uint8_images_stay_uint8_and_their_statistics_are_of_pixels_over_255(tmp_path: Path) -> None:
    source = Arrays(npz(tmp_path, x=PIXELS, y=Y))
    samples = source.read()
    state = source.fit(samples)
    assert source.encode(samples, state)[0].dtype == torch.uint8
    unit = PIXELS / 255
    np.testing.assert_allclose(state["normalize"]["mean"], unit.mean((0, 2, 3)))
    np.testing.assert_allclose(state["normalize"]["std"], unit.std((0, 2, 3)))
    low_and_range = image_statistics(PIXELS, "minmax")
    assert low_and_range == {"mean": [0.0] * 3, "std": [1.0] * 3}
    assert image_statistics(np.full((2, 1, 3, 3), 255, np.uint8)) == {"mean": [1.0], "std": [1.0]}


def test_image_statistics_are_of_all_blocks_and_need_not_write() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(3000, 3, 20, 20), dtype=np.uint8)
    pixels[:2000, 1] //= 4
    pixels.flags.writeable = False
    statistics = image_statistics(pixels)
    np.testing.assert_allclose(statistics["mean"], (pixels / 255).mean((0, 2, 3)))
    np.testing.assert_allclose(statistics["std"], (pixels / 255).std((0, 2, 3)))


def test_channels_last_must_be_said(tmp_path: Path) -> None:
    path = npz(tmp_path, x=np.moveaxis(PIXELS, 1, 3), y=Y)
    np.testing.assert_array_equal(read(path, channels_last=True).inputs, PIXELS)
    with pytest.raises(DataError, match=r"shape \(20, 5, 6, 3\), which looks like .* set channels_last: true$"):
        read(path)
    with pytest.raises(ConfigError, match=r"channels_last: is for images of \(N, H, W, C\)"):
        read(npz(tmp_path, x=X, y=Y), channels_last=True)


@pytest.mark.parametrize(
    ("given", "kind", "shape"),
    [
        (np.array(["a", "b"] * 10), "U", (20,)),
        (np.array([b"a", b"\xc3\xa9"] * 10), "U", (20,)),
        (Y > 1, "i", (20,)),
        (Y[:, None].astype(np.uint8), "i", (20,)),
        (X[:, 0], "f", (20,)),
        (X[:, :2], "f", (20, 2)),
        (np.eye(20, dtype=int), "f", (20, 20)),
    ],
)
def test_targets(tmp_path: Path, given: np.ndarray, kind: str, shape: tuple[int, ...]) -> None:
    targets = read(npz(tmp_path, x=X, y=given)).targets
    assert targets is not None
    assert (targets.dtype.kind, targets.shape) == (kind, shape)


def with_value(value: float) -> np.ndarray:
    array = X.copy()
    array[17, 2] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": with_value(np.nan), "y": Y}, "x[17, 2] is nan; only finite numbers of float32 are possible"),
        ({"x": with_value(np.inf), "y": Y}, "data.npz: x[17, 2] is inf; "),
        ({"x": with_value(1e300), "y": Y}, "data.npz: x[17, 2] is 1e+300; "),
        ({"x": X, "y": with_value(np.nan)[:, 2]}, "data.npz: y[17] is nan; "),
        ({"x": X, "y": Y[:19]}, "data.npz: x holds 20 samples, "),
        ({"x": X[:0], "y": Y[:0]}, "data.npz: x: has the shape (0, 4); it holds no samples"),
        ({"x": np.array(["a"] * 20), "y": Y}, "data.npz: x: holds <U1; inputs are numbers"),
        ({"x": X, "y": PIXELS}, "data.npz: y: has the shape (20, 3, 5, 6); targets are (N,) or (N, K)"),
        ({"x": np.array([{}] * 20), "y": Y}, "data.npz: x: holds object; possible are numbers and text"),
        ({"images": X, "y": Y}, "no array 'x' or x_train; there are 'images', 'y'; set inputs, target"),
        ({"x": X, "yy": Y}, "data.npz: no array 'y' or y_train; did you mean 'yy'?"),
        ({"x_train": X, "y_train": Y, "train_x": X, "train_y": Y}, "holds two arrays for one split: "),
        (
            {"x_train": X, "y_train": Y, "x_test": X[:, :2], "y_test": Y},
            "data.npz: x_test: samples of 2 float64, unlike ",
        ),
    ],
)  # fmt: skip
def test_mistakes_in_npz(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        read(npz(tmp_path, **arrays))


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("unpickled",))

    np.save(tmp_path / "x.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="without Python objects"):
        list(Arrays("x.npy").read_inputs([str(tmp_path / "x.npy")], {}))


def idx_header(code: int, *shape: int) -> bytes:
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (
            b"hello world",
            "is not an array; possible: .npy, .npz, or the IDX format of MNIST, which may be gzipped",
        ),
        (b"\0\0\x07\x01" + bytes(8), "is not an IDX file: magic number 0x00000701"),
        (b"\0\0\x08\x09", "is not an IDX file: magic number 0x00000809"),
        (b"\0\0\x08\x03\0\0", "is damaged or truncated"),
        (
            idx_header(8, 10, 2, 2) + bytes(39),
            "is truncated: its header says (10, 2, 2), 56 bytes, there are 55",
        ),
        (
            idx_header(8, 10, 2, 2) + bytes(41),
            "does not fit its header: its header says (10, 2, 2), 56 bytes",
        ),
        (idx_header(14, 2**32 - 1, 2**32 - 1, 2**32 - 1), "is truncated: its header says"),
        (gzip.compress(idx_header(8, 10, 2, 2) + bytes(39)), "is truncated"),
        (gzip.compress(idx_header(8, 10, 2, 2) + bytes(41)), "holds more bytes than its header says"),
        (gzip.compress(idx_header(8, 10, 2, 2) + bytes(40))[:-6], "is damaged or truncated"),
        (gzip.compress(idx_header(14, 2**31, 2**31)), "is truncated: its header says"),
        (b"\x93NUMPY\x01\x00\xff\xff", "EOF: reading array header"),
        (b"\x93NUMPY\x09\x00\x05\x00", "has a header that is damaged"),
        (b"PK\x03\x04 no zip", "is damaged or truncated"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)):
        list(Arrays("x").read_inputs([str(path)], {}))


@pytest.mark.parametrize(
    "dtype", ["','", "'(,)f4'", "('<f4',)", "()", "[('a', ',')]", "'f99'", "{}", "'<f4\\0'", "None", "1"]
)
def test_a_header_with_a_type_that_is_none_is_refused(tmp_path: Path, dtype: str) -> None:
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': (2, 2), }}".encode()
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + bytes(16))
    with pytest.raises(DataError, match=r"x\.npy: "):
        list(Arrays("x").read_inputs([str(tmp_path / "x.npy")], {}))


def test_every_truncation_of_an_npz_is_an_error_for_people(tmp_path: Path) -> None:
    whole = Path(npz(tmp_path, x=X, y=Y)).read_bytes()
    path = tmp_path / "cut.npz"
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises((DataError, ConfigError)):
            read(str(path))


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = Path(npz(tmp_path, x=X, y=Y))
    content = bytearray(path.read_bytes())
    content[300] ^= 1  # among the numbers of x
    path.write_bytes(content)
    with pytest.raises(DataError, match="Bad CRC-32"):
        read(str(path))


def test_settings_without_effect_are_errors(tmp_path: Path) -> None:
    make_mnist_like(tmp_path, 5, 5)
    with pytest.raises(ConfigError, match="inputs, target: name arrays"):
        read(str(tmp_path), inputs="images")
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    (tmp_path / "no.npy").write_text("x,y")
    with pytest.raises(DataError, match=r"no\.npy: is not an array; possible: "):
        read(str(tmp_path / "no.npy"))
    with pytest.raises(ConfigError, match=r"target: for inputs from .*x.npy, set the path of the .npy of the targets"):
        read(str(tmp_path / "x.npy"))
    with pytest.raises(ConfigError, match="inputs: 'a' names an array"):
        read(str(tmp_path / "x.npy"), inputs="a", target=str(tmp_path / "y.npy"))
    with pytest.raises(DataError, match=r"x.npy: holds no targets; possible: an .npz with 'x' and 'y'"):
        Arrays("any").read(str(tmp_path / "x.npy"))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npz: no such file or folder"):
        read(str(tmp_path / "none.npz"))
    with pytest.raises(DataError, match="no IDX files; expected train-images-idx3-ubyte"):
        read(str(tmp_path))
    write_idx(tmp_path / "t10k-images-idx3-ubyte", PIXELS[:, 0])
    with pytest.raises(DataError, match=r"there is no file of its labels, t10k-labels-idx\*-ubyte"):
        read(str(tmp_path))
    with pytest.raises(DataError, match=r"none\.npy: no such file"):
        list(Arrays("x").read_inputs([str(tmp_path / "none.npy")], {}))


def test_samples_unlike_those_of_training_are_refused(tmp_path: Path) -> None:
    source = Arrays(npz(tmp_path, x=X, y=Y))
    state = source.fit(source.read())
    np.save(tmp_path / "wide.npy", np.zeros((3, 7)))
    with pytest.raises(DataError, match=r"wide.npy\[0\]: samples of 7 float64, the training samples are 4$"):
        all_inputs(source, [str(tmp_path / "wide.npy")], state)
    images = Arrays(npz(tmp_path, x=PIXELS, y=Y))
    state = images.fit(images.read())
    np.save(tmp_path / "float.npy", PIXELS / 255)
    with pytest.raises(DataError, match="images of float64, the training samples are uint8 images"):
        all_inputs(images, [str(tmp_path / "float.npy")], state)


def test_prediction_streams(tmp_path: Path) -> None:
    rows, width = 20_000, 500  # 80 MB as float64, 40 MB once float32
    big = np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.float64, (rows, width))
    big[:] = np.arange(rows)[:, None]
    big[15_000, 3] = np.nan
    del big
    source = Arrays("x")
    state = {"shape": [width], "scaling": {"shift": [0.0] * width, "factor": [1.0] * width}}
    blocks = source.read_inputs([str(tmp_path / "big.npy")], state)
    tracemalloc.start()
    for start in (0, 4096, 8192):  # the most rows of a block are 4096; of these, 16 MiB
        block = next(blocks)
        assert block.targets is None
        assert source.encode(block, state)[0][0, 0] == start
        assert block.place(1) == f"{tmp_path}/big.npy[{start + 1}]"
    with pytest.raises(DataError, match=r"big.npy\[15000, 3\] is nan"):
        next(blocks)
    assert tracemalloc.get_traced_memory()[1] < 60 * 2**20
    tracemalloc.stop()


def test_a_users_own_function() -> None:
    calls = []

    def load() -> Any:
        calls.append(1)
        return {"train": (X.tolist(), ["cat", "dog"] * 10), "test": (torch.tensor(X[:4]), ["cat"] * 4)}

    source = UserArrays(load, "mine.py:load")
    samples = source.read()
    assert samples.splits is not None
    assert samples.splits.tolist() == ["train"] * 20 + ["test"] * 4
    assert samples.place(21) == "mine.py:load: test: X[1]"
    assert source.encode(samples, source.fit(samples))[0].shape == (24, 4)
    assert source.fingerprint() == source.fingerprint()
    assert calls == [1]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (X, "mine: returned ndarray; possible: (X, y), or a dict with 'train', 'val', 'test' of (X, y)"),
        ({"training": (X, Y)}, "mine: returned a dict of 'training'; possible"),
        ((X, Y, Y), "mine: returned tuple; possible"),
        (([[1, 2], [3]], [0, 1]), "mine: X: numpy cannot read list as an array"),
        ((torch.ones(2, 2, requires_grad=True), [0, 1]), "mine: X: numpy cannot read Tensor as an array"),
        (([["a", 1]], [0]), "mine: X: holds <U21; inputs are numbers"),
    ],
)
def test_mistakes_in_what_a_user_returns(returned: Any, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        UserArrays(lambda: returned, "mine").read()


def test_the_fingerprint_follows_the_content_not_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = Arrays(npz(tmp_path / "a", x=X, y=Y)).fingerprint()
    assert Arrays(npz(tmp_path / "b", x=X, y=Y)).fingerprint() == first
    assert Arrays(npz(tmp_path / "b", x=X + 1, y=Y)).fingerprint() != first
    assert UserArrays(lambda: (X, Y), "u").fingerprint() != UserArrays(lambda: (X, Y + 1), "u").fingerprint()
