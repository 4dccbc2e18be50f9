"""One hyperparameter's map between its native scale and the unit interval.

Continuous values fill [0, 1] from `low` to `high`, so both end points are reachable. Discrete values split [0, 1] into
equal cells, one a value, and stand for the middle of their cell: a uniform unit is then a uniform value. (On a log
scale the cells of integers are as wide as in Optuna: from log(i - 1/2) to log(i + 1/2).)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Any

import numpy as np
import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from torch import Tensor

from hypertune_mip.arguments import plain, precision
from hypertune_mip.errors import SpaceError

_ROUNDING = 1e-12  # relative, of a logarithm and back

Value = Any  # a native value: float, int, or one of a categorical's choices


class Dimension(ABC):
    """One hyperparameter: its name, and maps between native values and [0, 1]."""

    name: str

    @property
    @abstractmethod
    def cells(self) -> int | None:
        """Number of distinct values, or None where the hyperparameter is continuous."""

    @abstractmethod
    def to_unit(self, value: Value) -> float:
        """Place of one native value in [0, 1]; raises SpaceError for a value that the space does not hold."""

    @abstractmethod
    def from_unit(self, unit: float) -> Value:
        """Native value at a place in [0, 1]: `from_unit(to_unit(value)) == value`."""

    @abstractmethod
    def decode(self, unit: Tensor) -> Tensor:
        """Native values at places of shape (S,), differentiable; discrete values pass gradients straight through."""

    def snap(self, unit: Tensor) -> Tensor:
        """Places of shape (S,) moved to the place of the value that they stand for."""
        if self.cells is None:
            return unit
        index = (unit * self.cells).long().clamp(max=self.cells - 1)
        return (index.to(unit.dtype) + 0.5) / self.cells

    def _number(self, value: Value, low: float, high: float) -> float:
        """A value within its range as a float; it may be outside by its rounding error, or by that of a logarithm."""
        single = plain(value)
        if isinstance(single, bool) or not isinstance(single, Real):
            raise SpaceError(f"'{self.name}' takes a number, but got {value!r} of type {type(value).__name__}.")
        number = float(single)
        if not math.isfinite(number):
            raise SpaceError(
                f"'{self.name}' must be finite, but got {number!r}. A NaN often comes from a failed trial: drop it."
            )
        nearest = min(max(number, low), high)
        if abs(number - nearest) > max(precision(value), _ROUNDING) * abs(nearest):
            raise SpaceError(
                f"'{self.name}' must lie in [{low:g}, {high:g}], but got {number!r}. The hypernetwork has learned"
                " nothing outside the range that it was trained on; train with a wider one if you need this value."
            )
        return nearest


@dataclass(frozen=True)
class Continuous(Dimension):
    """A float without a step, linear or logarithmic."""

    name: str
    low: float
    high: float
    log: bool

    @property
    def cells(self) -> int | None:
        """None: a continuous hyperparameter has no cells."""
        return None

    def to_unit(self, value: Value) -> float:
        """See `Dimension.to_unit`."""
        number = self._number(value, self.low, self.high)
        if self.log:
            return (math.log(number) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (number - self.low) / (self.high - self.low)

    def from_unit(self, unit: float) -> float:
        """See `Dimension.from_unit`."""
        if unit == 1.0:
            return self.high
        if self.log:
            value = self.low * math.exp(unit * math.log(self.high / self.low))
        else:
            value = self.low + unit * (self.high - self.low)
        return min(max(value, self.low), self.high)

    def decode(self, unit: Tensor) -> Tensor:
        """See `Dimension.decode`."""
        if self.log:
            return self.low * torch.exp(unit * math.log(self.high / self.low))
        return self.low + unit * (self.high - self.low)


@dataclass(frozen=True)
class Stepped(Dimension):
    """A float or int on a grid `low, low + step, ...` of `count` values, linear."""

    name: str
    low: float
    step: float
    count: int
    integer: bool

    @property
    def cells(self) -> int | None:
        """Number of grid points."""
        return self.count

    def _grid(self, index: int) -> Value:
        if self.integer:
            return int(self.low) + index * int(self.step)
        return round(self.low + index * self.step, 12)

    def to_unit(self, value: Value) -> float:
        """See `Dimension.to_unit`."""
        number = self._number(value, self.low, float(self._grid(self.count - 1)))
        index = round((number - self.low) / self.step)
        if abs(self.low + index * self.step - number) > 1e-6 * self.step + precision(value) * abs(number):
            raise SpaceError(
                f"'{self.name}' must be {self.low:g} plus a multiple of {self.step:g}, but got {number!r}."
                f" The nearest value is {self._grid(index)!r}."
            )
        return (index + 0.5) / self.count

    def from_unit(self, unit: float) -> Value:
        """See `Dimension.from_unit`."""
        return self._grid(min(int(unit * self.count), self.count - 1))

    def decode(self, unit: Tensor) -> Tensor:
        """See `Dimension.decode`."""
        smooth = self.low + (unit * self.count - 0.5) * self.step
        index = (unit * self.count).floor().clamp(max=self.count - 1)
        return smooth + (self.low + index * self.step - smooth).detach()


@dataclass(frozen=True)
class LogInteger(Dimension):
    """An integer on a logarithmic scale."""

    name: str
    low: int
    high: int

    @property
    def cells(self) -> int | None:
        """Number of integers in the range."""
        return self.high - self.low + 1

    def snap(self, unit: Tensor) -> Tensor:
        """See `Dimension.snap`."""
        low, high = self._edges()
        number = torch.exp(low + unit * (high - low)).round().clamp(self.low, self.high)
        return (number.log() - low) / (high - low)

    def _edges(self) -> tuple[float, float]:
        return math.log(self.low - 0.5), math.log(self.high + 0.5)

    def to_unit(self, value: Value) -> float:
        """See `Dimension.to_unit`."""
        number = self._number(value, self.low, self.high)
        if number != round(number):
            raise SpaceError(f"'{self.name}' must be a whole number, but got {number!r}.")
        low, high = self._edges()
        return (math.log(number) - low) / (high - low)

    def from_unit(self, unit: float) -> int:
        """See `Dimension.from_unit`."""
        low, high = self._edges()
        return min(max(round(math.exp(low + unit * (high - low))), self.low), self.high)

    def decode(self, unit: Tensor) -> Tensor:
        """See `Dimension.decode`."""
        low, high = self._edges()
        smooth = torch.exp(low + unit * (high - low))
        return smooth + (smooth.round().clamp(self.low, self.high) - smooth).detach()


@dataclass(frozen=True)
class Choice(Dimension):
    """A categorical; its decoded value is the choice itself where all choices are numbers, else the choice's index."""

    name: str
    choices: tuple[Value, ...]

    @property
    def cells(self) -> int | None:
        """Number of choices."""
        return len(self.choices)

    def index(self, unit: Tensor) -> Tensor:
        """Index of the choice at places of shape (S,), as int64."""
        return (unit * len(self.choices)).long().clamp(max=len(self.choices) - 1)

    def to_unit(self, value: Value) -> float:
        """See `Dimension.to_unit`."""
        rounding, value = precision(value), plain(value)
        if isinstance(value, (Tensor, np.ndarray)):  # compared with a choice, these would give no single answer
            raise SpaceError(f"'{self.name}' must be one of {list(self.choices)}, but got {value!r}.")
        for position, choice in enumerate(self.choices):
            if type(choice) is type(value) and choice == value:
                return (position + 0.5) / len(self.choices)
        for position, choice in enumerate(self.choices):
            if choice == value and not isinstance(choice, bool) and not isinstance(value, bool):
                return (position + 0.5) / len(self.choices)
        if rounding and _numeric(self.choices):
            off = [abs(choice - value) - rounding * abs(choice) for choice in self.choices]
            if min(off) <= 0.0:
                return (off.index(min(off)) + 0.5) / len(self.choices)
        raise SpaceError(f"'{self.name}' must be one of {list(self.choices)}, but got {value!r}.")

    def from_unit(self, unit: float) -> Value:
        """See `Dimension.from_unit`."""
        return self.choices[min(int(unit * len(self.choices)), len(self.choices) - 1)]

    def decode(self, unit: Tensor) -> Tensor:
        """See `Dimension.decode`."""
        if _numeric(self.choices):
            return _values(self.choices, unit.dtype, unit.device)[self.index(unit)]
        return self.index(unit)


@cache
def _values(choices: tuple[Value, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Made once: a copy to a device cannot be part of a CUDA graph."""
    with torch.inference_mode(False):
        return torch.tensor([float(choice) for choice in choices], dtype=dtype, device=device)


def _numeric(choices: Sequence[Value]) -> bool:
    return all(isinstance(choice, Real) for choice in choices)


def dimension(name: str, distribution: BaseDistribution) -> Dimension:
    """The `Dimension` of one of Optuna's distributions; raises SpaceError for any other object."""
    if isinstance(distribution, FloatDistribution):
        if distribution.single():
            return Choice(name, (distribution.low,))
        if distribution.step is None:
            return Continuous(name, distribution.low, distribution.high, distribution.log)
        count = round((distribution.high - distribution.low) / distribution.step) + 1
        return Stepped(name, distribution.low, distribution.step, count, integer=False)
    if isinstance(distribution, IntDistribution):
        if distribution.log:
            return LogInteger(name, distribution.low, distribution.high)
        count = (distribution.high - distribution.low) // distribution.step + 1
        return Stepped(name, distribution.low, distribution.step, count, integer=True)
    if isinstance(distribution, CategoricalDistribution):
        return Choice(name, tuple(distribution.choices))
    raise SpaceError(
        f"'{name}' must be one of Optuna's distributions, but got {distribution!r}."
        " Write for example FloatDistribution(1e-5, 1e-1, log=True)."
    )


__all__ = ["Choice", "Continuous", "Dimension", "LogInteger", "Stepped", "Value", "dimension"]
