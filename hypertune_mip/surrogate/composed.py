"""The derivative of what is computed from a setting and from a metric there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from hypertune_mip.evaluation import Measure, gradients


def value_and_gradient_through(
    measure: Measure, units: Float[Tensor, "S d"], metric: str, function: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Float[Tensor, "S"], Float[Tensor, "S d"]]:
    """`function(units, values)` (S,) and its derivative by the units, through the metric's values as well.

    Args:
        measure: Of the metric.
        units: Settings.
        metric: Its name.
        function: Of float64 tensors on the CPU, each of its results of one setting and the value there.
    """
    values, slopes = measure.value_and_gradient(units, metric)
    with gradients(True):
        point = units.detach().double().cpu().requires_grad_()
        raw = values.detach().double().cpu().requires_grad_()
        result = function(point, raw)
        by_point, by_raw = torch.autograd.grad(result.sum(), (point, raw), allow_unused=True, materialize_grads=True)
    return result.detach(), by_point + by_raw.unsqueeze(-1) * slopes
