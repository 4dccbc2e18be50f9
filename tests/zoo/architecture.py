"""What is known of an architecture of another package: how it is made, its batches, and how its users call it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Function = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Architecture:
    """A row of the zoo.

    Args:
        package: The module that it needs.
        make: A tiny network with random weights, from that module.
        batch: A batch as that package's users make it, from that module and a generator.
        output: Of (network, batch): what is compared.
        loss: Of (network, batch), 0-d.
        vmap: Whether vmap serves its training; settings run one after another where it does not.
        rates: Patterns by which `ht.nn.bind` finds its rates; none where there are none.
    """

    package: str
    make: Callable[[ModuleType], nn.Module]
    batch: Callable[[ModuleType, torch.Generator], Any]
    output: Function
    loss: Function
    vmap: bool = True
    rates: tuple[str, ...] = ("*",)

    def network(self) -> nn.Module:
        """With the same weights each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make(imported(self.package)).train()

    def batches(self, count: int) -> list[Any]:
        return [self.batch(imported(self.package), torch.Generator().manual_seed(seed)) for seed in range(count)]


def imported(name: str) -> ModuleType:
    """The module; several import torchvision, whose compiled operators load beside the torch of their build only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if find_spec("torchvision") is not None:
            _declare_operators()
        return import_module(name)


@cache
def _declare_operators() -> torch.library.Library | None:
    """Those that torchvision describes on import, where it could not load them; none of the zoo calls them."""
    try:
        import_module("torchvision")
        return None
    except RuntimeError:  # "operator torchvision::nms does not exist"
        library = torch.library.Library("torchvision", "DEF")  # for as long as it lives
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        return library


def classes(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Logits of a pair's inputs."""
    return model(batch[0])


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Of a pair: logits have the classes in their second dimension."""
    return F.cross_entropy(model(batch[0]), batch[1])


def tokens(generator: torch.Generator, *shape: int) -> Tensor:
    """Below 20, and none of the few lowest, which packages keep for padding, starts and ends."""
    return torch.randint(4, 20, shape, generator=generator)


def images(size: int, channels: int = 3) -> Callable[[ModuleType, torch.Generator], tuple[Tensor, Tensor]]:
    """Four images and their classes, below 3."""

    def batch(module: ModuleType, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randn(4, channels, size, size, generator=generator), torch.randint(3, (4,), generator=generator)

    return batch
