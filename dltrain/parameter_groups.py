"""Which parameter has which learning rate and weight decay: the groups of an optimizer, from patterns over names."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dltrain.errors import ConfigError
from dltrain.names import nearest


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    weight_decay: float,
    decay_all: bool = False,
    groups: Sequence[Mapping[str, Any]] = (),
    orthogonalize: frozenset[str] | None = None,
) -> list[dict[str, Any]]:
    """Return the groups of a torch optimizer: trainable parameters, those of equal options together.

    Each of `groups` has `params` (a glob pattern over names, or a list of them) and may have `lr`, or
    `lr_scale` (a factor of the optimizer's lr), and `weight_decay`; a parameter belongs to the first group
    that matches. Biases and parameters of at most one dimension (norms) do not decay unless `decay_all`.
    `orthogonalize` is for Muon: the names that `muon_matrices` returned. A group has `params`, `lr`,
    `base_lr` (equal to lr), `weight_decay`, and for Muon `orthogonalize`. Groups and parameters keep the
    order of `named_parameters`. Raises ConfigError for a setting that has no effect.
    """
    parameters = dict(named_parameters)
    trainable = [name for name, parameter in parameters.items() if parameter.requires_grad]
    if not trainable:
        raise ConfigError("the model has no trainable parameter; unfreeze some")
    owners = _owners(parameters, trainable, groups, decay_all)
    collected: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name in trainable:
        options = _options(name, parameters[name], lr, weight_decay, decay_all, owners.get(name, {}))
        if orthogonalize is not None:
            options["orthogonalize"] = name in orthogonalize
        group = collected.setdefault(tuple(options.values()), {"params": [], **options})
        group["params"].append(parameters[name])
    return list(collected.values())


def muon_matrices(model: nn.Module, adamw: Sequence[str] = ()) -> frozenset[str]:
    """Return the names of the parameters that Muon orthogonalizes: trainable, of two or more dimensions, not
    of an embedding, not the last such parameter of the model (its head), and matched by none of the patterns
    `adamw`.

    Raises ConfigError if a pattern matches nothing or if nothing remains.
    """
    embeddings = {
        parameter for module in model.modules() if isinstance(module, nn.Embedding) for parameter in module.parameters()
    }
    names = [name for name, _ in model.named_parameters()]
    by_adamw = set(names_matching(adamw, names, "adamw"))
    matrices = [name for name, p in model.named_parameters() if p.requires_grad and p.ndim >= 2 and p not in embeddings]
    chosen = frozenset(matrices[:-1]) - by_adamw
    if not chosen:
        raise ConfigError("muon is for matrices between the input and the head; this model has none; use adamw")
    return chosen


def _options(
    name: str, parameter: Tensor, lr: float, weight_decay: float, decay_all: bool, group: Mapping[str, Any]
) -> dict[str, Any]:
    """Return lr, base_lr and weight_decay of one parameter; `group` goes before the optimizer's."""
    if group.get("lr") is not None:
        lr = group["lr"]
    elif group.get("lr_scale") is not None:
        lr *= group["lr_scale"]
    if group.get("weight_decay") is not None:
        weight_decay = group["weight_decay"]
    return {
        "lr": lr,
        "base_lr": lr,
        "weight_decay": weight_decay if decay_all or _decays(name, parameter) else 0.0,
    }


def _decays(name: str, parameter: Tensor) -> bool:
    return parameter.ndim > 1 and name.rpartition(".")[2] != "bias"


def _owners(
    parameters: Mapping[str, Tensor],
    trainable: Sequence[str],
    groups: Sequence[Mapping[str, Any]],
    decay_all: bool,
) -> dict[str, Mapping[str, Any]]:
    """Return name -> the first of `groups` that matches. Raises ConfigError for a group without effect."""
    owners: dict[str, Mapping[str, Any]] = {}
    for index, group in enumerate(groups):
        where = f"groups.{index}"
        matched = set(names_matching(group["params"], parameters, f"{where}.params"))
        own = [name for name in trainable if name in matched and name not in owners]
        if not own:
            raise ConfigError(f"{where}.params: all it matches is frozen or in a group before it; move it up")
        can_decay = decay_all or any(_decays(name, parameters[name]) for name in own)
        if group.get("weight_decay") and not can_decay:
            raise ConfigError(f"{where}.weight_decay: biases and norms do not decay; set decay_all: true")
        owners |= dict.fromkeys(own, group)
    return owners


def names_matching(patterns: str | Sequence[str], names: Iterable[str], where: str) -> list[str]:
    """Return the names that match a glob pattern or one of several, each once, in the order of the patterns.

    Raises ConfigError, with the place `where` and the nearest names, for a pattern that matches none.
    """
    known, matched = list(names), dict[str, None]()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            near = nearest(pattern.strip("*."), known, 3, likeness=0.4) or known[:3]
            raise ConfigError(f"{where}: '{pattern}' matches no parameter; the nearest are {', '.join(near)}")
        matched |= dict.fromkeys(found)
    return list(matched)
