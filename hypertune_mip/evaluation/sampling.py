"""How sure a metric of one network is, from so many validation examples: a jackknife that leaves groups of them out.

Reference: Shao and Tu, The Jackknife and Bootstrap, Springer 1995, section 2.3: the variance of a statistic is
(G - 1) / G times the sum of squared distances of its G values, each without one of G groups, from their mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hypertune_mip.errors import DataError
from hypertune_mip.evaluation.data import ValidationData, batch_size
from hypertune_mip.evaluation.metrics import Run, measured
from hypertune_mip.metrics import Metric
from hypertune_mip.trees import leaves, mapped

GROUPS = 10
"""Into how many the examples are divided."""
_ALIKE = (int, float, str, bytes, type(None))  # what stands in a batch for all of its examples


def without_each_group(metric: Metric, run: Run, data: ValidationData) -> dict[str, Float[Tensor, "G"]]:
    """Each metric of one network without one group of examples after the other, by name.

    NaN where examples cannot be told apart, or there are too few.

    Args:
        metric: Written for one setting; means, or of the whole set.
        run: Runs a function of (model, batch), its result with the axis S = 1 in front.
        data: That the network is measured on.
    """
    rests = _rests(data)
    if rests is None:
        return {name: torch.full((GROUPS,), math.nan) for name in measured(metric, run, data)}
    without = [measured(metric, run, rest) for rest in rests]
    return {name: torch.cat([values[name] for values in without]) for name in without[0]}


def standard_error(without: Float[Tensor, "G"]) -> float:
    """Of a metric, or of a difference of two, from its values without each group."""
    return math.sqrt((GROUPS - 1) * float(without.var(correction=0)))


def _rests(data: ValidationData) -> list[list[Any]] | None:
    """For each group the batches without its examples, or None where that cannot be."""
    if data.batches is None:  # too many to hold, and to matter
        return None
    batches = list(data)
    sizes = [_size(batch) for batch in batches]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes) or sum(known) < 2 * GROUPS:
        if len(batches) < 3 * GROUPS:
            return None
        return [[batch for index, batch in enumerate(batches) if index % GROUPS != group] for group in range(GROUPS)]
    return [_without(batches, known, group) for group in range(GROUPS)]


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


def _without(batches: Sequence[Any], sizes: Sequence[int], group: int) -> list[Any]:
    """The batches without each tenth example, counted over all of them."""
    rest, before = [], 0
    for batch, size in zip(batches, sizes, strict=True):
        kept = (torch.arange(before, before + size) % GROUPS != group).nonzero().flatten()
        before += size
        if len(kept):
            rest.append(_rows(batch, kept))
    return rest


def _rows(batch: Any, rows: Tensor) -> Any:
    return mapped(lambda leaf: leaf[rows.to(leaf.device)] if isinstance(leaf, Tensor) and leaf.ndim else leaf, batch)
