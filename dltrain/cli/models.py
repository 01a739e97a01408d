"""The commands that use a trained model: evaluate, predict."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dltrain.cli.options import DeviceOption, JsonOption, TrustOption, print_json
from dltrain.errors import ConfigError

_MAX_MATRIX = 20


class SplitName(StrEnum):
    """The splits that can be evaluated."""

    train = "train"
    val = "val"
    test = "test"


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint file, or a run directory (then: its best).")],
    split: Annotated[SplitName, typer.Option(help="Which samples.")] = SplitName.test,
    data: Annotated[
        str | None, typer.Option(help="Other data: a file or folder (all of it), or a config (its split).")
    ] = None,
    device: DeviceOption = None,
    json_: JsonOption = False,
    trust: TrustOption = None,
) -> None:
    """Measure a trained model: metrics, confusion matrix, scores per class."""
    from dltrain.evaluation import evaluate

    result = evaluate(checkpoint, split=split.value, data=data, device=device or "auto", trusted=trust or [])
    if json_:
        print_json(result)
    else:
        _print_evaluation(result)


def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint file, or a run directory (then: its best).")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT...", help="Tables, images, sounds, texts or folders of them, arrays."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File, .csv or .jsonl; default: CSV on stdout.")
    ] = None,
    generate: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Let a language model go on with this text.", show_default=False)
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of --generate: how many tokens.")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of --generate: 0 takes the likeliest.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Of --generate: draw among the likeliest so many.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of --generate.")] = 0,
    device: DeviceOption = None,
    trust: TrustOption = None,
) -> None:
    """Predict for new inputs, with probabilities, as CSV or JSON lines; or let a language model write."""
    if (generate is None) == (not inputs):
        raise ConfigError("predict: needs INPUTs, or --generate TEXT for a language model")
    if generate is not None:
        from dltrain import prediction
        from dltrain.names import printable

        text = prediction.generate(
            checkpoint,
            generate,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            device=device or "auto",
            trusted=trust or [],
        )
        typer.echo(printable(text) if sys.stdout.isatty() else text)
        return
    assert inputs is not None
    from dltrain.console import err_console
    from dltrain.prediction import predict_to_file

    count = predict_to_file(checkpoint, inputs, output, device=device or "auto", trusted=trust or [])
    if output is not None:
        err_console().print(f"{count} predictions in {output}", markup=False)


def _print_evaluation(result: dict[str, Any]) -> None:
    from dltrain.console import out_console, table

    console, labels, report = out_console(), result["labels"], result["report"]
    console.print(f"{result['checkpoint']} at step {result['step']}", markup=False, soft_wrap=True)
    console.print(
        table(
            ["split", "samples", *result["metrics"]],
            [[result["split"], result["num_samples"], *result["metrics"].values()]],
        )
    )
    for note in result["notes"]:
        console.print(f"note {note}", markup=False, soft_wrap=True)
    for kind, rows in report.items():
        console.print()
        if kind == "confusion_matrix":
            console.print("confusion matrix: rows are targets, columns predictions", markup=False)
            if len(labels) <= _MAX_MATRIX:
                console.print(table(["", *labels], [[name, *row] for name, row in zip(labels, rows, strict=True)]))
            else:
                console.print(f"{len(labels)} classes; see --json", markup=False)
        else:
            console.print(
                table(
                    [kind.removeprefix("per_"), *rows[0]],
                    [[n, *r.values()] for n, r in zip(labels, rows, strict=True)],
                )
            )
