"""Whether metrics are the means over examples that they are taken for: an F1 score or a root of a mean is none."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from hypertune_mip.errors import HypertuneWarning
from hypertune_mip.evaluation.data import batch_size, joined
from hypertune_mip.evaluation.metrics import Run, merged, named_scalars
from hypertune_mip.metrics import MeanMetric

_BATCHES = 8  # that are looked at, two by two: one pair may agree by chance


def warn_of_no_means(
    metrics: Sequence[MeanMetric], run: Run, batches: Iterable[Any], *, precision: float, stacklevel: int
) -> None:
    """Warn of metrics that are another thing on two batches together than on average over both.

    Nothing is said where it cannot be known: of a single batch, batches that cannot be joined, and metrics that are
    random, as two looks at the same batch show.

    Args:
        metrics: Means over a batch, as they are taken for.
        run: As in `measured`, at one setting.
        batches: Of which the first few are looked at.
        precision: Largest relative rounding error of the network's numbers. Metrics may differ by its square root, or
            by that of their own.
        stacklevel: Whose line the warning names: 2 for the one that calls this.
    """

    def look(batch: Any) -> dict[str, Tensor]:
        values: dict[str, Tensor] = run(lambda model, data: _all(metrics, model, data), batch)
        return values

    few, known = list(islice(batches, _BATCHES)) if metrics else [], set[str]()
    for first, second in zip(few[::2], few[1::2], strict=False):
        sizes, together = (batch_size(first), batch_size(second)), joined(first, second)
        if together is None or batch_size(together) != sum(sizes):  # it may say itself how many it holds
            return
        one, other = look(first), look(second)
        try:
            whole = look(together)
        except Exception:  # a network may insist on a batch's size, and memory has an end
            return
        for name, tensor in whole.items():
            value = float(tensor)
            mean = (sizes[0] * float(one[name]) + sizes[1] * float(other[name])) / sum(sizes)
            error = max(precision, torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0)
            differ = abs(value - mean) > math.sqrt(error) * max(abs(value), abs(mean))
            if differ and name not in known and torch.equal(one[name], look(first)[name]):
                known.add(name)
                warnings.warn(
                    f"The metric {name!r} is no mean over examples: on two batches of the validation data together it"
                    f" is {value:.4g}, but the mean of both is {mean:.4g}, so it depends on how the data are divided."
                    " Measure it by `hypertune_mip.metrics.whole_set(predict, score)`, or pass the data as one batch.",
                    HypertuneWarning,
                    stacklevel=stacklevel,
                )


def _all(metrics: Sequence[MeanMetric], model: nn.Module, batch: Any) -> dict[str, Tensor]:
    return merged(named_scalars(metric, model, batch) for metric in metrics)
