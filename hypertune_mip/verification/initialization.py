"""First weights of a primary network that is trained from scratch: those it was given, or others of the same kind."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_DRAWS = 4  # fresh networks that a given one is compared with
_SURE = 6.0  # standard errors


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


def strangers_to_reset(network: nn.Module) -> list[str]:
    """Names of the trainable parameters whose values `reinitialized` would not have drawn.

    An initialisation of the user's own has another scale, and a trained weight has left the bounds of its uniform
    distribution or is no longer constant; where there is neither, the network is as fresh as PyTorch makes it. If
    nothing at all is drawn, for want of `reset_parameters`, these are all names.
    """
    trainable = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    draws = [dict(reinitialized(network, seed).named_parameters()) for seed in range(_DRAWS)]
    if all(torch.equal(draws[0][name], draws[1][name]) for name in trainable):
        return list(trainable)
    return [name for name, p in trainable.items() if not _could_be_drawn(p, [draw[name] for draw in draws])]


def _could_be_drawn(given: Tensor, draws: Sequence[Tensor]) -> bool:
    """Whether a tensor could be one more draw, by its spread and, of a uniform distribution, by its bounds."""
    own, others = given.detach().cpu().double().flatten(), torch.stack([d.detach().double().flatten() for d in draws])
    if bool((others == others[0]).all()):
        return torch.equal(own, others[0])
    if not bool(torch.isfinite(own).all()):
        return False
    size, spread, bound = own.numel(), others.std(), others.abs().max()
    if size > 1 and abs(math.log(max(float(own.std() / spread), 1e-9))) > _SURE / math.sqrt(size):
        return False
    uniform = others.numel() >= 32 and bool(bound / spread < 1.85)  # of a uniform distribution sqrt(3)
    return not uniform or bool(own.abs().max() <= bound * (1 + 20 / others.numel()))
