"""Layers and numbers that take hyperparameters by name, and the ways to bind and resolve them in a whole network."""

from __future__ import annotations

import copy
import fnmatch
import warnings
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from hypertune_mip.errors import HypertuneWarning, NetworkError, SpaceError
from hypertune_mip.functional import ConfigModule, Hyperparameter, as_number, hyperparameters_in
from hypertune_mip.functional.dropout import dropout


class Dropout(ConfigModule):
    """Dropout with a rate that is a hyperparameter; the identity in evaluation mode.

    Args:
        hyperparameter: Name of the rate in the search space, or a fixed rate in [0, 1).
        inplace: Whether activations are changed in place; data that the network is given never are.

    Example:
        >>> nn.Sequential(nn.Linear(4, 4), Dropout("dropout"))
        Sequential(
          (0): Linear(in_features=4, out_features=4, bias=True)
          (1): Dropout('dropout')
        )
    """

    def __init__(self, hyperparameter: str | float, *, inplace: bool = False) -> None:
        """See the class."""
        super().__init__()
        self.hyperparameter = hyperparameter
        self.inplace = inplace
        if not isinstance(hyperparameter, str):
            self.check_range(hyperparameter, hyperparameter)

    @property
    def p(self) -> Tensor | float:
        """The rate at the setting, for code that reads it instead of calling the layer, as attention does.

        It has no gradient, and is a tensor where several settings run at once.
        """
        return as_number(self.value())

    def forward(self, x: Tensor) -> Tensor:
        """`x` with each element zeroed with probability p and the rest scaled by 1 / (1 - p)."""
        if not self.training:
            return x
        dropped = dropout(x, self.value())
        return x.copy_(dropped) if self.inplace and x.requires_grad else dropped

    def resolved(self, value: float) -> nn.Module:
        """`torch.nn.Dropout` at this rate."""
        return nn.Dropout(value, self.inplace)

    def check_range(self, low: float, high: float) -> None:
        """Raise SpaceError unless 0 <= low and high < 1."""
        check_rate(self.hyperparameter, low, high)


def check_rate(hyperparameter: str | float, low: float, high: float) -> None:
    """Raise SpaceError unless 0 <= low and high < 1, for a hyperparameter that is a rate of dropout."""
    if not 0.0 <= low <= high < 1.0:
        raise SpaceError(f"A dropout rate must lie in [0, 1), but {hyperparameter!r} ranges over [{low:g}, {high:g}].")


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


_NAMES_OF_RATES = ("p", "rate", "prob", "drop_prob", "drop_rate")


def bind(network: nn.Module, rates: Mapping[str, str]) -> nn.Module:
    """A copy of `network` whose dropout has rates that are hyperparameters.

    Every kind of dropout is bound: layers (`nn.Dropout`, `Dropout2d`, `AlphaDropout` and the like), and rates that
    other modules keep as numbers, as `nn.MultiheadAttention` does in `dropout`. Any other number that a module reads
    while it runs can be bound as well, by a pattern that ends in its name: `{"*.drop_prob": "stochastic_depth"}`.

    Args:
        network: Any network; it is left as it is.
        rates: Hyperparameter names by pattern (as in `fnmatch`) of names of modules, or of numbers in them: `{"*":
            "dropout"}` binds all dropout to one hyperparameter, `{"encoder.*": "drop_encoder", "head.drop":
            "drop_head"}` binds it apart. The first pattern that matches counts.

    Raises:
        NetworkError: If a pattern matches nothing, or nothing that a pattern before it does not match.

    Warns:
        HypertuneWarning: Of rates that keep their own values, since their names do not say that they are dropout's.

    Example:
        >>> bound = bind(nn.TransformerEncoderLayer(8, 2), {"*": "dropout"})
        >>> bound.self_attn.dropout, bound.dropout1
        (Hyperparameter('dropout'), Dropout('dropout'))
    """
    bound = copy.deepcopy(network)
    numbers = list(_numbers_in(bound))
    for index, pattern in enumerate(rates):
        matching = [number for number in numbers if number.matches(pattern)]
        if not matching:
            raise NetworkError(f"{pattern!r} matches no dropout and no number; {_listed(bound, numbers)}.")
        before = list(rates)[:index]
        if all(any(number.matches(former) for former in before) for number in matching):
            raise NetworkError(f"All that {pattern!r} matches is bound by {before} already. Put {pattern!r} first.")
    layers: dict[int, Dropout] = {}
    left = []
    for number in numbers:
        hyperparameter = next((name for pattern, name in rates.items() if number.matches(pattern)), None)
        if hyperparameter is None:
            covered = any(fnmatch.fnmatchcase(number.path, pattern) for pattern in rates)
            if covered and number.drops and 0.0 < number.value <= 1.0:
                left.append(f"{number.name} = {number.value:g}")
        elif type(number.module) is nn.Dropout:
            layer = Dropout(hyperparameter, inplace=number.module.inplace).train(number.module.training)
            layers.setdefault(id(number.module), layer)
        elif not isinstance(vars(number.module)[number.attribute], Hyperparameter):  # as at its first place
            vars(number.module)[number.attribute] = Hyperparameter(hyperparameter)
    if left:
        warnings.warn(
            f"These keep their own values: {', '.join(left)}. To bind one of them, end a pattern in its name,"
            ' {"*.' + left[0].partition(" ")[0].rpartition(".")[2] + '": "..."}.',
            HypertuneWarning,
            stacklevel=2,
        )

    def replacement(name: str, module: nn.Module) -> nn.Module:
        return layers.get(id(module), module)

    return _replaced(bound, replacement)


def _listed(network: nn.Module, numbers: Iterable[_Number]) -> str:
    """The dropout that a network has, for a message."""
    free = sorted({number.name for number in numbers if number.dropout})
    taken = {
        f"{path}.{attribute}".strip(".")
        for path, module in network.named_modules()
        for attribute in ([""] if isinstance(module, Dropout) else hyperparameters_in(module))
    }
    return f"the network's dropout is {free}" + (f", and bound already is {sorted(taken)}" if taken else "")


class _Number(NamedTuple):
    """A number that a module keeps in an attribute."""

    path: str
    module: nn.Module
    attribute: str
    value: float

    @property
    def name(self) -> str:
        """In the network; of a layer that is nothing but dropout, the layer's."""
        if isinstance(self.module, _DropoutNd):
            return self.path
        return f"{self.path}.{self.attribute}" if self.path else self.attribute

    @property
    def dropout(self) -> bool:
        """Whether it is a rate of dropout, as far as names and its value tell."""
        return is_rate(self.module, self.attribute) and 0.0 <= self.value <= 1.0

    @property
    def drops(self) -> bool:
        """Whether something may be dropped with this probability, by names that need not say dropout."""
        kind, attribute = type(self.module).__name__.lower(), self.attribute.lower()
        of_kind = ("drop" in kind or "stochastic" in kind) and attribute in _NAMES_OF_RATES
        return of_kind or "drop" in attribute

    def matches(self, pattern: str) -> bool:
        if self.dropout and fnmatch.fnmatchcase(self.path, pattern):
            return True
        whole = f"{self.path}.{self.attribute}".lstrip(".")
        return pattern.rpartition(".")[2] == self.attribute and fnmatch.fnmatchcase(whole, pattern)


def is_rate(module: nn.Module, attribute: str) -> bool:
    """Whether an attribute of a module is a rate of dropout, by its name and that of the module's class."""
    if isinstance(module, _DropoutNd):
        return attribute == "p"
    if isinstance(module, nn.RNNBase) and module.num_layers == 1:
        return False  # dropout is between layers
    return "dropout" in attribute.lower() or (
        "dropout" in type(module).__name__.lower() and attribute in _NAMES_OF_RATES
    )


def _numbers_in(network: nn.Module) -> Iterator[_Number]:
    for path, module in network.named_modules(remove_duplicate=False):
        if not isinstance(module, ConfigModule):
            for attribute, value in list(vars(module).items()):
                if isinstance(value, Real) and not isinstance(value, (bool, Integral)):
                    yield _Number(path, module, attribute, float(value))
                elif isinstance(value, int) and value == 0 and not isinstance(value, bool):
                    yield _Number(path, module, attribute, 0.0)  # a rate may be written so


def resolve(network: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """A copy of `network` in which what is bound to hyperparameters is plain, at the values in `config`.

    Args:
        network: With or without bound layers; it is left as it is. Its weights are copied, too.
        config: Native values by name; names that nothing is bound to are ignored.

    Raises:
        SpaceError: If a hyperparameter that something is bound to is missing from `config`, or it is no single config.
    """
    if not isinstance(config, Mapping):
        raise SpaceError(f"One config is asked for here, a dict of hyperparameter values, but got {config!r}.")

    def value(where: str, name: str) -> float:
        if name not in config:
            raise SpaceError(f"{where} reads '{name}', but the config holds {list(config)}.")
        number: float = as_number(config[name])  # type: ignore[assignment]
        return number

    def replacement(name: str, module: nn.Module) -> nn.Module:
        if isinstance(module, ConfigModule) and isinstance(module.hyperparameter, str):
            return module.resolved(float(value(f"Layer '{name}'", module.hyperparameter))).train(module.training)
        for attribute, hyperparameter in hyperparameters_in(module).items():
            vars(module)[attribute] = value(f"'{attribute}' of '{name}'", hyperparameter)
        return module

    return _replaced(copy.deepcopy(network), replacement)


def _replaced(network: nn.Module, replacement: Any) -> nn.Module:
    """`network` with each module, or the network itself, replaced by `replacement(name, module)` wherever it stands."""
    for path, parent in list(network.named_modules(remove_duplicate=False)):
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = replacement(f"{path}.{name}" if path else name, child)
    replaced: nn.Module = replacement("", network)
    return replaced


__all__ = ["Dropout", "GaussianNoise", "Hyperparameter", "bind", "resolve"]
