"""The paper's head: every weight gets an additive change of its own.

Reference: Gonzalez Ortiz, Guttag, Dalca, ICLR 2024, arXiv 2304.07645. Its weights are plain tensors, so no layer is
served by factors.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from hypertune_mip.heads.base import Head
from hypertune_mip.heads.rule import Additive, Rule


@dataclass(frozen=True, kw_only=True)
class Dense(Head):
    """theta(u) in full, as in the paper: (H + 1) numbers a weight; for small networks and as a reference.

    Args:
        initialization: See `Head`.
        residual: Whether theta_0 is added (the paper's output encoding); False is for ablations.
    """

    residual: bool = True

    def vector_rule(self, parameter: Tensor) -> Rule:
        """See `Head.vector_rule`."""
        initialization = self.initialization if self.residual else "fan_out"
        return Additive(parameter, initialization, residual=self.residual)

    def matrix_rule(self, parameter: Tensor, module: nn.Module) -> Rule:
        """See `Head.matrix_rule`."""
        return self.vector_rule(parameter)
