"""From files and a config to splits, as a user meets it: tables, folders of images, arrays."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dltrain.build import Builder
from dltrain.config.validate import load_config
from dltrain.data.prepare import offered, prepare, prepare_path, prepare_split
from dltrain.errors import ConfigError, DataError
from tests.make_data import make_shapes

MODEL = "\nmodel: {type: linear}\n"


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_table(name, columns):
    """Write a CSV of {column: values}."""
    rows = zip(*columns.values(), strict=True)
    lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
    with open(name, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def table(name="data.csv", size=60, labels=("x", "y"), **more):
    labels = [labels[i % len(labels)] for i in range(size)]
    write_table(name, {"u": [round(i * 0.37 % 1, 3) for i in range(size)], "t": labels, **more})


def builder(text, *overrides):
    with open("c.yaml", "w", encoding="utf-8") as file:
        file.write(text + MODEL)
    return Builder(load_config("c.yaml", overrides))


def read(text="data: {type: table, path: data.csv, target: t}", *overrides, **options):
    return prepare(builder(text, *overrides), **options)


def error(kind, *arguments, **options):
    with pytest.raises(kind) as caught:
        read(*arguments, **options)
    return str(caught.value)


SPLIT_COLUMN = "data: {type: table, path: data.csv, target: t, split_column: s}"
TABLE = "data: {type: table, path: data.csv, target: t}"


def sizes(data):
    return tuple(data.facts["num_samples"].values())


# ---- how samples are divided


def test_ratios_are_of_all_samples_and_keep_the_shares_of_the_classes():
    table(size=100, labels=("x", "x", "x", "y"))
    data = read(TABLE, "split.val=0.2", "split.test=0.2")
    assert sizes(data) == (60, 20, 20)
    assert data.splits.keys() == {"train", "val"}  # the test samples wait
    assert torch.bincount(data.splits["val"].target).tolist() == [15, 5]


def test_the_split_depends_on_its_own_seed_only():
    table()
    first, again, other = (read(TABLE, *sets).splits["val"].inputs[0] for sets in ([], ["seed=5"], ["split.seed=1"]))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", ["int", "float", "text"])
def test_classes_are_stratified_whatever_they_are_written_as(kind):
    table(size=100, labels={"int": (0, 0, 0, 1), "float": (0.0, 0.0, 0.0, 1.0), "text": ("a", "a", "a", "b")}[kind])
    data = read(TABLE, "task={type: classification}", "split.val=0.2")
    assert torch.bincount(data.splits["val"].target).tolist() == [15, 5]


def test_combinations_of_labels_are_stratified():
    table(size=200, labels=("a", "a", "a", "a|b"))
    data = read(TABLE, "task={type: multilabel}", "split.val=0.2")
    assert data.splits["val"].target.sum(dim=0).tolist() == [40, 10]


def test_rare_combinations_of_labels_are_validated_too():
    labels = [f"l{i % 20}|l{(i * 7 + 3) % 19}" for i in range(380)]  # each combination once
    write_table("data.csv", {"u": range(380), "t": labels})
    assert sizes(read(TABLE, "task={type: multilabel}", "split.val=0.25"))[1] == 95


def test_a_split_column_says_which_samples_are_for_what():
    table(s=["train", "train", "train", "val", "test"] * 12)
    assert sizes(read(SPLIT_COLUMN)) == (36, 12, 12)


def test_ratios_divide_what_a_split_column_leaves_for_training():
    table(s=["train", "train", "train", "train", "test"] * 12)
    assert sizes(read(SPLIT_COLUMN, "split.val=0.25")) == (36, 12, 12)


def test_validation_and_test_samples_may_have_files_of_their_own():
    table()
    table("v.csv", 10)
    table("t.csv", 8)
    assert sizes(read(TABLE, "split={val: v.csv, test: t.csv}")) == (60, 10, 8)
    assert sizes(read(TABLE, "split={val: v.csv, test: 0.1}")) == (54, 10, 6)


def test_validation_may_be_left_out():
    table()
    data = read(TABLE, "split={val: 0, test: 0}")
    assert data.splits.keys() == {"train"}
    assert sizes(data) == (60, 0, 0)


@pytest.mark.parametrize(
    ("text", "sets", "message"),
    [
        (SPLIT_COLUMN, ["split.val=0.2"], "the data themselves say which samples are for val"),
        (SPLIT_COLUMN, ["split.test=0"], "the data themselves say which samples are for test"),
        (SPLIT_COLUMN, ["split.seed=1"], "no samples are set aside at random"),
        (SPLIT_COLUMN, ["split.stratify=true"], "no samples are set aside at random"),
        (TABLE, ["split={val: 0, test: 0, seed: 1}"], "no samples are set aside at random"),
        (TABLE, ["split.stratify=true", "data.target=u"], "regression has no classes"),
    ],
)
def test_a_split_setting_that_can_do_nothing_is_an_error(text, sets, message):
    table(s=["train", "train", "train", "val", "test"] * 12)
    found = error(ConfigError, text, *sets)
    assert found.startswith(f"--set {sets[0]}: split.")
    assert found.endswith(f": cannot take effect: {message}")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("val: 1.5", r"split.val: is 1.5; possible: a number >= 0 and < 1"),
        ("test: -0.1", r"split.test: is -0.1; possible: a number >= 0"),
        ("val: 0.6, test: 0.5", r"split: val 0.6 and test 0.5 leave nothing to train on; their sum must be below 1"),
        ("val: none.csv", r"split.val: there is no file or folder 'none.csv'; paths are relative to the config file"),
        ("val: data.csv", r"split.val: 'data.csv' is the same as data.path; splits must not share samples"),
        ("val: v.csv, test: ./v.csv", r"split.test: './v.csv' is the same as split.val; splits must not share"),
    ],
)
def test_a_split_that_cannot_be_made_is_an_error_with_its_place(given, message):
    table()
    table("v.csv", 10)
    found = error(ConfigError, f"{TABLE}\nsplit: {{{given}}}")
    assert found.startswith("c.yaml:2:")
    assert message in found


def test_what_a_source_says_of_its_settings_has_their_place():
    np.save("x.npy", np.zeros((9, 2)))
    found = error(ConfigError, "data: {type: arrays, path: x.npy}")
    assert found.startswith("c.yaml:1:7: data: target: for inputs from x.npy, set the path of the .npy of the targets")


def test_too_few_samples_to_divide_are_an_error():
    table(size=4)
    message = "c.yaml:1:1: split: 4 samples are too few for a val split of 0.1; set larger fractions, or 0"
    assert error(DataError, TABLE) == message


def test_a_split_column_without_training_samples_is_an_error():
    table(s=["val", "test"] * 30)
    assert error(DataError, SPLIT_COLUMN) == "c.yaml:1:7: data: the data set no samples aside for training"


def test_validation_samples_that_were_trained_on_are_pointed_out():
    table(size=20)
    table("v.csv", 8)
    assert read(TABLE, "split={val: v.csv, test: 0}").notes == ["8 of 8 val samples are also in train"]
    assert read(TABLE).notes == []


def test_test_samples_that_were_trained_on_are_pointed_out():
    table(size=20)
    table("t.csv", 8)
    trained = builder(TABLE, "split={val: 0.2, test: t.csv}")
    data = prepare(trained)
    in_train = set(data.splits["train"].inputs[0].flatten().tolist())
    split = prepare_split(trained, data.facts, "test")
    columns, notes = split.columns, split.notes
    num_shared = sum(x in in_train for x in columns.inputs[0].flatten().tolist())
    assert num_shared > 0
    assert notes == [f"{num_shared} of 8 test samples are also in train"]
    assert prepare_split(trained, data.facts, "train").notes == []


def test_samples_of_another_config_are_not_compared_with_what_it_would_train_on():
    table(size=20)
    table("t.csv", 8)
    facts = prepare(builder(TABLE)).facts
    other = builder(TABLE, "split={val: 0.2, test: t.csv}")
    assert prepare_split(other, facts, "test", same_data=False).notes == []


# ---- classes come from the training split


def test_a_class_that_validation_lacks_renumbers_nothing():
    table(labels=("a", "b", "c"))
    table("v.csv", 10, labels=("c",))
    data = read(TABLE, "split.val=v.csv")
    assert data.facts["task"]["classes"] == ["a", "b", "c"]
    assert set(data.splits["val"].target.tolist()) == {2}


def test_a_class_that_training_lacks_is_an_error_with_file_and_row():
    table()
    table("v.csv", 10, labels=("x", "y", "x", "z"))
    message = "v.csv: row 4: class 'z' is not in the training split; its classes: x, y"
    assert error(DataError, TABLE, "split.val=v.csv") == message


def test_folders_of_images_share_the_classes_of_the_training_folder():
    for split, number in (("train", 6), ("val", 3), ("test", 2)):
        make_shapes(Path(f"images/{split}"), number)
    shutil.rmtree("images/val/circle")
    data = read("data: {type: images, path: images}")
    assert sizes(data) == (18, 6, 6)
    assert set(data.splits["val"].target.tolist()) == {1, 2}

    shutil.move("images/val/square", "images/val/hexagon")
    found = error(DataError, "data: {type: images, path: images}")
    assert found == (
        "images/val/hexagon/000.png: class 'hexagon' is not in the training split; its classes: circle, square, "
        "triangle"
    )


def test_one_class_is_an_error():
    table(labels=("x",))
    found = error(DataError, TABLE)
    assert found == "data.csv: row 1: all training targets are 'x'; classification needs two classes"


# ---- tasks


def test_what_was_inferred_is_known():
    table()
    assert read(TABLE).task_is_inferred
    assert not read(TABLE, "task={type: classification}").task_is_inferred


def test_several_target_columns_make_labels_or_numbers():
    write_table("data.csv", {"u": range(40), "a": [0, 1] * 20, "b": [1, 1, 0, 1] * 10, "c": range(40)})
    labels = read("data: {type: table, path: data.csv, target: [a, b]}")
    assert (labels.task.type, labels.task.labels) == ("multilabel", ["a", "b"])
    assert labels.facts["class_counts"] == labels.splits["train"].target.sum(dim=0).tolist()
    numbers = read("data: {type: table, path: data.csv, target: [a, c]}")
    assert (numbers.task.type, numbers.task.names) == ("regression", ["a", "c"])
    assert numbers.splits["train"].target.mean(dim=0).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_a_task_that_does_not_fit_the_targets_is_an_error_with_its_place():
    write_table("data.csv", {"u": range(40), "a": [0, 1] * 20, "b": [1, 1, 0, 1] * 10, "c": range(40)})
    found = error(ConfigError, "data: {type: table, path: data.csv, target: [a, b]}\ntask: {type: classification}")
    assert found == "c.yaml:2:7: task: classification needs one target a sample, the data have 2"
    found = error(ConfigError, "data: {type: table, path: data.csv, target: c}")
    assert found == (
        "c.yaml:1:1: task: the targets of 40 samples are 40 different whole numbers, such as 0: classes or quantities? "
        "Write task: {type: classification} or task: {type: regression}"
    )


def test_counts_below_zero_are_an_error_in_training_and_validation():
    table(labels=(1.0, 2.5))
    table("v.csv", 10, labels=(1.0, 2.5, -3.0))
    data = read(TABLE, raw_targets=True)
    assert set(data.splits["train"].target.flatten().tolist()) == {1.0, 2.5}
    message = "v.csv: row 3: target -3 is below zero; the loss of the config is for counts"
    assert error(DataError, TABLE, "split.val=v.csv", raw_targets=True) == message
    shutil.copy("v.csv", "data.csv")
    message = "data.csv: row 3: target -3 is below zero; the loss of the config is for counts"
    assert error(DataError, TABLE, "split={val: 0, test: 0}", raw_targets=True) == message


def test_counts_cannot_be_standardized():
    table(labels=(1.0, 2.5))
    found = error(ConfigError, f"{TABLE}\ntask: {{type: regression, standardize: true}}", raw_targets=True)
    assert found == (
        "c.yaml:2:39: task.standardize: true cannot be combined with this loss, which needs targets in their own units"
    )


def test_an_input_that_is_not_finite_is_an_error_with_its_place():
    x = np.zeros((20, 3))
    x[7, 1] = np.nan
    np.savez("data.npz", x=x, y=np.arange(20) % 2)
    assert "data.npz: x[7, 1] is nan" in error(DataError, "data: {type: arrays, path: data.npz}")
    table(v=["inf" if i == 11 else i / 2 for i in range(60)])
    assert error(DataError, TABLE).startswith("data.csv: row 12, column 'v': 'inf' is not a finite number")


def test_rows_that_were_dropped_are_noted():
    table(v=["" if i in (3, 8) else i / 2 for i in range(60)])
    data = read(TABLE, "data.missing=drop")
    assert data.notes == ["data.csv: dropped 2 of 60 rows: missing 'v' in 2"]
    assert sum(sizes(data)) == 58


# ---- what the data decide


def test_what_the_data_decide_is_offered_by_name():
    table(c=[f"city{i % 5}" for i in range(60)])
    values = offered(read(TABLE).facts)
    assert values == {
        "in_features": 1,
        "input_shape": (1,),
        "out_features": 2,
        "num_classes": 2,
        "cardinalities": [6],
        "num_samples": 48,
        "class_counts": [24, 24],
    }
    make_shapes(Path("images"), 10)
    images = offered(read("data: {type: images, path: images, size: 16}").facts)
    assert (images["in_channels"], images["input_shape"], images["num_classes"]) == (3, (3, 16, 16), 3)


def test_two_outputs_for_each_target_are_offered_where_the_loss_needs_them():
    table(labels=(0.5, 1.5))
    values = offered(read(TABLE).facts, outputs_per_target=2)
    assert values["out_features"] == 2
    assert "num_classes" not in values


# ---- later: evaluation and prediction


def test_the_test_samples_are_the_ones_that_were_set_aside():
    write_table("data.csv", {"u": range(60), "t": ["x", "y"] * 30})
    text = f"{TABLE[:-1]}, scale: none}}\nsplit: {{val: 0.2, test: 0.2}}"
    trained = builder(text)
    data = prepare(trained)
    test = prepare_split(trained, data.facts, "test").columns
    rows = [x for columns in (*data.splits.values(), test) for x in columns.inputs[0].flatten().tolist()]
    assert sorted(rows) == list(range(60))


def test_a_split_cannot_be_told_once_the_data_have_changed():
    table()
    table("v.csv", 10)
    trained = builder(f"{TABLE}\nsplit: {{val: v.csv}}")
    facts = prepare(trained).facts
    assert len(prepare_split(trained, facts, "test").columns) == 6
    message = (
        "c.yaml:1:7: data: the data have changed since the training, so its test split cannot be told; "
        "give the data to evaluate with --data"
    )
    table("v.csv", 11)
    with pytest.raises(DataError) as caught:
        prepare_split(trained, facts, "test")
    assert str(caught.value) == message
    table("v.csv", 10)
    assert len(prepare_split(trained, facts, "test").columns) == 6
    table(size=61)
    with pytest.raises(DataError):
        prepare_split(trained, facts, "test")


def test_a_changed_validation_folder_is_noticed():
    make_shapes(Path("images"), 10)
    make_shapes(Path("val"), 3, seed=1)
    text = "data: {type: images, path: images}\nsplit: {val: val}"
    before = prepare(builder(text)).facts["fingerprint"]
    assert prepare(builder(text)).facts["fingerprint"] == before
    Path("val/.DS_Store").write_text("left behind by a file manager")
    assert prepare(builder(text)).facts["fingerprint"] == before
    make_shapes(Path("val"), 4, seed=1)
    assert prepare(builder(text)).facts["fingerprint"] != before


def test_a_changed_validation_image_that_a_csv_lists_is_noticed():
    make_shapes(Path("images"), 10)
    make_shapes(Path("later"), 2, seed=1)
    names = sorted(str(path) for path in Path("later").rglob("*.png"))
    write_table("va.csv", {"path": names, "label": [Path(name).parent.name for name in names]})
    text = "data: {type: images, path: images}\nsplit: {val: va.csv}"
    before = prepare(builder(text)).facts["fingerprint"]
    shutil.copy(names[0], names[-1])
    assert prepare(builder(text)).facts["fingerprint"] != before


def test_a_split_that_was_not_set_aside_is_an_error():
    table()
    trained = builder(f"{TABLE}\nsplit: {{test: 0}}")
    with pytest.raises(DataError, match=r"^c.yaml:2:8: split: this config sets no test samples aside$"):
        prepare_split(trained, prepare(trained).facts, "test")


def test_other_files_are_encoded_as_the_training_taught():
    write_table("data.csv", {"u": [0.0, 10.0] * 30, "t": ["x", "y"] * 30})
    write_table("other.csv", {"u": [5.0, 25.0], "t": ["y", "y"]})
    trained = builder(TABLE)
    columns = prepare_path(trained, prepare(trained).facts, "other.csv").columns
    assert columns.inputs[0].flatten().tolist() == pytest.approx([0.0, 4.0], abs=1e-5)
    assert columns.target.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("sampler", "free_bytes", "is_told"), [("shuffle", 100, 1), ("blocks", 100, 0), ("shuffle", 10**6, 0)]
)
def test_blocks_are_suggested_for_data_larger_than_the_memory(sampler, free_bytes, is_told, monkeypatch):
    monkeypatch.setattr("dltrain.data.prepare.page_cache_bytes", lambda: free_bytes)
    table()
    data = read(TABLE, f"train.sampler={sampler}")
    assert sum("train.sampler: blocks reads them in stretches" in note for note in data.notes) == is_told
