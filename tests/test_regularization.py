"""Each regularizer against its definition, torch or scikit-learn."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from sklearn.linear_model import ElasticNet as SklearnElasticNet
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn

from dltrain import regularization
from dltrain.config.durations import DurationValue
from dltrain.config.schema import regularization as schema
from dltrain.errors import ConfigError

SHAPES = [(5, 4), (5,), (6, 3, 2, 2), (6,), ()]


def make_parameters(seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng, dtype=dtype, requires_grad=True) for shape in SHAPES]


def with_gradients(scale: float = 1.0) -> list[Tensor]:
    parameters = make_parameters()
    for p, g in zip(parameters, make_parameters(seed=1), strict=True):
        p.grad = g.detach() * scale
    return parameters


def gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad.clone() for p in parameters if p.grad is not None]


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- penalties


def test_l1_value_and_gradient() -> None:
    parameters = make_parameters()
    penalty = regularization.l1(parameters, strength=0.3)
    penalty.backward()
    torch.testing.assert_close(penalty.detach(), 0.3 * flat(parameters).abs().sum())
    for p in parameters:
        torch.testing.assert_close(p.grad, 0.3 * p.detach().sign())


def test_l2_is_weight_decay_of_twice_the_strength() -> None:
    by_penalty, by_decay = make_parameters(), make_parameters()
    optimizer = torch.optim.SGD(by_penalty, lr=0.1)
    penalty = regularization.l2(by_penalty, strength=0.2)
    penalty.backward()
    optimizer.step()
    decay = torch.optim.SGD(by_decay, lr=0.1, weight_decay=0.4)
    for p in by_decay:
        p.grad = torch.zeros_like(p)
    decay.step()
    torch.testing.assert_close(penalty.detach(), 0.2 * flat(make_parameters()).square().sum())
    torch.testing.assert_close(by_penalty, by_decay)


@pytest.mark.parametrize(("l1_ratio", "same"), [(0.0, regularization.l2), (1.0, regularization.l1)])
def test_elastic_net_at_its_ends(l1_ratio: float, same: Callable[..., Tensor]) -> None:
    parameters = make_parameters()
    blend = regularization.elastic_net(parameters, strength=0.7, l1_ratio=l1_ratio)
    torch.testing.assert_close(blend, same(parameters, strength=0.7))


def test_elastic_net_finds_the_solution_of_scikit_learn() -> None:
    # scikit-learn: 1/2 MSE + alpha (ratio |w| + (1 - ratio) / 2 w^2); twice that, without the 1/2, is ours.
    rng = generator()
    x = torch.randn(80, 6, generator=rng, dtype=torch.float64)
    y = x @ torch.tensor([2.0, -1.0, 0.5, 0, 0, 0], dtype=torch.float64)
    expected = SklearnElasticNet(alpha=0.2, l1_ratio=0.5, fit_intercept=False, tol=1e-10).fit(x, y).coef_
    w = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    alpha_l1, alpha_l2 = 2 * 0.2 * 0.5, 0.2 * 0.5
    strength = alpha_l1 + alpha_l2
    optimizer = torch.optim.SGD([w], lr=0.02)
    for step in range(2000):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 2000)
        optimizer.zero_grad()
        loss = (x @ w - y).square().mean()
        (loss + regularization.elastic_net([w], strength=strength, l1_ratio=alpha_l1 / strength)).backward()
        optimizer.step()
    torch.testing.assert_close(w.detach(), torch.from_numpy(expected), atol=2e-3, rtol=0)


def test_group_lasso_weighs_rows_by_the_root_of_their_size() -> None:
    parameters = make_parameters()
    rows = [row for p in parameters for row in (p if p.ndim else p[None])]
    expected = sum(math.sqrt(row.numel()) * row.norm() for row in rows)
    torch.testing.assert_close(regularization.group_lasso(parameters, strength=0.5), 0.5 * expected)


@pytest.mark.parametrize("penalty", [regularization.l1, regularization.l2, regularization.group_lasso])
def test_penalty_of_zero_weights_has_a_finite_gradient(penalty: Callable[..., Tensor]) -> None:
    w = torch.zeros(3, 4, requires_grad=True)
    penalty([w], strength=1.0).backward()
    assert torch.equal(w.grad, torch.zeros(3, 4))


@pytest.mark.parametrize(
    "penalty",
    [regularization.l1, regularization.l2, regularization.elastic_net, regularization.group_lasso],
)
def test_penalty_gradient_is_its_derivative_and_keeps_float32_under_autocast(
    penalty: Callable[..., Tensor],
) -> None:
    parameters = make_parameters(dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *ps: penalty(list(ps), strength=0.3), parameters)
    with torch.autocast("cpu", torch.bfloat16):
        assert penalty(make_parameters(), strength=0.3).dtype == torch.float32


# --- clipping


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 1e6])
def test_clip_norm_agrees_with_torch(max_norm: float) -> None:
    ours, theirs = with_gradients(), with_gradients()
    norm = regularization.clip_norm(ours, max_norm=max_norm)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(theirs, max_norm), rtol=1e-7, atol=0)
    torch.testing.assert_close(gradients(ours), gradients(theirs), rtol=1e-6, atol=0)
    assert flat(gradients(ours)).norm() <= max(max_norm, norm) * (1 + 1e-6)


def test_gradients_below_the_norm_are_untouched_bit_for_bit() -> None:
    parameters = with_gradients()
    regularization.clip_norm(parameters, max_norm=1e3)
    assert all(torch.equal(a, b) for a, b in zip(gradients(parameters), gradients(with_gradients()), strict=True))


def test_clip_value_agrees_with_torch_and_returns_the_norm_before() -> None:
    ours, theirs = with_gradients(), with_gradients()
    norm = regularization.clip_value(ours, limit=0.4)
    nn.utils.clip_grad_value_(theirs, 0.4)
    torch.testing.assert_close(gradients(ours), gradients(theirs), rtol=0, atol=0)
    torch.testing.assert_close(norm, flat(gradients(with_gradients())).norm())


def test_clip_adaptive_limits_each_unit_by_the_norm_of_its_weights() -> None:
    parameters = with_gradients()
    with torch.no_grad():
        parameters[0][1] = 0.0  # counts with a norm of eps
        parameters[0].grad[2] *= 1e-6  # within the limit: stays
        parameters[0].grad[3] = 0.0
    before = gradients(parameters)
    norm = regularization.clip_adaptive(parameters, clipping=0.1, eps=0.01)
    torch.testing.assert_close(norm, flat(before).norm())
    for p, old in zip(parameters, before, strict=True):
        weights, olds, news = ((t,) if t.ndim < 2 else t for t in (p.detach(), old, p.grad))
        for w, g, new in zip(weights, olds, news, strict=True):
            limit = 0.1 * max(w.norm(), torch.tensor(0.01))
            expected = g if g.norm() <= limit else g * limit / g.norm()
            torch.testing.assert_close(new, expected)


@pytest.mark.parametrize(
    "clip",
    [
        lambda ps: regularization.clip_norm(ps, max_norm=1.0),
        lambda ps: regularization.clip_value(ps, limit=1.0),
        lambda ps: regularization.clip_adaptive(ps),
    ],
)
def test_clipping_skips_missing_gradients_and_shows_infinite_ones(
    clip: Callable[[list[Tensor]], Tensor],
) -> None:
    parameters = with_gradients()
    parameters[1].grad = None
    expected = flat(gradients(parameters)).norm()
    torch.testing.assert_close(clip(parameters), expected)
    assert parameters[1].grad is None
    parameters[0].grad[0, 0] = math.inf
    assert not clip(parameters).isfinite()


def test_clipping_sam_and_max_norm_do_not_wait_for_the_device() -> None:
    # A meta tensor has no values: whatever would read one raises.
    parameters = [nn.Parameter(torch.empty(shape, device="meta")) for shape in SHAPES]
    for p in parameters:
        p.grad = torch.empty_like(p)
    assert regularization.clip_norm(parameters).shape == ()
    assert regularization.clip_value(parameters, limit=1.0).shape == ()
    assert regularization.clip_adaptive(parameters).shape == ()
    for adaptive in (False, True):
        regularization.sam_restore_(parameters, regularization.sam_perturb_(parameters, adaptive=adaptive))
    regularization.max_norm_(parameters, limit=1.0)


# --- noise


def test_gradient_noise_has_the_variance_of_its_step_and_comes_from_the_generator() -> None:
    def draw(step: int, seed: int) -> Tensor:
        p = torch.zeros(200, 200, requires_grad=True)
        p.grad = torch.full((200, 200), 3.0)
        regularization.gradient_noise([p], step, generator(seed), eta=0.3, gamma=0.55)
        return p.grad - 3.0

    for step in (0, 9):
        noise = draw(step, seed=1)
        assert noise.var().item() == pytest.approx(0.3 / (1 + step) ** 0.55, rel=0.03)
        assert abs(noise.mean().item()) < 0.01
    assert torch.equal(draw(9, seed=1), draw(9, seed=1))
    assert not torch.equal(draw(9, seed=1), draw(9, seed=2))


# --- averages


def test_ema_without_warmup_is_the_recursion_and_with_it_starts_at_one_tenth() -> None:
    assert regularization.ema(0, 100, decay=0.99, warmup=False) == pytest.approx(0.01)
    assert regularization.ema(0, 100, decay=0.99, warmup=True) == pytest.approx(0.9)
    assert regularization.ema(10**6, 10**6, decay=0.99, warmup=True) == pytest.approx(0.01)
    history = make_parameters()[0].detach()
    averaged = [torch.zeros(4)]
    for step, row in enumerate(history):
        regularization.average_(averaged, [row], regularization.ema(step, 5, decay=0.8, warmup=False))
    expected = sum(0.2 * 0.8 ** (4 - i) * row for i, row in enumerate(history))
    torch.testing.assert_close(averaged[0], expected)


def test_swa_is_the_mean_of_the_weights_it_takes_and_agrees_with_torch() -> None:
    total, start, every = 23, 7, 5
    model = nn.Linear(3, 2)
    theirs = AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn())
    ours = [torch.zeros_like(p) for p in model.parameters()]
    taken = []
    for step in range(total):
        with torch.no_grad():
            for p in model.parameters():
                p.normal_(generator=generator(step))
        regularization.average_(
            ours, list(model.parameters()), regularization.swa(step, total, start=start, every=every)
        )
        if step >= start and (step - start) % every == 0:
            theirs.update_parameters(model)
            taken.append(model.weight.detach().clone())
        if step <= start:
            assert torch.equal(ours[0], model.weight)
    assert len(taken) == 4
    torch.testing.assert_close(ours[0], torch.stack(taken).mean(0))
    torch.testing.assert_close(ours, [p.detach() for p in theirs.module.parameters()])


def test_swa_that_averages_nothing_is_an_error() -> None:
    assert regularization.swa(0, 100, start=75, every=24) == 1.0
    with pytest.raises(ConfigError) as error:
        regularization.swa(0, 100, start=75, every=25)
    assert str(error.value) == (
        "swa averages nothing: it takes in the weights every 25 steps from step 75 on, and there are 100 "
        "steps; choose an earlier `start` or a shorter `every`"
    )
    with pytest.raises(ConfigError, match="`every` is less than one step"):
        regularization.swa(0, 100, start=75, every=0)


def test_average_copies_integers_leaves_current_alone_and_handles_the_ends_exactly() -> None:
    model = nn.BatchNorm1d(3)
    model(torch.randn(8, 3, generator=generator()))
    current = list(model.state_dict().values())
    before = [c.clone() for c in current]
    averaged = [torch.full_like(c, 5) for c in current]
    regularization.average_(averaged, current, 0.0)
    assert all((a == 5).all() for a in averaged)
    regularization.average_(averaged, current, 0.25)
    for a, c in zip(averaged, before, strict=True):
        torch.testing.assert_close(a, 0.75 * 5 + 0.25 * c if c.is_floating_point() else c)
    regularization.average_(averaged, current, 1.0)
    assert all(torch.equal(a, c) for a, c in zip(averaged, before, strict=True))
    assert all(torch.equal(c, b) for c, b in zip(current, before, strict=True))


# --- SAM


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_moves_by_its_definition_and_restores_bit_for_bit(adaptive: bool) -> None:
    parameters = with_gradients()
    parameters[1].grad = None
    before = [p.detach().clone() for p in parameters]
    saved = regularization.sam_perturb_(parameters, rho=0.7, adaptive=adaptive)
    trained = [i for i in range(len(parameters)) if i != 1]
    w = flat([before[i] for i in trained])
    g = flat([parameters[i].grad for i in trained])
    scale = w.abs() + 0.01 if adaptive else torch.ones_like(w)
    expected = 0.7 * scale**2 * g / (scale * g).norm()
    torch.testing.assert_close(flat([parameters[i] for i in trained]) - w, expected, atol=1e-6, rtol=1e-4)
    assert torch.equal(parameters[1], before[1])
    regularization.sam_restore_(parameters, saved)
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_sam_moves_by_rho_and_survives_zero_and_infinite_gradients() -> None:
    parameters = with_gradients()
    before = flat(parameters)
    regularization.sam_perturb_(parameters, rho=0.05)
    assert (flat(parameters) - before).norm().item() == pytest.approx(0.05, rel=1e-4)
    for scale in (0.0, math.inf):
        parameters = with_gradients(scale)
        saved = regularization.sam_perturb_(parameters, rho=0.05)
        if scale == 0.0:
            assert torch.equal(flat(parameters), before)
        regularization.sam_restore_(parameters, saved)
        assert torch.equal(flat(parameters), before)


def test_a_step_of_sam_uses_the_gradient_at_the_moved_weights() -> None:
    # loss = w^2 / 2: the gradient at w + rho * sign(w) is w + rho * sign(w).
    w = nn.Parameter(torch.tensor([2.0]))
    w.square().div(2).backward()
    saved = regularization.sam_perturb_([w], rho=0.5)
    w.grad = None
    w.square().div(2).backward()
    regularization.sam_restore_([w], saved)
    assert w.item() == 2.0
    assert w.grad.item() == pytest.approx(2.5)


# --- max-norm


def test_max_norm_scales_back_the_rows_above_the_limit_only() -> None:
    parameters = make_parameters()
    before = [p.detach().clone() for p in parameters]
    regularization.max_norm_(parameters, limit=1.5)
    changed = 0
    for p, old in zip(parameters, before, strict=True):
        if old.ndim < 2:
            assert torch.equal(p, old)
            continue
        for row, was in zip(p.detach(), old, strict=True):
            if was.norm() <= 1.5:
                assert torch.equal(row, was)
            else:
                changed += 1
                torch.testing.assert_close(row, was * 1.5 / was.norm())
                assert row.norm() <= 1.5 + 1e-6
    assert changed > 0


# --- mixing


def test_mixup_blends_every_input_with_the_same_partner_and_share() -> None:
    inputs = (torch.randn(16, 5, generator=generator(3)), torch.randn(16, 2, 4, 4, generator=generator(4)))
    mixed, partner, share = regularization.mixup(inputs, generator(), alpha=1.0)
    assert 0 < share < 1
    assert partner.sort().values.tolist() == list(range(16))
    for x, m in zip(inputs, mixed, strict=True):
        torch.testing.assert_close(m, share * x + (1 - share) * x[partner])
        assert m.dtype == x.dtype


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 5.0])
def test_the_share_of_mixup_is_a_beta(alpha: float) -> None:
    rng = generator()
    x = (torch.zeros(2, 1),)
    shares = torch.stack([regularization.mixup(x, rng, alpha=alpha).share for _ in range(3000)])
    assert ((shares >= 0) & (shares <= 1)).all()
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.07)


@pytest.mark.parametrize("mix", [regularization.mixup, regularization.cutmix])
def test_mixing_is_a_function_of_the_generator(mix: Callable[..., regularization.Mixed]) -> None:
    x = (torch.randn(8, 3, 6, 6, generator=generator()),)
    first, again, other = (mix(x, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.inputs[0], again.inputs[0])
    assert torch.equal(first.partner, again.partner)
    assert first.share == again.share
    assert not torch.equal(first.inputs[0], other.inputs[0])


def test_cutmix_pastes_one_rectangle_and_its_share_is_the_exact_area() -> None:
    B, H, W = 6, 9, 14
    x = torch.arange(B, dtype=torch.float32).view(B, 1, 1, 1).expand(B, 2, H, W)
    rng = generator()
    areas = []
    for _ in range(200):
        (mixed,), partner, share = regularization.cutmix((x,), rng, alpha=1.0)
        own = torch.arange(B)
        for i in own[partner != own].tolist():
            pasted = mixed[i] != x[i]
            assert (mixed[i][pasted] == partner[i]).all()
            assert torch.equal(pasted[0], pasted[1])
            rows, columns = pasted[0].any(1), pasted[0].any(0)
            assert torch.equal(pasted[0], rows[:, None] & columns)
            assert share.item() == pytest.approx(1 - pasted[0].sum().item() / (H * W), abs=1e-6)
            assert rows.sum() == 0 or (rows.nonzero().diff(dim=0) == 1).all()
        areas.append(1 - share.item())
    assert min(areas) < 0.05
    assert max(areas) > 0.6


def test_mixing_refuses_data_that_it_cannot_mix() -> None:
    table = (torch.zeros(4, 13), torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(ConfigError) as error:
        regularization.mixup(table, generator())
    assert str(error.value) == (
        "mixup needs numeric inputs; this data has integers (categories or tokens), which cannot be blended: "
        "encode categories as one-hot columns, or leave mixup out"
    )
    with pytest.raises(ConfigError) as error:
        regularization.cutmix(table, generator())
    assert str(error.value) == (
        "cutmix needs images (B, C, H, W) as the only input, this data has samples of shape (13,) and (2,); "
        "choose mixup or leave cutmix out"
    )


def test_the_box_of_cutmix_lies_evenly_about_the_middle() -> None:
    x = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 16, 16)
    rng = generator()
    mixed = torch.stack([regularization.cutmix((x,), rng, alpha=1.0).inputs[0] for _ in range(4000)])
    pasted = (mixed != x).float().mean(dim=(0, 1, 2))
    torch.testing.assert_close(pasted, pasted.flip(0, 1), atol=0.05, rtol=0)
    assert pasted[8, 8] > 1.5 * pasted[0, 0]


# --- early stopping


@pytest.mark.parametrize(
    ("scores", "patience", "min_delta", "stops"),
    [
        ([], 1, 0.0, False),
        ([1.0], 1, 0.0, False),
        ([1.0, 1.0], 1, 0.0, True),
        ([1.0, 0.9, 0.95], 2, 0.0, False),
        ([1.0, 0.9, 0.95, 0.9], 2, 0.0, True),
        ([1.0, 0.9, 0.95, 0.89], 2, 0.0, False),
        ([1.0, 0.95, 0.92], 2, 0.1, True),
        ([1.0, 0.95, 0.89], 2, 0.1, False),
        ([math.nan, math.nan], 2, 0.0, True),
        ([math.nan, 1.0, math.nan], 2, 0.0, False),
    ],
)
def test_early_stop(scores: list[float], patience: int, min_delta: float, stops: bool) -> None:
    assert regularization.early_stop(scores, patience=patience, min_delta=min_delta) is stops


# --- schema

BUILT = [*schema.PENALTIES, *schema.CLIPPING, *schema.AVERAGES, *schema.MIXING]
PLAIN = [
    (schema.Sam, regularization.sam_perturb_),
    (schema.GradientNoise, regularization.gradient_noise),
    (schema.MaxNorm, regularization.max_norm_),
    (schema.EarlyStopping, regularization.early_stop),
]


def resolve(target: str) -> Callable[..., object]:
    module, name = target.split(":")
    return getattr(import_module(module), name)


@pytest.mark.parametrize(
    ("settings", "function"), [*((c, resolve(c.builds)) for c in BUILT), *PLAIN], ids=lambda o: o.__name__
)
def test_settings_have_the_arguments_and_defaults_of_what_they_build(
    settings: type[schema.Settings], function: Callable[..., object]
) -> None:
    build_only = {"type", *getattr(settings, "build_only", ())}
    fields = {name: f for name, f in settings.model_fields.items() if name not in build_only}
    arguments = {n: p for n, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert fields.keys() == arguments.keys()
    assert all(f.description for name, f in settings.model_fields.items() if name != "type")
    assert settings.__doc__
    for name, argument in arguments.items():
        if argument.default is not argument.empty:
            assert fields[name].default == argument.default


def test_settings_are_checked() -> None:
    def read(settings: type[schema.Settings], **values: object) -> schema.Settings:
        return TypeAdapter(settings).validate_python(values)

    assert read(schema.L1, type="l1", strength=1).params == "*weight"
    assert read(schema.L1, type="l1", strength=0.1, params=["a.*", "b.*"]).params == ["a.*", "b.*"]
    swa = read(schema.Swa, type="swa", every="100 steps")
    assert (swa.start, swa.every) == (DurationValue(75, "%"), DurationValue(100, "steps"))
    wrong: list[tuple[type[schema.Settings], dict[str, object]]] = [
        (schema.L1, {"strength": 0.1}),
        (schema.L1, {"type": "l1", "strength": -0.1}),
        (schema.L1, {"type": "l1", "strength": 0.1, "params": []}),
        (schema.ElasticNet, {"type": "elastic_net", "strength": 0.1, "l1_ratio": 1.1}),
        (schema.Ema, {"type": "ema", "decay": 1.0}),
        (schema.Swa, {"type": "swa", "start": 10}),
        (schema.Mixup, {"type": "mixup", "alpha": 0.0}),
        (schema.EarlyStopping, {"patience": 0}),
        (schema.Sam, {"rho": 0.05, "type": "sam"}),
    ]
    for settings, values in wrong:
        with pytest.raises(ValidationError):
            read(settings, **values)
