"""What a metric returns, and means of it over batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from hypertune_mip.errors import LossError
from hypertune_mip.evaluation.data import batch_size

Metric = Callable[[nn.Module, Any], Mapping[str, Tensor]]
"""Of (model, batch): 0-d means over the batch, by name, for one setting."""


def named_scalars(metric: Metric, model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """What a metric returns.

    Raises:
        LossError: If that is not 0-d tensors by name.
    """
    values = metric(model, batch)
    good = isinstance(values, Mapping) and len(values) > 0
    if not good or not all(isinstance(v, Tensor) and v.ndim == 0 for v in values.values()):
        shown = (
            {k: tuple(v.shape) if isinstance(v, Tensor) else v for k, v in values.items()}
            if isinstance(values, Mapping)
            else type(values).__name__
        )
        raise LossError(
            "A metric must return 0-d tensors by name, for example"
            f' {{"loss": F.cross_entropy(model(x), y)}}, but got {shown}.'
        )
    return dict(values)


def mean_over_batches(
    measure: Callable[[Any], Mapping[str, Float[Tensor, "S ..."]]], batches: Iterable[Any]
) -> dict[str, Float[Tensor, "S ..."]]:
    """Means over examples, float64, of what `measure` gives as means over each batch."""
    totals: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        size = batch_size(batch)
        for name, value in measure(batch).items():
            term = value.double() * size
            totals[name] = totals[name] + term if name in totals else term
        count += size
    return {name: total / count for name, total in totals.items()}
