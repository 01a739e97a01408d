"""scikit-learn's data sets as a source."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dltrain.config.schema.data_arrays import ALL, Images
from dltrain.data.sources.sklearn_data import Name, Sklearn
from dltrain.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("name", "shape", "targets"),
    [
        ("digits", (1797, 64), [0, 1, 2]),
        ("iris", (150, 4), ["setosa", "setosa", "setosa"]),
        ("wine", (178, 13), ["class_0", "class_0", "class_0"]),
        ("breast_cancer", (569, 30), ["malignant", "malignant", "malignant"]),
        ("diabetes", (442, 10), [151.0, 75.0, 141.0]),
    ],
)
def test_data_sets(name: Name, shape: tuple[int, ...], targets: list[object]) -> None:
    source = Sklearn(name)
    samples = source.read()
    assert samples.inputs.shape == shape
    assert samples.targets is not None
    assert samples.targets[:3].tolist() == targets
    (encoded,) = source.encode(samples, source.fit(samples))
    assert encoded.dtype == torch.float32
    assert encoded.std(0, correction=0).max() == pytest.approx(1, abs=1e-4)
    assert samples.place(5) == f"{name}: X[5]"


def test_digits_as_images_are_the_same_numbers() -> None:
    flat, images = Sklearn("digits").read().inputs, Sklearn("digits", images=True).read().inputs
    assert images.shape == (1797, 1, 8, 8)
    np.testing.assert_array_equal(images.reshape(1797, 64), flat)
    with pytest.raises(ConfigError, match="images: iris has none, only digits has; remove it"):
        Sklearn("iris", images=True)


def test_prediction_and_evaluation_on_new_files(tmp_path: Path) -> None:
    source = Sklearn("iris")
    samples = source.read()
    state = source.fit(samples)
    np.save(tmp_path / "new.npy", samples.inputs)
    (block,) = source.read_inputs([str(tmp_path / "new.npy")], state)
    assert torch.equal(source.encode(block, state)[0], source.encode(samples, state)[0])
    np.savez(tmp_path / "new.npz", x=samples.inputs, y=samples.targets)
    np.testing.assert_array_equal(source.read(str(tmp_path / "new.npz")).targets, samples.targets)


def test_fingerprints_tell_data_sets_apart() -> None:
    assert Sklearn("iris").fingerprint() == Sklearn("iris").fingerprint() != Sklearn("wine").fingerprint()


def test_unknown_name() -> None:
    with pytest.raises(DataError, match="boston: not a data set of scikit-learn; possible: digits, iris"):
        Sklearn("boston").read()  # type: ignore[arg-type]


@pytest.mark.parametrize("component", ALL)
def test_settings_are_the_parameters_of_the_source(component: type) -> None:
    module, _, name = component.builds.partition(":")  # type: ignore[attr-defined]
    parameters = inspect.signature(getattr(__import__(module, fromlist=[name]), name)).parameters
    fields = {key: field for key, field in component.model_fields.items() if key != "type"}  # type: ignore[attr-defined]
    assert list(fields) == [key for key in parameters if key != "base"]
    for key, field in fields.items():
        default = parameters[key].default
        assert field.description
        assert field.is_required() if default is inspect.Parameter.empty else field.default == default


@pytest.mark.parametrize("size", [None, 32, [24, 32]])
def test_sizes_that_the_schema_takes(size: object) -> None:
    assert Images.model_validate({"type": "images", "path": "a", "size": size}).size == size


@pytest.mark.parametrize(
    "wrong",
    [{"size": 0}, {"size": [32]}, {"size": True}, {"channels": 2}, {"target": []}],
)
def test_values_that_the_schema_refuses(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Images.model_validate({"type": "images", "path": "a", **wrong})
