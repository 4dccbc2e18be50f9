"""An embedding's padding row, which stays that of theta_0 at every setting and under every head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypertune_mip.functional import StructuredWeight, plain
from hypertune_mip.heads.rule import Rule


def padding_row(parameter: Tensor, module: nn.Module) -> int | None:
    """The row of a parameter that its owner pads with, or None."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and parameter is module.weight:
        return module.padding_idx
    return None


class Padded(Rule):
    """Another rule, but for the padding row.

    Args:
        rule: Of all other rows.
        padding: Index of the row.
    """

    def __init__(self, rule: Rule, padding: int) -> None:
        """See the class."""
        super().__init__(rule.sizes, rule.initialization)
        self.rule = rule
        self.padding = padding

    def initialize(self, weight: Tensor) -> None:
        """See `Rule.initialize`."""
        self.rule.initialize(weight)

    def tensor(self, theta_0: Tensor, numbers: Tensor) -> Tensor:
        """See `Rule.tensor`."""
        return PaddedWeight(theta_0, self.rule.tensor(theta_0, numbers), self.padding)


def _embedding(
    input: Tensor,
    weight: PaddedWeight,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Padding gives theta_0's row and sends no gradient to it.

    torch keeps gradients from that row, too, but not under vmap with weights and indices of each setting.
    """
    rows = F.embedding(input, weight.other, None, max_norm, norm_type, scale_grad_by_freq, sparse)
    return torch.where((input == weight.padding).unsqueeze(-1), weight.theta_0[weight.padding].detach(), rows)


class PaddedWeight(StructuredWeight):
    """A weight with one row of theta_0.

    Args:
        theta_0: (rows, columns).
        other: The weight, plain or structured, that holds all other rows.
        padding: Index of theta_0's row.
    """

    layers = {F.embedding: _embedding}  # noqa: RUF012

    def __init__(self, theta_0: Tensor, other: Tensor, padding: int) -> None:
        """See the class."""
        self.theta_0 = theta_0
        self.other = other
        self.padding = padding

    def form(self) -> Tensor:
        """See `StructuredWeight.form`.

        Penalties are those of the formed weight: what factors would give for the other row and be subtracted again
        leaves a rounding error in theta_0's row, which an optimiser such as Adam takes for a gradient.
        """
        row, end = self.padding, self.padding + 1  # no select_scatter: its gradients under vmap are wrong by a factor
        return torch.slice_scatter(plain(self.other), self.theta_0[row:end], 0, row, end)

    def formed(self) -> Tensor:
        """See `StructuredWeight.formed`: a plain tensor could not keep gradients from the row (see `_embedding`)."""
        return PaddedWeight(self.theta_0, plain(self.other), self.padding)
