"""The table of faults and what shows that dltrain meets each: `python -m tests.faults.table` writes docs/faults.md.

A test names its rows with `@pytest.mark.fault(12)`; tests elsewhere in the suite are named here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "faults.md"

_NO_WORKERS = "Does not exist: data are tensors before the loop begins, and no worker process loads them."

SECTIONS: dict[str, dict[int, tuple[str, str]]] = {
    "Configuration and inputs": {
        1: (
            "misspelt key at any depth",
            "Ends with code 2 before any work: file, line, column, the keys there are, the nearest one.",
        ),
        2: ("duplicate key", "Ends with code 2 and both places."),
        3: ("`lr: 1e-3`", "Is the number 0.001, as YAML 1.2 has it."),
        4: (
            "wrong type or out of range",
            "Ends with code 2; all mistakes at once, each with its place and what is possible.",
        ),
        5: (
            "surprises of YAML 1.1: `on`, `no`, `012`, `12:30:45`",
            "Are text, or the number that they look like; a setting that needs another type says so.",
        ),
        6: (
            "malformed, empty, binary, huge, deep or self-multiplying file",
            "Ends with code 2, line and column, in bounded time and memory.",
        ),
        7: ("YAML tag that would run code", "Ends with code 2; no tag is read."),
        8: ("`--set` of an unknown path", "Is checked as the file is, and named in the message."),
        9: (
            "data missing, empty, ragged, of other columns, of one class",
            "Ends with code 3, naming file, row and column, before the model is built.",
        ),
        10: (
            "NaN or infinity in inputs or targets",
            "Ends with code 3 and the row; rows with missing cells are left out where the config says so, and counted.",
        ),
        11: (
            "corrupt image, sound or text",
            "Names the files; `on_bad_sample: skip` leaves them out and counts them in the metrics.",
        ),
        12: (
            "splits that are empty, batches that would all be dropped",
            "Ends with an error that says what to change.",
        ),
        13: (
            "train and validation overlap, unseeded split",
            "A split is a function of its seed; samples that files put into both are noted.",
        ),
        14: (
            "data changed between save and resume",
            "Does not resume: the fingerprint of the data is in the checkpoint.",
        ),
        15: (
            "checkpoint that does not fit the config",
            "Lists what is missing, unexpected or of another shape; nothing is loaded, and no memory taken.",
        ),
    },
    "Training numerics": {
        16: (
            "loss is NaN at step k",
            "Ends with code 4 before the update, with the step, the layer and the samples; or skips, or rolls back.",
        ),
        17: ("gradient is infinite, loss is finite", "Likewise."),
        18: ("NaN in a validation metric alone", "Is null in the metrics, and never the best."),
        19: (
            "divergence without NaN",
            "Is said once the loss is far above the start; ends with code 4 once loss or weights are not finite.",
        ),
        20: ("float16 steps that overflow", "Are skipped, and training goes on."),
        21: ("micro-batches against whole batches", "Give the same weights: each counts by its share of the targets."),
        22: ("small last batch of an epoch", "Is a step like the others; a batch never reaches into the next epoch."),
        23: ("frozen or unused parameters", "Stay as they are; a model with nothing to learn is refused."),
        24: ("dropout in evaluation", "Is off there, and on again afterwards."),
        25: ("EMA or schedule-free weights", "Both sets are in the checkpoint, and evaluation takes the averaged one."),
        26: (
            "out of memory in a step",
            "Micro-batches are halved, with the same result; said, logged, and remembered. At one sample, or where "
            "BatchNorm would see other batches, ends with code 4 and what to do.",
        ),
        27: ("out of memory in an evaluation", "Batches of the evaluation are halved, with the same result."),
        28: ("same seed twice", "Gives the same bytes; what else the numbers depend on is recorded."),
        29: ("number of loader workers", _NO_WORKERS),
        30: ("seeds of loader workers", f"{_NO_WORKERS} Augmentation is a function of seed and step."),
    },
    "Checkpoints and resuming": {
        31: ("SIGKILL at any operation of a save", "Leaves a checkpoint that loads; the next save sweeps the rest."),
        32: (
            "disk full",
            "Ends with the path and the free space; the checkpoint before stays, and the run goes on from it. Curves "
            "that cannot be drawn are a warning.",
        ),
        33: ("read-only run directory", "Ends with code 2 before training."),
        34: ("newest checkpoint cut off", "Is named, and the run goes on from the one before it."),
        35: ("flipped bit", "Is noticed: SHA-256 over all of the file's contents."),
        36: ("power loss", "The file is synced before it is renamed, and its folder after."),
        37: ("resume in the middle of an epoch", "Ends with the bytes of the uninterrupted run, metrics included."),
        38: ("resume twice in an epoch", "Likewise."),
        39: (
            "resume at an epoch's or the run's end",
            "No epoch is repeated or dropped; a finished run says so, with code 0.",
        ),
        40: ("resume with a changed config", "Some settings may change; others are refused with both values."),
        41: (
            "resume with another number of processes",
            "The order of samples is a function of the seed and the epoch.",
        ),
        42: ("metrics past the checkpoint, torn last line", "Are cut off, and written again."),
        43: ("retention", "A run keeps its last two and its best checkpoint; files of others stay."),
        44: ("checkpoint of another version", "Names its version and the one that can be read."),
        45: (
            "two processes in one run directory",
            "The second ends with code 2: the lock is the process's, and dies with it.",
        ),
        46: ("run directory moved", "Works: no absolute path is inside."),
        47: (
            "save that never ends",
            "A line is written while a save takes longer than 10 s; a second Ctrl-C leaves at once, and the checkpoint "
            "before is good.",
        ),
    },
    "Signals and processes": {
        48: (
            "SIGTERM, SIGUSR1, SIGHUP",
            "Finishes the step, saves, ends with 128 + signal; before the loop they end the process at once.",
        ),
        49: ("Ctrl-C once, twice", "Once: saves, 130; twice: leaves at once, and the last checkpoint is good."),
        50: (
            "signal in a save or an evaluation, reader that leaves",
            "The save or the evaluation ends first; a training goes on in silence when no one reads its progress, all "
            "else ends quietly.",
        ),
        51: ("loader worker killed", _NO_WORKERS),
        52: ("loader worker hangs", _NO_WORKERS),
        53: ("/dev/shm too small", _NO_WORKERS),
        54: ("fork after threads", _NO_WORKERS),
        55: ("stdout closed, no terminal, LANG=C, one column", "No crash, and no control codes."),
        56: ("more threads than cores", "A small model has one thread; `train.threads` has the last word."),
    },
    "Evaluation and ranks": {
        57: ("small last batch", "Counts by its samples: no metric depends on the size of the batches."),
        58: ("metric that does not add up", "Is computed from the sums over all samples: equal to scikit-learn's."),
        59: ("2 ranks, odd number of samples", "Counts of processes add up, and no sample is counted twice."),
        60: ("a rank dies", "All end in bounded time, and the run goes on to the bytes of the uninterrupted one."),
    },
    "Sweeps": {61: ("trial or coordinator dies", "The others go on, and each point is trained once.")},
    "Security": {
        62: (
            "malicious checkpoint, data, names",
            "Is refused or harmless: no code runs, and time and memory are bounded; see SECURITY.md.",
        )
    },
}

ELSEWHERE: dict[int, list[str]] = {
    1: ["test_errors::test_unknown_keys_at_every_depth"],
    2: ["test_reader::test_keys_given_twice_are_all_found_at_every_depth"],
    3: ["test_reader::test_values_are_read_as_yaml_1_2_has_them"],
    4: [
        "test_errors::test_all_mistakes_are_said_at_once_in_the_order_of_the_file",
        "test_errors::test_numbers",
        "test_errors::test_whole_numbers",
    ],
    5: ["test_reader::test_values_are_read_as_yaml_1_2_has_them", "test_errors::test_other_values"],
    6: [
        "test_reader::test_what_is_no_config_is_said_with_its_place",
        "test_reader::test_a_file_that_is_no_text_is_refused",
        "test_reader::test_huge_configs_are_refused_in_bounded_time",
        "test_reader::test_a_damaged_config_is_read_or_refused",
    ],
    8: ["test_errors::test_set_is_checked_as_the_file_is_and_named", "test_reader::test_a_wrong_set_names_the_option"],
    9: [
        "test_table::test_wrong_files_say_where_and_what",
        "test_prepare::test_a_class_that_training_lacks_is_an_error_with_file_and_row",
    ],
    10: [
        "test_prepare::test_an_input_that_is_not_finite_is_an_error_with_its_place",
        "test_table::test_rows_with_missing_values_are_dropped_and_counted",
    ],
    11: [
        "test_images::test_all_bad_files_are_named_at_once",
        "test_images::test_bad_images_can_be_left_out",
        "test_audio::test_bad_files_can_be_left_out",
    ],
    12: [
        "test_train::test_drop_last_that_would_drop_everything_is_refused",
        "test_split::test_too_few_samples_for_a_split_are_an_error",
    ],
    13: [
        "test_split::test_a_split_is_a_function_of_its_seed",
        "test_prepare::test_validation_samples_that_were_trained_on_are_pointed_out",
    ],
    14: ["test_resume::test_changed_data_are_refused"],
    15: ["test_checkpoint::test_weights_that_do_not_fit_are_listed_and_nothing_is_loaded"],
    16: [
        "test_nonfinite::test_a_run_stops_before_the_update_and_says_where_it_began",
        "test_nonfinite::test_skip_leaves_out_the_update_and_counts",
        "test_nonfinite::test_rollback_goes_back_to_the_last_checkpoint_with_half_the_rate",
    ],
    17: [
        "test_nonfinite::test_a_run_stops_before_the_update_and_says_where_it_began",
        "test_train::test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint",
    ],
    18: ["test_train::test_a_metric_that_is_undefined_is_null_and_never_the_best"],
    19: [
        "test_nonfinite::test_a_loss_far_above_the_start_is_said_once",
        "test_train::test_a_rate_that_blows_up_the_weights_is_a_training_error",
    ],
    20: ["test_train::test_a_float16_step_that_overflows_is_skipped_and_training_goes_on"],
    21: ["test_equivalence::test_micro_batches_add_up_to_the_whole_batch"],
    23: [
        "test_train::test_frozen_and_unused_parameters_stay_as_they_are",
        "test_plan::test_a_model_that_cannot_learn_is_refused",
    ],
    24: ["test_evaluation::test_an_evaluation_in_the_middle_leaves_dropout_on_for_the_training"],
    25: [
        "test_train::test_an_average_leaves_the_training_alone_and_is_what_is_evaluated",
        "test_equivalence::test_watching_a_schedule_free_optimizer_changes_no_bit",
    ],
    28: [
        "test_equivalence::test_two_runs_of_one_config_leave_the_same_bytes",
        "test_equivalence::test_what_the_numbers_depend_on_is_recorded",
    ],
    31: ["test_checkpoint::test_a_kill_at_any_operation_of_a_save_leaves_a_good_checkpoint"],
    32: [
        "test_checkpoint::test_a_full_disk_keeps_the_old_checkpoint_and_leaves_nothing_behind",
        "test_run::test_a_full_disk_is_a_training_error_that_names_the_file",
    ],
    33: ["test_run::test_a_place_where_no_run_can_be_made_is_said_at_the_start"],
    34: [
        "test_resume::test_a_damaged_last_checkpoint_gives_way_to_the_one_before_it",
        "test_resume::test_two_damaged_checkpoints_are_an_error",
    ],
    35: ["test_checkpoint::test_every_flipped_byte_is_noticed"],
    36: ["test_checkpoint::test_data_reach_the_disk_before_the_name_and_the_name_before_the_return"],
    37: [
        "test_resume::test_a_resumed_run_ends_with_the_bytes_of_the_uninterrupted_run",
        "test_soak::test_a_killed_run_ends_with_the_bytes_of_the_uninterrupted_one",
    ],
    38: ["test_resume::test_where_and_how_often_a_run_is_stopped_does_not_matter"],
    39: [
        "test_resume::test_resuming_a_finished_run_changes_nothing_but_the_log",
        "test_resume::test_resuming_a_finished_run_says_so",
    ],
    40: [
        "test_resume::test_a_changed_config_is_refused_with_the_place_and_both_values",
        "test_resume::test_a_longer_duration_goes_on_where_the_run_ended",
    ],
    42: ["test_resume::test_rows_past_the_checkpoint_and_a_torn_last_line_are_cut_off"],
    43: ["test_train::test_the_best_checkpoint_is_the_best_row"],
    45: ["test_resume::test_two_processes_do_not_share_a_run"],
    46: ["test_resume::test_a_moved_run_directory_resumes_and_holds_no_absolute_path"],
    48: ["test_resume::test_a_schedulers_signals_stop_with_a_checkpoint"],
    49: ["test_resume::test_a_second_ctrl_c_leaves_at_once_and_the_run_can_be_resumed"],
    50: ["test_cli::test_a_reader_that_leaves_early_is_no_error_message"],
    55: ["test_cli::test_closed_streams_do_no_harm", "test_cli::test_odd_terminals_and_locales_do_no_harm"],
    56: ["test_plan::test_a_small_model_has_one_thread_and_the_config_the_last_word"],
    57: ["test_equivalence::test_the_evaluation_does_not_depend_on_its_batch_size"],
    58: ["test_metrics::test_classification_is_scikit_learns", "test_metrics::test_regression_is_scikit_learns"],
    60: [
        "test_hosts::test_a_training_goes_on_after_a_process_on_either_host_was_killed",
        "test_hosts::test_where_one_host_dies_the_other_ends_and_keeps_the_checkpoint",
        "test_soak::test_a_run_on_two_processes_of_which_one_is_killed_ends_with_the_same_bytes",
    ],
    61: [
        "test_sweep::test_a_killed_worker_costs_a_repetition",
        "test_sweep::test_workers_die_with_a_killed_coordinator_and_the_sweep_goes_on",
        "test_sweep::test_a_resumed_sweep_is_the_uninterrupted_one",
        "test_sweep::test_two_processes_do_not_share_a_sweep",
        "test_sweep::test_diverged_trials_are_listed_and_do_not_stop_the_sweep",
        "test_sweep::test_equal_errors_in_a_row_stop_the_sweep",
    ],
    62: [
        "test_checkpoint::test_code_named_by_a_checkpoint_runs_only_if_trusted",
        "test_checkpoint::test_a_forged_config_that_names_foreign_code_is_refused",
        "test_arrays::test_pickles_are_never_loaded",
        "test_images::test_decompression_bombs_are_refused",
        "test_console::test_names_from_the_data_cannot_command_the_terminal",
    ],
}
"""Tests outside this folder, as file::test."""


def page() -> str:
    """Return docs/faults.md."""
    shown = shown_rows()
    lines = [
        "# What can go wrong, and what dltrain does then",
        "",
        "Written by `python -m tests.faults.table` from the marks of the tests; all files are in `tests/`.",
    ]
    for section, rows in SECTIONS.items():
        lines += ["", f"## {section}", "", "| # | Fault | What dltrain does | Shown by |", "|---|---|---|---|"]
        for row, (fault, answer) in rows.items():
            tests = ", ".join(f"`{test}`" for test in shown.get(row, []))
            lines.append(
                f"| {row} | {fault} | {answer} | {tests or ('-' if answer.startswith(_NO_WORKERS) else 'not yet')} |"
            )
    return "\n".join(lines) + "\n"


def shown_rows() -> dict[int, list[str]]:
    """Return the tests that show each row, those of this folder by their marks."""
    shown = {row: list(tests) for row, tests in ELSEWHERE.items()}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for test, rows in marked_tests(path):
            for row in rows:
                shown.setdefault(row, []).append(f"faults/{path.stem}::{test}")
    return shown


def marked_tests(path: Path) -> Iterator[tuple[str, list[int]]]:
    """Yield each test of a file that is marked with rows, and the rows."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        for mark in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                assert isinstance(node, ast.FunctionDef)
                yield node.name, [ast.literal_eval(argument) for argument in mark.args]


def names_in(stem: str) -> set[str]:
    """Return the names of the tests in tests/`stem`.py."""
    tree = ast.parse((TESTS / f"{stem}.py").read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
