"""Each transform against its definition; randomness only from the generator and per sample."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from dltrain.config.schema import transforms as schema
from dltrain.data import transforms
from dltrain.errors import ConfigError, DataError

Transform = Callable[[Tensor, torch.Generator], Tensor]

IMAGE_TRANSFORMS: list[Transform] = [
    transforms.Flip(0.5, 0.5),
    transforms.Crop(2, "zeros"),
    transforms.Crop(2, "reflect"),
    transforms.Erasing(p=1.0),
    transforms.BrightnessContrast(),
    transforms.Rotation(30.0),
    transforms.Noise(0.1),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(B: int = 64, C: int = 3, H: int = 8, W: int = 10) -> Tensor:
    return torch.randn(B, C, H, W, generator=generator(9)) + 5.0  # no zeros, so that filled pixels show


# --- what holds for all


@pytest.mark.parametrize("transform", IMAGE_TRANSFORMS, ids=repr)
def test_a_transform_is_a_function_of_its_generator(transform: Transform) -> None:
    x = images()
    before = x.clone()
    torch.manual_seed(1)
    first = transform(x, generator(1))
    torch.manual_seed(2)
    assert torch.equal(first, transform(x, generator(1)))
    assert not torch.equal(first, transform(x, generator(2)))
    assert torch.equal(x, before)
    assert first.shape == x.shape
    assert first.dtype == torch.float32


@pytest.mark.parametrize("transform", IMAGE_TRANSFORMS, ids=repr)
def test_samples_are_transformed_independently(transform: Transform) -> None:
    x = images(B=1).expand(64, -1, -1, -1)
    out = transform(x, generator())
    assert len(torch.unique(out.flatten(1), dim=0)) > 1
    changed = images()
    changed[0] = 7.0  # another sample in the batch has no influence
    torch.testing.assert_close(
        transform(changed, generator())[1:], transform(images(), generator())[1:], rtol=0, atol=0
    )


@pytest.mark.parametrize("transform", IMAGE_TRANSFORMS, ids=repr)
def test_the_memory_format_changes_nothing(transform: Transform) -> None:
    x = images()
    torch.testing.assert_close(
        transform(x.to(memory_format=torch.channels_last), generator()), transform(x, generator())
    )


@pytest.mark.parametrize("transform", IMAGE_TRANSFORMS[:-1], ids=repr)
def test_a_table_is_refused_by_name(transform: Transform) -> None:
    with pytest.raises(ConfigError, match=r"needs images \(B, C, H, W\), this data has samples of shape \(64,\)"):
        transform(torch.zeros(5, 64), generator())


def test_the_message_names_the_transform() -> None:
    with pytest.raises(ConfigError) as error:
        transforms.Flip()(torch.zeros(5, 64), generator())
    assert str(error.value) == ("flip needs images (B, C, H, W), this data has samples of shape (64,); leave flip out")


# --- each by its definition


def test_flip_mirrors_all_or_none_at_the_ends_and_half_between() -> None:
    x = images(B=2000, H=2, W=3)
    assert torch.equal(transforms.Flip(0.0, 0.0)(x, generator()), x)
    assert torch.equal(transforms.Flip(1.0, 0.0)(x, generator()), x.flip(3))
    assert torch.equal(transforms.Flip(0.0, 1.0)(x, generator()), x.flip(2))
    assert torch.equal(transforms.Flip(1.0, 1.0)(x, generator()), x.flip(2, 3))
    out = transforms.Flip(0.3)(x, generator())
    mirrored = (out == x.flip(3)).flatten(1).all(1)
    kept = (out == x).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert mirrored.float().mean().item() == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_crop_cuts_every_window_of_the_padded_image(mode: str) -> None:
    x = images(B=1).expand(400, -1, -1, -1)
    out = transforms.Crop(2, mode)(x, generator())
    padded = F.pad(x[:1], (2, 2, 2, 2), mode="constant" if mode == "zeros" else "reflect")[0]
    windows = {(i, j): padded[:, i : i + 8, j : j + 10] for i in range(5) for j in range(5)}
    counts = {key: sum(torch.equal(o, window) for o in out) for key, window in windows.items()}
    assert sum(counts.values()) == 400
    assert min(counts.values()) >= 5  # 16 expected of each of 25


def test_crop_cannot_reflect_more_than_the_image() -> None:
    with pytest.raises(ConfigError) as error:
        transforms.Crop(8, "reflect")(images(), generator())
    assert str(error.value) == (
        "crop cannot reflect 8 pixels of images of 8 x 10; choose a padding of at most 7, or mode: zeros"
    )


def test_erasing_clears_one_box_of_the_area_and_aspect_asked_for() -> None:
    x = images(B=500, H=60, W=40)
    out = transforms.Erasing(p=1.0, area=(0.1, 0.2), ratio=0.5)(x, generator())
    erased = out == 0
    assert torch.equal(out[~erased], x[~erased])
    assert torch.equal(erased[:, 0], erased[:, 2])
    rows, columns = erased[:, 0].any(2), erased[:, 0].any(1)
    assert torch.equal(erased[:, 0], rows[:, :, None] & columns[:, None, :])
    heights, widths = rows.sum(1), columns.sum(1)
    for mask, length in ((rows, heights), (columns, widths)):  # neighbours: as many as from first to last
        position = torch.arange(mask.shape[1])
        first = torch.where(mask, position, 10**6).amin(1)
        last = torch.where(mask, position, -1).amax(1)
        assert torch.equal(last - first + 1, length)
    areas = heights * widths / (60 * 40)
    aspects = heights / widths
    assert 0.09 < areas.min() < 0.11
    assert 0.19 < areas.max() < 0.21
    assert areas.mean().item() == pytest.approx(0.15, abs=0.01)
    assert 0.45 < aspects.min() < 0.55
    assert 1.8 < aspects.max() < 2.2
    assert aspects.log().mean().abs() < 0.06
    assert all(edge.any() for edge in (rows[:, 0], rows[:, -1], columns[:, 0], columns[:, -1]))


def test_erasing_by_probability_and_whole_image() -> None:
    x = images(B=2000, C=1, H=4, W=4)
    assert torch.equal(transforms.Erasing(p=0.0)(x, generator()), x)
    share = (transforms.Erasing(p=0.25)(x, generator()) == 0).flatten(1).any(1).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.03)
    assert not transforms.Erasing(p=1.0, area=(1.0, 1.0))(images(H=8, W=10), generator()).any()


def test_brightness_adds_and_contrast_scales_about_the_mean() -> None:
    x = images()
    brighter = transforms.BrightnessContrast(0.5, 0.0)(x, generator()) - x
    change = brighter.mean(dim=(1, 2, 3))
    torch.testing.assert_close(brighter, change.view(-1, 1, 1, 1).expand_as(x), atol=1e-5, rtol=0)
    assert -0.5 <= change.min() < -0.4
    assert 0.4 < change.max() <= 0.5

    out = transforms.BrightnessContrast(0.0, 0.3)(x, generator())
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    factor = (out - mean).flatten(1).norm(dim=1) / (x - mean).flatten(1).norm(dim=1)
    torch.testing.assert_close(out, mean + (x - mean) * factor.view(-1, 1, 1, 1), atol=1e-5, rtol=0)
    assert 0.699 <= factor.min() < 0.76
    assert 1.24 < factor.max() <= 1.301


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_rotation_by_quarter_turns_is_rot90(quarter_turns: int) -> None:
    x = images(H=9, W=9)
    out = transforms.rotate(x, torch.full((64,), 90.0 * quarter_turns))
    torch.testing.assert_close(out, torch.rot90(x, quarter_turns, (2, 3)), atol=1e-4, rtol=0)


def test_rotation_keeps_the_shape_of_what_is_shown_on_wide_images() -> None:
    # A dot 10 pixels right of the centre comes to lie 10 * sin 30 above it and 10 * cos 30 right of it.
    x = torch.zeros(1, 1, 41, 61)
    x[0, 0, 19:22, 39:42] = 1.0
    out = transforms.rotate(x, torch.tensor([30.0]))[0, 0]
    row = (out.sum(1) * torch.arange(41)).sum() / out.sum()
    column = (out.sum(0) * torch.arange(61)).sum() / out.sum()
    assert row.item() == pytest.approx(20 - 10 * math.sin(math.pi / 6), abs=0.1)
    assert column.item() == pytest.approx(30 + 10 * math.cos(math.pi / 6), abs=0.1)
    assert out.sum().item() == pytest.approx(9.0, rel=0.05)


def test_rotation_draws_angles_within_its_range() -> None:
    x = torch.zeros(500, 1, 41, 41)
    x[:, 0, 20, 36:39] = 1.0  # right of the centre, so the place it comes to tells the angle
    out = transforms.Rotation(20.0)(x, generator())[:, 0]
    total = out.sum((1, 2))
    row = (out.sum(2) * torch.arange(41)).sum(1) / total - 20
    column = (out.sum(1) * torch.arange(41)).sum(1) / total - 20
    angles = torch.rad2deg(torch.atan2(-row, column))
    assert -20.5 < angles.min() < -18
    assert 18 < angles.max() < 20.5
    assert angles.mean().abs() < 2


def test_noise_is_normal_with_its_standard_deviation() -> None:
    x = torch.full((500, 64), 3.0)
    noise = transforms.Noise(0.2)(x, generator()) - x
    assert noise.std().item() == pytest.approx(0.2, rel=0.02)
    assert noise.mean().abs() < 0.005
    with pytest.raises(ConfigError, match="noise needs numeric inputs"):
        transforms.Noise(0.2)(torch.zeros(5, 3, dtype=torch.int64), generator())


# --- sound


SOUND_TRANSFORMS: list[Transform] = [transforms.SpecAugment(), transforms.TimeShift(0.3)]


@pytest.mark.parametrize("transform", SOUND_TRANSFORMS, ids=repr)
def test_sounds_are_transformed_one_by_one_by_the_generator_alone(transform: Transform) -> None:
    x = images(C=1, H=16, W=40)
    before = x.clone()
    first = transform(x, generator(1))
    torch.manual_seed(2)
    assert torch.equal(first, transform(x, generator(1)))
    assert not torch.equal(first, transform(x, generator(2)))
    assert torch.equal(x, before)
    assert first.shape == x.shape
    same = transform(x[:1].expand(64, -1, -1, -1), generator())
    assert len(torch.unique(same.flatten(1), dim=0)) > 10
    x[0] = 7.0  # another sample in the batch has no influence
    assert torch.equal(transform(x, generator(1))[1:], first[1:])


def test_spec_augment_clears_whole_bands_and_frames_of_every_width() -> None:
    x = images(B=4000, C=1, H=20, W=30)
    out = transforms.SpecAugment(frequency_masks=1, frequency_width=0.2, time_masks=1, time_width=0.1)(x, generator())
    cleared = out == 0
    assert torch.equal(out[~cleared], x[~cleared])
    bands, frames = cleared[:, 0].all(dim=2), cleared[:, 0].all(dim=1)
    assert torch.equal(cleared[:, 0], bands[:, :, None] | frames[:, None, :])
    for mask, widest in ((bands, 4), (frames, 3)):
        widths = mask.sum(dim=1)
        shares = torch.bincount(widths, minlength=widest + 1) / len(x)
        torch.testing.assert_close(shares, torch.full((widest + 1,), 1 / (widest + 1)), atol=0.03, rtol=0)
        starts_and_ends = mask.int().diff(dim=1, prepend=torch.zeros(len(x), 1), append=torch.zeros(len(x), 1)).abs()
        assert torch.equal(starts_and_ends.sum(dim=1), 2 * (widths > 0).float())  # neighbours, all of them
        assert mask[:, 0].any()
        assert mask[:, -1].any()


def test_spec_augment_has_as_many_masks_as_asked_for() -> None:
    x = images(B=500, C=1, H=50, W=50)
    assert torch.equal(transforms.SpecAugment(frequency_masks=0, time_masks=0)(x, generator()), x)
    for settings, dim in (({"frequency_masks": 3, "time_masks": 0}, 2), ({"frequency_masks": 0, "time_masks": 3}, 1)):
        mask = (transforms.SpecAugment(**settings, frequency_width=0.04, time_width=0.04)(x, generator()) == 0)[:, 0]
        assert mask.all(dim=dim).sum(dim=1).max() == 6
        assert torch.equal(mask.all(dim=dim), mask.any(dim=dim))


@pytest.mark.parametrize("shape", [(2, 20), (1, 4, 20)])
def test_time_shift_moves_by_every_step_and_brings_in_the_mean(shape: tuple[int, ...]) -> None:
    x = torch.randn(1, *shape, generator=generator()).expand(700, *([-1] * len(shape))) + 9.0
    out = transforms.TimeShift(0.15)(x, generator())
    counts = []
    for step in range(-3, 4):
        expected = torch.zeros_like(x[0])
        expected[..., max(step, 0) : 20 + min(step, 0)] = x[0][..., max(-step, 0) : 20 - max(step, 0)]
        counts.append(int((out == expected).flatten(1).all(dim=1).sum()))
    assert sum(counts) == 700
    assert min(counts) > 60  # 100 expected of each


def test_transforms_of_sound_refuse_other_inputs() -> None:
    with pytest.raises(ConfigError) as caught:
        transforms.SpecAugment()(images(), generator())
    assert str(caught.value) == (
        "spec_augment needs spectrograms (B, 1, num_mels, frames), this data has samples of shape (3, 8, 10); "
        "leave spec_augment out"
    )
    for x in (images(), torch.zeros(5, 64), torch.zeros(5, 1, 64, dtype=torch.int64)):
        with pytest.raises(ConfigError, match=r"^time_shift needs waveforms or other series \(B, C, T\), or spectrog"):
            transforms.TimeShift()(x, generator())
    with pytest.raises(ConfigError) as caught:
        transforms.TimeShift(0.01)(torch.zeros(5, 1, 20), generator())
    assert str(caught.value) == "time_shift cannot shift samples of 20 steps by 0.01 of them; raise shift"


# --- normalisation


def test_normalize_is_the_same_for_uint8_and_float() -> None:
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    x = torch.randint(0, 256, (16, 3, 5, 4), dtype=torch.uint8, generator=generator())
    normalize = transforms.Normalize(mean, std)
    expected = (x.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    for pixels in (x, x / 255, x.double() / 255):
        out = normalize(pixels)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, expected.float(), atol=2e-6, rtol=0)
    assert x.dtype == torch.uint8
    assert not normalize.state_dict()


def test_normalize_makes_mean_zero_and_deviation_one() -> None:
    x = torch.rand(200, 2, 8, 8, generator=generator()) * 0.3 + 0.2
    normalize = transforms.Normalize(x.mean(dim=(0, 2, 3)).tolist(), x.std(dim=(0, 2, 3), correction=0).tolist())
    out = normalize(x)
    torch.testing.assert_close(out.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(dim=(0, 2, 3), correction=0), torch.ones(2), atol=1e-5, rtol=0)


def test_one_value_normalizes_all_channels_and_errors_name_what_was_found() -> None:
    torch.testing.assert_close(transforms.Normalize([0.5], [0.5])(torch.ones(2, 3, 4, 4)), torch.ones(2, 3, 4, 4))
    with pytest.raises(DataError) as error:
        transforms.Normalize([0.5] * 3, [0.5] * 3)(torch.ones(2, 1, 4, 4))
    assert str(error.value) == "images have the shape (C, H, W) = (1, 4, 4); the normalisation is for 3 channels"
    with pytest.raises(DataError, match=r"images hold torch\.int64; possible: uint8"):
        transforms.Normalize([0.5], [0.5])(torch.ones(2, 1, 4, 4, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"found \[0\.5, 0\.0\]; every value must be above 0"):
        transforms.Normalize([0.5, 0.5], [0.5, 0.0])


# --- schema


@pytest.mark.parametrize("settings", schema.ALL, ids=lambda c: c.__name__)
def test_settings_have_the_arguments_and_defaults_of_what_they_build(
    settings: type[schema.Component],
) -> None:
    module, name = settings.builds.split(":")
    arguments = inspect.signature(getattr(import_module(module), name)).parameters
    fields = {name: f for name, f in settings.model_fields.items() if name != "type"}
    assert fields.keys() == arguments.keys()
    assert all(f.description for f in fields.values())
    assert settings.__doc__
    for name, argument in arguments.items():
        if argument.default is not argument.empty:
            default = fields[name].default
            assert (tuple(default) if isinstance(default, list) else default) == argument.default


def test_settings_are_checked() -> None:
    read = TypeAdapter(schema.Erasing).validate_python
    assert read({"type": "erasing", "area": [0.1, 0.2]}).area == [0.1, 0.2]
    for area in ([0.3, 0.2], [0.1], [0.0, 0.2], [0.1, 1.1]):
        with pytest.raises(ValidationError):
            read({"type": "erasing", "area": area})
    for settings, values in (
        (schema.Flip, {"type": "flip", "horizontal": 1.5}),
        (schema.Crop, {"type": "crop", "padding": 0}),
        (schema.Crop, {"type": "crop", "mode": "edge"}),
        (schema.Rotation, {"type": "rotation", "degrees": 200}),
        (schema.Noise, {"type": "noise"}),
        (schema.SpecAugment, {"type": "spec_augment", "time_width": 0}),
        (schema.TimeShift, {"type": "time_shift", "shift": 1.5}),
    ):
        with pytest.raises(ValidationError):
            TypeAdapter(settings).validate_python(values)
