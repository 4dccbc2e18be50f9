"""Fresh weights for a primary network that is trained from scratch."""

from __future__ import annotations

import copy

import torch
from torch import nn


def reinitialized(network: nn.Module, seed: int) -> nn.Module:
    """A copy of `network` whose modules have drawn their weights anew, each by its own `reset_parameters`.

    A parameter whose module has no such method (a position embedding that stands in a user's own module, say) keeps the
    value that it has in `network`.

    Args:
        network: Left as it is.
        seed: The same seed gives the same weights.
    """
    fresh = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for module in reversed(list(fresh.modules())):  # a parent has the last word over its children
            for name in ("reset_parameters", "_reset_parameters"):
                reset = getattr(module, name, None)
                if callable(reset):
                    reset()
                    break
    return fresh
