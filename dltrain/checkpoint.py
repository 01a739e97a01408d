"""One safetensors file that holds a run: weights, optimizer state, and as JSON all else that is needed.

No pickle; nothing in it is run. It is written whole or not at all, and SHA-256 over all of it is checked on reading.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from dltrain.errors import CheckpointError

FORMAT_VERSION = 1
LAST, BEST = "last.safetensors", "best.safetensors"


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


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to `path`, whole or not at all: temporary file, fsync, rename, fsync of the folder.

    Raises CheckpointError where the disk refuses; a checkpoint that stood at `path` before is then still there.
    """
    tensors, aliases = _without_aliases(checkpoint.tensors)
    meta = {"format_version": FORMAT_VERSION, "aliases": aliases, **checkpoint.meta}
    text = json.dumps(meta, sort_keys=True, allow_nan=False)
    header = {"dltrain": text, "sha256": _digest(tensors, text)}
    temporary = path.with_name(path.name + ".tmp")
    try:
        save_file(tensors, temporary, metadata=header)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot be written: {error}{_free_space(path.parent)}") from None


def load(path: Path) -> Checkpoint:
    """Read the checkpoint at `path` onto the CPU. Raises CheckpointError if it is missing, damaged or foreign."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a handle, no dict)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is damaged or no safetensors file: {error}") from None
    if "dltrain" not in header:
        raise CheckpointError(f"{path}: is a safetensors file, but no checkpoint of dltrain")
    if header.get("sha256") != _digest(tensors, header["dltrain"]):
        raise CheckpointError(f"{path}: is damaged: its SHA-256 does not fit its contents")
    meta = json.loads(header["dltrain"])
    if meta["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has checkpoint format {meta['format_version']}; this dltrain reads format {FORMAT_VERSION}"
        )
    tensors |= {alias: tensors[name] for alias, name in meta["aliases"].items()}
    return Checkpoint(tensors, meta)


def find(path: Path, name: str = BEST) -> Path:
    """Return the checkpoint file that `path` means: itself, or the one called `name` of a run directory."""
    if not path.is_dir():
        return path
    folder = path / "checkpoints"
    for candidate in (folder / name, folder / LAST):
        if candidate.is_file():
            return candidate
    raise CheckpointError(f"{path}: holds no checkpoint; is it a run directory, such as runs/digits/1?")


def load_weights(module: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Copy `weights` into `module`. Raises CheckpointError that lists all that does not fit."""
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
    module.load_state_dict(weights)


def optimizer_state(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's tensors as "parameter name/key"."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_state(optimizer: Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_state` returned, bit for bit. Learning rates come from the config."""
    for name, parameter in model.named_parameters():
        prefix = f"{name}/"
        state = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
        state = {key: value for key, value in state.items() if "/" not in key}
        if state:
            optimizer.state[parameter] = {
                key: value.clone()
                if value.dim() == 0 and not _on_device(optimizer)
                else value.clone().to(parameter.device)
                for key, value in state.items()
            }


def _on_device(optimizer: Optimizer) -> bool:
    """Fused and capturable optimizers keep even their step counts on the parameters' device."""
    group = optimizer.param_groups[0]
    return bool(group.get("fused") or group.get("capturable"))


def _without_aliases(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors without those that are another one (tied weights), and alias -> name for these."""
    first: dict[tuple[Any, ...], str] = {}
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            kept[name] = tensor.detach().cpu().contiguous()
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
