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
from dltrain.device import autocast, compiled, open_device, seed_everything, set_deterministic
from dltrain.errors import Stopped, TrainingError
from dltrain.evaluation import evaluate_columns
from dltrain.losses import count
from dltrain.network import build_network
from dltrain.regularization import average_, early_stop, gradient_noise, sam_perturb_, sam_restore_
from dltrain.run import Run
from dltrain.signals import StopRequest
from dltrain.state import State, averaged_copy, tensors_of

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
    builder = Builder(file, trusted)
    data = prepare(builder, raw_targets=plan.needs_raw_targets(builder))
    train, val = plan.placed(data.splits["train"], device), data.splits.get("val")
    classes = train.target if config.train.sampler == "balanced" else None

    # ---- 2. Model, loss, and one clock: all durations become steps ------------------------------------------------
    network = build_network(builder, data.facts, device)
    model, loss_function = network.model, network.loss
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
    augment = [builder.build(transform, ("augment", i), {}) for i, transform in enumerate(config.augment)]
    goal = plan.goal(builder, data)
    sam, noise, stopping = (getattr(config.regularization, n) for n in ("sam", "gradient_noise", "early_stopping"))
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
        run = Run.create(Path(root), file.name)
        records.describe(run, file, data.facts, device)
    else:
        run = Run.open(Path(resume))
        last = checkpoints.find(run.folder, LAST)
        saved = checkpoints.load(last)
        records.check_resumable(saved, file, data.facts, str(last))
        state.restore(saved, str(last))
        run.cut_metrics(state.step)
    meta = records.meta(file, data.facts)
    run.log(f"{'start' if resume is None else 'resume'} at step {state.step} of {total_steps} on {device}")
    progress.begin(run.folder, data, model, state.step, total_steps, epoch_steps)

    # ---- 5. The parts of a step -----------------------------------------------------------------------------------
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    averaged_tensors = tensors_of(state.averaged) if state.averaged is not None else []
    model_tensors = tensors_of(model)
    forward = compiled(model, config.train.compile)
    context = autocast(device, config.train.precision)
    scaled = (lambda loss: loss) if state.scaler is None else state.scaler.scale
    rng = torch.Generator(device)
    best: Checkpoint | None = None  # not yet on disk

    def gradients(measure: bool) -> tuple[Tensor, Tensor | None, Any]:
        """Leave the gradient of loss + penalty in `.grad`; return loss, penalty, and the weight of the loss in sums.

        Micro-batches add up to the whole batch: each counts by its share of the targets.
        """
        for parameter in parameters:
            parameter.grad = None
        weight = count(loss_function, target)
        size = config.train.micro_batch_size or len(target)
        loss: Any = 0.0
        for at in range(0, len(target), size):
            part = slice(at, at + size)
            with context:
                output = forward(*(x[part] for x in inputs)).float()
                part_loss = loss_function(output, target[part])
                if mixed is not None:
                    other = loss_function(output, target[mixed.partner[part]])
                    part_loss = mixed.share * part_loss + (1 - mixed.share) * other
                if size < len(target):
                    part_loss = part_loss * (count(loss_function, target[part]) / weight)
            scaled(part_loss).backward()
            loss = loss + part_loss.detach()
            if measure and mixed is None:
                state.metrics.update(output.detach(), target[part])
        if not regularizer.penalties:
            return loss, None, weight
        penalty: Any = sum(term() for term in regularizer.penalties)
        scaled(penalty).backward()
        return loss, penalty.detach(), weight

    def save() -> None:
        """Write the best checkpoint, if there is a new one, and then the last: together the state of the run."""
        nonlocal best
        if best is not None:
            checkpoints.save(run.checkpoints / BEST, best)
            best = None
        checkpoints.save(run.checkpoints / LAST, state.last_checkpoint(meta))

    # ---- 6. The loop ----------------------------------------------------------------------------------------------
    stopped_early = stopping is not None and early_stop(state.scores, **stopping.model_dump())
    order = torch.empty(0)
    row_step, row_began_s = state.step, state.elapsed_s
    with StopRequest() as stop, progress:
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
            if sam is not None:
                statistics = [buffer.clone() for buffer in model.buffers()]
                weights = sam_perturb_(parameters, **sam.model_dump())
                gradients(measure=False)
                sam_restore_(parameters, weights)
                for buffer, statistic in zip(model.buffers(), statistics, strict=True):
                    buffer.copy_(statistic)
            if state.step % _STEPS_BETWEEN_LOOKS[device.type] == 0 and not math.isfinite(loss.item()):
                raise TrainingError(records.not_finite(state, loss.item(), epoch_steps, run))

            # update
            if state.scaler is not None:
                state.scaler.unscale_(optimizer)
            if noise is not None:
                gradient_noise(
                    parameters,
                    state.step,
                    rng.manual_seed(mix(config.seed, state.step, 2)),
                    **noise.model_dump(),
                )
            if regularizer.clip is not None:
                regularizer.clip(parameters)
            if state.scaler is None:
                optimizer.step()
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
                    raise TrainingError(records.not_finite(state, loss_sum, epoch_steps, run))
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
                state.row = row
                state.scores.append(goal.score(row))
                state.reset_sums()
                if state.best_is_last:
                    best = state.best_checkpoint(meta)
                stopped_early = stopping is not None and early_stop(state.scores, **stopping.model_dump())
                run.append_metrics(row)
                progress.row(row)
                row_step, row_began_s = state.step, state.elapsed_s

            # checkpoint, stop
            finished = state.step == total_steps or stopped_early
            if finished or stop.number is not None or save_due(state):
                save()
            if stop.number is not None and not finished:
                run.log(f"stopped by signal {stop.number} at step {state.step}")
                raise Stopped(records.how_to_resume(state.step, total_steps, run.folder), stop.number)

    # ---- 7. What remains ------------------------------------------------------------------------------------------
    draw_curves(run.folder)
    summary = records.summary(run, state, goal, total_steps, epoch_steps, stopped_early)
    run.log(f"finished at step {state.step}: {state.row}")
    run.close()
    return summary
