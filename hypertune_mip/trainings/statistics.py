"""Running statistics of batch normalisation, for networks whose weights no training steps have led up to.

The weights that a hypernetwork makes, and averages of networks, come without: what their layers hold are the statistics
of other weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from hypertune_mip.evaluation import gradients


def collect_statistics(
    network: nn.Module, names: Sequence[str], batches: Iterable[Any], run: Callable[[Any], object]
) -> int:
    """Let modules average the statistics of batches anew, in place, and return how many batches there were.

    All else is in evaluation mode, so that dropout does not add to the spread.

    Args:
        network: Whose modules they are; it stays in evaluation mode.
        names: Of modules that keep running statistics.
        batches: On the network's device.
        run: Runs the network on one.
    """
    network.eval()
    layers = [_layer(network, name) for name in names]
    momenta = [layer.momentum for layer in layers]
    count = 0
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
    try:
        for batch in batches:
            count += 1
            for layer in layers:
                layer.momentum = 1 / count  # a plain average over batches, also in layers that do not count them
            with gradients(True):  # a loss may go backward itself
                run(batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        network.zero_grad(set_to_none=True)
        network.eval()
    return count


@contextmanager
def taken_from_the_batch(layers: Sequence[_NormBase]) -> Iterator[None]:
    """A block in which running statistics become those of the batch at hand, whatever they were."""
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 1.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def untouched(network: nn.Module, names: Iterable[str]) -> list[_NormBase]:
    """Those of the modules whose running statistics are still the ones that layers are made with."""
    return [layer for layer in (_layer(network, name) for name in names) if _is_new(layer)]


def _is_new(layer: _NormBase) -> bool:
    mean, variance = layer.running_mean, layer.running_var
    return mean is not None and variance is not None and bool((mean == 0).all() and (variance == 1).all())


def _layer(network: nn.Module, name: str) -> _NormBase:
    layer = network.get_submodule(name)
    assert isinstance(layer, _NormBase)
    return layer
