"""Own optimizers against their definitions in plain code and torch's; parameter groups; exact resume."""

import copy
import inspect
import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dltrain.config.schema import optimizers as schema
from dltrain.optimizers import Lion, Muon, ScheduleFreeAdamW, supports_fused, update_function
from dltrain.parameter_groups import parameter_groups

STEPS = 12


def shapes() -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    sizes = [(6, 4), (4, 6), (6, 4), (16, 3, 2, 2), (7,)]
    return [torch.randn(size, generator=rng, dtype=torch.float64).requires_grad_() for size in sizes]


def gradients(params: list[Tensor], step: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(100 + step)
    return [torch.randn(p.shape, generator=rng, dtype=torch.float64).to(p.dtype) + 0.3 * p.detach() for p in params]


def run(optimizer: torch.optim.Optimizer, params: list[Tensor], steps: range = range(STEPS)) -> None:
    for step in steps:
        for p, grad in zip(params, gradients(params, step), strict=True):
            p.grad = grad
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * min(1.0, (step + 1) / 4)
        optimizer.step()


def rate(step: int) -> float:
    return 0.02 * min(1.0, (step + 1) / 4)


def test_lion_follows_its_definition() -> None:
    ours = shapes()
    run(Lion(ours, betas=[0.9, 0.99], weight_decay=0.3), ours)

    plain = [p.detach() for p in shapes()]
    momenta = [torch.zeros_like(p) for p in plain]
    for step in range(STEPS):
        for i, g in enumerate(gradients(plain, step)):
            direction = (0.9 * momenta[i] + 0.1 * g).sign()
            plain[i] = plain[i] - rate(step) * (direction + 0.3 * plain[i])
            momenta[i] = 0.99 * momenta[i] + 0.01 * g
    torch.testing.assert_close([p.detach() for p in ours], plain)


def test_schedule_free_follows_algorithm_1_of_the_paper() -> None:
    ours = shapes()
    optimizer = ScheduleFreeAdamW(ours, betas=[0.9, 0.99], weight_decay=0.1)
    run(optimizer, ours)
    averages = [torch.empty_like(p) for p in ours]
    optimizer.average_into(averages)

    x = [p.detach() for p in shapes()]
    z, v, y = [p.clone() for p in x], [torch.zeros_like(p) for p in x], [p.clone() for p in x]
    sum_of_squares = 0.0
    for step in range(STEPS):
        gamma = rate(step) * math.sqrt(1 - 0.99 ** (step + 1))
        sum_of_squares += gamma**2
        c = gamma**2 / sum_of_squares
        for i, g in enumerate(gradients(y, step)):
            v[i] = 0.99 * v[i] + 0.01 * g**2
            z[i] = z[i] - gamma * g / (v[i].sqrt() + 1e-8) - gamma * 0.1 * y[i]
            x[i] = (1 - c) * x[i] + c * z[i]
            y[i] = 0.1 * z[i] + 0.9 * x[i]
    # The sum of squared rates is kept in float32.
    torch.testing.assert_close([p.detach() for p in ours], y, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(averages, x, rtol=1e-5, atol=1e-6)


def test_schedule_free_average_is_the_parameters_before_the_first_step() -> None:
    params = shapes()
    targets = [torch.zeros_like(p) for p in params]
    ScheduleFreeAdamW(params).average_into(targets)
    assert all(torch.equal(p, target) for p, target in zip(params, targets, strict=True))


def test_schedule_free_stands_a_rate_of_zero() -> None:
    params = shapes()
    optimizer = ScheduleFreeAdamW(params, lr=0.0)
    for p, grad in zip(params, gradients(params, 0), strict=True):
        p.grad = grad
    optimizer.step()
    assert all(torch.equal(p, start) for p, start in zip(params, shapes(), strict=True))


def test_schedule_free_average_beats_its_own_path_on_a_noisy_bowl() -> None:
    rng = torch.Generator().manual_seed(0)
    p = torch.full((50,), 3.0, requires_grad=True)
    optimizer = ScheduleFreeAdamW([p], lr=0.05)
    for _ in range(500):
        p.grad = p.detach() + torch.randn(50, generator=rng)
        optimizer.step()
    average = torch.empty(50)
    optimizer.average_into([average])
    assert average.norm() < 0.5 * optimizer.state[p]["z"].norm()


def newton_schulz(matrix: Tensor, steps: int = 5) -> Tensor:
    x = matrix / matrix.norm()
    for _ in range(steps):
        x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
    return x


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust_lr", ["original", "match_rms_adamw"])
def test_muon_follows_its_definition(nesterov: bool, adjust_lr: str) -> None:
    ours = shapes()
    run(Muon(ours, weight_decay=0.1, nesterov=nesterov, adjust_lr=adjust_lr), ours)

    plain = [p.detach() for p in shapes()[:4]]
    buffers = [torch.zeros_like(p) for p in plain]
    for step in range(STEPS):
        for i, g in enumerate(gradients(plain, step)):
            buffers[i] = 0.95 * buffers[i] + 0.05 * g
            direction = 0.05 * g + 0.95 * buffers[i] if nesterov else buffers[i]
            update = newton_schulz(direction.reshape(len(g), -1))
            rows, columns = update.shape
            ratio = math.sqrt(max(1, rows / columns))
            factor = ratio if adjust_lr == "original" else 0.2 * math.sqrt(max(rows, columns))
            plain[i] = plain[i] * (1 - 0.1 * rate(step)) - rate(step) * factor * update.reshape(g.shape)
    torch.testing.assert_close([p.detach() for p in ours[:4]], plain)


@pytest.mark.parametrize("adjust_lr", ["original", "match_rms_adamw"])
def test_muon_is_torchs_up_to_bfloat16(adjust_lr: str) -> None:
    ours, theirs = ([p.detach().float().requires_grad_() for p in shapes()[:3]] for _ in range(2))
    run(Muon(ours, weight_decay=0.1, adjust_lr=adjust_lr), ours)
    run(torch.optim.Muon(theirs, weight_decay=0.1, adjust_lr_fn=adjust_lr), theirs)
    start = [p.detach().float() for p in shapes()[:3]]
    for our, their, first in zip(ours, theirs, start, strict=True):
        assert (our - their).norm() < 0.02 * (their - first).norm()


def test_muon_updates_vectors_and_excluded_matrices_as_adamw() -> None:
    ours, theirs = shapes(), shapes()
    groups = [{"params": ours[:1], "orthogonalize": False}, {"params": ours[1:]}]
    run(Muon(groups, weight_decay=0.1), ours)
    run(torch.optim.AdamW(theirs, weight_decay=0.1, foreach=True), theirs)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[4], theirs[4])
    assert not torch.allclose(ours[1], theirs[1])


def test_muon_makes_updates_orthogonal() -> None:
    p = torch.randn(8, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    start = p.detach().clone()
    p.grad = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    Muon([p], lr=1.0, weight_decay=0.0, adjust_lr="original").step()
    singular_values = torch.linalg.svdvals(p.detach() - start)
    assert singular_values.min() > 0.6
    assert singular_values.max() < 1.3


OWN: list[Callable[[Any], torch.optim.Optimizer]] = [Lion, Muon, ScheduleFreeAdamW]


@pytest.mark.parametrize("build", OWN)
def test_resume_is_exact(build: Callable[[Any], torch.optim.Optimizer]) -> None:
    whole = [p.detach().float().requires_grad_() for p in shapes()]
    run(build(whole), whole)

    params = [p.detach().float().requires_grad_() for p in shapes()]
    first = build(params)
    run(first, params, range(5))
    stored = copy.deepcopy(first.state_dict())
    params = [p.detach().clone().requires_grad_() for p in params]
    second = build(params)
    second.load_state_dict(stored)
    run(second, params, range(5, STEPS))
    assert all(torch.equal(a, b) for a, b in zip(params, whole, strict=True))


@pytest.mark.parametrize("build", OWN)
def test_state_is_tensors_of_each_parameter(build: Callable[[Any], torch.optim.Optimizer]) -> None:
    params = shapes()
    optimizer = build(params)
    run(optimizer, params, range(1))
    assert set(optimizer.state) == set(params)
    assert all(isinstance(value, Tensor) for state in optimizer.state.values() for value in state.values())


@pytest.mark.parametrize("build", OWN)
def test_parameters_without_gradient_stay(build: Callable[[Any], torch.optim.Optimizer]) -> None:
    params = shapes()
    optimizer = build(params)
    params[1].grad = torch.ones_like(params[1])
    optimizer.step()
    changed = [not torch.equal(p, start) for p, start in zip(params, shapes(), strict=True)]
    assert changed == [False, True, False, False, False]


@pytest.mark.parametrize("build", OWN)
def test_closure_is_evaluated_with_gradients(build: Callable[[Any], Any]) -> None:
    p = torch.ones(3, 3, requires_grad=True)
    optimizer = build([p])

    def closure() -> float:
        loss = (p**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 9.0
    assert not torch.equal(p, torch.ones(3, 3))


# ---- settings


@pytest.mark.parametrize("settings", schema.ALL)
def test_each_optimizer_builds_from_its_settings_and_learns(settings: Any) -> None:
    module, _, name = settings.builds.partition(":")
    target = getattr(import_module(module), name)
    built = settings(type=settings.model_fields["type"].annotation.__args__[0])
    arguments = built.model_dump(exclude={"type", *settings.build_only})
    parameters = inspect.signature(target).parameters
    for field, value in arguments.items():
        default = parameters[field].default
        assert value == (list(default) if isinstance(default, tuple) else default)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    arguments["lr"] *= 3
    groups = parameter_groups(model.named_parameters(), arguments["lr"], arguments["weight_decay"])
    fused = {"fused": True} if supports_fused(target, "cpu") else {}
    optimizer = target(groups, **arguments, **fused)
    x = torch.randn(64, 4)
    y = x[:, :1] * x[:, 1:2]
    losses = []
    for _ in range(60):
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_fused_is_offered_where_torch_has_it() -> None:
    assert supports_fused(torch.optim.AdamW, "cuda")
    assert not supports_fused(torch.optim.Adagrad, "cuda")
    assert not supports_fused(torch.optim.RMSprop, "cpu")
    assert not supports_fused(Lion, "cuda")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: schema.SGD(type="sgd", nesterov=True), "nesterov needs momentum above 0 and dampening 0"),
        (lambda: schema.SGD(type="sgd", dampening=0.5), "dampening has no effect without momentum"),
        (
            lambda: schema.ParameterGroup(params="*", lr=1.0, lr_scale=1.0),
            "lr and lr_scale exclude each other",
        ),
        (lambda: schema.AdamW(type="adamw", betas=[0.9]), "at least 2 items"),
        (lambda: schema.ScheduleFreeAdamW(type="schedule_free_adamw", betas=[0.0, 0.9]), "greater than 0"),
    ],
)
def test_settings_that_contradict_are_refused(settings: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings()


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("late", [False, True])
def test_the_kernel_alone_is_the_whole_step(kind: Any, late: bool) -> None:
    """Also where a parameter gets its first gradient later than the others, and groups differ."""
    weights: list[list[Tensor]] = []
    for alone in (False, True):
        params = [nn.Parameter(p.detach().clone()) for p in shapes()]
        groups = [{"params": params[:1], "lr": 0.03, "weight_decay": 0.1}, {"params": params[1:]}]
        optimizer = kind(groups, lr=0.01, fused=True)
        update = update_function(optimizer) if alone else optimizer.step
        for step in range(STEPS):
            for p, grad in zip(params, gradients(params, step), strict=True):
                p.grad = grad
            if late and step < 2:
                params[-1].grad = None
            optimizer.param_groups[0]["lr"] = rate(step)
            update()
        states = [optimizer.state[p].get(name, p) for p in params for name in ("step", "exp_avg", "exp_avg_sq")]
        weights.append([p.detach() for p in params] + states)
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
