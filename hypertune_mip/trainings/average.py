"""Averages of networks that branched from the same weights.

Such networks lie in one valley of the loss, and their mean is often a better network than each of them. Which of them
to take is found greedily on validation data: the best one, and then each that makes the average no worse (model soups;
Wortsman et al., ICML 2022).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from hypertune_mip.trainings.networks import named_tensors


class Average(NamedTuple):
    """A network whose weights are the mean of those of others.

    Args:
        network: In evaluation mode.
        members: Indices of the networks that it is the mean of, in the order in which they came.
        score: Of the network.
    """

    network: nn.Module
    members: tuple[int, ...]
    score: float


def greedy_average(
    makers: Sequence[Callable[[], nn.Module]],
    order: Sequence[int],
    score: Callable[[nn.Module], float],
    *,
    finish: Callable[[nn.Module], object] | None = None,
) -> Average:
    """The first network, averaged with each of the others, in their order, that makes the average no worse.

    Args:
        makers: Each makes a network; all of one architecture.
        order: Indices of those to try.
        score: Of a network; small values are the better ones, and NaN is none.
        finish: What an average needs before it is a network, such as running statistics; changes it in place.
    """
    network = makers[order[0]]()
    members, best = [order[0]], score(network)
    for index in order[1:]:
        tried = with_another(network, makers[index](), len(members))
        if tried is None:
            continue
        if finish is not None:
            finish(tried)
        found = score(tried)
        if found <= best:
            network, best = tried, found
            members.append(index)
    return Average(network.eval(), tuple(members), best)


def with_another(average: nn.Module, network: nn.Module, count: int) -> nn.Module | None:
    """The average of `count` networks and of one more; None where the two hold tensors of different shapes.

    What is no floating-point or complex number, such as a counter of batches, stays as it is in `average`; so do
    tensors that modules hold in other attributes.

    Args:
        average: Of networks so far; it is left alone.
        network: To be added; of the same architecture.
        count: Of networks so far.
    """
    made = copy.deepcopy(average)
    own, others = dict(named_tensors(made)), dict(named_tensors(network))
    if {name: t.shape for name, t in own.items()} != {name: t.shape for name, t in others.items()}:
        return None
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.is_floating_point() or tensor.is_complex():
                exact = torch.promote_types(tensor.dtype, torch.float32)
                mean = tensor.to(exact)
                change = (others[name].to(exact) - mean) / (count + 1)
                tensor.copy_(mean + torch.where(change.isnan(), 0.0, change))  # what is infinite in both stays so
    return made
