"""How sure a metric of one network is, from so many validation examples: a jackknife that leaves groups of them out.

Reference: Shao and Tu, The Jackknife and Bootstrap, Springer 1995, section 2.3: the variance of a statistic is
(G - 1) / G times the sum of squared distances of its G values, each without one of G groups, from their mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hypertune_mip.errors import DataError
from hypertune_mip.evaluation.data import ValidationData, batch_size
from hypertune_mip.evaluation.metrics import Run, measured
from hypertune_mip.metrics import Metric
from hypertune_mip.trees import leaves, mapped

GROUPS = 10
"""Into how many the examples are divided."""
_ALIKE = (int, float, str, bytes, type(None))  # what stands in a batch for all of its examples


def standard_errors(metric: Metric, run: Run, data: ValidationData) -> dict[str, float]:
    """Of each metric of one network, by name; NaN where examples cannot be told apart, or there are too few.

    Args:
        metric: Written for one setting; means, or of the whole set.
        run: Runs a function of (model, batch), its result with the axis S = 1 in front.
        data: That the network is measured on.
    """
    groups = _groups(data)
    if groups is None:
        return dict.fromkeys(measured(metric, run, data), math.nan)
    without: list[dict[str, Tensor]] = []
    for left_out in range(GROUPS):
        rest = [batch for index, group in enumerate(groups) if index != left_out for batch in group]
        without.append(measured(metric, run, rest))
    table = {name: torch.cat([values[name] for values in without]) for name in without[0]}
    return {name: math.sqrt((GROUPS - 1) * float(column.var(correction=0))) for name, column in table.items()}


def _groups(data: ValidationData) -> list[list[Any]] | None:
    """The examples in groups of about the same size, or None where that cannot be."""
    if data.batches is None:  # too many to hold, and to matter
        return None
    batches = list(data)
    sizes = [_size(batch) for batch in batches]
    if None not in sizes and sum(filter(None, sizes)) >= 2 * GROUPS:
        return _divided(batches, [size for size in sizes if size is not None])
    if len(batches) >= 3 * GROUPS:
        return [batches[index::GROUPS] for index in range(GROUPS)]
    return None


def _size(batch: Any) -> int | None:
    """Number of examples of a batch that can be divided; None of another one."""
    try:
        size = batch_size(batch)
    except DataError:
        return None
    divisible = all(
        isinstance(leaf, _ALIKE) or (isinstance(leaf, Tensor) and (not leaf.ndim or leaf.shape[0] == size))
        for leaf in leaves(batch)
    )
    return size if divisible else None


def _divided(batches: Sequence[Any], sizes: Sequence[int]) -> list[list[Any]]:
    """Each tenth example in a group of its own, counted over all batches."""
    groups: list[list[Any]] = [[] for _ in range(GROUPS)]
    before = 0
    for batch, size in zip(batches, sizes, strict=True):
        for index, group in enumerate(groups):
            first = (index - before) % GROUPS
            if first < size:
                group.append(_rows(batch, slice(first, None, GROUPS)))
        before += size
    return groups


def _rows(batch: Any, rows: slice) -> Any:
    return mapped(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) and leaf.ndim else leaf, batch)
