"""Layers that take a hyperparameter by name, and the ways to bind and resolve them in a whole network."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hypertune_mip.errors import NetworkError, SpaceError
from hypertune_mip.functional import ConfigModule


class Dropout(ConfigModule):
    """Dropout with a rate that is a hyperparameter; the identity in evaluation mode.

    Args:
        hyperparameter: Name of the rate in the search space, or a fixed rate in [0, 1).

    Example:
        >>> nn.Sequential(nn.Linear(4, 4), Dropout("dropout"))
        Sequential(
          (0): Linear(in_features=4, out_features=4, bias=True)
          (1): Dropout('dropout')
        )
    """

    def __init__(self, hyperparameter: str | float) -> None:
        """See the class."""
        super().__init__()
        self.hyperparameter = hyperparameter
        if not isinstance(hyperparameter, str):
            self.check_range(hyperparameter, hyperparameter)

    def forward(self, x: Tensor) -> Tensor:
        """`x` with each element zeroed with probability p and the rest scaled by 1 / (1 - p)."""
        if not self.training:
            return x
        rate = self.value()
        return x * ((torch.rand_like(x) >= rate) / (1 - rate))

    def resolved(self, value: float) -> nn.Module:
        """`torch.nn.Dropout` at this rate."""
        return nn.Dropout(value)

    def check_range(self, low: float, high: float) -> None:
        """Raise SpaceError unless 0 <= low and high < 1."""
        if not 0.0 <= low <= high < 1.0:
            raise SpaceError(
                f"A dropout rate must lie in [0, 1), but {self.hyperparameter!r} ranges over [{low:g}, {high:g}]."
            )


class GaussianNoise(ConfigModule):
    """Adds Gaussian noise with a standard deviation that is a hyperparameter; the identity in evaluation mode.

    Args:
        hyperparameter: Name of the standard deviation in the search space, or a fixed one, at least 0, on the scale
            of the layer's input.
    """

    def __init__(self, hyperparameter: str | float) -> None:
        """See the class."""
        super().__init__()
        self.hyperparameter = hyperparameter
        if not isinstance(hyperparameter, str):
            self.check_range(hyperparameter, hyperparameter)

    def forward(self, x: Tensor) -> Tensor:
        """`x` plus noise."""
        return x + torch.randn_like(x) * self.value() if self.training else x

    def resolved(self, value: float) -> nn.Module:
        """This layer with a fixed standard deviation."""
        return GaussianNoise(value)

    def check_range(self, low: float, high: float) -> None:
        """Raise SpaceError if low < 0."""
        if low < 0.0:
            raise SpaceError(
                f"A standard deviation must not be negative, but {self.hyperparameter!r} goes down to {low:g}."
            )


def bind(network: nn.Module, rates: Mapping[str, str]) -> nn.Module:
    """A copy of `network` whose `nn.Dropout` layers take their rates from hyperparameters.

    Args:
        network: Any network; it is left as it is.
        rates: Hyperparameter names by pattern (as in `fnmatch`) of the layers' names: `{"*": "dropout"}` binds all of
            them to one hyperparameter, `{"encoder.*": "drop_encoder", "head.drop": "drop_head"}` binds them apart. The
            first pattern that matches counts.

    Raises:
        NetworkError: If a pattern matches no `nn.Dropout`.
    """
    bound = copy.deepcopy(network)
    layers = {name for name, module in bound.named_modules(remove_duplicate=False) if type(module) is nn.Dropout}
    for pattern in rates:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in layers):
            raise NetworkError(f"{pattern!r} matches no nn.Dropout; the network has {sorted(layers)}.")

    def replacement(name: str, module: nn.Module) -> nn.Module:
        for pattern, hyperparameter in rates.items():
            if name in layers and fnmatch.fnmatchcase(name, pattern):
                return Dropout(hyperparameter).train(module.training)
        return module

    return _replaced(bound, replacement)


def resolve(network: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """A copy of `network` in which layers bound to hyperparameters are plain ones at the values in `config`.

    Args:
        network: With or without bound layers; it is left as it is. Its weights are copied, too.
        config: Native values by name; names that no layer is bound to are ignored.

    Raises:
        SpaceError: If a layer's hyperparameter is missing from `config`.
    """

    def replacement(name: str, module: nn.Module) -> nn.Module:
        if not isinstance(module, ConfigModule) or not isinstance(module.hyperparameter, str):
            return module
        if module.hyperparameter not in config:
            raise SpaceError(f"Layer '{name}' reads '{module.hyperparameter}', but the config holds {list(config)}.")
        return module.resolved(float(config[module.hyperparameter])).train(module.training)

    return _replaced(copy.deepcopy(network), replacement)


def _replaced(network: nn.Module, replacement: Any) -> nn.Module:
    """`network` with each module, or the network itself, replaced by `replacement(name, module)` wherever it stands."""
    for path, parent in list(network.named_modules(remove_duplicate=False)):
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = replacement(f"{path}.{name}" if path else name, child)
    replaced: nn.Module = replacement("", network)
    return replaced


__all__ = ["Dropout", "GaussianNoise", "bind", "resolve"]
