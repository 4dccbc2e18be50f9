"""Heads: how the trunk's features become the weights of the primary network.

Each generated tensor has a rule of its own, so that its scale fits. A rule says how many numbers it needs from the
trunk and how they and theta_0 make the tensor of one setting. Biases and other 1-D tensors get an additive change under
every head.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hypertune_mip.errors import NetworkError
from hypertune_mip.functional import LowRankWeight, RankOneWeight

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Initialization = Literal["zero", "fan_out"]


class Rule(nn.Module, ABC):
    """One generated tensor: how many numbers it needs from the trunk's features, and what they mean.

    The numbers are a linear map of the features; the maps of all rules lie in one layer, `HyperNetwork.heads`.

    Args:
        sizes: Numbers of each block that the tensor needs; each block is scaled by itself.
        initialization: "zero", so that training starts at theta_0's network, or "fan_out" (Kaiming).
    """

    def __init__(self, sizes: Sequence[int], initialization: Initialization) -> None:
        """See the class."""
        super().__init__()
        self.sizes = tuple(sizes)
        self.initialization = initialization

    @property
    def size(self) -> int:
        """Numbers that the tensor needs."""
        return sum(self.sizes)

    @torch.no_grad()
    def initialize(self, weight: Tensor) -> None:
        """Fill in place the linear map's rows that belong to this tensor, shape (size, features)."""
        weight.zero_()
        if self.initialization == "fan_out":
            for block in weight.split(self.sizes):
                nn.init.kaiming_normal_(block, a=0.01, mode="fan_out", nonlinearity="leaky_relu")

    @abstractmethod
    def tensor(self, theta_0: Tensor, numbers: Tensor) -> Tensor:
        """The tensor of one setting, plain or structured, from theta_0 and `numbers` of shape (size,)."""


class Additive(Rule):
    """theta_0 + change, in full; the row of an embedding's padding index stays that of theta_0.

    Under vmap torch would send gradients to that row, which its embedding never does otherwise.
    """

    def __init__(
        self,
        parameter: Tensor,
        module: nn.Module,
        initialization: Initialization,
        *,
        residual: bool = True,
    ) -> None:
        """See the class; with `residual` False the change alone (ablation)."""
        super().__init__([parameter.numel()], initialization)
        self.residual = residual
        self.padding = module.padding_idx if isinstance(module, nn.Embedding) else None

    def tensor(self, theta_0: Tensor, numbers: Tensor) -> Tensor:
        """See `Rule.tensor`."""
        change = numbers.reshape(theta_0.shape)
        tensor = theta_0 + change if self.residual else change
        if self.padding is None:
            return tensor
        row = torch.arange(len(theta_0), device=theta_0.device)[:, None] == self.padding
        return torch.where(row, theta_0.detach(), tensor)


class Scaling(Rule):
    """theta_0 scaled by rows and columns."""

    def __init__(self, parameter: Tensor, module: nn.Module, initialization: Initialization) -> None:
        """See the class."""
        self.kernel = isinstance(module, _CONVOLUTIONS)
        self.groups = module.groups if isinstance(module, _CONVOLUTIONS) else 1
        columns = parameter.shape[1] * self.groups if self.kernel else parameter[0].numel()
        super().__init__([parameter.shape[0], columns], initialization)

    def tensor(self, theta_0: Tensor, numbers: Tensor) -> Tensor:
        """See `Rule.tensor`."""
        row, column = (1 + numbers).split(self.sizes)
        return RankOneWeight(theta_0, row, column, groups=self.groups, kernel=self.kernel)


class Mixing(Rule):
    """theta_0 plus a combination, by setting, of `rank` shared directions."""

    def __init__(self, parameter: Tensor, module: nn.Module, initialization: Initialization, *, rank: int) -> None:
        """See the class."""
        self.kernel = isinstance(module, _CONVOLUTIONS) and module.groups == 1
        rows, columns = parameter.shape[0], parameter[0].numel()
        super().__init__([min(rank, rows, columns)], initialization)
        actual = self.sizes[0]
        self.left = nn.Parameter(torch.randn(rows, actual) / math.sqrt(actual))
        self.right = nn.Parameter(torch.randn(actual, *parameter.shape[1:]) / math.sqrt(columns))

    def tensor(self, theta_0: Tensor, numbers: Tensor) -> Tensor:
        """See `Rule.tensor`."""
        return LowRankWeight(theta_0, self.left, numbers, self.right, kernel=self.kernel)


@dataclass(frozen=True, kw_only=True)
class Head(ABC):
    """A choice of how weights depend on the setting; `rule` applies it to one tensor of the primary network.

    Args:
        initialization: "zero", so that training starts at theta_0's network, or "fan_out".
    """

    initialization: Initialization = "zero"

    def __post_init__(self) -> None:
        """Validate."""
        if self.initialization not in ("zero", "fan_out"):
            raise NetworkError(f'`initialization` must be "zero" or "fan_out", but got {self.initialization!r}.')

    def rule(self, parameter: Tensor, module: nn.Module) -> Rule:
        """The rule of one parameter that `module` owns."""
        if parameter.ndim < 2:
            return Additive(parameter, module, self.initialization)
        return self.matrix_rule(parameter, module)

    @abstractmethod
    def matrix_rule(self, parameter: Tensor, module: nn.Module) -> Rule:
        """The rule of a parameter of two dimensions or more."""


@dataclass(frozen=True, kw_only=True)
class Dense(Head):
    """theta(u) in full, as in the paper: (H + 1) numbers a weight; for small networks and as a reference.

    Args:
        initialization: See `Head`.
        residual: Whether theta_0 is added (the paper's output encoding); False is for ablations.
    """

    residual: bool = True

    def rule(self, parameter: Tensor, module: nn.Module) -> Rule:
        """See `Head.rule`."""
        return self.matrix_rule(parameter, module)

    def matrix_rule(self, parameter: Tensor, module: nn.Module) -> Rule:
        """See `Head.matrix_rule`."""
        initialization = self.initialization if self.residual else "fan_out"
        return Additive(parameter, module, initialization, residual=self.residual)


@dataclass(frozen=True, kw_only=True)
class RankOne(Head):
    """W(u) = W_0 * (1 + r(u)) (1 + c(u))^T: the default; (H + 1)(rows + columns) numbers a weight."""

    def matrix_rule(self, parameter: Tensor, module: nn.Module) -> Rule:
        """See `Head.matrix_rule`."""
        return Scaling(parameter, module, self.initialization)


@dataclass(frozen=True, kw_only=True)
class LowRank(Head):
    """W(u) = W_0 + L diag(s(u)) R with shared, learned L and R.

    Args:
        initialization: See `Head`.
        rank: Number of shared directions, at least 1; capped at the smaller side of each weight.
    """

    rank: int = 8

    def __post_init__(self) -> None:
        """Validate."""
        super().__post_init__()
        if self.rank < 1:
            raise NetworkError(f"`rank` must be at least 1, but got {self.rank}.")

    def matrix_rule(self, parameter: Tensor, module: nn.Module) -> Rule:
        """See `Head.matrix_rule`."""
        return Mixing(parameter, module, self.initialization, rank=self.rank)
