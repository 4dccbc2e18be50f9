"""Which of very many settings are worth an exact evaluation, by what an emulator says of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from hypertune_mip.arguments import whole_number
from hypertune_mip.directions import Direction, sign
from hypertune_mip.errors import SpaceError
from hypertune_mip.evaluation import Emulator, check_metric

_ROWS = 4096  # that are compared with a front at a time
_SMALLEST = 1e-12

Feasible = Callable[[Mapping[str, np.ndarray]], Bool[np.ndarray, "S"]]
"""Whether settings are wanted at all, by their metrics (S,)."""


def screened(
    emulator: Emulator,
    metrics: Sequence[str],
    n: int,
    *,
    candidates: int,
    seed: int,
    directions: Sequence[Direction],
    within: float = np.inf,
    feasible: Feasible | None = None,
) -> Float[Tensor, "S d"]:
    """Units of at most `n` Sobol settings that an emulator sees nearest to the front, or to the best, of metrics.

    Args:
        emulator: Of the surrogate that is searched.
        metrics: Names.
        n: How many, at most.
        candidates: Sobol settings that are emulated.
        seed: Of the candidates.
        directions: Of `metrics`, in their order.
        within: How far from the front at most, in root mean square errors of the emulator.
        feasible: Settings that are not come last.

    Raises:
        SpaceError: If a metric is unknown, or there are fewer candidates than are asked for.
    """
    for name in metrics:
        check_metric(name, emulator.metrics)
    n = whole_number("n", n, low=1, error=SpaceError)
    candidates = whole_number("candidates", candidates, error=SpaceError)
    if candidates < n:
        raise SpaceError(f"`candidates` must be at least the number of settings, {n}, but got {candidates}.")
    units = emulator.space.sample(candidates, seed=seed)
    values = emulator(units)
    table = np.stack([sign(way) * values[name] for way, name in zip(directions, metrics, strict=True)], axis=1)
    wanted = np.ones(candidates, dtype=bool) if feasible is None else feasible(values)
    scale = np.array([emulator.errors[name].rmse for name in metrics])
    distance = np.full(candidates, np.inf)
    for rows in (wanted, ~wanted):
        if rows.any():
            distance[rows] = domination(table[rows], scale)
    order = np.lexsort([distance, ~wanted])[:n]
    return units[np.sort(order[distance[order] <= within])]


def domination(table: Float[np.ndarray, "S metrics"], scale: Float[np.ndarray, "metrics"]) -> Float[np.ndarray, "S"]:
    """By how many of `scale` a row is worse, in every metric, than some row of the front: at most 0 on the front.

    Rows with NaN are infinitely far from it.
    """
    scaled = table / np.maximum(scale, _SMALLEST)
    front = scaled[non_dominated(table)]
    if not len(front):
        return np.full(len(table), np.inf)
    parts = np.array_split(scaled, -(-len(scaled) // _ROWS))
    far = np.concatenate([(part[:, None] - front).min(-1).max(-1) for part in parts])
    return np.where(np.isnan(table).any(1), np.inf, far)


def non_dominated(table: Float[np.ndarray, "S metrics"]) -> list[int]:
    """Rows without NaN that no other row beats or equals everywhere and beats somewhere."""
    order = np.lexsort(table.T[::-1])  # a row can only be dominated by one that comes before it
    order = order[~np.isnan(table[order]).any(1)]
    front: list[int] = []
    for block in np.array_split(order, -(-len(order) // _ROWS) or 1):
        for row in block[~_dominated(table[block], table[front])]:
            if not _dominated(table[row : row + 1], table[front]).any():
                front.append(int(row))
    return front


def _dominated(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """By some of the others, each row (S,)."""
    beaten = np.zeros(len(rows), dtype=bool)
    for start in range(0, len(others), 64):
        some = others[start : start + 64]
        beaten |= ((some <= rows[:, None]).all(-1) & (some < rows[:, None]).any(-1)).any(-1)
    return beaten
