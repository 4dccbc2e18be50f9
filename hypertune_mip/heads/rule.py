"""What a head does to one tensor of the primary network: how many numbers it reads, and what they mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from hypertune_mip.functional import as_type, plain

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
        """The tensor of one setting, plain or structured, from theta_0 and `numbers` of shape (size,).

        It has theta_0's type, whatever that of the numbers, which may be the more exact one.
        """

    def form(self, theta_0: Tensor, numbers: Tensor) -> Tensor:
        """The plain tensor of one setting: `form(t, n) == plain(tensor(t, n))`."""
        return plain(self.tensor(theta_0, numbers))


class Additive(Rule):
    """theta_0 + change, in full.

    Args:
        parameter: The primary network's.
        initialization: See `Rule`.
        residual: Whether theta_0 is added; False is an ablation.
    """

    def __init__(self, parameter: Tensor, initialization: Initialization, *, residual: bool = True) -> None:
        """See the class."""
        super().__init__([parameter.numel()], initialization)
        self.residual = residual

    def tensor(self, theta_0: Tensor, numbers: Tensor) -> Tensor:
        """See `Rule.tensor`."""
        change = numbers if theta_0.ndim == 1 else numbers.reshape(theta_0.shape)
        return as_type(theta_0 + change if self.residual else change, theta_0.dtype)
