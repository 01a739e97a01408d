"""The least that a program must do, to judge start-up by.

Run as `python -m benchmarks.bare typer N | pydantic | digits | digits-files`.
"""

from __future__ import annotations

import sys
from typing import Any


def typer_program(num_commands: int) -> None:
    """Be a command line of `num_commands` commands that do nothing."""
    import typer

    app = typer.Typer(add_completion=False)
    for index in range(num_commands):

        @app.command(f"command{index}")
        def command(path: str, number: int = 0, flag: bool = False) -> None:
            """Do nothing."""

    app(sys.argv[1:])


def pydantic_program() -> None:
    """Import what reads, checks and reports on a config, and check one value."""
    import pydantic
    import rich.console  # noqa: F401
    import typer  # noqa: F401
    import yaml

    pydantic.create_model("Model", hidden=(list[int], ...))(**yaml.safe_load("hidden: [128]"))


def digits(*, by_hand: bool) -> None:
    """Do the training of configs/digits.yaml by hand: the same sizes and number of steps, nothing written.

    `by_hand` reads scikit-learn's file of the digits without its import, which takes as long as torch's.
    """
    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch import nn

    arrays: Any
    if by_hand:
        from importlib.util import find_spec

        spec = find_spec("sklearn")
        assert spec is not None
        (folder,) = spec.submodule_search_locations or ()
        table = np.loadtxt(f"{folder}/datasets/data/digits.csv.gz", delimiter=",")
        arrays = table[:, :-1], table[:, -1].astype(np.int64)
    else:
        from sklearn.datasets import load_digits

        arrays = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(arrays[0]))[:1257]
    inputs, targets = torch.from_numpy(arrays[0][order] / 16).float(), torch.from_numpy(arrays[1][order])
    layers: list[nn.Module] = []
    for before, after in ((64, 256), (256, 256)):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(), nn.Dropout(0.4)]
    model = nn.Sequential(*layers, nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05, fused=True)
    for _ in range(30):
        for batch in torch.randperm(len(inputs)).split(64):
            loss = F.cross_entropy(model(inputs[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    kind = sys.argv.pop(1)
    if kind == "typer":
        typer_program(int(sys.argv.pop(1)))
    elif kind == "pydantic":
        pydantic_program()
    else:
        digits(by_hand=kind == "digits-files")
