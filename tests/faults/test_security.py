"""Files from strangers: no code runs, memory and time are bounded, nothing else is read, no terminal is commanded."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dltrain import checkpoint as checkpoints
from dltrain.data.sources.arrays import Arrays
from dltrain.data.sources.images import Images
from dltrain.data.sources.table import Table
from dltrain.data.tokenizer import Tokenizer
from dltrain.errors import CheckpointError, DataError
from dltrain.evaluation import evaluate
from dltrain.train import fit
from tests.faults.mutations import within
from tests.small_runs import dltrain_here, small_config, write_config
from tests.test_checkpoint import example, forge, whole

pytestmark = pytest.mark.usefixtures("no_curves")

ESCAPE = "\x1b]0;owned\x07\x1b[2J"


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.fault(62)
def test_no_pickle_is_opened_wherever_it_stands(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    evil = np.array([Evil(str(ran)), None], dtype=object)
    np.savez(tmp_path / "evil.npz", x=evil, y=np.arange(2))
    np.save(tmp_path / "evil.npy", evil)
    torch.save({"model/weight": Evil(str(ran))}, tmp_path / "evil.safetensors")
    with pytest.raises(DataError, match="without Python objects"):
        Arrays(str(tmp_path / "evil.npz")).read()
    with pytest.raises(DataError, match="without Python objects"):
        Arrays(str(tmp_path / "evil.npy"), target=str(tmp_path / "evil.npy")).read()
    with pytest.raises(CheckpointError, match="is damaged or no safetensors file"):
        checkpoints.load(tmp_path / "evil.safetensors")
    assert not ran.exists()


# ---- little that claims to be much -----------------------------------------------------------------------------------


def png_of(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size that its few bytes do not have."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


@pytest.mark.fault(62)
@pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1), (100_000, 100_000), (2**31 - 1, 1)])
def test_an_image_with_a_huge_header_takes_no_memory(size: tuple[int, int], tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "0.png").write_bytes(png_of(*size))
    with within(10, 512), pytest.raises(DataError, match=r"2 of 2 images cannot be read"):
        Images(str(tmp_path), size=8).read()


@pytest.mark.fault(62)
def test_zeros_that_were_gzipped_are_no_table_and_no_array(tmp_path: Path) -> None:
    """2 GiB of zeros are 2 MB when gzipped."""
    part = gzip.compress(b"\0" * 2**24)
    (tmp_path / "t.csv.gz").write_bytes(part * 128)
    with within(20, 512), pytest.raises(DataError, match=r"t\.csv\.gz: "):
        Table(str(tmp_path / "t.csv.gz"), target="y").read()
    npy = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1)
    (tmp_path / "x.npy").write_bytes(gzip.compress(npy) + part * 128)
    with within(10, 512), pytest.raises(DataError, match="has a header of 4,294,967,295 bytes; the file is damaged"):
        Arrays(str(tmp_path / "x.npy"), target=str(tmp_path / "x.npy")).read()


@pytest.mark.fault(62)
def test_an_array_that_claims_more_than_it_holds_takes_no_memory(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 3)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.getvalue() + b"\0" * 1000)
        archive.writestr("y.npy", header.getvalue())
    with within(10, 512), pytest.raises(DataError, match=r"x\.npz: x: is truncated: its header says"):
        Arrays(str(tmp_path / "x.npz")).read()


@pytest.mark.fault(62)
@pytest.mark.parametrize("length", [2**63, 2**40, 10**8 + 1, 5])
def test_a_checkpoint_with_a_huge_header_takes_no_memory(length: int, tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"a": 1}')
    with within(10, 512), pytest.raises(CheckpointError, match="is damaged or no safetensors file"):
        checkpoints.load(path)


ONE = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
SAFETENSORS_HEADERS = {
    "a tensor beyond the end": '{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}',
    "a negative size": '{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
    "a size that overflows": '{"a":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,4]}}',
    "offsets that overlap": f'{{"a":{ONE},"b":{ONE}}}',
    "a key twice": f'{{"a":{ONE},"a":{ONE.replace("[1]", "[2]").replace("4", "8")}}}',
    "an unknown type": '{"a":{"dtype":"P64","shape":[1],"data_offsets":[0,4]}}',
    "metadata that are no text": '{"__metadata__":{"dltrain":1}}',
    "nested a thousand times": "[" * 1000,
}


@pytest.mark.fault(62)
@pytest.mark.parametrize("name", SAFETENSORS_HEADERS)
def test_a_checkpoint_with_a_crafted_header_is_refused(name: str, tmp_path: Path) -> None:
    path, header = tmp_path / "last.safetensors", SAFETENSORS_HEADERS[name].encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with within(10, 512), pytest.raises(CheckpointError):
        checkpoints.load(path)


@pytest.mark.fault(62)
@pytest.mark.parametrize(
    "facts",
    [
        {"input_shapes": [[10**12]], "source": {"shape": [10**12], "scaling": {"shift": [0.0], "factor": [1.0]}}},
        {"input_shapes": [[2**20, 2**20]]},
        {"source": {"shape": [6], "scaling": {"shift": [0.0] * 6, "factor": [0.0] * 6}}},
        {"source": {"shape": [6], "scaling": {"shift": [0.0] * 5, "factor": [1.0] * 5}}},
        {"task": {"type": "classification", "classes": []}},
        {"task": {"type": "regression", "names": ["a"], "mean": [1e999], "std": [1.0]}},
        {"num_samples": {"train": "many", "val": 0, "test": 0}},
    ],
    ids=str,
)
def test_facts_that_no_training_has_written_are_refused(facts: dict[str, object], tmp_path: Path) -> None:
    run = Path(fit(small_config(tmp_path, {"train": {"duration": "1 steps"}}), root=tmp_path / "runs")["run"])
    saved = checkpoints.load(run / "checkpoints" / checkpoints.BEST)
    text = json.dumps({**saved.meta, "facts": {**saved.meta["facts"], **facts}})
    path = forge(tmp_path / "forged.safetensors", text, saved.tensors)
    with within(10, 512), pytest.raises(CheckpointError, match=r"forged\.safetensors: its metadata"):
        evaluate(path)


HUGE_MODELS: list[dict[str, object]] = [
    {"type": "mlp", "hidden": [1_000_000, 1_000_000]},
    {"type": "mlp", "hidden": [30_000, 30_000]},  # 3.6 GB, which a machine may have
    {"type": "mlp", "hidden": [2] * 19_000},
    {"type": "sequential", "layers": [{"type": "Linear", "out_features": 10**12}]},
    {"type": "sequential", "layers": [{"type": "Linear", "out_features": 2}] * 3_000},
]


@pytest.mark.fault(15, 62)
@pytest.mark.parametrize("model", HUGE_MODELS, ids=lambda model: str(model)[:60])
def test_a_checkpoint_that_names_a_huge_model_takes_no_memory(model: dict[str, object], tmp_path: Path) -> None:
    write_config(tmp_path, {"train": {"duration": "1 steps"}})
    assert dltrain_here("fit", "small.yaml", cwd=tmp_path).returncode == 0
    folder = tmp_path / "runs" / "small" / "1" / "checkpoints"
    saved = checkpoints.load(folder / checkpoints.LAST)
    text = json.dumps({**saved.meta, "config": {**saved.meta["config"], "model": model}})
    for name in (checkpoints.LAST, checkpoints.BEST):
        forge(folder / name, text, saved.tensors)
    for arguments in (
        ("evaluate", "runs/small/1"),
        ("predict", "runs/small/1", "data.npz"),
        ("fit", "--resume", "runs/small/1"),
    ):
        with within(10, 512):
            result = dltrain_here(*arguments, cwd=tmp_path)
        assert result.returncode == 5, result.stderr
        assert "does not fit the model" in result.stderr


@pytest.mark.fault(62)
@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": False}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x" * 1000}},
        {"added_tokens": [{"id": 10**9, "content": "a", "special": True}]},
        {"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 10**9, "c": 2, "d": 3, "e": 4}, "unk_token": "a"}},
        {"model": {"type": "Unigram", "vocab": [["a", 0.0]]}},
    ],
    ids=str,
)
def test_a_forged_tokenizer_has_no_parts_but_ours(change: dict[str, object]) -> None:
    values = json.loads(Tokenizer.train(["ja nein ja"], "word", None, False).to_json())
    values["vocabulary"] |= change
    with pytest.raises(ValueError, match="has a vocabulary that no tokenizer of the kind 'word' has"):
        Tokenizer.from_json(json.dumps(values))


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.fault(62)
def test_names_from_data_never_reach_a_terminal_raw(tmp_path: Path) -> None:
    labels = [ESCAPE, "plain\u202e", "=1+1"]
    rows = {"f\x1b[31m": [float(i) for i in range(60)], "y": [labels[i % 3] for i in range(60)]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    pq.write_table(pa.table({"f\x1b[31m": rows["f\x1b[31m"], "y": ["other\x1b[2J"] * 60}), tmp_path / "other.parquet")
    write_config(
        tmp_path, {"data": {"type": "table", "path": "t.parquet", "target": "y"}, "split": {"val": 0.2, "test": 0.2}}
    )
    for arguments in (
        ("fit", "small.yaml"),
        ("check", "small.yaml"),
        ("evaluate", "runs/small/1"),
        ("evaluate", "runs/small/1", "--data", "other.parquet"),
        ("evaluate", "runs/small/1", "--json"),
        ("runs", "runs"),
        ("runs", "runs", "--csv"),
        ("predict", "runs/small/1", "t\x1b[2J.csv"),
    ):
        result = dltrain_here(*arguments, cwd=tmp_path)
        shown = result.stdout + result.stderr
        assert not [c for c in shown if not c.isprintable() and c != "\n"], (arguments, shown)
        assert "Traceback" not in shown


@pytest.mark.fault(62)
def test_predictions_are_no_formulas(tmp_path: Path) -> None:
    labels = ["=cmd|'/c calc'!A1", "+1", "-1", "@SUM(A1)", "plain"]
    with (tmp_path / "t.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["a", "y"], *([i, labels[i % 5]] for i in range(60))])
    write_config(tmp_path, {"data": {"type": "table", "path": "t.csv", "target": "y"}})
    assert dltrain_here("fit", "small.yaml", cwd=tmp_path).returncode == 0
    (tmp_path / "=new.csv").write_text("a\n1\n2\n")
    result = dltrain_here("predict", "runs/small/1", "=new.csv", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for row in csv.reader(io.StringIO(result.stdout)):
        assert not [cell for cell in row if cell[:1] in "=+-@\t\r" and cell]


# ---- ways out --------------------------------------------------------------------------------------------------------


@pytest.mark.fault(62)
def test_links_lead_nowhere_out_of_the_folder_of_the_data(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("L", (4, 4)).save(secret)
    for label in ("a", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "data" / label / "0.png")
    (tmp_path / "data" / "a" / "1.png").symlink_to(secret)
    with pytest.raises(DataError, match=r"1\.png: is a link that leads out of"):
        Images(str(tmp_path / "data")).read()


@pytest.mark.fault(62)
def test_a_config_in_a_checkpoint_names_code_and_it_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("import os\nos.mkdir('ran')\n")
    write_config(tmp_path, {"train": {"duration": "1 steps"}})
    assert dltrain_here("fit", "small.yaml", cwd=tmp_path).returncode == 0
    last = tmp_path / "runs" / "small" / "1" / "checkpoints" / "last.safetensors"
    saved = checkpoints.load(last)
    config = {**saved.meta["config"], "schedule": {"type": "evil.py:f"}}
    for path in (last, last.with_name("best.safetensors")):
        forge(path, json.dumps({**saved.meta, "config": config}), saved.tensors)
    for arguments in (
        ("evaluate", "runs/small/1"),
        ("predict", "runs/small/1", "data.npz"),
        ("fit", "--resume", "runs/small/1"),
    ):
        dltrain_here(*arguments, cwd=tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.fault(62)
@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/b", "..", "x\x1b[2J"])
def test_a_forged_name_of_a_run_writes_nowhere_else(name: str, tmp_path: Path) -> None:
    write_config(tmp_path, {"name": name})
    result = dltrain_here("fit", "small.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert "\x1b" not in result.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.fault(44, 62)
@pytest.mark.parametrize("version", [0, 2, 99, None, "1", [1]])
def test_a_checkpoint_of_another_version_names_both(version: object, tmp_path: Path) -> None:
    path = forge(tmp_path / "last.safetensors", whole(format_version=version), example().tensors)
    with pytest.raises(CheckpointError, match=r"has checkpoint format .*; this dltrain reads format 1"):
        checkpoints.load(path)
