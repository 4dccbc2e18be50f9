"""Input encoding: from units to what the trunk of the hypernetwork sees.

Reference: Gonzalez Ortiz, Guttag, Dalca, "Magnitude Invariant Parametrizations Improve Hypernetwork Learning",
ICLR 2024, arXiv 2304.07645. Deviation: the result is divided by sqrt(d), so that its norm is 1 for every number d of
hyperparameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hypertune_mip.space import Choice, Dimension

Encoding = Literal["mip", "none"]


def encoded_size(dimensions: Sequence[Dimension], encoding: Encoding) -> int:
    """Number of columns E that `encode` gives for these dimensions."""
    number = 2 if encoding == "mip" else 1
    return sum(len(d.choices) if isinstance(d, Choice) else number for d in dimensions)


def encode(
    units: Float[Tensor, "S d"], dimensions: Sequence[Dimension], encoding: Encoding = "mip"
) -> Float[Tensor, "S E"]:
    """Trunk inputs at units; with "mip" of norm 1 for every unit: `encode(u, ...).norm(dim=-1) == 1`.

    Args:
        units: In [0, 1], one column a dimension.
        dimensions: In declaration order.
        encoding: "mip", [cos(pi u / 2), sin(pi u / 2)] / sqrt(d) for numbers and one-hot / sqrt(d) for categoricals;
            "none", u itself (one-hot for categoricals), for ablations.

    Example:
        >>> from optuna.distributions import FloatDistribution
        >>> from hypertune_mip.space import SearchSpace
        >>> space = SearchSpace({"beta": FloatDistribution(0.0, 1.0)})
        >>> encode(torch.tensor([[0.0], [1.0]]), space.dimensions).round(decimals=3).abs().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if not any(isinstance(dim, Choice) for dim in dimensions):  # the common case, in three operations
        if encoding == "none":
            return units
        angle = units * (math.pi / 2)
        pairs = torch.stack([angle.cos(), angle.sin()], dim=-1)
        return pairs.flatten(-2) / math.sqrt(len(dimensions))
    columns = []
    for dim, unit in zip(dimensions, units.unbind(-1), strict=True):
        if isinstance(dim, Choice):
            hot = torch.nn.functional.one_hot(dim.index(unit), len(dim.choices))
            columns.append(hot.to(unit.dtype))
        elif encoding == "mip":
            angle = unit * (math.pi / 2)
            columns.append(torch.stack([angle.cos(), angle.sin()], dim=-1))
        else:
            columns.append(unit.unsqueeze(-1))
    encoded = torch.cat(columns, dim=-1)
    return encoded / math.sqrt(len(dimensions)) if encoding == "mip" else encoded
