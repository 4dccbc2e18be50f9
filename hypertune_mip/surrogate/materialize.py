"""From a hypernetwork to a plain network at one setting."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from hypertune_mip import nn as hypertune_nn
from hypertune_mip.errors import HypertuneWarning
from hypertune_mip.evaluation import to_device
from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.space import Config


def materialize(hypernet: HyperNetwork, config: Config, recalibrate: Iterable[Any] | None) -> nn.Module:
    """See `Surrogate.materialize`."""
    units = hypernet.space.to_unit(config)
    with hypernet.kernel.lock:
        network = hypertune_nn.resolve(hypernet.network, dict(config))
    with torch.no_grad():
        tensors = hypernet.effective(units)
        for name, parameter in network.named_parameters():
            parameter.copy_(tensors[name][0])
    network.requires_grad_(True)
    if hypernet.batch_norms and recalibrate is None:
        warnings.warn(
            f"{list(hypernet.batch_norms)} use the statistics of the batch at hand, so single predictions"
            " depend on their batch. Pass `recalibrate=train_loader` to give the network running statistics.",
            HypertuneWarning,
            stacklevel=3,
        )
    elif hypernet.batch_norms and recalibrate is not None:
        _recalibrate(network, hypernet.batch_norms, recalibrate, hypernet.device)
    return network.eval()


def _recalibrate(network: nn.Module, names: Sequence[str], loader: Iterable[Any], device: torch.device) -> None:
    """Give modules running statistics again: plain averages over the batches."""
    network.eval()
    layers = [module for name, module in network.named_modules() if name in names]
    for layer in layers:
        assert isinstance(layer, _NormBase)
        size = layer.num_features
        layer.track_running_stats, layer.momentum = True, None  # None: a plain average over batches
        layer.running_mean = torch.zeros(size, device=device)
        layer.running_var = torch.ones(size, device=device)
        layer.num_batches_tracked = torch.zeros((), dtype=torch.long, device=device)
        layer.train()
    with torch.no_grad():
        for batch in loader:
            first = batch[0] if isinstance(batch, (tuple, list)) else batch
            network(to_device(first, device))
