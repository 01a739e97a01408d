"""The cache: what is taken from it is what would be prepared, or nothing; whatever happens to it or to the data."""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dltrain.build import Builder
from dltrain.config.validate import load_config
from dltrain.data import cache
from dltrain.data.cache import Entry, cached
from dltrain.data.cache_entries import clear, compiled_folder, hash_of, list_entries
from dltrain.data.columns import Columns, Ragged
from dltrain.data.prepare import Prepared, prepare, prepare_split
from dltrain.errors import ConfigError, DataError
from tests.make_data import make_people, make_shapes
from tests.small_runs import dltrain_here, in_child

SETTINGS = {"size": 8}
ABOUT = {"data": "images /shapes", "use": "fit"}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a cache that keeps whatever is prepared, however fast."""
    monkeypatch.setenv("DLTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "MIN_BUILD_S", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "source.bin"
    path.parent.mkdir()
    path.write_bytes(b"abc")
    return path


def small_entry() -> Entry:
    """One of each kind of column, and a tensor that several columns share."""
    text = torch.tensor([5, 6, 7, 8, 9], dtype=torch.int32)
    starts, lengths = torch.tensor([0, 2]), torch.tensor([2, 2])
    inputs = (Ragged(text, starts, lengths), torch.rand(2, 3, generator=torch.Generator().manual_seed(0)))
    splits = {
        "train": Columns(inputs, Ragged(text, starts + 1, lengths, padding=-100)),
        "val": Columns((Ragged(text, starts[:0], lengths[:0]), torch.zeros(0, 3)), None),
    }
    return Entry(splits, {"source": {"channels": 1}, "scale": 0.1}, ["one row was dropped"])


class Builds:
    """Prepares data, and counts how often."""

    def __init__(self, build: Callable[[], Entry] = small_entry) -> None:
        self.count, self._build = 0, build

    def __call__(self) -> Entry:
        self.count += 1
        return self._build()


def use(source: Path, build: Callable[[], Entry], settings: dict[str, Any] = SETTINGS, **options: Any) -> Entry:
    return cached(settings, [(source.name, str(source))], ABOUT, build, **options)


def values_of(entry: Entry | Prepared) -> dict[str, Any]:
    """Return all that an entry holds as values that can be compared."""
    result: dict[str, Any] = {"facts": entry.facts, "notes": entry.notes}
    for name, columns in entry.splits.items():
        for index, column in enumerate((*columns.inputs, columns.target)):
            parts = [column.values, column.starts, column.lengths] if isinstance(column, Ragged) else [column]
            padding = getattr(column, "padding", None)
            kinds = [None if x is None else (x.dtype, x.shape, x.numpy().tobytes()) for x in parts]
            result[f"{name}/{index}"] = (kinds, padding)
    return result


def folder_of_entry(root: Path) -> Path:
    (folder,) = root.iterdir()
    return folder


# ---- what is kept


def test_the_second_use_takes_what_the_first_prepared(source: Path, root: Path) -> None:
    builds = Builds()
    first, second = use(source, builds), use(source, builds)
    assert builds.count == 1
    assert values_of(first) == values_of(second) == values_of(small_entry())
    inputs, target = second.splits["train"].inputs[0], second.splits["train"].target
    assert isinstance(inputs, Ragged)
    assert isinstance(target, Ragged)
    assert inputs.values.data_ptr() == target.values.data_ptr()  # once in memory, as before
    assert second.splits["train"].batch(torch.tensor([1, 0]), torch.device("cpu"))[1].tolist() == [[8, 9], [6, 7]]


def test_large_tensors_are_mapped_and_not_read(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_IN_MEMORY_BYTES", 0)
    entry = use(source, Builds(lambda: Entry({"train": Columns((torch.ones(3, 2),), None)}, {}, [])))
    (x,) = entry.splits["train"].inputs
    assert isinstance(x, torch.Tensor)
    assert x[torch.tensor([0, 2])].tolist() == [[1, 1], [1, 1]]
    assert f"{x.data_ptr():x}-" in Path("/proc/self/maps").read_text()

    def write() -> None:
        faulthandler.disable()
        x.zero_()

    assert in_child(write) == -signal.SIGSEGV  # nothing can change what is kept


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64, torch.float32])
def test_every_type_of_number_comes_back(source: Path, dtype: torch.dtype) -> None:
    x = torch.arange(24).reshape(4, 3, 2).to(dtype).transpose(1, 2)  # not in the order of memory
    entry = use(source, lambda: Entry({"train": Columns((x,), x[:, 0])}, {}, []))
    assert torch.equal(entry.splits["train"].inputs[0], x)  # type: ignore[arg-type]
    assert entry.splits["train"].inputs[0].dtype == dtype  # type: ignore[union-attr]
    assert torch.equal(entry.splits["train"].target, x[:, 0])  # type: ignore[arg-type]


def test_other_settings_and_other_facts_are_other_entries(source: Path, root: Path) -> None:
    builds = Builds()
    use(source, builds)
    use(source, builds, {"size": 9})
    assert builds.count == 2
    assert len(list(root.iterdir())) == 2
    use(source, builds)
    use(source, builds, learned={"mean": 0.5})
    assert builds.count == 3
    use(source, builds, learned={"mean": 0.5})
    assert builds.count == 3


def test_what_was_checked_for_less_is_prepared_again(source: Path) -> None:
    builds = Builds()
    use(source, builds)
    use(source, builds, checked=["val", "test"])
    assert builds.count == 2
    use(source, builds, checked=["test"])
    assert builds.count == 2


def test_what_takes_no_time_is_not_kept(source: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MIN_BUILD_S", 0.3)
    use(source, Builds())
    assert not root.exists()


def test_the_cache_can_be_switched_off(source: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLTRAIN_CACHE", "off")
    builds = Builds()
    use(source, builds)
    use(source, builds)
    assert builds.count == 2
    assert not root.exists()
    assert list_entries() == []


# ---- the files change


def same_size(path: Path) -> None:
    path.write_bytes(b"xyz")


def same_size_and_date(path: Path) -> None:
    stat = path.stat()
    path.write_bytes(b"xyz")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def another_file_of_the_same_size_and_date(path: Path) -> None:
    stat = path.stat()
    path.with_name("new").write_bytes(b"xyz")
    os.utime(path.with_name("new"), ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(path.with_name("new"), path)


@pytest.mark.parametrize("change", [same_size, same_size_and_date, another_file_of_the_same_size_and_date])
def test_a_changed_file_is_noticed(source: Path, root: Path, change: Callable[[Path], None]) -> None:
    builds = Builds()
    use(source, builds)
    change(source)  # at once: within one tick of the clock of the files
    use(source, builds)
    use(source, builds)
    assert builds.count == 2
    assert len(list(root.iterdir())) == 1  # the old entry could never be used again


def test_a_file_that_changes_while_it_is_read_is_not_kept(source: Path, root: Path) -> None:
    def build() -> Entry:
        source.write_bytes(b"xyz")
        return small_entry()

    use(source, build)
    assert not root.exists()


def test_a_file_that_is_missing_is_the_business_of_who_reads_it(source: Path, root: Path) -> None:
    source.unlink()

    def build() -> Entry:
        raise DataError("no such file")

    with pytest.raises(DataError, match=r"^no such file$"):
        use(source, build)


# ---- the cache is damaged


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_and_restore_the_date(path: Path) -> None:
    stat = path.stat()
    flip(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_format(path: Path) -> None:
    """As another version of dltrain would have left it, whole in its own way."""
    if path.name == "entry.json":
        head = {**json.loads(path.read_text()), "format_version": 0}
        head.pop("sha256")
        path.write_text(json.dumps({**head, "sha256": hash_of(head)}))
    else:
        path.write_bytes(path.read_bytes() + b"0")


@pytest.mark.parametrize("damage", [flip, flip_and_restore_the_date, cut, empty, other_format, Path.unlink])
@pytest.mark.parametrize("name", ["entry.json", "0", "3"])
def test_what_is_damaged_is_made_anew(source: Path, root: Path, name: str, damage: Callable[[Path], None]) -> None:
    builds = Builds()
    use(source, builds)
    damage(folder_of_entry(root) / name)
    for _ in range(2):
        assert values_of(use(source, builds)) == values_of(small_entry())
    assert builds.count == 2


def test_a_file_in_the_place_of_an_entry_is_replaced(source: Path, root: Path) -> None:
    builds = Builds()
    use(source, builds)
    folder = folder_of_entry(root)
    shutil.rmtree(folder)
    folder.write_text("what is this")
    use(source, builds)
    use(source, builds)
    assert builds.count == 2


def test_a_cache_that_was_copied_is_as_good(source: Path, root: Path) -> None:
    builds = Builds()
    use(source, builds)
    shutil.copytree(root, root.with_name("copy"))
    shutil.rmtree(root)
    root.with_name("copy").rename(root)
    use(source, builds)
    assert builds.count == 1


DISK_OPERATIONS = ("mkdir", "open", "write", "flush", "fsync", "rename", "stat", "flock", "close", "unlink", "rmdir")


def killed_at(number: int, work: Callable[[], Any]) -> int:
    """Do `work` in a child that is killed before its disk operation `number`; return its exit status."""

    def counted() -> None:
        left = number

        def watch(_frame: Any, event: str, function: Any) -> None:
            nonlocal left
            if event == "c_call" and getattr(function, "__name__", "") in DISK_OPERATIONS:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(watch)
        work()
        sys.setprofile(None)

    return in_child(counted)


@pytest.mark.slow
@pytest.mark.parametrize("old_entry", [False, True])
def test_killed_at_any_operation_the_next_start_is_right(source: Path, root: Path, old_entry: bool) -> None:
    expected, number = values_of(small_entry()), 0
    while True:
        shutil.rmtree(root, ignore_errors=True)
        if old_entry:
            use(source, small_entry)
            flip(folder_of_entry(root) / "0")
        status = killed_at(number, lambda: use(source, small_entry))
        assert values_of(use(source, small_entry)) == expected
        if status == 0:
            break
        assert status == -signal.SIGKILL
        number += 1
    assert number > 30
    builds = Builds()
    use(source, builds)
    assert builds.count == 0


def test_what_a_killed_process_left_is_removed_later(source: Path, root: Path) -> None:
    abandoned = root / ".dltrain-abandoned"
    abandoned.mkdir(parents=True)
    (abandoned / "0").write_bytes(b"half")
    os.utime(abandoned, (time.time() - 60,) * 2)
    (row,) = list_entries()
    assert (row["entry"], row["size_bytes"], "data" in row) == (".dltrain-abandoned", 4, False)
    use(source, Builds())
    assert not abandoned.exists()


def test_two_processes_at_once_do_not_disturb_each_other(source: Path, root: Path) -> None:
    expected = values_of(small_entry())

    def work() -> None:
        for round_index in range(20):
            assert values_of(use(source, small_entry, {"round": round_index})) == expected

    with ThreadPoolExecutor(4) as pool:  # each waits for a process
        assert list(pool.map(in_child, [work] * 4)) == [0] * 4
    assert len(list(root.iterdir())) == 20
    builds = Builds()
    for round_index in range(20):
        use(source, builds, {"round": round_index})
    assert builds.count == 0


# ---- the disk refuses


def note_of(entry: Entry) -> str:
    assert entry.notes[:-1] == small_entry().notes
    return entry.notes[-1]


def test_a_root_that_cannot_be_written_to_is_a_note(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "cache"
    monkeypatch.setenv("DLTRAIN_CACHE", str(folder))
    assert note_of(use(source, small_entry)) == (
        f"the prepared data are not kept in the cache {folder}: Not a directory; "
        "set DLTRAIN_CACHE to another folder, or to off"
    )


def test_a_full_disk_is_a_note_and_leaves_nothing(source: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    entry = use(source, small_entry)
    assert "No space left on device" in note_of(entry)
    assert entry.splits.keys() == {"train", "val"}
    assert list(root.iterdir()) == []


# ---- listing and clearing


def test_entries_are_listed_the_last_used_first(source: Path, root: Path) -> None:
    use(source, small_entry, {"n": 1})
    old = folder_of_entry(root)
    os.utime(old / "entry.json", (1, 1))
    os.utime(old, (1, 1))
    for file in old.iterdir():
        os.utime(file, (1, 1))
    use(source, small_entry, {"n": 2})
    rows = list_entries()
    assert [row["entry"] == old.name for row in rows] == [False, True]
    for row in rows:
        assert (row["data"], row["use"], row["samples"]) == ("images /shapes", "fit", {"train": 2, "val": 0})
        assert row["size_bytes"] == sum(file.stat().st_size for file in (root / row["entry"]).iterdir())
    builds = Builds()
    use(source, builds, {"n": 1})  # its files have other dates now, and are compared with their sums
    assert builds.count == 0
    assert list_entries()[0]["entry"] == old.name


def test_entries_are_cleared_all_or_by_name(source: Path, root: Path) -> None:
    for n in range(3):
        use(source, small_entry, {"n": n})
    (root / "notes.txt").write_text("not the cache's")
    (root / "my-pictures").mkdir()
    name = list_entries()[0]["entry"]
    assert [row["entry"] for row in clear([name[:6]])] == [name]
    assert len(list_entries()) == 2
    with pytest.raises(ConfigError, match=rf"^{name}: no such entry in the cache {root}"):
        clear([name])
    assert len(clear()) == 2
    assert sorted(path.name for path in root.iterdir()) == ["my-pictures", "notes.txt"]


def test_the_command(source: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLTRAIN_CACHE_LIMIT", "2")
    assert dltrain_here("cache", cwd=tmp_path).stderr == f"0 entries of 0.0 MiB in the cache {root} (limit 2.0 GiB)\n"
    use(source, small_entry)
    (row,) = list_entries()
    shown = dltrain_here("cache", cwd=tmp_path)
    assert shown.stdout.split()[:7] == ["entry", "data", "use", "samples", "MiB", "created", "used"]
    assert f"{row['entry']}  images /shapes  fit" in shown.stdout
    assert shown.stderr == f"1 entry of 0.0 MiB in the cache {root} (limit 2.0 GiB)\n"
    as_json = json.loads(dltrain_here("cache", "--json", cwd=tmp_path).stdout)
    assert as_json == {"folder": str(root), "limit_bytes": 2 * 2**30, "entries": [row]}
    flip(folder_of_entry(root) / "entry.json")
    assert "(unfinished or damaged)" in dltrain_here("cache", cwd=tmp_path).stdout
    wrong = dltrain_here("cache", "--clear", "zzz", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr) == (2, f"zzz: no such entry in the cache {root}\n")
    cleared = json.loads(dltrain_here("cache", "--clear", row["entry"][:5], "--json", cwd=tmp_path).stdout)
    assert [entry["entry"] for entry in cleared["removed"]] == [row["entry"]]
    assert list(root.iterdir()) == []


def test_compiled_code_is_listed_and_cleared(source: Path, root: Path) -> None:
    use(source, small_entry)
    folder = compiled_folder()
    assert folder == root / "compiled"
    (folder / "ab").mkdir()
    (folder / "ab" / "code.so").write_bytes(b"code")
    (row,) = list_entries(["compiled"])
    assert (row["data"], row["use"], row["size_bytes"]) == ("code for train.compile", "fit", 4)
    assert "samples" not in row
    clear(["compiled"])
    assert [row["data"] for row in list_entries()] == ["images /shapes"]


# ---- the limit

ENTRY_BYTES = 2**20


def set_limit(monkeypatch: pytest.MonkeyPatch, num_entries: float) -> None:
    """Let so many entries of `large_entry` into the cache."""
    monkeypatch.setenv("DLTRAIN_CACHE_LIMIT", f"{num_entries * ENTRY_BYTES / 2**30:.9f}")


def large_entry() -> Entry:
    return Entry({"train": Columns((torch.zeros(ENTRY_BYTES - 2**14, dtype=torch.uint8),), None)}, {}, [])


def make_old(folder: Path, age_s: float) -> None:
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (time.time() - age_s,) * 2)


def kept_settings(source: Path, monkeypatch: pytest.MonkeyPatch, settings: int) -> list[int]:
    """Return which of so many settings are in the cache, without a change to it."""
    monkeypatch.setattr(cache, "MIN_BUILD_S", 1e9)
    builds = [Builds() for _ in range(settings)]
    for n, build in enumerate(builds):
        use(source, build, {"n": n})
    monkeypatch.setattr(cache, "MIN_BUILD_S", 0.0)
    return [n for n, build in enumerate(builds) if build.count == 0]


def test_what_was_used_longest_ago_makes_room(source: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(3):
        use(source, large_entry, {"n": n})
        (folder,) = (path for path in root.iterdir() if path.stat().st_mtime > time.time() - 60)
        make_old(folder, 1000 - n)
    (root / "my-pictures").mkdir()
    (root / "my-pictures" / "0").write_bytes(bytes(ENTRY_BYTES))
    use(source, large_entry, {"n": 0})
    set_limit(monkeypatch, 3)
    use(source, large_entry, {"n": 3})
    assert kept_settings(source, monkeypatch, 4) == [0, 2, 3]
    assert (root / "my-pictures" / "0").exists()
    set_limit(monkeypatch, 0)
    use(source, large_entry, {"n": 4})  # that just made stays, however large
    assert kept_settings(source, monkeypatch, 5) == [4]
    assert sorted(path.name for path in root.iterdir() if path.name.startswith(".")) == []


def test_compiled_code_makes_room_too(source: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "compiled" / "ab").mkdir(parents=True)
    (root / "compiled" / "ab" / "code.so").write_bytes(bytes(ENTRY_BYTES))
    make_old(root / "compiled", 1000)
    set_limit(monkeypatch, 1.5)
    use(source, large_entry)
    assert [row["data"] for row in list_entries()] == ["images /shapes"]
    use(source, small_entry, {"n": 1})
    set_limit(monkeypatch, 0)
    assert compiled_folder() == root / "compiled"
    assert [row["entry"] for row in list_entries()] == ["compiled"]
    use(source, large_entry)
    assert {row["entry"] for row in list_entries()} >= {"compiled"}, "this process uses it"


def test_what_another_process_uses_stays_and_is_let_go_with_it(
    source: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_IN_MEMORY_BYTES", 2**10)
    expected = values_of(use(source, large_entry))
    (folder,) = root.iterdir()
    set_limit(monkeypatch, 0)
    ready, done = os.pipe(), os.pipe()

    def train() -> None:
        entry = use(source, Builds())
        make_old(folder, 1000)
        os.write(ready[1], b"1")
        os.read(done[0], 1)
        assert values_of(entry) == expected

    with ThreadPoolExecutor(1) as pool:
        trained = pool.submit(in_child, train)
        os.read(ready[0], 1)
        use(source, large_entry, {"n": 1})
        assert kept_settings(source, monkeypatch, 2) == [1]
        assert folder.exists()
        os.write(done[1], b"1")
        assert trained.result() == 0
    make_old(folder, 1000)
    use(source, large_entry, {"n": 2})
    assert not folder.exists()


def test_entries_that_are_removed_while_they_are_used_stay_readable(
    source: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_IN_MEMORY_BYTES", 2**10)
    use(source, large_entry)
    entry = use(source, Builds())
    clear()
    assert list(root.iterdir()) == []
    assert values_of(entry) == values_of(large_entry())


def test_processes_that_push_out_each_others_entries_get_their_data(
    source: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_limit(monkeypatch, 2)
    expected = values_of(large_entry())

    def work() -> None:
        for n in range(20):
            assert values_of(use(source, large_entry, {"n": n % 5})) == expected

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(in_child, [work] * 3)) == [0] * 3
    use(source, large_entry, {"n": 5})
    assert sum(row["size_bytes"] for row in list_entries()) <= 2 * ENTRY_BYTES


@pytest.mark.parametrize("given", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_no_size_is_an_error_before_any_work(
    source: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("DLTRAIN_CACHE_LIMIT", given)
    builds = Builds()
    with pytest.raises(ConfigError, match=f"^DLTRAIN_CACHE_LIMIT: '{given}' is no size in GiB, such as 20 or 0.5$"):
        use(source, builds)
    assert builds.count == 0


# ---- with real data

CONFIGS = {
    "images": "{type: images, path: shapes}",
    "table": "{type: table, path: people.csv, target: buys}",
    "sklearn": "{type: sklearn, name: iris}",
    "arrays": "{type: arrays, path: arrays.npz}",
    "text": "{type: text, path: texts.csv, tokenizer: {kind: word}}",
    "pairs": "{type: pairs, path: texts.csv, source_column: text, target_column: label, tokenizer: {kind: word}}",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data and no cache, as the working directory."""
    folder = tmp_path / "project"
    make_shapes(folder / "shapes", 5)
    make_people(folder / "people.csv", 100)
    rng = np.random.default_rng(0)
    np.savez(folder / "arrays.npz", x=rng.normal(size=(40, 3)), y=np.arange(40) % 2)
    lines = [f"some text with the number {i},{'even' if i % 2 == 0 else 'odd'}" for i in range(40)]
    (folder / "texts.csv").write_text("\n".join(["text,label", *lines, ""]))
    monkeypatch.chdir(folder)
    return folder


def builder_of(name: str, *overrides: str) -> Builder:
    path = Path(f"{name}.yaml")
    path.write_text(f"data: {CONFIGS[name]}\nmodel: {{type: linear}}\n")
    return Builder(load_config(path, overrides))


@pytest.mark.parametrize("name", CONFIGS)
def test_data_from_the_cache_are_the_data(
    name: str, project: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold, warm = prepare(builder_of(name)), prepare(builder_of(name))
    rows = list_entries()
    assert [row["use"] for row in rows] == ["fit"]
    assert rows[0]["data"].startswith(f"{name} ")
    monkeypatch.setenv("DLTRAIN_CACHE", "off")
    plain = prepare(builder_of(name))
    assert values_of(cold) == values_of(warm) == values_of(plain)
    assert cold.task == warm.task == plain.task


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_second_start_opens_no_file_of_the_data_and_imports_no_library_for_it(name: str, project: Path) -> None:
    script = textwrap.dedent(
        """
        import os, sys
        from dltrain.build import Builder
        from dltrain.config.validate import load_config
        from dltrain.data import cache
        from dltrain.data.prepare import prepare, prepare_split
        opened = []
        def watch(event, arguments):
            if event == "open" and isinstance(arguments[0], str) and not arguments[0].endswith(".pyc"):
                opened.append(os.path.abspath(arguments[0]))
        cache.MIN_BUILD_S = 0.0
        builder = Builder(load_config(sys.argv[1]))
        sys.addaudithook(watch)
        data = prepare(builder)
        prepare_split(builder, data.facts, "test")
        project = os.getcwd()
        libraries = {"sklearn.datasets", "pyarrow", "PIL", "tokenizers"}
        print(sum(path.startswith(project) for path in opened), *libraries & sys.modules.keys())
        """
    )
    builder_of(name)
    command = [sys.executable, "-c", script, f"{name}.yaml"]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first != "0\n"
    assert second == "0\n"


def test_evaluation_uses_the_cache_and_still_notices_changes(project: Path, root: Path) -> None:
    builder = builder_of("table")
    facts = prepare(builder).facts
    first, second = prepare_split(builder, facts, "test"), prepare_split(builder, facts, "test")
    assert torch.equal(first.columns.inputs[0], second.columns.inputs[0])  # type: ignore[arg-type]
    assert sorted(row["use"] for row in list_entries()) == ["evaluate test", "fit"]
    make_people(project / "people.csv", 100, seed=1)
    for _ in range(2):
        with pytest.raises(DataError, match="the data have changed since the training"):
            prepare_split(builder, facts, "test")


def test_a_new_file_and_one_that_is_gone_are_noticed(project: Path) -> None:
    sizes = [prepare(builder_of("images")).facts["num_samples"]["train"]]
    shutil.copy(project / "shapes/circle/000.png", project / "shapes/circle/new.png")
    shutil.copy(project / "shapes/circle/000.png", project / "shapes/square/new.png")
    sizes.append(prepare(builder_of("images")).facts["num_samples"]["train"])
    for name in ("circle", "square"):
        (project / "shapes" / name / "new.png").unlink()
    sizes.append(prepare(builder_of("images")).facts["num_samples"]["train"])
    assert sizes[0] == sizes[2] < sizes[1]


def test_a_setting_that_can_do_nothing_is_an_error_from_the_cache_too(project: Path) -> None:
    prepare(builder_of("images", "split={val: 0, test: 0}"))
    with pytest.raises(ConfigError, match="cannot take effect: no samples are set aside at random"):
        prepare(builder_of("images", "split={val: 0, test: 0, seed: 0}"))


def test_nothing_is_written_beside_the_data(project: Path) -> None:
    builders = [builder_of(name) for name in CONFIGS]
    before = sorted(project.rglob("*"))
    for builder in builders:
        prepare(builder)
    assert sorted(project.rglob("*")) == before


# ---- larger than the memory

SCRIPT = """
import json, os, resource, sys, time
import torch
torch.set_num_threads(1)
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
limit = 2**30 + max(0, used - 2**18) * 2**10  # torch's build for CUDA takes more than 256 MiB itself
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
from dltrain.config.validate import load_config
from dltrain.train import fit
import threading
largest = 0
def watch():
    global largest
    while True:
        for line in open("/proc/self/status"):
            if line.startswith("RssAnon"):
                largest = max(largest, int(line.split()[1]))
        time.sleep(0.01)
threading.Thread(target=watch, daemon=True).start()
began = time.perf_counter()
summary = fit(load_config("big.yaml"), root="runs")
seconds = time.perf_counter() - began
print(json.dumps({"rss_anon_mib": largest / 1024, "seconds": seconds, "loss": summary["metrics"]["val/loss"]}))
"""


@pytest.mark.slow
def test_images_larger_than_the_memory_are_trained_on(tmp_path: Path) -> None:
    for index in range(1500):
        folder = tmp_path / "big" / ("light" if index % 2 else "dark")
        folder.mkdir(parents=True, exist_ok=True)
        level = index % 100 + 120 * (index % 2)
        image = Image.new("L" if index < 20 else "RGB", (512, 512), level if index < 20 else (level, 20, 9))
        image.save(folder / f"{index:04d}.png", compress_level=1)
    (tmp_path / "big.yaml").write_text(
        "data: {type: images, path: big}\nmodel: {type: linear}\n"
        "split: {test: 0}\ntrain: {duration: 5 steps, batch_size: 8, eval_batch_size: 8, device: cpu, threads: 1}\n"
    )
    # Else what glibc keeps of freed batches (25 MB each) for later counts as well, and differs from run to run.
    variables = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20)}
    results = []
    for _ in range(2):
        command = [sys.executable, "-c", SCRIPT]
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
    cold, warm = results
    print(f"cold {cold}\nwarm {warm}")
    (row,) = list_entries()
    assert row["size_bytes"] > 2**30
    assert cold["loss"] == warm["loss"]
    assert max(cold["rss_anon_mib"], warm["rss_anon_mib"]) < 1024
    assert warm["seconds"] < cold["seconds"]


@pytest.mark.slow
def test_a_table_larger_than_the_memory_is_trained_on(tmp_path: Path) -> None:
    num_rows, rng = 500_000, np.random.default_rng(0)
    names = [*(f"x{i}" for i in range(32)), "y"]
    schema = pa.schema([(name, pa.float64()) for name in names])
    with pq.ParquetWriter(tmp_path / "big.parquet", schema) as writer:
        for _ in range(10):
            x = rng.standard_normal((32, num_rows))
            writer.write_table(pa.table([*x, x[0] - x[1]], schema=schema))
    (tmp_path / "big.yaml").write_text(
        "data: {type: table, path: big.parquet, target: y}\nmodel: {type: linear}\nsplit: {test: 0}\n"
        "train: {duration: 300 steps, evaluate_every: 300 steps, eval_batch_size: 8192, device: cpu, sampler: blocks}\n"
    )
    losses = []
    variables = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20)}
    for _ in range(2):
        command = [sys.executable, "-c", SCRIPT]
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        losses.append(json.loads(done.stdout)["loss"])
    assert losses[0] == losses[1] < 0.6
