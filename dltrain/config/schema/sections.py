"""The sections of a config file, in the order in which one reads them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dltrain.config.durations import DurationValue, Interval, Length, Span
from dltrain.config.schema import (
    losses,
    models,
    models_text,
    models_transformer,
    optimizers,
    regularization,
    schedules,
    transforms,
)
from dltrain.config.schema.base import Component, InWords, OneOf, Settings
from dltrain.config.schema.data_arrays import Arrays, Images, Sklearn
from dltrain.config.schema.data_audio import Audio
from dltrain.config.schema.data_pairs import Corpus, Pairs
from dltrain.config.schema.data_table import Table
from dltrain.config.schema.data_text import Text
from dltrain.config.schema.sweep import Sweep


class Classification(Component):
    """One class out of several for each sample."""

    builds: ClassVar[str] = "dltrain.tasks:Classification"
    type: Literal["classification"]


class Multilabel(Component):
    """Any number of labels for each sample."""

    builds: ClassVar[str] = "dltrain.tasks:Multilabel"
    type: Literal["multilabel"]
    separator: str = Field(
        "|", min_length=1, description="what stands between the labels of a text target, as in 'red|round'"
    )


class Regression(Component):
    """One or several numbers for each sample."""

    builds: ClassVar[str] = "dltrain.tasks:Regression"
    type: Literal["regression"]
    standardize: bool | None = Field(
        None,
        description="learn targets of mean 0 and deviation 1; null: unless the loss needs counts",
    )


class LanguageModel(Component):
    """The next token after each of a text; follows from data of type corpus."""

    builds: ClassVar[str] = "dltrain.tasks:LanguageModel"
    type: Literal["language_model"]


class Translation(Component):
    """A text for each text; follows from data of type pairs."""

    builds: ClassVar[str] = "dltrain.tasks:Translation"
    type: Literal["translation"]
    beam_size: int = Field(1, ge=1, le=64, description="translations kept in the search; 1 is greedy")
    length_penalty: float = Field(
        1.0, ge=0, description="of beam search: 0 favours short translations, 1 means per token (Wu et al. 2016)"
    )


TASKS = OneOf("task", (Classification, Multilabel, Regression, LanguageModel, Translation), user=False)
DATA = OneOf("data", (Sklearn, Table, Images, Arrays, Audio, Text, Pairs, Corpus))
TRANSFORMS = OneOf("augment", transforms.ALL)
MODELS = OneOf("model", (*models.ALL, *models_text.ALL, *models_transformer.ALL))
LOSSES = OneOf("loss", losses.ALL)
OPTIMIZERS = OneOf("optimizer", optimizers.ALL, default="adamw")
SCHEDULES = OneOf("schedule", schedules.ALL, default="constant")
PENALTIES = OneOf("penalty", regularization.PENALTIES)
MIXING = OneOf("mix", regularization.MIXING, user=False)
CLIPPING = OneOf("clip", regularization.CLIPPING, user=False)
AVERAGES = OneOf("average", regularization.AVERAGES, user=False)

KINDS = (
    DATA,
    TASKS,
    TRANSFORMS,
    MODELS,
    LOSSES,
    OPTIMIZERS,
    SCHEDULES,
    PENALTIES,
    MIXING,
    CLIPPING,
    AVERAGES,
)
"""Every kind of component, for `dltrain components` and the tests of contracts."""


Fraction = Annotated[float, Field(ge=0, lt=1)]
Path = Annotated[str, Field(min_length=1), InWords("a path")]
RunName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"), InWords("letters and digits, inside also '.', '_' and '-'")
]
Device = Annotated[str, Field(pattern="^(auto|cpu|cuda(:[0-9]+)?)$"), InWords("auto, cpu, cuda or cuda:N")]
Metric = Annotated[
    str, Field(pattern="^(train|val)/[a-z0-9_]+$"), InWords("train/ or val/ and a metric, such as 'val/loss'")
]


class Split(Settings):
    """How the samples are divided. What the files themselves say (folders, columns, keys) goes before ratios."""

    val: Fraction | Path = Field(
        0.1,
        description="fraction of the samples for validation, or a file or folder of the same kind as the data",
    )
    test: Fraction | Path = Field(
        0.1,
        description="fraction of the samples for testing, or a file or folder of the same kind as the data",
    )
    stratify: bool = Field(True, description="keep the shares of the classes equal in all splits")
    seed: int = Field(
        0,
        ge=0,
        description="of the split alone, so that runs with other seeds are tested on the same samples",
    )


class Regularization(Settings):
    """What keeps the model from learning its samples by heart.

    Weight decay is an argument of the optimizer, dropout is the model's, label smoothing the loss's.
    """

    penalties: list[Annotated[Component, PENALTIES]] = Field(
        [], description="terms added to the loss, reported as a curve of their own"
    )
    mix: Annotated[Component, MIXING] | None = Field(None, description="train on mixtures of two samples")
    clip: Annotated[Component, CLIPPING] | None = Field(None, description="bound the gradient before each update")
    gradient_noise: regularization.GradientNoise | None = Field(None, description="add decaying noise to the gradient")
    sam: regularization.Sam | None = Field(None, description="sharpness-aware minimization: two passes a step")
    average: Annotated[Component, AVERAGES] | None = Field(None, description="evaluate an average of the weights")
    max_norm: regularization.MaxNorm | None = Field(
        None, description="bound the norm of each unit's weights after each update"
    )
    early_stopping: regularization.EarlyStopping | None = Field(
        None, description="stop when the monitored metric no longer improves"
    )


class Train(Settings):
    """How long, in what portions, on what and how exactly."""

    duration: Length = Field(
        DurationValue(10, "epochs"),
        description="length of the training: '20 epochs', '5000 steps', or a time such as '10 min', into which the "
        "schedule and the last evaluation fit",
    )
    batch_size: int = Field(64, ge=1, description="samples of one optimizer step, over all micro-batches")
    micro_batch_size: int | None = Field(
        None, ge=1, description="samples in memory at once; gradients add up to the whole batch"
    )
    eval_batch_size: int = Field(512, ge=1, description="samples at once in evaluation; changes no result")
    sampler: Literal["shuffle", "sequential", "by_length", "balanced", "blocks"] = Field(
        "shuffle",
        description="order of the samples in an epoch; by_length puts sequences of like length into a batch, which "
        "saves padding; balanced draws all classes equally often, with replacement; blocks shuffles stretches of the "
        "file, and 128 MiB of them together, for data larger than the memory",
    )
    drop_last: bool = Field(False, description="leave out the last batch of an epoch if it is not full")
    evaluate_every: Span = Field(
        DurationValue(1, "epochs"),
        description="between two lines of metrics and looks at the validation split",
    )
    checkpoint_every: Interval = Field(
        DurationValue(30, "s"),
        description="between two checkpoints; there is one at each end and stop as well",
    )
    monitor: Metric | None = Field(
        None,
        description="metric that chooses the best checkpoint, such as 'val/loss'; null: the task's own",
    )
    on_nonfinite: Literal["stop", "skip", "rollback"] = Field(
        "stop",
        description="where loss or gradient is not finite: end the run, leave the update out, or go back to the "
        "newest earlier checkpoint with half the learning rate (three times at most)",
    )
    device: Device = Field(
        "auto",
        description="auto, cpu, cuda or cuda:1; auto takes the GPU if there is one",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of activations; weights stay float32"
    )
    compile: bool | Literal["auto"] = Field(
        False,
        description="train the form of the model that torch.compile makes; auto tries it for long trainings, and keeps "
        "it where it is faster",
    )
    cuda_graphs: bool = Field(
        False,
        description="record forward, loss and backward of a step on a GPU as one CUDA graph, for models whose many "
        "small kernels the CPU launches too slowly; of code of your own the Python runs only while recording",
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="what each of several processes holds: ddp the whole model, fsdp a slice of every weight, for "
        "models that do not fit into one device",
    )
    checkpoint: Literal["full", "sharded"] = Field(
        "full",
        description="how fsdp saves: full gathers all in one file, sharded has each process write its slices",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads; null: OMP_NUM_THREADS, else one for small models and all cores for others",
    )
    deterministic: bool = Field(
        False, description="only operations that give the same bits in every run, also on a GPU"
    )


class Config(Settings):
    """A training run: everything that decides its result."""

    name: RunName | None = Field(
        None,
        description="of the folder of runs; null: the config's file name",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of initial weights, sample order, dropout and augmentation")
    data: Annotated[Component, DATA] = Field(description="where the samples come from")
    task: Annotated[Component, TASKS] | None = Field(
        None, description="what is learned; null: inferred from the targets where that is plain"
    )
    split: Split = Field(Split(), description="training, validation and test samples")
    augment: list[Annotated[Component, TRANSFORMS]] = Field([], description="changes to the training batches, in order")
    model: Annotated[Component, MODELS] = Field(description="the network")
    loss: Annotated[Component, LOSSES] | None = Field(None, description="null: cross_entropy, bce or mse, by the task")
    optimizer: Annotated[Component, OPTIMIZERS] = Field(
        optimizers.AdamW(type="adamw"), description="how gradients become updates"
    )
    schedule: Annotated[Component, SCHEDULES] = Field(
        schedules.Constant(type="constant"), description="the learning rate over the training"
    )
    regularization: Regularization = Field(
        Regularization(), description="penalties, clipping, averaging, early stopping and more"
    )
    train: Train = Field(Train(), description="duration, batches, device, precision")
    sweep: Sweep | None = Field(
        None, exclude=True, description="what `dltrain sweep` searches; a training does not look at it"
    )
