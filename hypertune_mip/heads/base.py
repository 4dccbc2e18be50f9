"""What all heads have in common: the choice of a rule for each tensor, and their names in files.

Each generated tensor has a rule of its own, so that its scale fits. Biases and other vectors get an additive change
under every head; the padding row of an embedding gets none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hypertune_mip.errors import NetworkError
from hypertune_mip.heads.axes import axes_of
from hypertune_mip.heads.padding import Padded, padding_row
from hypertune_mip.heads.rule import Additive, Initialization, Rule

_classes: dict[str, dict[tuple[str, str], type[Head]]] = {}


@dataclass(frozen=True, kw_only=True)
class Head(ABC):
    """A choice of how weights depend on the setting; `rule` applies it to one tensor of the primary network.

    A subclass is known by its name as soon as it is defined, so that what was trained with it can be loaded.

    Args:
        initialization: "zero", so that training starts at theta_0's network, or "fan_out".
    """

    initialization: Initialization = "zero"

    def __init_subclass__(cls, **options: Any) -> None:
        """Note the class; one that is defined anew at the same place (a notebook's cell) replaces the former one."""
        super().__init_subclass__(**options)
        _classes.setdefault(cls.__name__, {})[cls.__module__, cls.__qualname__] = cls

    def __post_init__(self) -> None:
        """Validate."""
        if self.initialization not in ("zero", "fan_out"):
            raise NetworkError(f'`initialization` must be "zero" or "fan_out", but got {self.initialization!r}.')

    def rule(self, parameter: Tensor, module: nn.Module) -> Rule:
        """The rule of one parameter that `module` owns."""
        vector = axes_of(parameter, module) is None
        rule = self.vector_rule(parameter) if vector else self.matrix_rule(parameter, module)
        padding = padding_row(parameter, module)
        return rule if padding is None else Padded(rule, padding)

    def vector_rule(self, parameter: Tensor) -> Rule:
        """The rule of a parameter with at most one axis that is longer than 1."""
        return Additive(parameter, self.initialization)

    @abstractmethod
    def matrix_rule(self, parameter: Tensor, module: nn.Module) -> Rule:
        """The rule of any other parameter that `module` owns; `axes_of` says which are its rows and columns."""


def heads_named(name: str) -> list[type[Head]]:
    """All classes of heads of that name that this process has defined or imported."""
    return list(_classes.get(name, {}).values())
