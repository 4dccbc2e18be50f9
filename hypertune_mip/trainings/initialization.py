"""First weights of a primary network that is trained from scratch: those it was given, or others of the same kind."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from hypertune_mip.randomness import forked_random_state

_NUMBERS = 1_280_000  # to draw in all, by 2 to 64 fresh networks: tensors of small ones tell little each
_SURE = 6.0  # standard errors of a spread
_ENOUGH = 32  # numbers that tell a distribution's shape
_UNIFORM = 1.85  # largest number over standard deviation: below this a distribution is uniform, with its sqrt(3)
_BEYOND = 1.5  # times the largest number drawn: further out a number of any distribution is none of it


def reinitialized(network: nn.Module, seed: int) -> nn.Module:
    """A copy of `network` on the CPU, its trainable weights drawn anew by each module's own `reset_parameters`.

    What is frozen, buffers, and a parameter whose module has no such method (a position embedding that stands in a
    user's own module, say) keep the values that they have in `network`.

    Args:
        network: Left as it is.
        seed: The same seed gives the same weights, whatever the device of `network`.
    """
    fresh = copy.deepcopy(network).cpu()
    with forked_random_state(seed=seed), torch.no_grad():
        for module in reversed(list(fresh.modules())):  # a parent has the last word over its children
            for name in ("reset_parameters", "_reset_parameters"):
                reset = getattr(module, name, None)
                if callable(reset):
                    reset()
                    break
        given = dict(network.named_parameters()) | dict(network.named_buffers())
        for name, tensor in [*fresh.named_parameters(), *fresh.named_buffers()]:
            if not tensor.requires_grad:
                tensor.copy_(given[name])
    return fresh


def strangers_to_reset(network: nn.Module) -> list[str]:
    """Names of the trainable parameters whose values `reinitialized` would not have drawn; empty of a fresh network.

    An initialisation of the user's own has another scale, and a trained weight has left the bounds of its uniform
    distribution or is no longer constant. Normal distributions have no bounds, so they alone do not show that a network
    is fresh: then, and where most weights are not drawn at all (for want of `reset_parameters`), all names are given.
    """
    trainable = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    count = min(64, max(2, _NUMBERS // sum(parameter.numel() for parameter in trainable.values())))
    first = dict(reinitialized(network, 0).named_parameters())
    draws = {name: _Draws(first[name].detach()) for name in trainable}
    for seed in range(1, count):  # one copy of the network at a time
        fresh = reinitialized(network, seed)
        for name, seen in draws.items():
            seen.add(fresh.get_parameter(name).detach())
    drawn = [name for name, seen in draws.items() if seen.differ]
    varied = [name for name, seen in draws.items() if seen.differ or not _is_constant(seen.first)]
    if sum(trainable[name].numel() for name in drawn) <= 0.5 * sum(trainable[name].numel() for name in varied):
        return list(trainable)
    found = [name for name, parameter in trainable.items() if not draws[name].could_hold(parameter.detach().cpu())]
    return found if found or any(draws[name].uniform for name in drawn) else list(trainable)


class _Draws:
    """What several draws of a tensor have in common."""

    def __init__(self, first: Tensor) -> None:
        self.first = first
        self.differ = False
        self._count, self._sum, self._squares, self._bound = 0, 0.0, 0.0, 0.0
        self.add(first)

    def add(self, drawn: Tensor) -> None:
        """Take one more into account."""
        self.differ = self.differ or not torch.equal(drawn, self.first)
        self._count += drawn.numel()
        self._sum += float(drawn.sum(dtype=torch.float64))
        self._squares += float(torch.linalg.vector_norm(drawn, dtype=torch.float64)) ** 2
        self._bound = max(self._bound, float(drawn.abs().max()))

    @property
    def spread(self) -> float:
        """Standard deviation of all numbers."""
        return math.sqrt(max(self._squares / self._count - (self._sum / self._count) ** 2, 0.0))

    @property
    def uniform(self) -> bool:
        """Whether the numbers have the shape of a uniform distribution around 0."""
        return self._count >= _ENOUGH and self._bound < _UNIFORM * self.spread

    def could_hold(self, given: Tensor) -> bool:
        """Whether a tensor could be one more draw: by its spread, and by the largest number ever drawn."""
        if not self.differ:
            return torch.equal(given, self.first)
        if not bool(torch.isfinite(given).all()):
            return False
        size, spread = given.numel(), float(given.double().std(correction=0))
        if size > 1 and abs(math.log(max(spread / self.spread, 1e-9))) > _SURE / math.sqrt(size):
            return False
        beyond = 1 + 20 / self._count if self.uniform else _BEYOND
        return float(given.abs().max()) <= self._bound * beyond


def _is_constant(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())
