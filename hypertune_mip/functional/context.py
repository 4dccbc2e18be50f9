"""The config in force while a primary network runs, and what in its modules reads it: layers, and single numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor

from hypertune_mip.errors import SpaceError


class ActiveConfig(Mapping[str, Tensor]):
    """One setting's config as the loss sees it: a read-only map from a name to a 0-d tensor that notes what is read."""

    def __init__(self, values: Mapping[str, Tensor], reads: set[str] | None = None) -> None:
        """Wrap `values`; names that are looked up are added to `reads`."""
        self._values = values
        self._reads = set() if reads is None else reads

    def __getitem__(self, name: str) -> Tensor:
        """The value of one hyperparameter; raises SpaceError for a name that the space does not hold."""
        if name not in self._values:
            raise SpaceError(f"The config has no hyperparameter {name!r}; the space holds {list(self._values)}.")
        self._reads.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        """Names in declaration order."""
        return iter(self._values)

    def __len__(self) -> int:
        """Number of hyperparameters."""
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        """Whether the space holds the name; asking does not count as reading."""
        return name in self._values

    def __repr__(self) -> str:
        """The names: under vmap the values stand for all settings at once."""
        return f"ActiveConfig({list(self._values)})"


_active: ContextVar[ActiveConfig | None] = ContextVar("active_config", default=None)


@contextmanager
def active(config: ActiveConfig) -> Iterator[ActiveConfig]:
    """Make `config` the one that `ConfigModule`s read inside the block; the former one returns even on an error."""
    token = _active.set(config)
    try:
        yield config
    finally:
        _active.reset(token)


_OUTSIDE = (
    "{} runs inside a hypernetwork only, which knows the value of '{}'. For a plain network call"
    " hypertune_mip.nn.resolve(network, config)."
)


class Hyperparameter:
    """Stands for a number that a module reads from one of its attributes.

    While the network runs at a setting the attribute holds the setting's value: a Python number, or a 0-d tensor where
    several settings run at once. Outside of a hypernetwork it is no number.

    Args:
        name: In the search space.

    Example:
        >>> attention = nn.MultiheadAttention(8, 2)
        >>> attention.dropout = Hyperparameter("dropout")
    """

    def __init__(self, name: str) -> None:
        """See the class."""
        self.name = name

    def __repr__(self) -> str:
        """With its name."""
        return f"Hyperparameter({self.name!r})"

    def _refuse(self, *arguments: Any) -> NoReturn:
        raise SpaceError(_OUTSIDE.format(self, self.name))

    __float__ = __int__ = __bool__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __neg__ = _refuse


def hyperparameters_in(module: nn.Module) -> dict[str, str]:
    """Names of hyperparameters by the attributes of a module, without those of its children, that stand for them."""
    return {name: value.name for name, value in vars(module).items() if isinstance(value, Hyperparameter)}


def as_number(value: Tensor | float) -> Tensor | float:
    """A value for code that expects a Python number, without gradient; under `torch.func.vmap` it stays a tensor."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    return value if is_batchedtensor(value) else value.item()


class ConfigModule(nn.Module, ABC):
    """A layer whose behaviour depends on a hyperparameter: by name while amortised, by number once resolved."""

    hyperparameter: str | float
    active: ActiveConfig | None = None
    """The config of the setting that its network runs at; for a layer outside of a network the one in force counts.

    A backward pass that recomputes activations may run in another thread, which sees what stands in the network only.
    """

    @abstractmethod
    def resolved(self, value: float) -> nn.Module:
        """A plain layer that behaves as this one does at `value`."""

    @abstractmethod
    def check_range(self, low: float, high: float) -> None:
        """Raise SpaceError if the layer cannot run at some value between `low` and `high`."""

    def value(self) -> Tensor | float:
        """The layer's number: fixed, or that of the active config.

        Raises:
            SpaceError: If it is bound to a name and no config is active, as in a plain call of the network.
        """
        if not isinstance(self.hyperparameter, str):
            return self.hyperparameter
        config = _active.get() if self.active is None else self.active
        if config is None:
            raise SpaceError(_OUTSIDE.format(f"{type(self).__name__}('{self.hyperparameter}')", self.hyperparameter))
        return config[self.hyperparameter]

    def extra_repr(self) -> str:
        """The name or number."""
        return repr(self.hyperparameter)
