"""THE LOOP: `fit` trains the model of a config; read it downwards.

Sample order, augmentation, dropout and learning rate of a step are functions of (config, step). What a checkpoint has
to hold is therefore weights, optimizer state and running sums, and a resumed run is the uninterrupted one, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dltrain import checkpoint as checkpoints
from dltrain import plan, records
from dltrain.build import Builder, Clock
from dltrain.checkpoint import BEST, LAST, Checkpoint
from dltrain.config.durations import to_steps
from dltrain.config.validate import ConfigFile
from dltrain.console import Progress
from dltrain.curves import draw_curves
from dltrain.data.batches import epoch_order, mix, steps_per_epoch
from dltrain.data.prepare import prepare
from dltrain.device import (
    autocast,
    compiled,
    open_device,
    seed_everything,
    set_deterministic,
    set_threads,
    without_compiler,
)
from dltrain.errors import Stopped, TrainingError
from dltrain.evaluation import evaluate_columns
from dltrain.losses import count
from dltrain.network import build_network
from dltrain.optimizers import update_function
from dltrain.regularization import average_, sam_restore_
from dltrain.run import finite_or_none
from dltrain.signals import StopRequest
from dltrain.state import State, all_finite, averaged_copy, tensors_of

# On a GPU a look at the loss waits for the device.
_STEPS_BETWEEN_LOOKS = {"cpu": 1, "cuda": 50}


def fit(
    file: ConfigFile,
    *,
    root: str | Path = "runs",
    resume: str | Path | None = None,
    progress: Progress | None = None,
    trusted: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Train the model of a config and return a summary: run, step, epoch, metrics, best, seconds.

    Args:
        file: the config, from `load_config`.
        root: folder in which the run directory `<name>/<n>` is made.
        resume: run directory to go on with instead, from its last checkpoint.
        progress: where to show what happens; None for silence.
        trusted: None if the user gave the config; else the code named by it that may run (see `Builder`).

    Raises:
        ConfigError, DataError, CheckpointError: before anything is trained.
        TrainingError: if the loss is not finite or memory runs out.
        Stopped: after a signal, with the checkpoint saved.

    """
    config, progress = file.config, progress or Progress("off")

    # ---- 1. Data --------------------------------------------------------------------------------------------------
    device = open_device(config.train.device)
    set_deterministic(config.train.deterministic)
    if not config.train.compile:
        without_compiler()
    builder = Builder(file, trusted)
    data = prepare(builder, raw_targets=plan.needs_raw_targets(builder))
    train, val = plan.placed(data.splits["train"], device), data.splits.get("val")
    classes = train.target if config.train.sampler == "balanced" else None

    # ---- 2. Model, loss, and one clock: all durations become steps ------------------------------------------------
    network = build_network(builder, data.facts, device)
    model, loss_function = network.model, network.loss
    set_threads(config.train.threads, model, network.example(data.facts), config.train.batch_size)
    batch_size = config.train.batch_size
    epoch_steps = steps_per_epoch(len(train), batch_size, config.train.drop_last)
    total_steps = max(1, to_steps(config.train.duration, epoch_steps))
    clock = Clock(epoch_steps, total_steps)
    evaluate_every = max(1, clock.steps(config.train.evaluate_every))
    save_due = plan.save_due(config.train.checkpoint_every, clock)

    # ---- 3. Optimizer, schedule, regularization -------------------------------------------------------------------
    optimizer = plan.build_optimizer(builder, model, device)
    schedule = builder.partial(config.schedule, ("schedule",), clock)
    regularizer = plan.build_regularizer(builder, model, clock)
    augment = [builder.build_callable(t, ("augment", i), {}) for i, t in enumerate(config.augment)]
    goal = plan.goal(builder, data)
    with_average = regularizer.average is not None or hasattr(optimizer, "average_into")
    half = config.train.precision == "float16"
    state = State(
        model,
        optimizer,
        averaged=averaged_copy(model) if with_average else None,
        scaler=torch.amp.GradScaler(device.type) if half else None,
        metrics=network.metrics(),
    )
    plan.check(builder, data, state, epoch_steps)

    # ---- 4. Run directory, resume ---------------------------------------------------------------------------------
    if resume is None:
        run = records.begin(Path(root), file, data.facts, device)
    else:
        run = records.reopen(Path(resume), file, data.facts, state)
    meta = records.meta(file, data.facts)
    run.log(f"{'start' if resume is None else 'resume'} at step {state.step} of {total_steps} on {device}")
    progress.begin(run.folder, data, model, state.step, total_steps, epoch_steps)

    # ---- 5. The parts of a step -----------------------------------------------------------------------------------
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    averaged_tensors = tensors_of(state.averaged) if state.averaged is not None else []
    model_tensors = tensors_of(model)
    forward = compiled(model, config.train.compile)
    context = autocast(device, config.train.precision)
    update = update_function(optimizer)
    scaled = (lambda loss: loss) if state.scaler is None else state.scaler.scale
    rng = torch.Generator(device)
    best: Checkpoint | None = None  # not yet on disk

    def loss_of_part(output: Tensor, part: Tensor, weight: Any) -> Tensor:
        """Return what a micro-batch adds to the loss of the batch, whose weight in sums is `weight`."""
        loss = loss_function(output, part)
        return loss if len(part) == len(target) else loss * (count(loss_function, part) / weight)

    def gradients(measure: bool) -> tuple[Tensor, Tensor | None, Any]:
        """Leave the gradient of loss + penalty in `.grad`; return loss, penalty, and the weight of the loss in sums.

        Micro-batches add up to the whole batch: each counts by its share of the targets.
        """
        for parameter in parameters:
            parameter.grad = None
        weight = count(loss_function, target)
        size = config.train.micro_batch_size or batch_size
        loss: Any = None
        for at in range(0, len(target), size):
            part = slice(at, at + size)
            part_inputs, part_target = inputs, target
            if size < len(target):
                part_inputs, part_target = tuple(x[part] for x in inputs), target[part]
            with context:
                output = forward(*part_inputs).float()
                part_loss = loss_of_part(output, part_target, weight)
                if mixed is not None:
                    other = loss_of_part(output, target[mixed.partner[part]], weight)
                    part_loss = mixed.share * part_loss + (1 - mixed.share) * other
            scaled(part_loss).backward()
            loss = part_loss.detach() if loss is None else loss + part_loss.detach()
            if measure and mixed is None:
                state.metrics.update(output.detach(), part_target)
        if not regularizer.penalties:
            return loss, None, weight
        penalty: Any = sum(term() for term in regularizer.penalties)
        scaled(penalty).backward()
        return loss, penalty.detach(), weight

    def save_best() -> None:
        """Write the best checkpoint, if there is a new one."""
        nonlocal best
        if best is not None:
            checkpoints.save(run.checkpoints / BEST, best)
            best = None

    def not_finite(what: str) -> TrainingError:
        """Return the error that ends the run; what was best so far is kept."""
        save_best()
        return TrainingError(records.not_finite(what, state, epoch_steps, run))

    # ---- 6. The loop ----------------------------------------------------------------------------------------------
    stopped_early = regularizer.early_stop(state.scores)
    if state.step >= total_steps or stopped_early:
        progress.say("the run is finished already; nothing is left to train")
    order = torch.empty(0)
    row_step, row_began_s = state.step, state.elapsed_s
    with run, StopRequest() as stop, progress:
        began = time.perf_counter() - state.elapsed_s
        while state.step < total_steps and not stopped_early:
            # batch
            epoch, batch = divmod(state.step, epoch_steps)
            if batch == 0 or len(order) == 0:
                order = epoch_order(len(train), config.seed, epoch, config.train.sampler, classes).to(train.device)
            inputs, target = train.batch(order[batch * batch_size : (batch + 1) * batch_size], device)
            seed_everything(device, config.seed, state.step)
            inputs, mixed = network.transform(inputs), None
            if augment or regularizer.mix is not None:
                rng.manual_seed(mix(config.seed, state.step, 1))
            for transform in augment:
                inputs = (transform(inputs[0], rng), *inputs[1:])
            if regularizer.mix is not None:
                mixed = regularizer.mix(inputs, rng)
                inputs = mixed.inputs

            # forward, loss, penalty, backward
            factor = schedule(state.step, total_steps)
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            loss, penalty, weight = gradients(measure=True)
            if regularizer.sam_perturb is not None:
                statistics = [buffer.clone() for buffer in model.buffers()]
                weights = regularizer.sam_perturb(parameters)
                gradients(measure=False)
                sam_restore_(parameters, weights)
                for buffer, statistic in zip(model.buffers(), statistics, strict=True):
                    buffer.copy_(statistic)
            if state.step % _STEPS_BETWEEN_LOOKS[device.type] == 0 and not math.isfinite(loss.item()):
                raise not_finite("loss is")

            # update
            if state.scaler is not None:
                state.scaler.unscale_(optimizer)
            if regularizer.clip is not None:
                regularizer.clip(parameters)
            if regularizer.gradient_noise is not None:
                regularizer.gradient_noise(parameters, state.step, rng.manual_seed(mix(config.seed, state.step, 2)))
            if state.scaler is None:
                update()
            else:
                state.scaler.step(optimizer)
                state.scaler.update()
            if regularizer.max_norm is not None:
                regularizer.max_norm()
            if regularizer.average is not None:
                average_(averaged_tensors, model_tensors, regularizer.average(state.step, total_steps))
            state.loss_sum += loss * weight
            state.weight_sum += weight
            if penalty is not None:
                state.penalty_sum += penalty * weight
            state.step += 1
            state.elapsed_s = time.perf_counter() - began
            progress.step(state)

            # metrics, validation
            if state.step % evaluate_every == 0 or state.step == total_steps:
                loss_sum, weight_sum = state.loss_sum.item(), state.weight_sum.item()
                if not math.isfinite(loss_sum):
                    raise not_finite("loss is")
                if not all_finite(parameters):
                    raise not_finite("weights are")
                row = {
                    "step": state.step,
                    "epoch": state.step / epoch_steps,
                    "lr": optimizer.param_groups[0]["lr"],
                }
                row["train/loss"] = loss_sum / weight_sum
                if regularizer.penalties:
                    row["train/penalty"] = state.penalty_sum.item() / weight_sum
                if regularizer.mix is None:
                    row |= {f"train/{name}": value for name, value in state.metrics.compute().items()}
                num_samples = (state.step - row_step) * batch_size
                row["samples_per_s"] = num_samples / max(state.elapsed_s - row_began_s, 1e-9)
                if val is not None:
                    state.refresh_average()
                    val_loss, val_metrics = evaluate_columns(
                        network, state.evaluated, val, config.train.eval_batch_size, config.train.precision
                    )
                    row["val/loss"] = val_loss
                    row |= {f"val/{name}": value for name, value in val_metrics.compute().items()}
                state.elapsed_s = row["elapsed_s"] = time.perf_counter() - began
                state.row = {name: finite_or_none(value) for name, value in row.items()}
                state.scores.append(goal.score(row))
                state.reset_sums()
                if state.best_is_last:
                    best = state.best_checkpoint(meta)
                stopped_early = regularizer.early_stop(state.scores)
                run.append_metrics(row)
                progress.row(row)
                row_step, row_began_s = state.step, state.elapsed_s

            # checkpoint, stop
            finished = state.step == total_steps or stopped_early
            if finished or stop.number is not None or save_due(state):
                if not all_finite(parameters):
                    raise not_finite("weights are")
                save_best()
                checkpoints.save(run.checkpoints / LAST, state.last_checkpoint(meta))
            if stop.number is not None and not finished:
                raise Stopped(records.how_to_resume(state.step, total_steps, run.folder), stop.number)

        run.log(f"finished at step {state.step}: {state.row}")
    draw_curves(run.folder)
    return records.summary(run, state, goal, total_steps, epoch_steps, stopped_early)
