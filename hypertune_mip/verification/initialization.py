"""First weights of a primary network that is trained from scratch: those it was given, or others of the same kind."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

_DRAWS = 8  # fresh networks that a given one is compared with,
_MORE_DRAWS = 64  # and of a small network, whose tensors tell little each
_SMALL = 20_000  # parameters
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
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
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


def kept_by_reset(network: nn.Module) -> dict[str, Tensor]:
    """What `reinitialized` does not draw anew, by name: frozen parameters, buffers, and whatever else stays."""
    first, second = (reinitialized(network, seed).state_dict() for seed in range(2))
    return {n: t for n, t in first.items() if isinstance(t, Tensor) and torch.equal(t, second[n])}


def strangers_to_reset(network: nn.Module) -> list[str]:
    """Names of the trainable parameters whose values `reinitialized` would not have drawn; empty of a fresh network.

    An initialisation of the user's own has another scale, and a trained weight has left the bounds of its uniform
    distribution or is no longer constant. Normal distributions have no bounds, so they alone do not show that a network
    is fresh: then, and where most weights are not drawn at all (for want of `reset_parameters`), all names are given.
    """
    trainable = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    count = _MORE_DRAWS if sum(p.numel() for p in trainable.values()) <= _SMALL else _DRAWS
    draws = [dict(reinitialized(network, seed).named_parameters()) for seed in range(count)]
    columns = {name: torch.stack([draw[name].detach().double().flatten() for draw in draws]) for name in trainable}
    drawn = {name for name, column in columns.items() if not bool((column == column[0]).all())}
    varied = [n for n, c in columns.items() if n in drawn or not bool((c[0] == c[0, 0]).all())]  # the rest is constant
    if sum(trainable[n].numel() for n in drawn) <= 0.5 * sum(trainable[n].numel() for n in varied):
        return list(trainable)
    found = [name for name, p in trainable.items() if not _could_be_drawn(p, columns[name])]
    return found if found or any(_is_uniform(columns[name]) for name in drawn) else list(trainable)


def _could_be_drawn(given: Tensor, draws: Tensor) -> bool:
    """Whether a tensor could be one more draw: by its spread, and by the largest number ever drawn."""
    own = given.detach().cpu().double().flatten()
    if bool((draws == draws[0]).all()):
        return torch.equal(own, draws[0])
    if not bool(torch.isfinite(own).all()):
        return False
    size, spread, bound = own.numel(), draws.std(), draws.abs().max()
    if size > 1 and abs(math.log(max(float(own.std() / spread), 1e-9))) > _SURE / math.sqrt(size):
        return False
    beyond = 1 + 20 / draws.numel() if _is_uniform(draws) else _BEYOND
    return bool(own.abs().max() <= bound * beyond)


def _is_uniform(draws: Tensor) -> bool:
    return draws.numel() >= _ENOUGH and bool(draws.abs().max() / draws.std() < _UNIFORM)
