"""Which settings of a sweep mattered: fANOVA of what a random forest learns from its trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

NUM_NEEDED = 10
"""So many trials are needed to say anything."""
_NUM_TREES = 64


def importance(points: Sequence[Sequence[float]], values: Sequence[float]) -> tuple[list[float], float] | None:
    """Return the share of the objective's variance due to each setting alone, and the share of them together.

    This is fANOVA (Hutter et al. 2014, https://proceedings.mlr.press/v32/hutter14.html), exact for each tree: a tree is
    constant on boxes, so that its mean over all settings but one is a step function. Points lie in the unit cube in
    the way in which the space is searched; Optuna's own, which this agrees with, takes 100 s for 1,000 trials.

    Args:
        points: of each trial, where each setting lies, 0 to 1.
        values: of each trial, the objective.

    Returns:
        None if the values do not differ.
    """
    from sklearn.tree import DecisionTreeRegressor  # sklearn.ensemble takes four times as long to load

    X, y = np.asarray(points, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if y.max() == y.min():
        return None
    y, rng, found = (y - y.mean()) / y.std(), np.random.default_rng(0), []
    for _ in range(_NUM_TREES):
        drawn = rng.integers(len(y), size=len(y))
        tree = DecisionTreeRegressor(random_state=0).fit(X[drawn], y[drawn])
        found.append(_shares(tree.tree_, X.shape[1]))
    shares = np.mean([share for share in found if share is not None] or [np.zeros(X.shape[1])], axis=0)
    return [float(share) for share in shares], max(0.0, 1.0 - float(shares.sum()))


def _shares(tree: Any, num_settings: int) -> np.ndarray | None:
    """Return the share of a tree's variance over the unit cube that is due to each setting alone, or None."""
    low, high, values = _boxes(tree, num_settings)
    sizes = high - low
    volumes = sizes.prod(axis=1)
    mean = volumes @ values
    variance = volumes @ (values - mean) ** 2
    if variance <= 0:
        return None
    shares = np.zeros(num_settings)
    for setting in range(num_settings):
        # Each box adds to the mean over the other settings from its lower to its upper end.
        parts = values * volumes / sizes[:, setting]
        ends = np.concatenate([low[:, setting], high[:, setting]])
        order = np.argsort(ends, kind="stable")
        heights = np.cumsum(np.concatenate([parts, -parts])[order])[:-1]
        shares[setting] = np.diff(ends[order]) @ (heights - mean) ** 2 / variance
    return shares


def _boxes(tree: Any, num_settings: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the boxes on which a tree is constant: their lower and upper ends (boxes, settings), and its values."""
    low, high = np.zeros((tree.node_count, num_settings)), np.ones((tree.node_count, num_settings))
    for node in range(tree.node_count):  # a node comes before its children
        left, right, setting = tree.children_left[node], tree.children_right[node], tree.feature[node]
        if left < 0:
            continue
        low[[left, right]], high[[left, right]] = low[node], high[node]
        high[left, setting] = low[right, setting] = tree.threshold[node]
    is_leaf = tree.children_left < 0
    return low[is_leaf], high[is_leaf], tree.value[is_leaf, 0, 0]
