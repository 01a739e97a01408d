"""One safetensors file that holds a run: weights, optimizer state, and as JSON all else that is needed.

No pickle; nothing in it is run. It is written whole or not at all, and SHA-256 over all of it is checked on reading.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.optim import Optimizer

from dltrain.data.sources.facts import check_facts
from dltrain.errors import CheckpointError
from dltrain.run import make_numbered

FORMAT_VERSION = 1
LAST, BEST = "last.safetensors", "best.safetensors"
PREVIOUS = "previous.safetensors"
"""The last one before the last, for the case that this is found damaged."""
_DAMAGED = "damaged.safetensors"
SHARDS = "shards"
"""Folder of what each process has written of a model in slices: a numbered folder for each checkpoint that has some."""
_SLOW_S = 10.0

# What every checkpoint has in its metadata; the last of a run has more.
_META = {"aliases": dict, "config": dict, "facts": dict, "folder": str, "metrics": dict, "step": int}
_FACTS = {"source": dict, "task": dict, "input_shapes": list, "input_types": list, "num_samples": dict}

# What the last of a run has more.
_OF_TRAINING: dict[str, Callable[[Any], bool]] = {
    "step": lambda value: value >= 0,
    "elapsed_s": lambda value: type(value) in (int, float) and value >= 0,
    "num_rollbacks": lambda value: type(value) is int and value >= 0,
    "num_threads": lambda value: type(value) is int and 1 <= value <= 1024,
    "scores": lambda value: isinstance(value, list) and {*map(type, value)} <= {int, float, NoneType},
    "shards": lambda value: _is_index_of_shards(value),
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: tensors by "part/name", and everything else as JSON values."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of one part ("model", "averaged", "optimizer", "running") by their own names."""
        prefix = f"{name}/"
        return {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}

    @property
    def evaluated_weights(self) -> dict[str, Tensor]:
        """The weights that evaluation and prediction use: the averaged ones where there are any."""
        return self.part("averaged") or self.part("model")


def save(path: Path, checkpoint: Checkpoint, *, keep_as: str | None = None) -> None:
    """Write `checkpoint` to `path`, whole or not at all: temporary file, fsync, rename, fsync of the folder.

    What stood at `path` before is kept beside it under the name `keep_as`, if one is given.

    Raises CheckpointError where the disk refuses; a checkpoint that stood at `path` before is then still there.
    """
    tensors, aliases = _without_aliases(checkpoint.tensors)
    meta = {"format_version": FORMAT_VERSION, "aliases": aliases, **checkpoint.meta}
    text = json.dumps(meta, sort_keys=True, allow_nan=False)
    header = {"dltrain": text, "sha256": _digest(tensors, text)}
    _write(path, tensors, header, keep_as)


def save_shard(folder: Path, index: int, tensors: dict[str, Tensor]) -> str:
    """Write the slices of process `index` into the `folder` of a checkpoint's shards; return their SHA-256."""
    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    digest = _digest(own, "")
    _write(folder / f"{index}.safetensors", own, {"sha256": digest}, None)
    return digest


def shard_folder(path: Path) -> Path:
    """Make and return a folder for the shards of a checkpoint that will be written to `path`."""
    try:
        return make_numbered(path.parent / SHARDS)
    except OSError as error:
        raise CheckpointError(f"{path.parent / SHARDS}: cannot be written: {error.strerror}") from None


def remove_unused_shards(folder: Path) -> None:
    """Remove those shards that no checkpoint in `folder` has."""
    used = set()
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(OSError, SafetensorError, ValueError), safe_open(path, framework="pt") as file:
            used.add(json.loads((file.metadata() or {}).get("dltrain", "{}")).get("shards", {}).get("folder"))
    for entry in (folder / SHARDS).iterdir():
        if entry.name not in used:
            shutil.rmtree(entry, ignore_errors=True)


def _write(path: Path, tensors: dict[str, Tensor], header: dict[str, str], keep_as: str | None) -> None:
    """Write a safetensors file, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    slow = threading.Timer(_SLOW_S, _say_slow, (path,))
    slow.daemon = True  # a second Ctrl-C is not kept waiting
    slow.start()
    try:
        save_file(tensors, temporary, metadata=header)
        temporary.chmod(path.parent.stat().st_mode & 0o666)  # safetensors lets only the owner read
        _sync(temporary)
        if keep_as is not None and path.exists():
            os.replace(path, path.with_name(keep_as))
        os.replace(temporary, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot be written: {error}{_free_space(path.parent)}") from None
    finally:
        slow.cancel()


def _say_slow(path: Path) -> None:
    sys.stderr.write(f"still writing {path} after {_SLOW_S:g} s: the disk is slow, or does not answer\n")


def load(path: Path, rows: Callable[[int], slice] | None = None) -> Checkpoint:
    """Read the checkpoint at `path` onto the CPU, with its shards, each of which is a stretch of rows of all tensors.

    `rows` gives which of a number of rows are wanted of the tensors in shards: all, where it is None.

    Raises CheckpointError if it is missing, damaged or foreign.
    """
    header, tensors = _read(path)
    if "dltrain" not in header:
        raise CheckpointError(f"{path}: is a safetensors file, but no checkpoint of dltrain")
    if header.get("sha256") != _digest(tensors, header["dltrain"]):
        raise CheckpointError(f"{path}: is damaged: its SHA-256 does not fit its contents")
    meta = _read_meta(path, header["dltrain"])
    unknown = [name for name in meta["aliases"].values() if not isinstance(name, str) or name not in tensors]
    if unknown:
        raise CheckpointError(f"{path}: an alias names {unknown[0]!r}, and there is no such tensor")
    tensors |= {alias: tensors[name] for alias, name in meta["aliases"].items()}
    if (shards := meta.pop("shards", None)) is not None:
        tensors |= _read_shards(path.parent / SHARDS / shards["folder"], shards, rows or (lambda number: slice(number)))
    return Checkpoint(tensors, meta)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return header and tensors of a safetensors file. Raises CheckpointError if there is none."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is damaged or no safetensors file: {error}") from None


def _read_shards(folder: Path, shards: dict[str, Any], rows: Callable[[int], slice]) -> dict[str, Tensor]:
    """Return the wanted `rows` of all tensors in shards; one of their files is in memory at a time."""
    num_rows: dict[str, int] = shards["rows"]
    begun = dict.fromkeys(num_rows, 0)
    parts: dict[str, list[Tensor]] = {name: [] for name in num_rows}
    for index, digest in enumerate(shards["sha256"]):
        path = folder / f"{index}.safetensors"
        _, tensors = _read(path)
        if _digest(tensors, "") != digest:
            raise CheckpointError(f"{path}: is damaged: its SHA-256 does not fit its contents")
        if tensors.keys() != num_rows.keys() or not all(tensor.dim() for tensor in tensors.values()):
            raise CheckpointError(f"{path}: is no shard of its checkpoint: it holds other tensors")
        for name, tensor in tensors.items():
            wanted, begin = rows(num_rows[name]), begun[name]
            start, stop = (max(0, at - begin) for at in (wanted.start or 0, wanted.stop))
            parts[name].append(tensor[start:stop].clone())
            begun[name] += len(tensor)
    if begun != num_rows:
        raise CheckpointError(f"{folder}: does not hold as many rows as its checkpoint says")
    try:
        return {name: torch.cat(pieces) for name, pieces in parts.items()}
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: its shards do not fit each other: {error}") from None


def _is_index_of_shards(value: Any) -> bool:
    """Return whether `value` names the folder of shards, the digest of each, and the number of rows of each tensor."""
    return (
        isinstance(value, dict)
        and value.keys() == {"folder", "sha256", "rows"}
        and isinstance(value["folder"], str)
        and value["folder"].isascii()
        and value["folder"].isdecimal()
        and isinstance(value["sha256"], list)
        and isinstance(value["rows"], dict)
        and all(type(number) is int and number >= 0 for number in value["rows"].values())
    )


def _read_meta(path: Path, text: str) -> dict[str, Any]:
    """Return the metadata. Raises CheckpointError for another format, and where a part that all have is missing."""
    try:
        meta = json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata are no JSON: {error}") from None
    version = meta.get("format_version") if isinstance(meta, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path}: has checkpoint format {version}; this dltrain reads format {FORMAT_VERSION}")
    for tree, kinds in ((meta, _META), (meta.get("facts"), _FACTS)):
        wrong = [name for name, kind in kinds.items() if not isinstance(tree.get(name), kind)]
        wrong = wrong or [name for name in ("input_shapes",) if name in tree and not _are_shapes(tree[name])]
        if tree is meta:
            more = {name: is_right for name, is_right in _OF_TRAINING.items() if name in tree and name not in wrong}
            wrong += [name for name, is_right in more.items() if not is_right(tree[name])]
        if wrong:
            raise CheckpointError(f"{path}: its metadata lack {', '.join(wrong)}, or have it in another form")
    data = meta["config"].get("data")
    if isinstance(data, dict):  # else the config is said to be wrong
        try:
            check_facts(meta["facts"], str(data.get("type")))
        except ValueError as error:
            raise CheckpointError(f"{path}: its metadata are not understood: {error}") from None
    return meta  # type: ignore[no-any-return]


def _integer(text: str) -> int:
    """Return a number as JSON has it. Raises ValueError where it is larger than any that a config or a tensor has."""
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{value} is too large for 64 bits")
    return value


def _are_shapes(value: list[Any]) -> bool:
    """Return whether `value` is a list of shapes: lists of sizes of at least 0."""
    return all(isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape) for shape in value)


def load_last(run: Path, rows: Callable[[int], slice] | None = None) -> tuple[Path, Checkpoint, str]:
    """Return the newest good checkpoint of the state of a run, its file first, and what is wrong with a newer one.

    `rows` are those that are wanted of tensors in shards, as in `load`. Raises CheckpointError if there is none.
    """
    path = find(run, LAST)
    try:
        return path, load(path, rows), ""
    except CheckpointError as error:
        previous = path.with_name(PREVIOUS)
        if path.name != LAST or not previous.is_file():
            raise
        return previous, load(previous, rows), str(error)


def set_aside(path: Path) -> None:
    """Give a damaged last checkpoint another name, or it would become the previous one with the next that is saved."""
    os.replace(path, path.with_name(_DAMAGED))


@contextlib.contextmanager
def understood(where: str) -> Iterator[None]:
    """Raise CheckpointError where the block fails on metadata that no dltrain has written."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{where}: its metadata are not understood: {type(error).__name__}: {error}") from error


def find(path: Path, name: str = BEST) -> Path:
    """Return the checkpoint file that `path` means: itself, or the one called `name` of a run directory."""
    if not path.is_dir():
        return path
    folder = path / "checkpoints"
    for candidate in (folder / name, folder / LAST, folder / PREVIOUS):
        if candidate.is_file():
            return candidate
    runs = sorted(entry.name for entry in path.iterdir() if (entry / "checkpoints").is_dir())
    hint = f"it holds runs: {', '.join(runs[:10])}" if runs else "is it a run directory, such as runs/digits/1?"
    raise CheckpointError(f"{path}: holds no checkpoint; {hint}")


def load_weights(module: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Copy `weights` into `module`. Raises CheckpointError that lists all that does not fit."""
    compare_weights(module, weights, where)
    module.load_state_dict(weights)


def compare_weights(module: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Raise CheckpointError that lists all that is missing, unexpected, or of another shape than in `module`."""
    own = module.state_dict()
    problems = [f"missing {name}" for name in own if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in own]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, the model has {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if problems:
        shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise CheckpointError(f"{where}: does not fit the model: {shown}")


@contextlib.contextmanager
def no_larger_than(weights: dict[str, Tensor], where: str) -> Iterator[None]:
    """Raise CheckpointError as soon as a module in the block gets more parameters than there are `weights`."""
    limit = sum(tensor.numel() + 1 for tensor in weights.values())
    sizes: dict[tuple[int, str], int] = {}
    total = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal total
        key = id(module), name
        size = 0 if parameter is None else parameter.numel() + 1
        total, sizes[key] = total + size - sizes.get(key, 0), size
        if total > limit:
            raise CheckpointError(f"{where}: does not fit the model, which is larger: is its config another one's?")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def optimizer_state(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return what the optimizer remembers: "parameter name/key", and "#i/key" for what group i has learnt by itself.

    Plain numbers become tensors whose key ends in "#". Raises CheckpointError for a value that is neither.
    """
    remembered = {name: optimizer.state.get(parameter, {}) for name, parameter in model.named_parameters()}
    for index, group in enumerate(optimizer.param_groups):
        given = {"params", "lr", "base_lr", "weight_decay"}
        changed = {key: value for key, value in group.items() if key not in given and _is_storable(value)}
        defaults = optimizer.defaults
        remembered[f"#{index}"] = {
            key: value
            for key, value in changed.items()
            if isinstance(value, Tensor) or key not in defaults or value != defaults[key]
        }
    tensors: dict[str, Tensor] = {}
    for owner, values in remembered.items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{owner}/{key}"] = value
            elif _is_storable(value):
                tensors[f"{owner}/{key}#"] = torch.tensor(value, dtype=_NUMBER_TYPES[type(value)])
            elif value is not None:
                raise CheckpointError(
                    f"optimizer: keeps '{key}', a {type(value).__name__}, for {owner}; a checkpoint holds tensors and "
                    "numbers, so a resumed run would not be exact"
                )
    return tensors


def load_optimizer_state(optimizer: Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_state` returned, bit for bit. Learning rates come from the config."""
    parameters = dict(model.named_parameters())
    for path, tensor in tensors.items():
        owner, _, key = path.rpartition("/")
        value = tensor.item() if key.endswith("#") else tensor.clone()
        if owner.startswith("#"):
            optimizer.param_groups[int(owner[1:])][key.removesuffix("#")] = value
            continue
        parameter = parameters[owner]
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)  # in memory as the parameter is
        elif isinstance(value, Tensor) and (value.dim() > 0 or _on_device(optimizer)):
            value = value.to(parameter.device)
        optimizer.state[parameter][key.removesuffix("#")] = value


_NUMBER_TYPES = {bool: torch.bool, int: torch.int64, float: torch.float64}


def _is_storable(value: Any) -> bool:
    return isinstance(value, Tensor) or type(value) in _NUMBER_TYPES


def _on_device(optimizer: Optimizer) -> bool:
    """Fused and capturable optimizers keep even their step counts on the parameters' device."""
    group = optimizer.param_groups[0]
    return bool(group.get("fused") or group.get("capturable"))


def _without_aliases(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors without those that are another one (tied weights), and alias -> name for these."""
    first: dict[tuple[Any, ...], str] = {}
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        # Safetensors refuses views of one storage, such as a buffer that is part of a weight.
        kept[name] = value.clone() if storage in storages else value
        storages.add(storage)
    return kept, aliases


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    """Return SHA-256 over the names, types, shapes and bytes of the tensors and the metadata."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_space(folder: Path) -> str:
    try:
        status = os.statvfs(folder)
    except OSError:
        return ""
    return f" ({status.f_bavail * status.f_frsize / 2**20:.0f} MiB free)"
