import json
import re

import numpy as np
import pytest
import torch

from dltrain import tasks
from dltrain.data.columns import Samples
from dltrain.errors import ConfigError, DataError


def samples(targets, target_names=()):
    array = None if targets is None else np.asarray(targets)
    size = 3 if array is None else len(array)
    return Samples(
        inputs=np.zeros(size),
        targets=array,
        place=lambda i: f"data.csv: row {i + 1}",
        take_inputs=lambda inputs, indices: inputs[indices],
        target_names=target_names,
    )


def error(kind, action, *arguments):
    with pytest.raises(kind) as caught:
        action(*arguments)
    return str(caught.value)


# ---- which task it is


@pytest.mark.parametrize(
    ("targets", "kind"),
    [
        (["cat", "dog"] * 5, "classification"),
        ([True, False] * 5, "classification"),
        (list(range(10)) * 3, "classification"),
        ([0, 1], "classification"),
        ([0.5, 1.5, 2.0], "regression"),
        ([[0.0, 1.0], [1.0, 1.0]], "multilabel"),
        ([[0.0, 1.0], [2.0, 1.0]], "regression"),
    ],
    ids=str,
)
def test_the_task_is_inferred_where_the_targets_make_it_plain(targets, kind):
    assert tasks.infer_type(samples(targets)) == kind


def test_whole_numbers_that_may_be_quantities_are_asked_about():
    assert error(ConfigError, tasks.infer_type, samples(np.arange(-3, 57))) == (
        "the targets of 60 samples are 60 different whole numbers, such as -3: classes or quantities? "
        "Write task: {type: classification} or task: {type: regression}"
    )
    many = np.tile(np.arange(tasks.MAX_INFERRED_CLASSES + 1), 10)
    assert "101 different whole numbers" in error(ConfigError, tasks.infer_type, samples(many))
    assert tasks.infer_type(samples(many[many < 100])) == "classification"


def test_texts_that_hardly_repeat_are_not_taken_for_classes():
    assert "60 different texts" in error(ConfigError, tasks.infer_type, samples([f"name{i}" for i in range(60)]))
    assert tasks.infer_type(samples([f"species{i % 500}" for i in range(1000)])) == "classification"


# ---- classification


def test_classes_come_from_the_training_samples_in_order():
    task = tasks.Classification.learn(samples(["b", "a", "c", "a"]))
    assert task.classes == ["a", "b", "c"]
    assert task.num_outputs == 3
    assert task.encode(samples(["c", "a"])).tolist() == [2, 0]


def test_a_class_that_other_samples_lack_does_not_renumber_the_rest():
    task = tasks.Classification.learn(samples([0, 5, 9]))
    assert task.encode(samples([9, 9, 5])).tolist() == [2, 2, 1]


@pytest.mark.parametrize("encoded", [[1, 2], ["1", "2"], [1.0, 2.0]], ids=["int", "text", "float"])
@pytest.mark.parametrize("learned", [[1, 2], ["1", "2"], [1.0, 2.0]], ids=["int", "text", "float"])
def test_a_class_is_known_however_a_file_spells_its_number(learned, encoded):
    task = tasks.Classification.learn(samples(learned))
    assert task.encode(samples(encoded)).tolist() == [0, 1]


def test_an_unknown_class_is_an_error_at_its_first_row():
    task = tasks.Classification.learn(samples(["circle", "square"]))
    assert error(DataError, task.encode, samples(["circle", "squere", "hexagon", "squere"])) == (
        "data.csv: row 2: class 'squere' is not in the training split; its classes: circle, square; "
        "did you mean 'square'?"
    )
    numbers = tasks.Classification.learn(samples(range(20)))
    assert "its classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..." in error(DataError, numbers.encode, samples([3, 20]))


def test_one_class_alone_cannot_be_learnt():
    assert error(DataError, tasks.Classification.learn, samples(["x", "x"])) == (
        "data.csv: row 1: all training targets are 'x'; classification needs two classes"
    )


@pytest.mark.parametrize(("value", "shown"), [(0.5, "0.5"), (np.nan, "nan"), (np.inf, "inf")])
def test_a_number_that_is_no_class_is_an_error(value, shown):
    message = f"data.csv: row 3: target {shown} is no class; is this task: {{type: regression}}?"
    assert error(DataError, tasks.Classification.learn, samples([0.0, 1.0, value])) == message


def test_several_targets_are_no_class():
    message = "classification needs one target a sample, the data have 2"
    assert error(ConfigError, tasks.Classification.learn, samples([[0.0, 1.0]])) == message


def test_a_million_classes_are_encoded():
    labels = np.random.default_rng(0).permutation(200_000)
    task = tasks.Classification.learn(samples(labels))
    assert task.encode(samples(labels)).tolist() == labels.tolist()


def test_predicted_classes_have_their_names_and_probabilities():
    columns = tasks.Classification(["no", "yes"]).predict(torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
    assert columns["prediction"] == ["no", "yes"]
    assert columns["probability_no"] == pytest.approx([0.5, 1 / (1 + np.exp(2))])
    assert columns["probability_yes"] == pytest.approx([0.5, 1 / (1 + np.exp(-2))])


# ---- several labels


def test_labels_come_from_text():
    task = tasks.Multilabel.learn(samples(["red|round", "big", "", " red | big "]), "|")
    assert task.labels == ["big", "red", "round"]
    assert task.encode(samples(["round|red", "", "big"])).tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert tasks.Multilabel.learn(samples(["a; b", "b"]), ";").labels == ["a", "b"]


def test_labels_come_from_columns():
    task = tasks.Multilabel.learn(samples([[0.0, 1.0], [1.0, 1.0]], ("rain", "wind")), "|")
    assert task.labels == ["rain", "wind"]
    assert task.encode(samples([[1.0, 0.0]])).tolist() == [[1.0, 0.0]]


def test_what_is_no_label_is_an_error_at_its_row():
    text = tasks.Multilabel.learn(samples(["red|round", "big"]), "|")
    assert error(DataError, text.encode, samples(["big", "red|rund"])) == (
        "data.csv: row 2: class 'rund' is not in the training split; its classes: big, red, round; "
        "did you mean 'round'?"
    )
    columns = tasks.Multilabel.learn(samples([[0.0, 1.0], [1.0, 1.0]], ("rain", "wind")), "|")
    message = "data.csv: row 2, label 'wind': 0.5 is neither 0 nor 1"
    assert error(DataError, columns.encode, samples([[0.0, 1.0], [0.0, 0.5]])) == message
    message = "data.csv: row 1: has 3 targets, training had 2"
    assert error(DataError, columns.encode, samples([[0.0, 1.0, 1.0]])) == message
    message = "data.csv: row 1: no training sample has a label"
    assert error(DataError, tasks.Multilabel.learn, samples(["", " | "]), "|") == message


def test_one_number_a_sample_has_no_labels():
    message = r"multilabel needs text such as 'red;round', or a target for each label; the data have one number a"
    assert re.match(message, error(ConfigError, tasks.Multilabel.learn, samples([0, 1, 1]), ";"))


def test_predicted_labels_are_written_as_they_were_read():
    columns = tasks.Multilabel(["big", "red"], ";").predict(torch.tensor([[1.0, 2.0], [-1.0, 0.5], [-1.0, -1.0]]))
    assert columns["prediction"] == ["big;red", "red", ""]
    assert columns["probability_big"] == pytest.approx([0.731, 0.269, 0.269], abs=1e-3)


# ---- regression


def test_targets_are_learnt_as_deviations_and_predicted_in_their_units():
    task = tasks.Regression.learn(samples([[1.0, 100.0], [3.0, 300.0]], ("a", "b")), standardize=True)
    assert (task.names, task.mean, task.std) == (["a", "b"], [2.0, 200.0], [1.0, 100.0])
    encoded = task.encode(samples([[2.0, 400.0]]))
    assert encoded.tolist() == [[0.0, 2.0]]
    assert task.predict(encoded) == {"prediction_a": [2.0], "prediction_b": [400.0]}


def test_large_targets_keep_their_digits():
    seconds = [[1.7e9], [1.7e9 + 1.0], [1.7e9 + 2.0]]
    task = tasks.Regression.learn(samples(seconds), standardize=True)
    assert task.predict(task.encode(samples(seconds)))["prediction"] == pytest.approx([s for (s,) in seconds], abs=1e-3)


def test_one_target_is_a_column_of_its_own():
    task = tasks.Regression.learn(samples([1, 2, 3]), standardize=False)
    assert task.encode(samples([5, 6])).tolist() == [[5.0], [6.0]]
    assert task.predict(torch.tensor([[5.0]])) == {"prediction": [5.0]}


def test_a_constant_target_can_be_learnt():
    task = tasks.Regression.learn(samples([4.0, 4.0]), standardize=True)
    assert task.encode(samples([4.0, 5.0])).tolist() == [[0.0], [1.0]]


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (-np.inf, "-inf"), (1e39, "1e+39")])
def test_a_target_that_is_no_finite_number_is_an_error(value, shown):
    targets = [[1.0, 2.0], [1.0, value]]
    message = f"data.csv: row 2: target 'b' is {shown}, no finite float32 number"
    assert error(DataError, tasks.Regression.learn, samples(targets, ("a", "b")), True) == message
    task = tasks.Regression(["a", "b"], [0.0, 0.0], [1.0, 1.0])
    assert error(DataError, task.encode, samples(targets, ("a", "b"))) == message


def test_text_is_no_quantity():
    message = "data.csv: row 2: target 'n/a' is text; regression needs numbers"
    assert error(DataError, tasks.Regression.learn, samples(["1.5", "n/a"]), True) == message


# ---- all


@pytest.mark.parametrize(
    "task",
    [
        tasks.Classification(["a", "b"]),
        tasks.Classification([0, 3]),
        tasks.Multilabel(["a"], ";"),
        tasks.Regression(["y"], [0.5], [2.0]),
    ],
    ids=str,
)
def test_a_task_survives_in_a_checkpoint(task):
    assert tasks.from_facts(json.loads(json.dumps(tasks.facts_of(task)))) == task


def test_data_without_targets_are_an_error():
    for learn in (tasks.infer_type, tasks.Classification.learn):
        assert error(DataError, learn, samples(None)) == "data.csv: row 1: the data have no targets"
