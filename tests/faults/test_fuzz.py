"""Thousands of damaged files: whatever is in them, the answer is data or one clear error, soon and in little memory.

The suite tries some of each kind. DLTRAIN_FUZZ=10000 tries as many for each kind of data file, and as many forged
checkpoints, damaged checkpoints and configs in all. A case that fails is drawn again by its number.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from PIL import Image

from dltrain import checkpoint as checkpoints
from dltrain.build import Builder
from dltrain.config.reader import Document, read_text
from dltrain.config.validate import load_config, validate
from dltrain.data.prepare import open_source, prepare
from dltrain.errors import CheckpointError, DltrainError
from dltrain.evaluation import evaluate
from dltrain.prediction import generate, predict
from dltrain.train import fit
from tests.faults.mutations import NUM_CASES, clean, damaged, damaged_tree, within
from tests.test_checkpoint import example, forge

pytestmark = pytest.mark.usefixtures("no_curves")

SECONDS, MEBIBYTES = 10, 1024
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


# ---- one small data set of each kind ---------------------------------------------------------------------------------


def table_rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {"a": round(float(rng.normal()), 3), "b": "xyz"[i % 3], "day": f"2024-01-{i % 28 + 1:02}", "y": "nj"[i % 2]}
        for i in range(24)
    ]


def csv_bytes(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(
        [
            ",".join(rows[0]),
            *(",".join(f'"{v}"' if i % 5 == 0 else str(v) for v in row.values()) for i, row in enumerate(rows)),
            "",
        ]
    ).encode()


def text_rows() -> list[dict[str, Any]]:
    return [
        {"text": f"{'good day' if i % 2 else 'guten Tag'} {i} wörld", "label": ["de", "en"][i % 2]} for i in range(20)
    ]


def parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def json_bytes(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(rows)).encode()


def image_bytes(kind: str, mode: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(sink, kind, **options)
    return sink.getvalue()


def sixteen_bits() -> bytes:
    sink = io.BytesIO()
    Image.fromarray((np.arange(63).reshape(9, 7) * 1000).astype(np.uint16)).save(sink, "PNG")
    return sink.getvalue()


def sound_bytes(kind: str, subtype: str | None = None) -> bytes:
    sink = io.BytesIO()
    wave = np.sin(np.arange(400) / 5).astype(np.float32)
    soundfile.write(sink, np.stack([wave, -wave], 1), 8000, format=kind, subtype=subtype)
    return sink.getvalue()


def npz_bytes(save: Callable[..., None]) -> bytes:
    sink = io.BytesIO()
    save(sink, x=np.arange(60, dtype=np.float32).reshape(20, 3), y=np.arange(20) % 2)
    return sink.getvalue()


def npy_bytes(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


PIXELS = np.random.default_rng(0).integers(0, 256, (20, 5, 5)).astype(np.uint8)
CLASSES = (np.arange(20) % 2).astype(np.uint8)
WORDS = {"kind": "word", "vocab_size": None}
BYTES = {"kind": "byte"}
ARRAYS = {"type": "arrays", "path": "x.bin", "target": "y.bin"}
CLASS_FOLDERS = {"type": "images", "path": "classes", "size": 6}


def kind(
    data: dict[str, Any], damaged_file: str, content: bytes, **others: bytes
) -> tuple[dict[str, Any], str, bytes, dict[str, bytes]]:
    return data, damaged_file, content, others


IMAGE_FORMATS = {
    "png": image_bytes("PNG", "RGB"),
    "png palette": image_bytes("PNG", "P"),
    "png 16 bit": sixteen_bits(),
    "jpg": image_bytes("JPEG", "RGB", exif=Image.Exif().tobytes()),
    "gif": image_bytes("GIF", "P"),
    "bmp": image_bytes("BMP", "RGB"),
    "webp": image_bytes("WEBP", "RGB"),
    "tif": image_bytes("TIFF", "RGB", compression="tiff_lzw"),
    "tif plain": image_bytes("TIFF", "L"),
    "ppm": image_bytes("PPM", "RGB"),
}
SOUND_FORMATS = {name: sound_bytes(name) for name in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64", "RF64")}
KINDS: dict[str, Any] = {
    "csv": kind({"type": "table", "path": "t.csv", "target": "y", "missing": "drop"}, "t.csv", csv_bytes(table_rows())),
    "tsv": kind(
        {"type": "table", "path": "t.tsv", "target": "y"}, "t.tsv", csv_bytes(table_rows()).replace(b",", b"\t")
    ),
    "csv strict": kind({"type": "table", "path": "t.csv", "target": "y"}, "t.csv", csv_bytes(table_rows())),
    "csv gzipped": kind(
        {"type": "table", "path": "t.csv.gz", "target": "y"},
        "t.csv.gz",
        gzip.compress(csv_bytes(table_rows()), mtime=0),
    ),
    "csv of texts": kind({"type": "text", "path": "t.csv", "tokenizer": BYTES}, "t.csv", csv_bytes(text_rows())),
    "parquet": kind({"type": "table", "path": "t.parquet", "target": "y"}, "t.parquet", parquet_bytes(table_rows())),
    "parquet of texts": kind(
        {"type": "text", "path": "t.parquet", "tokenizer": BYTES}, "t.parquet", parquet_bytes(text_rows())
    ),
    "json lines": kind({"type": "text", "path": "t.jsonl", "tokenizer": BYTES}, "t.jsonl", json_bytes(text_rows())),
    "json lines of a table": kind(
        {"type": "table", "path": "t.jsonl", "target": "y"}, "t.jsonl", json_bytes(table_rows())
    ),
    "text files": kind(
        {"type": "text", "path": "classes", "tokenizer": BYTES},
        "classes/a/0.txt",
        "größer\nals 3\n".encode(),
        **{"classes/b/0.txt": b"less", "classes/b/1.txt": b"more"},
    ),
    "corpus": kind(
        {"type": "corpus", "path": "t.txt", "tokenizer": WORDS, "block": 8},
        "t.txt",
        "".join(f"Zeile {i % 7} – wörds\n" for i in range(60)).encode(),
    ),
    "pairs of lines": kind(
        {"type": "pairs", "path": "a.txt", "target_path": "b.txt", "tokenizer": WORDS},
        "a.txt",
        b"".join(b"one two %d\n" % i for i in range(20)),
        **{"b.txt": b"".join(b"eins zwei %d\n" % i for i in range(20))},
    ),
    "pairs in a csv": kind(
        {"type": "pairs", "path": "p.csv", "tokenizer": BYTES},
        "p.csv",
        csv_bytes([{"source": f"one {i}", "target": f"eins {i}"} for i in range(20)]),
    ),
    "npz": kind({"type": "arrays", "path": "x.npz"}, "x.npz", npz_bytes(np.savez)),
    "npz compressed": kind({"type": "arrays", "path": "x.npz"}, "x.npz", npz_bytes(np.savez_compressed)),
    "npy": kind(ARRAYS, "x.bin", npy_bytes(PIXELS.astype(np.float32)), **{"y.bin": npy_bytes(CLASSES)}),
    "npy of targets": kind(ARRAYS, "y.bin", npy_bytes(CLASSES), **{"x.bin": npy_bytes(PIXELS)}),
    "idx": kind(ARRAYS, "x.bin", idx_bytes(PIXELS), **{"y.bin": idx_bytes(CLASSES)}),
    "idx gzipped": kind(ARRAYS, "x.bin", gzip.compress(idx_bytes(PIXELS), mtime=0), **{"y.bin": idx_bytes(CLASSES)}),
    "csv of paths": kind(
        {"type": "images", "path": "paths.csv", "size": 6},
        "paths.csv",
        b"path,label\n" + b"a.png,x\nb.png,y\n" * 10,
        **{"a.png": IMAGE_FORMATS["png"], "b.png": IMAGE_FORMATS["bmp"]},
    ),
    **{
        f"image {name}": kind(
            CLASS_FOLDERS,
            f"classes/a/0.{name.split()[0]}",
            content,
            **{"classes/a/1.png": IMAGE_FORMATS["png"], "classes/b/0.png": IMAGE_FORMATS["png"]},
        )
        for name, content in IMAGE_FORMATS.items()
    },
    **{
        f"sound {name}": kind(
            {"type": "audio", "path": "classes", "sample_rate": 8000, "num_mels": 8},
            "classes/a/0.wav",
            content,
            **{"classes/a/1.wav": SOUND_FORMATS["WAV"], "classes/b/0.wav": SOUND_FORMATS["WAV"]},
        )
        for name, content in SOUND_FORMATS.items()
    },
}


class DataSet:
    """A data set of one of KINDS in a folder, one file of which is damaged again and again."""

    def __init__(self, name: str, folder: Path) -> None:
        data, damaged_file, self.content, others = KINDS[name]
        self.name, self.path = name, folder / damaged_file
        for file, other in {**others, damaged_file: self.content}.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(other)
        config = {"data": data, "model": {"type": "mlp"}, "split": {"val": 0, "test": 0}}
        (folder / "c.yaml").write_text(yaml.safe_dump(config))
        self.builder = Builder(load_config(folder / "c.yaml"))
        self.state = prepare(self.builder).facts["source"]
        self.predicts = data["type"] != "corpus" and damaged_file not in ("y.bin", "b.txt")

    def damage(self, number: int) -> None:
        self.path.write_bytes(damaged(self.content, random.Random(f"{self.name} {number}")))

    def read_all(self) -> None:
        prepare(self.builder)

    def read_new(self) -> None:
        source = open_source(self.builder)
        for samples in source.read_inputs([str(self.path)], self.state) if self.predicts else ():
            source.encode(samples, self.state)


@pytest.mark.fault(9, 11, 62)
@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_data_file_is_read_or_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLTRAIN_CACHE", "off")
    data_set = DataSet(name, tmp_path)
    for number in range(NUM_CASES or 15):
        data_set.damage(number)
        for read in (data_set.read_all, data_set.read_new):
            with read_or_refused(f"case {number} of {name}", (2, 3)):
                read()


def is_told_as_out_of_memory(error: BaseException) -> bool:
    """Return whether the command line has one line for an error: a model or sample as large as it says has no room."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


@contextlib.contextmanager
def read_or_refused(case: str, codes: tuple[int, ...]) -> Iterator[None]:
    """Fail where the block raises what is no error for people, or takes long, or much memory; `case` names it."""
    try:
        with within(SECONDS, MEBIBYTES):
            yield
    except DltrainError as error:
        clean(error, codes)
    except BaseException as error:
        if is_told_as_out_of_memory(error):
            return
        error.add_note(case)
        raise


# ---- checkpoints -----------------------------------------------------------------------------------------------------

TRANSFORMER = {"dim": 8, "num_heads": 2}
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "table": ("csv", {"type": "mlp", "hidden": [4]}),
    "arrays": ("npz", {"type": "mlp", "hidden": [4]}),
    "images": ("image png", {"type": "convnet", "channels": [2]}),
    "audio": ("sound WAV", {"type": "convnet", "channels": [2]}),
    "text": ("csv of texts", {"type": "bag_of_embeddings", "embedding_dim": 4}),
    "pairs": ("pairs in a csv", {"type": "encoder_decoder", "encoder_depth": 1, "decoder_depth": 1, **TRANSFORMER}),
    "corpus": ("corpus", {"type": "causal_transformer", "depth": 1, **TRANSFORMER}),
}


class Trained:
    """A run of one step on a small data set, from whose checkpoint forgeries are made."""

    def __init__(self, name: str, folder: Path) -> None:
        data_set, model = TRAINED[name]
        self.name, self.folder = name, folder
        self.data = DataSet(data_set, folder)
        self.data.path.write_bytes(self.data.content)
        self.is_generator = name == "corpus"
        config = yaml.safe_load((folder / "c.yaml").read_text())
        config |= {"model": model, "train": {"duration": "1 steps", "batch_size": 4, "device": "cpu"}}
        (folder / "c.yaml").write_text(yaml.safe_dump(config))
        self.run = Path(fit(load_config(folder / "c.yaml"), root=folder / "runs")["run"])
        self.saved = checkpoints.load(self.run / "checkpoints" / checkpoints.LAST)
        self.path = self.run / "checkpoints" / checkpoints.BEST

    def forge(self, number: int) -> None:
        """Write a checkpoint with a right checksum over metadata and tensors that are not right."""
        rng = random.Random(f"{self.name} {number}")
        meta, tensors = self.saved.meta, dict(self.saved.tensors)
        if rng.random() < 0.9:
            part = rng.choice(("facts", "facts", "config", None))
            meta = {**meta, part: damaged_tree(meta[part], rng)} if part else damaged_tree(meta, rng)
        else:
            name = rng.choice(list(tensors))
            tensor = tensors.pop(name)
            other = (
                rng.choice((tensor.double(), tensor.int(), tensor.reshape(-1), tensor[:0], tensor[..., None], None))
                if tensor.dim()
                else None
            )
            tensors |= {} if other is None else {rng.choice((name, f"{name}.x", "model/\x1b[2J")): other.contiguous()}
        forge(self.path, json.dumps(meta), tensors)
        self.last_path = forge(self.path.with_name(checkpoints.LAST), json.dumps(meta), tensors)

    def evaluate(self) -> None:
        evaluate(self.path, split="train")

    def predict(self) -> None:
        if self.is_generator:
            generate(self.path, "Zeile", max_tokens=3)
        else:
            list(predict(self.path, [str(self.data.path)]))

    def resume(self) -> None:
        fit(load_config(self.folder / "c.yaml"), resume=self.run)


@pytest.mark.fault(15, 62)
@pytest.mark.parametrize("name", TRAINED)
def test_a_forged_checkpoint_is_used_or_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLTRAIN_CACHE", "off")
    trained = Trained(name, tmp_path)
    for number in range((NUM_CASES // len(TRAINED) + 1) if NUM_CASES else 25):
        trained.forge(number)
        for use in (trained.evaluate, trained.predict, trained.resume):
            with read_or_refused(f"case {number} of {name}, {use.__name__}", (2, 3, 5)):
                use()


@pytest.mark.fault(34, 35, 62)
def test_damaged_bytes_of_a_checkpoint_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    checkpoints.save(path, example())
    content = path.read_bytes()
    for number in range(NUM_CASES or 500):
        path.write_bytes(damaged(content, random.Random(f"checkpoint {number}")))
        if path.read_bytes() != content:
            with within(SECONDS, MEBIBYTES), pytest.raises(CheckpointError):
                checkpoints.load(path)


# ---- configs ---------------------------------------------------------------------------------------------------------


@pytest.mark.fault(1, 4, 6, 7)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_damaged_config_is_valid_or_refused(path: Path) -> None:
    """Of the shipped ones: their bytes, and the tree of their values."""
    content, tree = path.read_bytes(), read_text(path.read_text(encoding="utf-8"), "c.yaml").value
    for number in range((NUM_CASES // len(CONFIGS) + 1) if NUM_CASES else 15):
        rng = random.Random(f"{path.stem} {number}")
        with read_or_refused(f"bytes {number}", (2,)):
            validate(read_text(damaged(content, rng).decode(errors="replace"), "c.yaml"))
        with read_or_refused(f"tree {number}", (2,)):
            validate(read_text(yaml.safe_dump(damaged_tree(tree, rng), allow_unicode=True), "c.yaml"))
        with read_or_refused(f"document {number}", (2,)):
            validate(Document("checkpoint", damaged_tree(tree, rng)))
