"""The search space: which hyperparameters there are, and the way from configs to units and back."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Num
from optuna.distributions import (
    BaseDistribution,
    distribution_to_json,
    json_to_distribution,
)
from torch import Tensor

from hypertune_mip.arguments import plain, real_number, seed_number, whole_number
from hypertune_mip.errors import SpaceError
from hypertune_mip.space.dimension import Dimension, Value, dimension
from hypertune_mip.space.refusal import check_amortizable
from hypertune_mip.space.sobol import SobolStream

Config = Mapping[str, Value]


class SearchSpace(Mapping[str, BaseDistribution]):
    """A search space over hyperparameters that enter the loss or the layers, declared with Optuna's distributions.

    Iterating, columns of units and keys of configs all follow declaration order.

    Args:
        distributions: One Optuna distribution a hyperparameter, by name; not empty.
        amortizable: Names that look like a learning rate, batch size or the like, yet do define the training loss
            (a loss weight called `lr`, say). Without this they are refused.

    Raises:
        SpaceError: If the space is empty, a distribution is not Optuna's, or a hyperparameter cannot be amortised.

    Example:
        >>> from optuna.distributions import FloatDistribution
        >>> space = SearchSpace({"dropout": FloatDistribution(0.0, 0.8)})
        >>> space.from_unit(space.to_unit({"dropout": 0.2}))
        [{'dropout': 0.2}]
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution], *, amortizable: Sequence[str] = ()) -> None:
        """See the class."""
        if not distributions:
            raise SpaceError(
                "A search space needs at least one hyperparameter, but got none."
                ' Pass for example {"dropout": FloatDistribution(0.0, 0.5)}.'
            )
        for name in distributions:
            if not isinstance(name, str) or not name:
                raise SpaceError(f"A hyperparameter's name must be a non-empty str, but got {name!r}.")
        strangers = [name for name in amortizable if name not in distributions]
        if strangers:
            raise SpaceError(f"`amortizable` names {strangers}, which the space does not hold.")
        check_amortizable([name for name in distributions if name not in amortizable])
        self._distributions = dict(distributions)
        self._amortizable = tuple(amortizable)
        self.dimensions: tuple[Dimension, ...] = tuple(
            dimension(name, distribution) for name, distribution in distributions.items()
        )

    def __getitem__(self, name: str) -> BaseDistribution:
        """The distribution of one hyperparameter."""
        return self._distributions[name]

    def __iter__(self) -> Iterator[str]:
        """Names in declaration order."""
        return iter(self._distributions)

    def __len__(self) -> int:
        """Number of hyperparameters, d."""
        return len(self._distributions)

    def __eq__(self, other: object) -> bool:
        """Whether the other space holds the same hyperparameters in the same order."""
        if not isinstance(other, SearchSpace):
            return NotImplemented
        return list(self._distributions.items()) == list(other._distributions.items())

    def __hash__(self) -> int:
        """Equal spaces have equal hashes."""
        return hash(tuple(self._distributions.items()))

    def __repr__(self) -> str:
        """The declaration, one line a hyperparameter."""
        rows = "".join(f"  {name!r}: {value!r},\n" for name, value in self.items())
        return f"SearchSpace({{\n{rows}}})"

    @property
    def names(self) -> tuple[str, ...]:
        """Names in declaration order."""
        return tuple(self._distributions)

    def to_unit(self, configs: Config | Sequence[Config]) -> Float[Tensor, "S d"]:
        """Units of one config or of many, as float64; the axis S is there for one config too.

        `space.from_unit(space.to_unit(configs)) == configs`, for floats up to rounding.

        Raises:
            SpaceError: If a name is unknown or missing, or a value is not finite, of another type or out of range.
        """
        try:
            rows = [configs] if isinstance(configs, Mapping) else list(configs)
        except TypeError:
            raise SpaceError(
                f"Configs must be a list of dicts of hyperparameter values, but got {configs!r}."
            ) from None
        return torch.tensor([self._row(c) for c in rows], dtype=torch.float64).reshape(-1, len(self))

    def unit_of(self, config: Config) -> Float[Tensor, "1 d"]:
        """The unit of a single config, where several would make no sense.

        Raises:
            SpaceError: As in `to_unit`, or if there are several.
        """
        if not isinstance(config, Mapping):
            raise SpaceError(
                f"One config is asked for here, a dict of hyperparameter values, but got {reprlib.repr(config)}."
                " Ask for one after another, or for the metrics of many by `evaluate_batch`."
            )
        return self.to_unit(config)

    def plain(self, configs: Config | Sequence[Config]) -> list[dict[str, Value]]:
        """Configs as they were given, with values of Python's own types, in this space's order.

        What rounding has put outside a range is its end. (By way of units, floats of a logarithmic range would have
        other last digits.)

        Raises:
            SpaceError: As in `to_unit`.
        """
        rows: list[Config] = [configs] if isinstance(configs, Mapping) else list(configs)
        decoded = self.from_unit(self.to_unit(rows))
        return [
            {name: _as_given(value, row[name], self._distributions[name]) for name, value in each.items()}
            for each, row in zip(decoded, rows, strict=True)
        ]

    def _row(self, config: Config) -> list[float]:
        if not isinstance(config, Mapping):
            raise SpaceError(f"A config must be a dict of hyperparameter values, but got {config!r}.")
        unknown = [name for name in config if name not in self._distributions]
        missing = [name for name in self._distributions if name not in config]
        if unknown or missing:
            raise SpaceError(
                f"A config must hold exactly {list(self.names)}, but got {list(config)}:"
                f" unknown {unknown}, missing {missing}."
            )
        return [dim.to_unit(config[dim.name]) for dim in self.dimensions]

    def from_unit(self, units: Float[Tensor, "S d"]) -> list[dict[str, Value]]:
        """Configs at units, one dict a row; discrete values are those of the cell that a unit lies in.

        Raises:
            SpaceError: If the shape is not (S, d) or a unit is not in [0, 1].
        """
        units = self.check_units(units)
        return [
            {dim.name: dim.from_unit(u) for dim, u in zip(self.dimensions, row, strict=True)}
            for row in units.detach().double().cpu().tolist()
        ]

    def decode(self, units: Float[Tensor, "S d"]) -> dict[str, Num[Tensor, "S"]]:
        """Native values at units as tensors, by name, differentiable in the units.

        Integers and steps are rounded with a straight-through gradient. A categorical is the choice itself where all
        choices are numbers, and the choice's index (int64) otherwise.
        """
        return {
            dim.name: dim.decode(column)
            for dim, column in zip(self.dimensions, _floating(units).unbind(-1), strict=True)
        }

    def snap(self, units: Float[Tensor, "S d"]) -> Float[Tensor, "S d"]:
        """Units moved to those of the values that they stand for: `snap(u) == to_unit(from_unit(u))`."""
        units = _floating(units)
        if all(dim.cells is None for dim in self.dimensions):
            return units
        columns = zip(self.dimensions, units.unbind(-1), strict=True)
        return torch.stack([dim.snap(column) for dim, column in columns], dim=-1)

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        method: str = "sobol",
        endpoints: float = 0.0,
    ) -> Float[Tensor, "S d"]:
        """Units of `n` settings, float64, already snapped.

        Args:
            n: Number of settings, S.
            seed: The same seed gives the same settings.
            method: "sobol", a scrambled Sobol sequence, or "random", independent and uniform.
            endpoints: Share of each column that is moved to an end of its range, half to each (0.2 in HyperMorph,
                Hoopes et al. 2021), for optima that lie at an extreme.

        Raises:
            SpaceError: If `n` or `seed` is no whole number, or `n` negative, the method unknown, or `endpoints` not in
                [0, 1).
        """
        n, seed = whole_number("n", n, low=0, error=SpaceError), seed_number(seed, error=SpaceError)
        if method == "random":
            generator = torch.Generator().manual_seed(seed)
            units = torch.rand(n, len(self), generator=generator, dtype=torch.float64)
        elif method == "sobol":
            units = SobolStream(len(self), seed=seed).draw(n)
        else:
            raise SpaceError(f'`method` must be "sobol" or "random", but got {method!r}.')
        return self.snap(oversample_endpoints(units, endpoints))

    def check_units(self, units: Any) -> Float[Tensor, "S d"]:
        """Units as a floating-point tensor: they may also be an array of NumPy's, or whole numbers.

        Raises:
            SpaceError: Unless units are numbers of shape (S, d) in [0, 1].
        """
        if not isinstance(units, Tensor):
            units = _as_tensor(units)
        if units.dtype == torch.bool or units.is_complex():
            raise SpaceError(f"Units must be numbers in [0, 1], but got {units.dtype}.")
        if units.ndim != 2 or units.shape[-1] != len(self):
            raise SpaceError(
                f"Units must have shape (S, {len(self)}), one column a hyperparameter, but got {tuple(units.shape)}."
            )
        inside = (units >= 0) & (units <= 1)
        if not bool(inside.all()):
            row, column = (~inside).nonzero()[0].tolist()
            raise SpaceError(
                f"Units must lie in [0, 1], but row {row} has {units[row, column].item()!r} for '{self.names[column]}'."
            )
        return _floating(units)

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable description: `SearchSpace.from_json(space.to_json()) == space`."""
        return {
            "distributions": {name: json.loads(distribution_to_json(value)) for name, value in self.items()},
            "amortizable": list(self._amortizable),
        }

    @classmethod
    def from_json(cls, description: Mapping[str, Any]) -> SearchSpace:
        """The space that `to_json` described; raises SpaceError if the description is not one."""
        try:
            distributions = {
                name: json_to_distribution(json.dumps(value)) for name, value in description["distributions"].items()
            }
            return cls(distributions, amortizable=tuple(description["amortizable"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise SpaceError(f"Not a description of a search space: {error}") from error


def _as_given(decoded: Value, given: Any, distribution: BaseDistribution) -> Value:
    """A float as it was given, where that is within the range and the same as the decoded one but for rounding."""
    if not isinstance(decoded, float):
        return decoded
    own = float(plain(given))
    within = getattr(distribution, "low", own) <= own <= getattr(distribution, "high", own)
    return own if within and math.isclose(decoded, own, rel_tol=1e-9, abs_tol=1e-12) else decoded


def _floating(units: Tensor) -> Tensor:
    """Whole numbers and short floats as float64: half a cell of a discrete value would be rounded away."""
    return units if units.dtype in (torch.float32, torch.float64) else units.double()


def _as_tensor(units: Any) -> Tensor:
    """Units that are no tensor, such as an array of NumPy's, as float64."""
    try:
        array = np.asarray(units)
        if array.dtype.kind not in "fiu":
            raise TypeError(f"of type {array.dtype}")
        return torch.from_numpy(np.array(array, dtype=np.float64, order="C"))
    except (TypeError, ValueError) as error:
        raise SpaceError(f"Units must be a tensor of numbers, but got {reprlib.repr(units)}, {error}.") from error


def oversample_endpoints(units: Tensor, share: float) -> Tensor:
    """Units stretched about the middle so that `share` of a uniform column lands on 0 and 1."""
    if not 0.0 <= real_number("endpoints", share, error=SpaceError) < 1.0:
        raise SpaceError(f"`endpoints` must lie in [0, 1), but got {share!r}.")
    return ((units - 0.5) / (1.0 - share) + 0.5).clamp(0.0, 1.0)
