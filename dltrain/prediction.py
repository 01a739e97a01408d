"""Predictions for new inputs from a checkpoint alone, in blocks, so that files of any size pass through."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from dltrain import checkpoint as checkpoints
from dltrain.data.prepare import open_source
from dltrain.data.tokenizer import END
from dltrain.device import autocast, open_device
from dltrain.errors import ConfigError
from dltrain.generation import sample
from dltrain.names import printable
from dltrain.network import restore_network
from dltrain.run import finite_or_none
from dltrain.tasks import LanguageModel, Translation

Row = dict[str, Any]


def predict(
    path: str | Path, inputs: Sequence[str], *, device: str = "auto", trusted: Sequence[str] = ()
) -> Generator[Row, None, None]:
    """Yield a row for each sample of `inputs`: where it is from, the prediction, and probabilities for classes.

    Args:
        path: a checkpoint file, or a run directory (then: its best).
        inputs: files or folders of the kind that the model was trained on.
        device: "auto", "cpu", "cuda" or "cuda:n".
        trusted: files and modules named by the checkpoint that may run.
    """
    file = checkpoints.find(Path(path))
    checkpoint = checkpoints.load(file)
    builder, network = restore_network(checkpoint, str(file), open_device(device), trusted)
    state, train = checkpoint.meta["facts"]["source"], builder.file.config.train
    context = autocast(network.device, train.precision)
    source = open_source(builder)
    if isinstance(network.task, LanguageModel):
        raise ConfigError(f"{file}: is a language model; it goes on with a text: --generate TEXT")
    for samples in source.read_inputs(list(inputs), state):
        tensors = source.encode(samples, state)
        for start in range(0, len(samples), train.eval_batch_size):
            batch = tuple(x[start : start + train.eval_batch_size].to(network.device) for x in tensors)
            with torch.inference_mode(), context:
                if isinstance(network.task, Translation):
                    ids = network.translate(batch, state["max_length"])
                    columns = {"prediction": [source.decode_target(row, state) for row in ids]}
                else:
                    columns = network.predict(network.model(*network.transform(batch)).float())
            for offset, values in enumerate(zip(*columns.values(), strict=True)):
                yield {"input": samples.place(start + offset), **dict(zip(columns, values, strict=True))}


def generate(
    path: str | Path,
    prompt: str,
    *,
    max_tokens: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    device: str = "auto",
    trusted: Sequence[str] = (),
) -> str:
    """Return `prompt` and what a language model goes on with.

    Args:
        path: a checkpoint file, or a run directory (then: its best).
        prompt: the beginning; may be empty.
        max_tokens: how many tokens follow.
        temperature: 0 takes the likeliest token each time, 1 draws by the model's probabilities.
        top_k: draw among the likeliest so many; None: among all.
        seed: of the draws.
        device: "auto", "cpu", "cuda" or "cuda:n".
        trusted: files and modules named by the checkpoint that may run.
    """
    file = checkpoints.find(Path(path))
    checkpoint = checkpoints.load(file)
    builder, network = restore_network(checkpoint, str(file), open_device(device), trusted)
    if not isinstance(network.task, LanguageModel):
        raise ConfigError(f"{file}: --generate is for language models; this is a model of {network.task.type}")
    state, source = checkpoint.meta["facts"]["source"], open_source(builder)
    rng = torch.Generator(network.device).manual_seed(seed)
    start = source.encode_prompt(prompt, state).to(network.device)
    with torch.inference_mode(), autocast(network.device, builder.file.config.train.precision):
        (ids,) = sample(
            network.model, start, max_new_tokens=max_tokens, temperature=temperature, top_k=top_k, rng=rng, end=END
        )
    return prompt + str(source.decode_target(ids, state))


def predict_to_file(
    path: Path, inputs: Sequence[str], output: Path | None, *, device: str, trusted: Sequence[str]
) -> int:
    """Write `predict` to `output` (CSV, or JSON lines for .jsonl), or as CSV to stdout; return the number of rows.

    A file appears whole or not at all. Raises ConfigError if it cannot be written.
    """
    if output is not None and output.suffix not in (".csv", ".jsonl"):
        raise ConfigError(f"-o {output}: must end in .csv or .jsonl")
    rows = predict(path, inputs, device=device, trusted=trusted)
    if output is None:
        return _write(rows, sys.stdout, _csv_writer)
    temporary = output.with_name(output.name + ".tmp")
    try:
        with contextlib.closing(rows), temporary.open("w", encoding="utf-8", newline="") as file:
            count = _write(rows, file, _json_writer if output.suffix == ".jsonl" else _csv_writer)
        os.replace(temporary, output)
    except OSError as error:
        raise ConfigError(f"-o {output}: cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _write(rows: Iterator[Row], file: IO[str], make_writer: Callable[[IO[str]], Callable[[Row], None]]) -> int:
    write, count = make_writer(file), 0
    for row in rows:
        write({key: finite_or_none(value) for key, value in row.items()})
        count += 1
    return count


def _json_writer(file: IO[str]) -> Callable[[Row], None]:
    return lambda row: print(json.dumps(row, ensure_ascii=False), file=file)


def _csv_writer(file: IO[str]) -> Callable[[Row], None]:
    writer = csv.writer(file, lineterminator="\n")
    header_written, is_terminal = False, file.isatty()

    def shown(value: Any) -> Any:
        value = _harmless(value)
        return printable(value) if is_terminal and isinstance(value, str) else value

    def write(row: Row) -> None:
        nonlocal header_written
        if not header_written:
            writer.writerow([shown(name) for name in row])
            header_written = True
        writer.writerow([shown(value) for value in row.values()])

    return write


def _harmless(value: Any) -> Any:
    """Return text so that no spreadsheet runs it: a quote goes before what would begin a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value
