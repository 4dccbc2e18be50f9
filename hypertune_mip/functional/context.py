"""The config in force while a primary network runs, and the modules that read it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor, nn

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
            raise SpaceError(
                f"{type(self).__name__}('{self.hyperparameter}') runs inside a hypernetwork only, which knows the value"
                f" of '{self.hyperparameter}'. For a plain network call hypertune_mip.nn.resolve(network, config)."
            )
        return config[self.hyperparameter]

    def extra_repr(self) -> str:
        """The name or number."""
        return repr(self.hyperparameter)
