"""Hyperparameters on which the training loss does not depend."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from hypertune_mip.evaluation import gradients, to_device
from hypertune_mip.functional import ActiveConfig
from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.hypernetwork.primary import always_evaluating, set_training
from hypertune_mip.nn import resolve
from hypertune_mip.randomness import forked_random_state
from hypertune_mip.training import Loss
from hypertune_mip.training.randomness import set_seed
from hypertune_mip.trainings import FromHypernetwork

_PROBES = 4  # settings at which it is seen whether the loss depends on a hyperparameter


def unused_hyperparameters(hypernet: HyperNetwork, loss: Loss, loader: Iterable[Any]) -> tuple[str, ...]:
    """Those that may take other values while the loss stays the same, at a few settings and one batch.

    At a minimum of the loss, its derivative along a hyperparameter is the one at fixed weights (envelope theorem);
    where the loss does not depend on it there, the minimum does not either. Values are compared, not derivatives: what
    steers a random choice or a threshold has none.
    """
    space, device = hypernet.space, hypernet.device
    units = space.sample(_PROBES)
    configs, others = (space.from_unit(each) for each in (units, (units + 0.5) % 1.0))
    starts = FromHypernetwork(hypernet)
    with forked_random_state(device):
        batch = to_device(next(iter(loader)), device)

    def loss_at(network: torch.nn.Module, config: Any) -> torch.Tensor:
        resolved = resolve(network, config)
        set_training(resolved, True, always_evaluating(resolved))
        values = {name: column[0] for name, column in hypernet.configs(space.unit_of(config)).items()}
        with forked_random_state(device), gradients(True):  # a loss may go backward itself
            set_seed(0, (), device)
            return loss(resolved, batch, ActiveConfig(values)).detach()

    left = list(space)
    for config, other in zip(configs, others, strict=True):
        network = starts.network(config, 0)
        expected = loss_at(network, config)
        left = [name for name in left if torch.equal(loss_at(network, {**config, name: other[name]}), expected)]
    return tuple(left)
