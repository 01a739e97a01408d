"""Optimizers that torch lacks (Lion, Muon with AdamW, schedule-free AdamW), and the quick way to a step of its own.

The state of each parameter is tensors only, so a checkpoint can hold it by parameter name. Rates are not
state: the loop sets `lr` of each group to its `base_lr` times the schedule's factor before each step.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer
from torch.optim.adamw import adamw

from dltrain.errors import ConfigError

# Of the quintic whose slope at zero is steepest while singular values stay in about 0.7..1.2 (Jordan 2024).
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


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
    10 us), and an import of torch._dynamo (over 1 s at the first step). For fused Adam and AdamW it is the kernel
    alone, with the same bits at half the cost (benchmarks/LOG.md). Others are called as they are.
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
    kernel = {Adam: "_fused_adam_", AdamW: "_fused_adamw_"}.get(cls, "")
    is_plain = bool(kernel) and all(_is_plain_adam(group) for group in optimizer.param_groups)
    fused = getattr(torch, kernel, None) if is_plain else None

    def update() -> None:
        with torch.no_grad():
            if fused is None or not _fused_adam_step(optimizer, fused):
                step(optimizer)

    return update


def _is_plain_adam(group: Mapping[str, Any]) -> bool:
    """Return whether the fused kernel of Adam does all that the options of `group` ask for."""
    others = ("amsgrad", "maximize", "capturable", "differentiable")
    kinds = {(p.device, p.dtype) for p in group["params"]}
    return bool(group["fused"]) and not any(group[name] for name in others) and len(kinds) == 1


def _fused_adam_step(optimizer: Optimizer, kernel: Callable[..., object]) -> bool:
    """Update all parameters by `kernel`; return False, with nothing done, if one has no state yet."""
    work = []
    for group in optimizer.param_groups:
        params, grads = _with_gradient(group["params"])
        states = [optimizer.state[p] for p in params]
        if not all(states):
            return False
        if params:
            work.append((group, params, grads, states))
    for group, params, grads, states in work:
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        kernel(
            params,
            grads,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
    return True


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
            raise ConfigError("schedule_free_adamw needs a first beta above 0, such as 0.9")
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
