"""Where training runs: the few places at which one process and many workers differ."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class Strategy(Protocol):
    """What the training loop asks of its surroundings."""

    rank: int
    world_size: int

    def prepare(self, step: nn.Module) -> nn.Module:
        """The training step, wrapped so that its gradients are the mean over workers."""

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over workers."""


class SingleProcess:
    """One process, one device."""

    rank = 0
    world_size = 1

    def prepare(self, step: nn.Module) -> nn.Module:
        """The step as it is."""
        return step

    def mean(self, value: Tensor) -> Tensor:
        """The value as it is."""
        return value
