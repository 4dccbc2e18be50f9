"""From a hypernetwork to a plain network at one setting."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from hypertune_mip import nn as hypertune_nn
from hypertune_mip.errors import DataError, HypertuneWarning
from hypertune_mip.evaluation import Metric, to_device
from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.metrics import WholeSet, parts_of
from hypertune_mip.randomness import forked_random_state
from hypertune_mip.space import Config
from hypertune_mip.training import Loss
from hypertune_mip.trainings.statistics import collect_statistics


def materialize(
    hypernet: HyperNetwork,
    config: Config,
    recalibrate: Iterable[Any] | None,
    *,
    loss: Loss | None,
    metric: Metric | None,
) -> nn.Module:
    """See `Surrogate.materialize`.

    Args:
        hypernet: Trained.
        config: Native values.
        recalibrate: Batches, or None.
        loss: What recalibration runs the network by, if there is one.
        metric: What it runs the network by where there is no loss; without both it is called on a batch's first part.
    """
    units = hypernet.space.unit_of(config)
    (values,) = hypernet.space.plain(config)
    with hypernet.kernel.lock:
        network = hypertune_nn.resolve(hypernet.network, values)
    with torch.no_grad():
        tensors = hypernet.effective(units)
        trained = {name: parameter.requires_grad for name, parameter in hypernet.given.named_parameters()}
        for name, parameter in network.named_parameters():
            parameter.copy_(tensors[name][0])
            parameter.requires_grad_(trained[name])
    if hypernet.batch_norms and recalibrate is None:
        warnings.warn(
            f"{list(hypernet.batch_norms)} use the statistics of the batch at hand, so single predictions"
            " depend on their batch. Pass `recalibrate=train_loader` to give the network running statistics.",
            HypertuneWarning,
            stacklevel=3,
        )
    elif hypernet.batch_norms and recalibrate is not None:
        scalars = {name: column[0] for name, column in hypernet.configs(units).items()}

        def run(batch: Any) -> None:
            if loss is not None:
                loss(network, batch, scalars)
            elif metric is not None:
                for part in parts_of(metric):
                    (part.predict if isinstance(part, WholeSet) else part)(network, batch)
            else:
                network(batch[0] if isinstance(batch, (tuple, list)) else batch)

        with forked_random_state(hypernet.device):
            _recalibrate(network, hypernet, recalibrate, run)
    return network.eval()


def _recalibrate(network: nn.Module, hypernet: HyperNetwork, loader: Iterable[Any], run: Callable[[Any], None]) -> None:
    """Give modules running statistics again: plain averages over the batches.

    Args:
        network: Materialised.
        hypernet: Of the network; it says which modules.
        loader: The batches.
        run: Runs the network on one.
    """
    for name in hypernet.batch_norms:
        layer, given = network.get_submodule(name), hypernet.given.get_submodule(name)
        assert isinstance(layer, _NormBase) and isinstance(given, _NormBase)
        layer.track_running_stats = True
        for statistic in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(layer, statistic, getattr(given, statistic).to(hypernet.device, copy=True))
    batches = (to_device(batch, hypernet.device) for batch in loader)
    if not collect_statistics(network, hypernet.batch_norms, batches, run):
        raise DataError("`recalibrate` holds no batch, so there is nothing to average running statistics over.")
