"""Image files: what every kind of file becomes, how they are listed, and what is refused in which words."""

from __future__ import annotations

import hashlib
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dltrain.data.sources import image_decoding
from dltrain.data.sources.fingerprint import fingerprint_files
from dltrain.data.sources.images import Images
from dltrain.errors import ConfigError, DataError
from tests.make_data import make_shapes

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
RGB = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def decode(path: Path, size: tuple[int, int] | None = None, resize: str = "stretch") -> np.ndarray:
    decoded = image_decoding.decode_all([str(path)], size, resize)
    if decoded.problems:
        raise DataError(f"{path.name}: {decoded.problems[0]}")
    image: np.ndarray = decoded.pixels[0]
    return image


def two_classes(root: Path) -> Path:
    """Two classes of two grey images each, and a hidden and a text file that do not count."""
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/deep/2.PNG"):
        save(root / name, GREY)
    (root / "a/notes.txt").write_text("no image")
    (root / "a/.hidden.png").write_text("no image")
    (root / ".cache").mkdir()
    return root


# Kinds of files


@pytest.mark.parametrize("extension", ["png", "bmp", "tif", "pgm", "gif"])
def test_grey(tmp_path: Path, extension: str) -> None:
    np.testing.assert_array_equal(decode(save(tmp_path / f"x.{extension}", GREY)), GREY[None])


@pytest.mark.parametrize("extension", ["png", "bmp", "tif", "ppm", "webp"])
def test_colour(tmp_path: Path, extension: str) -> None:
    options = {"lossless": True} if extension == "webp" else {}
    path = save(tmp_path / f"x.{extension}", RGB, **options)
    np.testing.assert_array_equal(decode(path), RGB.transpose(2, 0, 1))


def test_palettes_are_grey_or_colour_by_what_is_in_them(tmp_path: Path) -> None:
    image = Image.fromarray(GREY).convert("P")
    image.save(tmp_path / "grey.png")
    np.testing.assert_array_equal(decode(tmp_path / "grey.png"), GREY[None])
    colour = Image.fromarray(RGB).quantize(256)
    colour.save(tmp_path / "colour.png")
    np.testing.assert_array_equal(decode(tmp_path / "colour.png"), np.asarray(colour.convert("RGB")).transpose(2, 0, 1))


def test_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(GREY > 100).save(tmp_path / "x.png")
    np.testing.assert_array_equal(decode(tmp_path / "x.png"), np.where(GREY > 100, 255, 0)[None])


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    alpha = np.full_like(GREY, 255)
    alpha[0] = 0
    rgba = decode(save(tmp_path / "rgba.png", np.dstack([RGB, alpha])))
    assert (rgba[:, 0] == 255).all()
    np.testing.assert_array_equal(rgba[:, 1:], RGB.transpose(2, 0, 1)[:, 1:])
    Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)]).save(tmp_path / "la.png")
    grey = decode(tmp_path / "la.png")
    assert grey.shape == (1, 6, 8)
    assert (grey[:, 0] == 255).all()
    np.testing.assert_array_equal(grey[:, 1:], GREY[None, 1:])
    Image.fromarray(RGB).quantize(8).save(tmp_path / "p.png", transparency=0)
    assert (decode(tmp_path / "p.png") == 255).all(axis=0).any()
    Image.fromarray(GREY).save(tmp_path / "key.png", transparency=5)
    np.testing.assert_array_equal(decode(tmp_path / "key.png"), np.where(GREY == 5, 255, GREY)[None])


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    deep = GREY.astype(np.uint16) * 257
    for extension in ("png", "tif", "pgm"):
        np.testing.assert_array_equal(decode(save(tmp_path / f"x.{extension}", deep)), GREY[None])


def test_cmyk_and_jpeg(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 60, 30), np.uint8)
    Image.fromarray(flat).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    save(tmp_path / "rgb.jpg", flat, quality=100)
    for name in ("cmyk.jpg", "rgb.jpg"):
        pixels = decode(tmp_path / name).astype(int)
        assert pixels.shape == (3, 16, 16)
        assert abs(pixels.transpose(1, 2, 0) - flat).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(RGB)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # how a camera would have stored it
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(decode(tmp_path / "x.png"), RGB.transpose(2, 0, 1))


@pytest.mark.parametrize("extension", ["png", "jpg", "gif", "bmp", "tif", "webp", "pgm", "ppm"])
def test_small_files_and_large_ones_are_decoded_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extension: str
) -> None:
    path = save(tmp_path / f"image.{extension}", GREY if extension == "pgm" else RGB)
    small = decode(path)
    monkeypatch.setattr(image_decoding, "_SMALL_BYTES", 0)
    np.testing.assert_array_equal(decode(path), small)


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^x.tif: has pixels of float numbers; convert it to 8 or 16 bits"):
        decode(save(tmp_path / "x.tif", GREY.astype(np.float32)))


def test_formats_that_start_programs_are_not_read(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"x.png: is not an image of a known format, or damaged; possible: PNG"):
        decode(tmp_path / "x.png")


# Sizes and channels


def test_stretch_and_crop(tmp_path: Path) -> None:
    wide = np.zeros((40, 120), np.uint8)
    wide[:, 40:80] = 255  # the middle third
    path = save(tmp_path / "x.png", wide)
    np.testing.assert_array_equal(decode(path, (40, 40), "crop"), np.full((1, 40, 40), 255))
    stretched = decode(path, (20, 30))
    assert stretched.shape == (1, 20, 30)
    assert stretched[0, 10].tolist().count(255) in range(8, 11)
    assert decode(path, (20, 60), "crop")[0, 10].tolist().count(255) in range(18, 22)


def test_large_jpegs_are_decoded_small_but_look_the_same(tmp_path: Path) -> None:
    smooth = np.fromfunction(lambda y, x, c: (x / 4 + y / 8 + 20 * c) % 256, (512, 768, 3)).astype(np.uint8)
    path = save(tmp_path / "x.jpg", smooth, quality=95)
    exact = Image.open(path).resize((32, 32), Image.Resampling.BILINEAR)
    difference = decode(path, (32, 32)).astype(int) - np.asarray(exact).astype(int).transpose(2, 0, 1)
    assert abs(difference).mean() < 3


def test_channels_auto_is_3_if_any_image_is_in_colour(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    assert Images(str(root)).read().inputs.shape == (4, 1, 6, 8)
    save(root / "a/3.png", RGB)
    samples = Images(str(root)).read()
    assert samples.inputs.shape == (5, 3, 6, 8)
    np.testing.assert_array_equal(samples.inputs[0], np.stack([GREY] * 3))
    luma = Images(str(root), channels=1).read().inputs[2, 0]
    np.testing.assert_array_equal(luma, np.asarray(Image.fromarray(RGB).convert("L")))


def test_new_images_get_the_channels_of_the_training_images(tmp_path: Path) -> None:
    source = Images(str(two_classes(tmp_path / "train")))
    state = source.fit(source.read())
    save(tmp_path / "new/a/1.png", RGB)
    (evaluated,) = source.encode(source.read(str(tmp_path / "new")), state)
    (block,) = source.read_inputs([str(tmp_path / "new")], state)
    assert evaluated.shape == (1, 1, 6, 8)
    assert torch.equal(evaluated, source.encode(block, state)[0])


def test_sizes_that_differ_need_a_setting(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    save(root / "b/3.png", np.zeros((9, 7), np.uint8))
    found = f"{root}/b/3.png: is 9 x 7 pixels (height x width), the first image is 6 x 8"
    with pytest.raises(DataError, match=f"^{re.escape(found)}; set size, for example size: 6$"):
        Images(str(root)).read()
    samples = Images(str(root), size=[4, 5]).read()
    assert samples.inputs.shape == (5, 1, 4, 5)
    with pytest.raises(ConfigError, match="resize: 'crop' has no effect without a size"):
        Images(str(root), resize="crop")


def test_new_images_of_another_size_are_refused_or_resized(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "train")
    new = save(tmp_path / "new.png", np.zeros((12, 16), np.uint8))
    source = Images(str(root))
    state = source.fit(source.read())
    with pytest.raises(DataError, match=r"new.png: is 12 x 16 pixels .*, the training images are 6 x 8; resize it"):
        list(source.read_inputs([str(new)], state))
    (block,) = Images(str(root), size=[6, 8]).read_inputs([str(new)], state)
    assert block.inputs.shape == (1, 1, 6, 8)


# Folders


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    source = Images(str(root))
    samples = source.read()
    assert samples.targets is not None
    assert samples.targets.tolist() == ["a", "a", "b", "b"]
    assert [samples.place(i) for i in range(4)] == [
        f"{root}/{name}" for name in ("a/1.png", "a/2.png", "b/1.png", "b/deep/2.PNG")
    ]
    state = source.fit(samples)
    assert (state["channels"], state["size"]) == (1, [6, 8])
    assert state["normalize"]["mean"] == [pytest.approx((GREY / 255).mean())]
    assert state["normalize"]["std"] == [pytest.approx((GREY / 255).std())]
    (encoded,) = source.encode(samples.take(np.array([2, 0])), state)
    assert encoded.dtype == torch.uint8
    assert encoded.shape == (2, 1, 6, 8)


def test_folders_of_splits(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "validation/a/1.png", "test/b/1.png"):
        save(tmp_path / name, GREY)
    samples = Images(str(tmp_path)).read()
    assert samples.splits is not None
    assert samples.targets is not None
    assert list(zip(samples.splits.tolist(), samples.targets.tolist(), strict=True)) == [
        ("test", "b"),
        ("train", "a"),
        ("train", "b"),
        ("val", "a"),
    ]
    save(tmp_path / "other/1.png", GREY)
    with pytest.raises(
        DataError, match="holds the splits test, train, validation and other folders, other; move those"
    ):
        Images(str(tmp_path)).read()


def test_folders_named_like_splits_are_classes_without_train(tmp_path: Path) -> None:
    for name in ("test/1.png", "exam/1.png"):
        save(tmp_path / name, GREY)
    samples = Images(str(tmp_path)).read()
    assert samples.splits is None
    assert samples.targets is not None
    assert samples.targets.tolist() == ["exam", "test"]


def test_the_base_of_relative_paths(tmp_path: Path) -> None:
    two_classes(tmp_path / "pictures")
    assert len(Images("pictures", base=str(tmp_path)).read()) == 4


def test_a_folder_without_images_says_so(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    (root / "c").mkdir()
    with pytest.raises(DataError, match=r"/c: holds no image, it is empty; add images of the class or remove"):
        Images(str(root)).read()
    (root / "c/x.heic").write_text("")
    with pytest.raises(DataError, match=r"/c: holds no image, 1 other files, such as 'x.heic'"):
        Images(str(root)).read()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["1.png"], "holds no folders; expected one folder for each class, with its images"),
        (
            ["1.png", "a/1.png"],
            "1.png: lies beside the folders of the classes, not in one; move it, or remove it",
        ),
        (["train/a/1.png", "test/1.png"], "/test: holds no folders; expected one folder for each class"),
        (["train/a/1.png", "1.png"], "1.png: lies beside the folders of the splits, not in one"),
    ],
)
def test_images_outside_a_class(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        save(tmp_path / name, GREY)
    with pytest.raises(DataError, match=re.escape(message)):
        Images(str(tmp_path)).read()


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "root")
    secret = save(tmp_path / "secret.png", GREY)
    (root / "a/3.png").symlink_to(root / "b/1.png")
    assert len(Images(str(root)).read()) == 5
    (root / "a/4.png").symlink_to(secret)
    with pytest.raises(DataError, match=r"a/4.png: is a link that leads out of .*root; copy the file, or list it in"):
        Images(str(root)).read()
    with pytest.raises(DataError, match="is a link that leads out of"):
        list(Images("x").read_inputs([str(root)], {}))
    (root / "a/4.png").unlink()
    for link in (root / "c", root / "a/c"):
        link.symlink_to(tmp_path)
        with pytest.raises(DataError, match=r"c: is a link to a folder; links to folders are not followed"):
            Images(str(root)).read()
        link.unlink()


def test_csv_settings_have_no_effect_on_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"target: is for a CSV of paths, and .* is a folder; remove it"):
        Images(str(two_classes(tmp_path)), target="label").read()


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing: no such file or folder$"):
        Images("nothing", base=str(tmp_path)).read()


# Files that cannot be read


def test_all_bad_files_are_named_at_once(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "root")
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    whole = save(tmp_path / "noise.png", noise).read_bytes()
    (root / "a/bad1.png").write_text("hello")
    (root / "a/bad2.png").write_bytes(b"")
    (root / "b/bad3.png").write_bytes(whole[:-60])
    with pytest.raises(DataError) as caught:
        Images(str(root)).read()
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 of 7 images cannot be read:"
    assert lines[1].startswith(f"{root}/a/bad1.png: is not an image of a known format")
    assert lines[2].startswith(f"{root}/a/bad2.png: is empty")
    assert lines[3].startswith(f"{root}/b/bad3.png: is damaged: ")
    for i in range(20):
        (root / f"b/worse{i:02d}.png").write_text("hello")
    with pytest.raises(DataError, match=r"23 of 27 images cannot be read:\n(.*\n){10}and 13 more$"):
        Images(str(root)).read()


@pytest.mark.parametrize("extension", ["png", "jpg", "gif", "bmp", "tif", "webp", "ppm"])
def test_no_truncation_ends_in_a_traceback(tmp_path: Path, extension: str) -> None:
    whole = save(tmp_path / f"x.{extension}", RGB).read_bytes()
    path = tmp_path / f"cut.{extension}"
    num_errors = 0
    for length in range(0, len(whole), max(len(whole) // 25, 1)):
        path.write_bytes(whole[:length])
        try:
            decode(path)
        except DataError:
            num_errors += 1
    assert num_errors >= 20


@pytest.mark.parametrize("side", [150, 250])  # Pillow warns from 1x its limit on, and refuses from 2x on
def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    path = save(tmp_path / "bomb.png", np.zeros((side, side), np.uint8))
    with pytest.raises(DataError, match=r"^bomb.png: has more than 20,000 pixels; refused"):
        decode(path)


def test_decoding_uses_threads_and_keeps_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_shapes(tmp_path, 20)
    names = set()
    plain = image_decoding.decode

    def watched(*arguments: Any) -> np.ndarray:
        names.add(threading.current_thread().name)
        return plain(*arguments)

    monkeypatch.setattr(image_decoding, "decode", watched)
    samples = Images(str(tmp_path)).read()
    assert threading.main_thread().name not in names
    for i in (0, 19, 20, 59):
        np.testing.assert_array_equal(samples.inputs[i], np.asarray(Image.open(samples.place(i))).transpose(2, 0, 1))


def test_a_colour_that_comes_late_widens_what_was_grey(tmp_path: Path) -> None:
    for i in range(200):
        save(tmp_path / f"a/{i:03d}.png", GREY + i % 10)
    save(tmp_path / "a/150.png", RGB)
    (tmp_path / "a/000.png").write_text("no image")
    samples = Images(str(tmp_path), on_bad_sample="skip").read()
    assert samples.inputs.shape == (199, 3, 6, 8)
    for i in range(1, 200):
        expected = RGB.transpose(2, 0, 1) if i == 150 else np.stack([GREY + i % 10] * 3)
        np.testing.assert_array_equal(samples.inputs[i - 1], expected)


def test_bad_images_can_be_left_out(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "root")
    (root / "a/1.png").write_text("hello")
    (root / "b/1.png").write_bytes(b"")
    source = Images(str(root), on_bad_sample="skip")
    samples = source.read()
    assert samples.targets is not None
    assert samples.targets.tolist() == ["a", "b"]
    assert samples.place(0) == f"{root}/a/2.png"
    np.testing.assert_array_equal(samples.inputs, [GREY[None]] * 2)
    assert source.num_skipped == 2
    (note,) = source.notes
    assert note.startswith(f"2 of 4 images cannot be read and are left out; the first: {root}/a/1.png: is not an image")
    for name in ("a/2.png", "b/deep/2.PNG"):
        (root / name).write_bytes(b"")
    with pytest.raises(DataError, match="4 of 4 images cannot be read"):
        Images(str(root), on_bad_sample="skip").read()


def test_no_image_to_predict_for_is_left_out(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "root")
    source = Images(str(root), on_bad_sample="skip")
    state = source.fit(source.read())
    (root / "a/1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"a/1.png: is empty"):
        list(source.read_inputs([str(root)], state))


def test_another_size_is_no_reason_to_leave_an_image_out(tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    save(root / "b/3.png", np.zeros((9, 7), np.uint8))
    with pytest.raises(DataError, match=r"b/3.png: is 9 x 7 pixels .* set size, for example size: 6$"):
        Images(str(root), on_bad_sample="skip").read()


# CSV of paths


def write_csv(folder: Path, text: str) -> str:
    for i in range(3):
        save(folder / f"img/{i}.png", GREY + i)
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return str(folder / "labels.csv")


def test_csv_of_paths(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "\ufeffpath,label,extra\nimg/2.png,dog,\n\nimg/0.png,cat,\n")
    samples = Images(path).read()
    assert samples.targets is not None
    assert samples.targets.tolist() == ["dog", "cat"]
    assert samples.target_names == ("label",)
    np.testing.assert_array_equal(samples.inputs[:, 0], [GREY + 2, GREY])
    assert samples.place(1) == f"{path}: row 2 (img/0.png)"


def test_csv_with_splits_and_other_names(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "file,kind,part\nimg/0.png,a,train\nimg/1.png,b,test\n")
    samples = Images(path, path_column="file", target="kind", split_column="part").read()
    assert samples.splits is not None
    assert samples.splits.tolist() == ["train", "test"]


def test_several_targets(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "path,red,round\nimg/0.png,1,0\nimg/1.png,1,1\n")
    samples = Images(path, target=["red", "round"]).read()
    assert samples.targets is not None
    assert samples.targets.dtype == np.float64
    assert samples.targets.tolist() == [[1, 0], [1, 1]]
    assert samples.target_names == ("red", "round")


@pytest.mark.parametrize(
    ("cells", "kind"),
    [("1 2", "i"), ("-1 2.5", "f"), ("1e-3 2", "f"), ("1 two", "U"), ("007 008", "U"), ("1_0 2_0", "U")],
)
def test_kinds_of_targets(tmp_path: Path, cells: str, kind: str) -> None:
    first, second = cells.split()
    targets = Images(write_csv(tmp_path, f"path,label\nimg/0.png,{first}\nimg/1.png,{second}\n")).read().targets
    assert targets is not None
    assert targets.dtype.kind == kind


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("", {}, "labels.csv: is empty"),
        ("path,label\n", {}, "labels.csv: has no rows"),
        ("path,lable\nimg/0.png,a\n", {}, "labels.csv: no column 'label'; did you mean 'lable'?"),
        ("path,x\nimg/0.png,a\n", {}, "labels.csv: no column 'label'; there are 'path', 'x'"),
        ("path,label,label\nimg/0.png,a,b\n", {}, "labels.csv: has 2 columns 'label'"),
        ("path,label\nimg/0.png,a\nimg/1.png\n", {}, "labels.csv: row 2: has 1 cells, the header 2"),
        ("path,label\nimg/0.png,\n", {}, "labels.csv: row 1, column 'label': is empty"),
        (
            "path,label\nimg/0.png,1.5\nimg/1.png,nan\n",
            {},
            "labels.csv: row 2, column 'label': 'nan' is not a finite",
        ),
        ('path,label\nimg/0.png,"a\n', {}, "labels.csv: after row 0: unexpected end of data"),
        (
            "path,label\nimg/0.png,a\nimg/9.png,b\n",
            {},
            "labels.csv: row 2 (img/9.png): No such file or directory",
        ),
        (
            "path,a,b\nimg/0.png,1,x\n",
            {"target": ["a", "b"]},
            "row 1, column 'b': 'x' is not a number",
        ),
        (
            "path,label,split\nimg/0.png,a,dev\n",
            {"split_column": "split"},
            "labels.csv: row 1, column 'split': 'dev'; possible: train, val, test",
        ),
    ],
)
def test_mistakes_in_csv(tmp_path: Path, text: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        Images(write_csv(tmp_path, text), **settings).read()


def test_csv_that_is_not_utf8(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "")
    Path(path).write_bytes("path,label\nimg/0.png,é\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"labels.csv: is not UTF-8; save it as UTF-8"):
        Images(path).read()


# Prediction and fingerprints


def test_prediction_from_files_folders_and_csv_in_blocks(tmp_path: Path) -> None:
    make_shapes(tmp_path / "shapes", 100)
    single = save(tmp_path / "single.image", np.zeros((32, 32, 3), np.uint8), format="PNG")
    (tmp_path / "list.csv").write_text("path\nshapes/circle/000.png\n")
    source = Images(str(tmp_path / "shapes"))
    samples = source.read()
    state = source.fit(samples)
    blocks = list(source.read_inputs([str(tmp_path / n) for n in ("shapes", "single.image", "list.csv")], state))
    assert [len(block) for block in blocks] == [256, 46]
    assert blocks[0].targets is None
    assert blocks[1].place(44) == str(single)
    assert blocks[1].place(45) == str(tmp_path / "shapes/circle/000.png")
    np.testing.assert_array_equal(blocks[0].inputs, samples.inputs[:256])
    np.testing.assert_array_equal(blocks[1].inputs[45], samples.inputs[0])


def test_prediction_names_what_is_missing(tmp_path: Path) -> None:
    state = {"channels": 1, "size": [6, 8]}
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: holds no image$"):
        list(Images("x").read_inputs([str(tmp_path / "empty")], state))
    with pytest.raises(DataError, match=r"^none.png: No such file or directory$"):
        list(Images("x").read_inputs(["none.png"], state))


def test_the_fingerprint_follows_names_and_content(tmp_path: Path) -> None:
    roots = [two_classes(tmp_path / name) for name in ("one", "two")]
    first, second = (Images(str(root)).fingerprint() for root in roots)
    assert first == second
    save(roots[1] / "a/1.png", GREY + 1)
    assert Images(str(roots[1])).fingerprint() != first
    (roots[0] / "a/1.png").rename(roots[0] / "a/0.png")
    assert Images(str(roots[0])).fingerprint() != first


def test_the_fingerprint_is_that_of_earlier_versions(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 1000)
    digest = hashlib.blake2b(b"name\0" + hashlib.blake2b(path.read_bytes()).digest(), digest_size=8)
    assert fingerprint_files([("name", str(path))]) == digest.hexdigest()


def test_the_fingerprint_is_of_the_images_alone(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "one")
    first = Images(str(root)).fingerprint()
    (root / ".DS_Store").write_text("left behind by a file manager")
    (root / "a" / "notes.txt").write_text("no image")
    assert Images(str(root)).fingerprint() == first


def test_the_files_are_those_that_are_read(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "one")
    names = ["a/1.png", "a/2.png", "b/1.png", "b/deep/2.PNG"]
    assert Images(str(root)).files() == [(name, f"{root}/{name}") for name in names]
    path = write_csv(tmp_path / "two", "path,label\nimg/2.png,dog\n")
    assert Images("x").files(path) == [("labels.csv", path), ("img/2.png", f"{tmp_path}/two/img/2.png")]
