"""What the loop is given: everything that a config means, made before the first step.

`make_plan` goes through the config once, from the data to the goal; what is wrong is raised before anything is written.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.optim import Optimizer

from dltrain.budget import Budget
from dltrain.build import Builder, Clock
from dltrain.config.durations import DurationValue, to_steps
from dltrain.data.batches import Batches
from dltrain.data.columns import Columns
from dltrain.data.order import steps_per_epoch
from dltrain.data.prepare import Prepared, prepare
from dltrain.device import missing_compiler, open_device, set_deterministic, set_threads, without_compiler
from dltrain.errors import ConfigError
from dltrain.metrics import HIGHER_IS_BETTER, PRIMARY
from dltrain.network import Network, Transform, build_augmentation, build_network
from dltrain.optimization import Regularizer, build_optimizer, build_regularizer, build_schedule
from dltrain.optimizers import averages
from dltrain.ranks import ALONE, Ranks
from dltrain.sharding import check_sharding, shard
from dltrain.state import State, averaged_copy
from dltrain.tasks import SequenceTask

_SHARE_OF_DEVICE = 0.5
"""Of the memory that is free on the device: what the training split may take."""

_FIRST_CHECKPOINT_S = 2.0


class Preparation(Protocol):
    """What gives the data of a config: `prepare`, or something that remembers what that returned."""

    def __call__(self, builder: Builder, *, raw_targets: bool) -> Prepared:
        """Return the data as `prepare` does."""


@dataclass(frozen=True)
class Plan:
    """A training before its first step."""

    device: torch.device
    data: Prepared
    train: Columns
    """The training split, on the device if it fits."""
    network: Network
    epoch_steps: int
    budget: Budget | None
    """Where the length of the training is a time."""
    evaluate_every: int
    """Steps between two lines of metrics."""
    save_due: Callable[[State], bool]
    lr: float
    """The learning rate that the schedule scales; groups of parameters may have their own."""
    schedule: Callable[[int, int], float]
    """(step, total) -> factor of all learning rates."""
    regularizer: Regularizer
    batches: Batches
    """Those of each step."""
    augment: list[Transform]
    goal: Goal
    state: State

    @property
    def length(self) -> str:
        """The length of the training in words."""
        return (
            f"{self.state.total_steps:,}" if self.budget is None else f"as many as fit into {self.budget.seconds:g} s"
        )

    def progress(self, state: State) -> tuple[int, int]:
        """Return where the schedule is, and its length: steps, or parts of a time."""
        if self.budget is None:
            return state.step, state.total_steps
        return self.budget.part(state.elapsed_s), self.budget.parts


@dataclass(frozen=True)
class Goal:
    """The metric by which checkpoints are compared."""

    metric: str
    sign: float
    """By which it is multiplied so that lower is better."""

    def score(self, row: Mapping[str, Any]) -> float:
        """Return the score of a line of metrics; lower is better, NaN is no score."""
        value = float(row.get(self.metric, math.nan))
        return self.sign * value if math.isfinite(value) else math.nan


def make_plan(builder: Builder, preparation: Preparation = prepare, ranks: Ranks = ALONE) -> Plan:
    """Build all that the config of `builder` means, with the data that `preparation` gives, for one of the `ranks`.

    Raises:
        ConfigError: with the place in the config, if its parts do not fit the data or each other.
        DataError: if the data are wrong, with the file, the row and the column.
    """
    settings = builder.file.config.train
    _check_ranks(builder, ranks)
    check_sharding(builder)
    in_slices = settings.parallel == "fsdp" and not ranks.alone
    with builder.at("train"):
        device = open_device(settings.device, ranks.local_index)
    set_deterministic(settings.deterministic)
    if settings.compile is True and (missing := missing_compiler(device)):
        raise ConfigError(f"{builder.file.place('train', 'compile')}: is true, and {missing}; set it to auto or false")
    if settings.compile is not True:
        without_compiler()
    _check_graphs(builder, device, ranks)

    raw_targets = needs_raw_targets(builder)
    data = ranks.one_then_others(lambda: preparation(builder, raw_targets=raw_targets))
    train = _placed(data.splits["train"], device)
    if device.type == "cuda":
        # The fastest of several ways to do a convolution, which need not be the same one in every run. Each shape is
        # tried anew, so not for sequences.
        torch.backends.cudnn.benchmark = not settings.deterministic and not train.has_sequences
    epoch_steps = steps_per_epoch(len(train), settings.batch_size, settings.drop_last)
    budget, val = None, data.splits.get("val")
    if settings.duration.unit == "s":
        budget = Budget(settings.duration.amount, len(val) / settings.batch_size if val is not None else 0.0)
        clock = Clock(epoch_steps, budget.parts, is_timed=True)
    else:
        clock = Clock(epoch_steps, max(1, to_steps(settings.duration, epoch_steps)))

    network = build_network(builder, data.facts, torch.device("cpu") if in_slices else device)
    example = network.example(data.facts)
    set_threads(settings.threads, network.model, example, settings.batch_size)
    _check_smallest_batch(builder, len(train), network, data.facts, ranks.size)
    shards = shard(builder, network, data.facts, device, ranks) if in_slices else None
    network, model = (network, network.model) if shards is None else (shards.network, shards.tree)
    example = network.example(data.facts)
    augment = build_augmentation(builder, network, data.facts)
    optimizer, lr = build_optimizer(builder, model, device)
    regularizer = build_regularizer(builder, model, clock, example, vector_norm if shards is None else shards.norm)
    schedule = build_schedule(builder, clock)

    keeps_average = regularizer.average is not None or averages(optimizer)
    state = State(
        model,
        optimizer,
        averaged=averaged_copy(model) if keeps_average else None,
        scaler=torch.amp.GradScaler(device.type) if settings.precision == "float16" else None,
        metrics=network.metrics(),
        shards=shards,
        total_steps=clock.total_steps,
        micro_batch_size=settings.micro_batch_size or settings.batch_size,
        eval_batch_size=settings.eval_batch_size,
    )
    _check_combinations(builder, data, optimizer)
    return Plan(
        device,
        data,
        train,
        network,
        epoch_steps,
        budget,
        evaluate_every=_interval(builder, "evaluate_every", clock),
        save_due=_save_due(builder, clock),
        lr=lr,
        schedule=schedule,
        regularizer=regularizer,
        batches=_batches(builder, data, train, epoch_steps),
        augment=augment,
        goal=_goal(builder, data),
        state=state,
    )


def _batches(builder: Builder, data: Prepared, train: Columns, epoch_steps: int) -> Batches:
    config, targets = builder.file.config, data.splits["train"].target
    classes = targets if isinstance(targets, Tensor) else None
    return Batches(train, classes, config.seed, config.train.sampler, config.train.batch_size, epoch_steps)


def _check_ranks(builder: Builder, ranks: Ranks) -> None:
    """Raise ConfigError for settings that several processes cannot share."""
    settings, file = builder.file.config.train, builder.file
    if settings.batch_size < ranks.size:
        raise ConfigError(
            f"{file.place('train', 'batch_size')}: {settings.batch_size} samples of a step cannot be shared by "
            f"{ranks.size} processes"
        )
    if not ranks.alone and settings.duration.unit == "s":
        raise ConfigError(
            f"{file.place('train', 'duration')}: is '{settings.duration}', and {ranks.size} processes have no common "
            "clock; give epochs or steps"
        )
    if not ranks.alone and ":" in settings.device:
        raise ConfigError(
            f"{file.place('train', 'device')}: is '{settings.device}', and each of {ranks.size} processes has a device "
            "of its own; use cuda"
        )


def needs_raw_targets(builder: Builder) -> bool:
    """Return whether the loss of the config wants regression targets in their own units."""
    loss = builder.file.config.loss
    return loss is not None and bool(getattr(builder.target(loss, ("loss",)), "raw_targets", False))


def _placed(columns: Columns, device: torch.device) -> Columns:
    """Return `columns` on the device if they fit beside the training, else where they are; sequences stay too."""
    if device.type == "cpu" or columns.has_sequences:
        return columns
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return columns.to(device) if columns.size_bytes < _SHARE_OF_DEVICE * free_bytes else columns


def _check_combinations(builder: Builder, data: Prepared, optimizer: Optimizer) -> None:
    """Raise ConfigError for settings that cannot take effect together."""
    config, file = builder.file.config, builder.file
    num_samples, size = len(data.splits["train"]), config.train.batch_size
    if config.train.sampler == "balanced" and data.task.type != "classification":
        raise ConfigError(f"{file.place('train', 'sampler')}: balanced needs classes; the task is {data.task.type}")
    if config.train.sampler == "by_length" and not data.splits["train"].has_sequences:
        raise ConfigError(f"{file.place('train', 'sampler')}: by_length needs sequences; all samples have one shape")
    average = config.regularization.average
    if average is not None and average.type == "swa" and config.train.duration.unit == "s":
        raise ConfigError(
            f"{file.place('regularization', 'average')}: swa counts steps, and train.duration is a time; use ema, or "
            "give the duration in epochs"
        )
    if averages(optimizer) and config.regularization.average is not None:
        raise ConfigError(f"{file.place('regularization', 'average')}: {config.optimizer.type} is an average already")
    if config.regularization.sam is not None and config.train.precision == "float16":
        raise ConfigError(f"{file.place('regularization', 'sam')}: cannot be combined with float16; use bfloat16")
    micro = config.train.micro_batch_size
    if micro is not None and micro > size:
        raise ConfigError(
            f"{file.place('train', 'micro_batch_size')}: {micro} cannot take effect: train.batch_size is {size}"
        )
    if config.train.drop_last and num_samples < size:
        raise ConfigError(
            f"{file.place('train', 'drop_last')}: drops every batch: {num_samples} samples are fewer than "
            f"train.batch_size {size}"
        )


def _check_graphs(builder: Builder, device: torch.device, ranks: Ranks) -> None:
    """Raise ConfigError where steps are to be recorded as CUDA graphs and cannot be."""
    if builder.file.config.train.cuda_graphs and (device.type != "cuda" or not ranks.alone):
        reason = f"there are {ranks.size} processes" if device.type == "cuda" else f"the device is {device}"
        raise ConfigError(f"{builder.file.place('train', 'cuda_graphs')}: is true, and {reason}; set it to false")


def _check_smallest_batch(
    builder: Builder, num_samples: int, network: Network, facts: dict[str, Any], num_processes: int
) -> None:
    """Raise ConfigError if a batch of one sample occurs that the model cannot be trained on (batch normalisation)."""
    train = builder.file.config.train
    whole, rest = divmod(num_samples, train.batch_size)
    batches = {train.batch_size} if whole else set()
    if rest and not (whole and train.drop_last):
        batches.add(rest)
    shares = {batch // num_processes + more for batch in batches for more in (0, batch % num_processes > 0)}
    micro = train.micro_batch_size or train.batch_size
    if 1 not in {part for share in shares for part in (min(share, micro), share % micro)}:
        return
    inputs = tuple(x[:1] for x in network.example(facts))
    try:
        with torch.no_grad():
            copy.deepcopy(network.model).train()(*inputs)
    except ValueError as error:
        raise ConfigError(
            f"{builder.file.place('train', 'batch_size')}: {num_samples} samples in batches of {train.batch_size} "
            f"{f'on {num_processes} processes ' if num_processes > 1 else ''}"
            "leave a batch of one, which BatchNorm cannot normalise; set train.drop_last: true or another size"
        ) from error


def _interval(builder: Builder, name: str, clock: Clock) -> int:
    """Return a setting of `train` in steps; a share of a training whose length is a time is none."""
    interval: DurationValue = getattr(builder.file.config.train, name)
    if clock.is_timed and interval.unit == "%":
        raise ConfigError(
            f"{builder.file.place('train', name)}: '{interval}' of a training whose length is a time is no number of "
            "steps; give epochs or steps"
        )
    return max(1, to_steps(interval, clock.steps_per_epoch, clock.total_steps))


def _save_due(builder: Builder, clock: Clock) -> Callable[[State], bool]:
    """Return what says after each step whether a checkpoint is due: every so many steps, or seconds of training.

    When checkpoints are written changes no weights, so a clock may decide it. The first comes after two seconds, so
    that a disk that cannot be written to is noticed early and little is lost.
    """
    interval: DurationValue = builder.file.config.train.checkpoint_every
    if interval.unit != "s":
        every = _interval(builder, "checkpoint_every", clock)
        return lambda state: state.step % every == 0
    due_s = min(interval.amount, _FIRST_CHECKPOINT_S)

    def due(state: State) -> bool:
        nonlocal due_s
        if state.elapsed_s < due_s:
            return False
        due_s = state.elapsed_s + interval.amount
        return True

    return due


def _goal(builder: Builder, data: Prepared) -> Goal:
    """Return what the best checkpoint is best in: the config's monitor, or the task's own metric."""
    config = builder.file.config
    split = "val" if "val" in data.splits else "train"
    if config.train.monitor is None:
        # Mixed targets have no accuracy, and errors of targets in several units have no mean.
        mixed = split == "train" and config.regularization.mix is not None
        several_units = data.task.type == "regression" and data.task.num_outputs > 1
        unmeasured = split == "train" and isinstance(data.task, SequenceTask)
        name = "loss" if mixed or several_units or unmeasured else PRIMARY[data.task.type]
        metric = f"{split}/{name}"
    else:
        metric = config.train.monitor
        place = builder.file.place("train", "monitor")
        possible = ["loss", *data.task.metrics(torch.device("cpu")).compute()]
        if metric.startswith("val/") and split != "val":
            raise ConfigError(f"{place}: is '{metric}', and there is no validation split; set split.val")
        if metric.partition("/")[2] not in possible:
            raise ConfigError(
                f"{place}: is '{metric}'; possible for {data.task.type}: {', '.join(possible)} after val/ or train/"
            )
        if metric.startswith("train/") and not metric.endswith("/loss") and config.regularization.mix is not None:
            raise ConfigError(
                f"{place}: is '{metric}', which mixed samples do not have; use train/loss or a val/ metric"
            )
        if metric.startswith("train/") and not metric.endswith("/loss") and isinstance(data.task, SequenceTask):
            raise ConfigError(
                f"{place}: is '{metric}', which is not measured on training batches; use train/loss or a val/ metric"
            )
    return Goal(metric, -1.0 if HIGHER_IS_BETTER[metric.partition("/")[2]] else 1.0)
