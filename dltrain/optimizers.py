"""Optimizers that torch lacks (Lion, Muon with AdamW, schedule-free AdamW), and parameter groups for all.

The state of each parameter is tensors only, so a checkpoint can hold it by parameter name. Rates are not
state: the loop sets `lr` of each group to its `base_lr` times the schedule's factor before each step.
"""

from __future__ import annotations

import fnmatch
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer
from torch.optim.adamw import adamw

from dltrain.errors import ConfigError
from dltrain.names import nearest

# Of the quintic whose slope at zero is steepest while singular values stay in about 0.7..1.2 (Jordan 2024).
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


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
        raise ConfigError("optimizer: the model has no trainable parameter; unfreeze some")
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
    by_adamw = {name for pattern in adamw for name in _matches(pattern, names, "optimizer.adamw")}
    matrices = [name for name, p in model.named_parameters() if p.requires_grad and p.ndim >= 2 and p not in embeddings]
    chosen = frozenset(matrices[:-1]) - by_adamw
    if not chosen:
        raise ConfigError(
            "optimizer: muon is for matrices between the input and the head; this model has none; use adamw"
        )
    return chosen


def supports_fused(optimizer_class: Callable[..., Optimizer], device_type: str) -> bool:
    """Return whether torch has a fused kernel of that optimizer for that device, for `fused=True`."""
    fused: dict[str, tuple[Callable[..., Optimizer], ...]] = {
        "cpu": (SGD, Adam, AdamW, Adagrad),
        "cuda": (SGD, Adam, AdamW),
    }
    return optimizer_class in fused.get(device_type, ())


def averages(optimizer: Optimizer) -> bool:
    """Return whether the optimizer keeps an average of the weights itself, which is what is to be evaluated."""
    return hasattr(optimizer, "average_into")


def update_function(optimizer: Optimizer, scaler: Any = None) -> Callable[[], object]:
    """Return what carries out a step of `optimizer`; a `scaler` (torch.amp.GradScaler) leaves out one that overflowed.

    For torch's own optimizers it is their `step` without what torch wraps around it: hooks and a profiler range (some
    10 us), and an import of torch._dynamo (over 1 s at the first step). Others are called as they are.
    """

    def scaled_update() -> None:
        scaler.step(optimizer)
        scaler.update()

    if scaler is not None:
        return scaled_update
    cls = type(optimizer)
    if not cls.__module__.startswith("torch.optim."):
        return optimizer.step
    step = inspect.unwrap(cls.step)

    def update() -> None:
        with torch.no_grad():
            step(optimizer)

    return update


class Lion(Optimizer):
    """Step by the sign of a momentum (Chen et al. 2023, https://arxiv.org/abs/2302.06675).

    Wants some 3 to 10 times less lr and as much more weight decay than AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: Sequence[float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = _evaluate(closure)
        for group in self.param_groups:
            params, grads = _with_gradient(group["params"])
            if params:
                self._update(group, params, grads)
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        for p in params:
            if not self.state[p]:
                self.state[p]["exp_avg"] = torch.zeros_like(p)
        exp_avgs = [self.state[p]["exp_avg"] for p in params]
        updates = list(torch._foreach_lerp(exp_avgs, grads, 1 - beta1))
        torch._foreach_sign_(updates)
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_add_(params, updates, alpha=-lr)
        torch._foreach_lerp_(exp_avgs, grads, 1 - beta2)


class Muon(Optimizer):
    """Momentum whose matrices are orthogonalized by Newton-Schulz steps; AdamW for all other parameters
    (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    Orthogonalized are the parameters of two or more dimensions in groups without `orthogonalize: False`;
    convolution kernels as (out, in * height * width). `adjust_lr` scales their updates: "match_rms_adamw", to
    the size of AdamW's, so one lr and weight decay serve all parameters (Liu et al. 2025,
    https://arxiv.org/abs/2502.16982); or "original". Matrices of equal shape are multiplied together, in
    bfloat16 on CUDA as there, else in their own type.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr: str = "match_rms_adamw",
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "adjust_lr": adjust_lr,
            "betas": tuple(betas),
            "eps": eps,
            "orthogonalize": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = _evaluate(closure)
        for group in self.param_groups:
            is_matrix = [group["orthogonalize"] and p.ndim >= 2 for p in group["params"]]
            matrices = [p for p, yes in zip(group["params"], is_matrix, strict=True) if yes]
            others = [p for p, yes in zip(group["params"], is_matrix, strict=True) if not yes]
            self._update_matrices(group, *_with_gradient(matrices))
            self._update_others(group, *_with_gradient(others))
        return loss

    def _update_matrices(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        if not params:
            return
        lr, momentum = group["lr"], group["momentum"]
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        directions = torch._foreach_lerp(grads, buffers, momentum) if group["nesterov"] else buffers
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        for indices in _indices_by_shape(params):
            stacked = torch.stack([directions[i].flatten(1) for i in indices])
            updates = _orthogonalized(stacked, group["ns_steps"])
            updates *= -lr * _lr_factor(stacked.size(1), stacked.size(2), group["adjust_lr"])
            for i, update in zip(indices, updates, strict=True):
                params[i].add_(update.reshape(params[i].shape))

    def _update_others(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        if not params:
            return
        for p in params:
            if not self.state[p]:
                self.state[p] |= {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [self.state[p] for p in params]
        adamw(
            params,
            grads,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


class ScheduleFreeAdamW(Optimizer):
    """AdamW that averages its own path, in place of a schedule that falls (Defazio et al. 2024,
    https://arxiv.org/abs/2405.15682, algorithm 1). Use it with a constant schedule and a warm-up.

    Of the paper's three sequences the parameters hold y, where gradients are taken, and the state holds z; x,
    which is to be evaluated, follows from both: `average_into` writes it. There are no modes to switch. The
    running statistics of BatchNorm are those of y; a model with BatchNorm needs new ones to be judged at x.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2.5e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not betas[0] > 0:
            raise ConfigError("optimizer.betas: schedule_free_adamw needs a first beta above 0, such as 0.9")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = _evaluate(closure)
        for group in self.param_groups:
            params, grads = _with_gradient(group["params"])
            if params:
                self._update(group, params, grads)
        return loss

    @torch.no_grad()
    def average_into(self, targets: Sequence[Tensor]) -> None:
        """Write the averages x into `targets`, one for each parameter, in the order of the groups."""
        params = [(p, group["betas"][0]) for group in self.param_groups for p in group["params"]]
        for (p, beta1), target in zip(params, targets, strict=True):
            target.copy_(torch.lerp(p, self.state[p]["z"], 1 - 1 / beta1) if self.state[p] else p)

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        for p in params:
            if not self.state[p]:
                # The two numbers stay on the CPU, where reading them does not wait for the device.
                numbers = {"step": torch.tensor(0.0), "weight_sum": torch.tensor(0.0)}
                self.state[p] |= {"z": p.clone(), "exp_avg_sq": torch.zeros_like(p), **numbers}
        states = [self.state[p] for p in params]
        zs = [state["z"] for state in states]
        exp_avg_sqs = [state["exp_avg_sq"] for state in states]
        rates, shares = _advance(states, group["lr"], beta2)

        torch._foreach_mul_(exp_avg_sqs, beta2)
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
        denominators = list(torch._foreach_sqrt(exp_avg_sqs))
        torch._foreach_add_(denominators, group["eps"])
        updates = list(torch._foreach_div(grads, denominators))
        if group["weight_decay"]:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        torch._foreach_mul_(updates, rates)
        # z' = z - u, x' = (1 - c) x + c z' and y' = (1 - beta1) z' + beta1 x', with x taken out.
        torch._foreach_lerp_(params, zs, shares)
        torch._foreach_sub_(zs, updates)
        torch._foreach_mul_(updates, [beta1 * (1 - share) - 1 for share in shares])
        torch._foreach_add_(params, updates)


def _advance(states: list[dict[str, Tensor]], lr: float, beta2: float) -> tuple[list[float], list[float]]:
    """Count a step; return the rate of each parameter and the share of z in its new average."""
    steps, weight_sums = [state["step"] for state in states], [state["weight_sum"] for state in states]
    torch._foreach_add_(steps, 1)
    rates = [lr * math.sqrt(1 - beta2**step) for step in torch.stack(steps).tolist()]
    torch._foreach_add_(weight_sums, [rate**2 for rate in rates])
    sums = torch.stack(weight_sums).tolist()
    # A rate of zero leaves the average alone; on the first step there is nothing yet to average.
    return rates, [rate**2 / total if total else 0.0 for rate, total in zip(rates, sums, strict=True)]


def _orthogonalized(matrices: Tensor, steps: int) -> Tensor:
    """Return about U V^T of each of the matrices U S V^T (N, A, B), by Newton-Schulz steps."""
    a, b, c = _NEWTON_SCHULZ
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    is_tall = x.size(1) > x.size(2)
    x = x.mT if is_tall else x
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrices.dtype)


def _lr_factor(num_rows: int, num_columns: int, adjust_lr: str) -> float:
    if adjust_lr == "original":
        return math.sqrt(max(1.0, num_rows / num_columns))
    return 0.2 * math.sqrt(max(num_rows, num_columns))


def _indices_by_shape(params: Sequence[Tensor]) -> list[list[int]]:
    indices: dict[tuple[Any, ...], list[int]] = {}
    for index, p in enumerate(params):
        indices.setdefault((p.shape[0], p[0].numel(), p.dtype, p.device), []).append(index)
    return list(indices.values())


def _with_gradient(params: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters that have a gradient, and the gradients."""
    pairs = [(p, p.grad) for p in params if p.grad is not None]
    return [p for p, _ in pairs], [grad for _, grad in pairs]


def _evaluate(closure: Callable[[], float] | None) -> float | None:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


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
        where = f"optimizer.groups.{index}"
        given = group["params"]
        patterns: Sequence[str] = [given] if isinstance(given, str) else given
        matched = {name for pattern in patterns for name in _matches(pattern, parameters, f"{where}.params")}
        own = [name for name in trainable if name in matched and name not in owners]
        if not own:
            raise ConfigError(f"{where}.params: all it matches is frozen or in a group before it; move it up")
        can_decay = decay_all or any(_decays(name, parameters[name]) for name in own)
        if group.get("weight_decay") and not can_decay:
            raise ConfigError(f"{where}.weight_decay: biases and norms do not decay; set decay_all: true")
        owners |= dict.fromkeys(own, group)
    return owners


def _matches(pattern: str, names: Iterable[str], where: str) -> list[str]:
    """Return the names that match the glob `pattern`. Raises ConfigError with the nearest if none does."""
    known = list(names)
    matched = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
    if not matched:
        near = nearest(pattern.strip("*."), known, 3, likeness=0.4) or known[:3]
        raise ConfigError(f"{where}: '{pattern}' matches no parameter; the nearest are {', '.join(near)}")
    return matched
