"""THE LOOP: `fit` trains the model of a config; read it downwards.

Sample order, augmentation, dropout and learning rate of a step are functions of (config, step). What a checkpoint has
to hold is therefore weights, optimizer state and running sums, and a resumed run is the uninterrupted one, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dltrain import records
from dltrain.build import Builder
from dltrain.compilation import training_form
from dltrain.config.validate import ConfigFile
from dltrain.console import Progress, Watcher
from dltrain.curves import draws_curves
from dltrain.data.prepare import Inputs, prepare
from dltrain.device import autocast
from dltrain.diagnosis import first_not_finite
from dltrain.errors import Diverged, Stopped
from dltrain.evaluation import evaluate_columns
from dltrain.graphs import Gradients, RecordedGradients
from dltrain.losses import count
from dltrain.memory import in_halves
from dltrain.network import augmented
from dltrain.optimizers import update_function
from dltrain.plan import Preparation, make_plan
from dltrain.ranks import ALONE, Ranks, StepSum
from dltrain.regularization import Mixed, average_, sam_restore_
from dltrain.run import finite_or_none
from dltrain.seeds import AUGMENTATION, NOISE, STEP, seed_everything, seed_of
from dltrain.signals import StopRequest
from dltrain.state import all_finite, set_buffers, tensors_of
from dltrain.tasks import SequenceTask
from dltrain.waiting import considerate_threads

# On a GPU a look at loss and gradient waits for the device; up to 50 updates may follow one that was not finite. None
# of them gets into a checkpoint.
_STEPS_BETWEEN_LOOKS = {"cpu": 1, "cuda": 50}
_MAX_SKIPPED_IN_A_ROW = 20


def fit(
    file: ConfigFile,
    *,
    root: str | Path = "runs",
    resume: str | Path | None = None,
    progress: Progress | None = None,
    watcher: Watcher | None = None,
    trusted: Sequence[str] | None = None,
    preparation: Preparation = prepare,
    curves: bool = True,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Train the model of a config and return a summary: run, step, epoch, metrics, best, seconds.

    Args:
        file: the config, from `load_config`.
        root: folder in which the run directory `<name>/<n>` is made.
        resume: run directory to go on with instead, from its last checkpoint.
        progress: where to show what happens; None for silence.
        watcher: what is to know of each step, and how long each part of one takes.
        trusted: None if the user gave the config; else the code named by it that may run (see `Builder`).
        preparation: gives the data; several trainings on the same data can share them.
        curves: whether curves.png is drawn, which takes longer than a small training.
        ranks: this process among those that train the model; each calls `fit`, and only the first speaks and writes.

    Raises:
        ConfigError, DataError, CheckpointError: before anything is trained.
        TrainingError: if the loss is not finite or memory runs out.
        Stopped: after a signal, with the checkpoint saved.
    """
    config, progress = file.config, progress if progress and ranks.first else Progress("off")

    # ---- 1. What the config means: data, model, loss, optimizer, schedule, regularization ---------------------------
    plan = make_plan(Builder(file, trusted), preparation, ranks)
    device, val, network = plan.device, plan.data.splits.get("val"), plan.network
    state, regularizer = plan.state, plan.regularizer
    model, optimizer = state.model, state.optimizer
    epoch_steps, budget = plan.epoch_steps, plan.budget

    # ---- 2. The run directory: a new one, or one to go on with ------------------------------------------------------
    going_on = None if resume is None else Path(resume)
    run, damage = records.open_run(Path(root), going_on, file, plan.data.facts, device, state, ranks)
    if budget is not None:
        has_ended = state.row.get("step") == state.step
        state.total_steps = budget.begin(state.step, state.elapsed_s, has_ended=has_ended)
    meta = records.meta(file, plan.data.facts, run.folder)
    run.log(records.beginning("start" if resume is None else "resume", state.step, plan.length, device, ranks))
    for note in plan.data.notes:
        run.log(f"note: {note}")
    progress.begin(run.folder, plan)
    if damage:
        progress.say(damage)
    if watcher is not None:
        watcher.begin(run.folder, plan)

    # ---- 3. The parts of a step -------------------------------------------------------------------------------------
    watched = watcher.part if watcher is not None else lambda _, function: function
    samples_of, batch_of = watched("data", plan.batches.samples), watched("data", plan.batches.tensors)
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    averaged_tensors = tensors_of(state.averaged) if state.averaged is not None else []
    model_tensors = tensors_of(model)
    with run.closed_on_error():
        form, told = training_form(plan, config)
    if told:
        progress.say(told)
        run.log(told)
    # Of what is recorded as a whole no parts are to be seen.
    within = (lambda _, function: function) if config.train.cuda_graphs else watched
    forward = within("forward", form)
    context = autocast(device, config.train.precision)
    loss_function = within("loss", network.loss)
    penalties = [watched("penalty", term) for term in regularizer.penalties]
    backward = within("backward", Tensor.backward)
    update = watched("update", update_function(optimizer, state.scaler))
    scaled = (lambda loss: loss) if state.scaler is None else state.scaler.scale
    rng = torch.Generator(device)
    outputs: list[tuple[Tensor, Tensor]] = []  # of the step, with their targets
    measures = regularizer.mix is None and not isinstance(network.task, SequenceTask)  # outputs against targets
    on_nonfinite = config.train.on_nonfinite
    steps_between_looks = 1 if on_nonfinite == "skip" else _STEPS_BETWEEN_LOOKS[device.type]
    shards = state.shards
    add_up = None if ranks.alone else StepSum(ranks, parameters) if shards is None else shards
    saves = ranks.first or shards is not None  # what only the first has, or each its slices of
    # What depends on the other samples of a batch is done to the whole of it; else each process takes its inputs alone.
    needs_whole = bool(plan.augment) or regularizer.mix is not None or plan.train.has_sequences

    def gradients(
        size: int, inputs: Inputs, target: Tensor, mixed: Mixed | None, *, measure: bool
    ) -> tuple[Tensor | None, Any]:
        """Leave the gradient of the loss in `.grad`; return the loss, and its weight in sums.

        `inputs` are of this process's share of the batch. Micro-batches of `size` samples, and the shares of other
        processes, add up to the whole batch: each counts by its share of the targets.
        """
        weight = count(network.loss, target)

        def loss_of(output: Tensor, part: Tensor) -> Tensor:
            loss = loss_function(output, part)
            return loss if len(part) == len(target) else loss * (count(network.loss, part) / weight)

        for parameter in parameters:
            parameter.grad = None
        if measure:
            outputs.clear()
        share = ranks.share(len(target))
        loss: Any = None
        for at in range(share.start, share.stop, size):
            part = slice(at, min(at + size, share.stop))
            part_inputs, part_target = inputs, target
            if part.stop - part.start < len(target):
                own = slice(part.start - share.start, part.stop - share.start)
                part_inputs, part_target = tuple(x[own] for x in inputs), target[part]
            with context:
                output = forward(*part_inputs).float()
                part_loss = loss_of(output, part_target)
                if mixed is not None:
                    other_loss = loss_of(output, target[mixed.partner[part]])
                    part_loss = mixed.share * part_loss + (1 - mixed.share) * other_loss
            backward(scaled(part_loss))
            loss = part_loss.detach() if loss is None else loss + part_loss.detach()
            if measure:
                outputs.append((output.detach(), part_target))
        if shards is not None:
            most = -(-len(target) // ranks.size)
            shards.keep_step(-(-most // size) - len(range(share.start, share.stop, size)))
        return loss, weight

    def completed(own: Any) -> tuple[Tensor, Tensor | None]:
        """Add to this process's own loss and gradient the others', and the penalty's; return loss and penalty."""
        loss = own
        if add_up is not None:
            loss = add_up(own, time.perf_counter() - began, stop.number is not None)
        if not penalties:
            return loss, None
        penalty: Any = sum(term() for term in penalties)
        backward(scaled(penalty))
        return loss, state.total(penalty.detach())

    gradients_of: Gradients = gradients
    if config.train.cuda_graphs:
        gradients_of = watched("forward", RecordedGradients(gradients, outputs, model, device))

    def is_stopping() -> bool:
        """Return whether a signal asks for an end: by now, or of several processes, as all had agreed in the step."""
        return stop.number is not None if add_up is None else add_up.stop

    def halved(name: str, size: int, failure: str) -> None:
        """Let the run go on with fewer samples at once, from the same random numbers."""
        progress.say(records.halve(run, state, name, size, failure, ranks))
        seed_everything(device, config.seed, STEP, state.step, *ranks.salt)

    smaller_micro_batch, smaller_eval_batch = partial(halved, "micro_batch_size"), partial(halved, "eval_batch_size")

    def not_finite(what: str) -> Diverged:
        """Return the error that ends the run; what was best so far is kept."""
        state.save_best(run.checkpoints)
        seed_everything(device, config.seed, STEP, state.step, *ranks.salt)
        found = first_not_finite(model, inputs, runs=shards is None) if len(inputs[0]) else ""
        where = ranks.first_text(found)
        lr = plan.lr * factor
        return Diverged(records.not_finite(what, where, samples.tolist(), state, lr, epoch_steps, run))

    # ---- 4. The loop ------------------------------------------------------------------------------------------------
    num_samples = 0  # since the last line of metrics
    skipped_in_a_row = 0
    row_began_s = state.elapsed_s
    stopped_early = regularizer.early_stop(state.scores)
    if state.step >= state.total_steps or stopped_early:
        progress.say("the run is finished already; nothing is left to train")
    drawing = draws_curves(run, progress.say) if curves else nullcontext()
    with run, drawing, StopRequest() as stop, progress, considerate_threads():
        began = time.perf_counter() - state.elapsed_s
        while state.step < state.total_steps and not stopped_early:
            # batch
            samples = samples_of(state.step)
            share = ranks.share(len(samples))
            inputs, target = batch_of(state.step, device, None if needs_whole or ranks.alone else share)
            seed_everything(device, config.seed, STEP, state.step, *ranks.salt)
            inputs, mixed = network.transform(inputs), None
            if plan.augment or regularizer.mix is not None:
                rng.manual_seed(seed_of(config.seed, AUGMENTATION, state.step))
            inputs = augmented(inputs, plan.augment, rng)
            if regularizer.mix is not None:
                mixed = regularizer.mix(inputs, rng)
                inputs = mixed.inputs
            if needs_whole and not ranks.alone:
                inputs = tuple(x[share] for x in inputs)

            # forward, loss, penalty, backward
            factor = plan.schedule(*plan.progress(state)) * state.lr_factor
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            buffers_before = [buffer.clone() for buffer in model.buffers()] if on_nonfinite == "skip" else []
            compute = partial(gradients_of, inputs=inputs, target=target, mixed=mixed)
            own, weight = in_halves(partial(compute, measure=measures), state.micro_batch_size, smaller_micro_batch)
            loss, penalty = completed(own)
            if regularizer.sam_perturb is not None:
                buffers = [buffer.clone() for buffer in model.buffers()]
                weights = regularizer.sam_perturb(parameters)
                own, _ = in_halves(partial(compute, measure=False), state.micro_batch_size, smaller_micro_batch)
                completed(own)
                sam_restore_(parameters, weights)
                set_buffers(model, buffers)

            # loss or gradient not finite: no update
            bad = state.not_finite(loss, parameters) if state.step % steps_between_looks == 0 else ""
            skipped_in_a_row = skipped_in_a_row + 1 if bad else 0
            if bad and (on_nonfinite == "stop" or skipped_in_a_row > _MAX_SKIPPED_IN_A_ROW):
                raise not_finite(bad)
            if bad and on_nonfinite == "rollback":
                progress.say(records.roll_back(run, state, str(not_finite(bad)), ranks))
                num_samples, row_began_s = 0, state.elapsed_s
                began = time.perf_counter() - state.elapsed_s
                continue

            # update
            if bad:
                state.num_skipped_steps += 1
                set_buffers(model, buffers_before)
            else:
                if state.scaler is not None:
                    state.scaler.unscale_(optimizer)
                if regularizer.clip is not None:
                    regularizer.clip(parameters)
                if regularizer.gradient_noise is not None:
                    rng.manual_seed(seed_of(config.seed, NOISE, state.step))
                    regularizer.gradient_noise(parameters, state.step, rng)
                update()
                if regularizer.max_norm is not None:
                    regularizer.max_norm()
                if regularizer.average is not None:
                    average_(averaged_tensors, model_tensors, regularizer.average(state.step, state.total_steps))
                for output, part_target in outputs:
                    state.metrics.update(output, part_target)
                state.loss_sum += loss * weight
                state.weight_sum += weight
                if penalty is not None:
                    state.penalty_sum += penalty * weight
            num_samples += len(target)
            state.step += 1
            state.elapsed_s = updated_s = time.perf_counter() - began if add_up is None else add_up.elapsed_s
            if budget is not None:
                state.total_steps = budget.total_steps(state.step, state.elapsed_s)
            progress.step(state)
            if watcher is not None:
                watcher.step(state, len(target))

            # metrics, validation
            if state.step % plan.evaluate_every == 0 or state.step == state.total_steps:
                loss_sum, weight_sum = state.loss_sum.item(), state.weight_sum.item()
                row_s = time.perf_counter() - began - row_began_s
                if not math.isfinite(loss_sum):
                    raise not_finite("loss is")
                if ranks.largest(not all_finite(parameters)):
                    raise not_finite("weights are")
                row = {"step": state.step, "epoch": state.step / epoch_steps, "lr": plan.lr * factor}
                row["train/loss"] = loss_sum / weight_sum if weight_sum else math.nan
                if regularizer.penalties:
                    row["train/penalty"] = state.penalty_sum.item() / weight_sum if weight_sum else math.nan
                state.refresh_average()
                state.bring_together(ranks)
                if measures:
                    row |= {f"train/{name}": value for name, value in state.metrics.compute().items()}
                if val is not None:
                    with state.evaluated_form() as evaluated:
                        setting = network, evaluated, val, config.train.precision
                        evaluate = partial(evaluate_columns, *setting, ranks=ranks, shards=shards)
                        val_loss, val_metrics = in_halves(evaluate, state.eval_batch_size, smaller_eval_batch)
                    row["val/loss"] = val_loss
                    row |= {f"val/{name}": value for name, value in val_metrics.compute().items()}
                if plan.data.facts["num_skipped"]:
                    row["skipped_samples"] = plan.data.facts["num_skipped"]
                if state.num_skipped_steps:
                    row["skipped_steps"] = state.num_skipped_steps
                if diverging := records.divergence(run, state, row["train/loss"]):
                    progress.say(diverging)
                row["samples_per_s"] = num_samples / row_s
                row["elapsed_s"] = time.perf_counter() - began
                row = ranks.from_first(row)
                state.elapsed_s = row["elapsed_s"]
                state.row = {name: finite_or_none(value) for name, value in row.items()}
                state.scores.append(plan.goal.score(row))
                state.row["best"] = state.best_is_last
                state.reset_sums()
                if state.best_is_last and saves:
                    state.best = state.best_checkpoint(meta)
                stopped_early = regularizer.early_stop(state.scores)
                run.append_metrics(state.row)
                progress.row(row)
                num_samples, row_began_s = 0, state.elapsed_s

            # checkpoint, stop
            finished = state.step == state.total_steps or stopped_early
            if finished or is_stopping() or plan.save_due(state):
                if ranks.largest(not all_finite(parameters)):
                    raise not_finite("weights are")
                state.bring_together(ranks)
                if saves:
                    state.save(run.checkpoints, meta)
            if budget is not None:
                now_s = time.perf_counter() - began
                budget.ends_step(now_s, now_s - updated_s if state.row.get("step") == state.step else None)
            if is_stopping() and not finished:
                raise Stopped(records.how_to_resume(state, run.folder), ranks.largest(stop.number or 0))

        run.log(f"finished at step {state.step}: {state.row}")
    return records.summary(run, state, plan.goal, epoch_steps, stopped_early)
