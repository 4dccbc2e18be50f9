"""A fast response surface: metrics at very many settings, interpolated between some thousands of exact evaluations.

Cubic radial basis functions with a linear trend (scipy's `RBFInterpolator`), on the units of numbers and the one-hot
codes of categoricals, as the hypernetwork tells choices apart. Metrics that are positive are interpolated on a
logarithmic scale, since they often span decades.

Why not a Gaussian process: it has 0.6 to 0.95 of the error, but takes a hundred times as long to fit and ten times as
long to ask, and needs a dependency. Small networks were no better (`docs/decisions`, 0018).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import RBFInterpolator
from scipy.stats import kendalltau
from torch import Tensor

from hypertune_mip.encoding import encode
from hypertune_mip.errors import DataError, HypertuneWarning, SpaceError
from hypertune_mip.space import Config, SearchSpace

LARGEST_ERROR = 0.05
"""Share of a metric's range that its root mean square error may reach without a warning."""
LEAST_TAU = 0.8
"""Kendall's tau with exact evaluations below which there is a warning."""
FEWEST = 16
"""Exact evaluations that an emulator needs."""
_CHECKS = 8  # one of so many exact evaluations is not fitted but checks the fit
_CHUNK = 64  # settings that a thread interpolates at a time: few, or BLAS would start threads inside each
_NO_SPREAD = 1e-9  # of the largest spread: a direction in which the settings do not differ
_ROUNDING = 1e-6  # of the largest value: a metric that varies less is taken for constant


@dataclass(frozen=True)
class EmulatorAccuracy:
    """How far an emulator was off at random settings that it was not fitted to.

    Args:
        rmse: Root mean square error, in the metric's unit.
        largest: Largest absolute error.
        tau: Kendall's tau of emulated and exact values; NaN where the exact ones are all the same.
        range: From the smallest exact value to the largest one, of all that were evaluated; at least their rounding.
    """

    rmse: float
    largest: float
    tau: float
    range: float

    def __str__(self) -> str:
        """In one line."""
        size = self.range or 1.0
        return f"rmse {self.rmse / size:.2%} and at most {self.largest / size:.1%} of its range, tau {self.tau:.3f}"

    @property
    def small(self) -> bool:
        """Whether rmse is at most `LARGEST_ERROR` of the range, and tau, where there is one, at least `LEAST_TAU`."""
        return self.rmse <= LARGEST_ERROR * self.range and not self.tau < LEAST_TAU


class Emulator:
    """Metrics at very many settings, within stated errors; see `Surrogate.emulator`.

    It knows what the surrogate said when it was made: calibrate first, then emulate.

    Args:
        space: Of the settings.
        exact: Metrics by name, (S,), of units (S, d), that is asked once.
        points: Settings to evaluate exactly, of which an eighth checks the others.
        seed: Of the settings.

    Raises:
        SpaceError: If the space holds but one setting, or there are fewer than 16 points.
        DataError: If the metrics are finite at less than half of the points.

    Warns:
        HypertuneWarning: If the error of a metric is not small, or it is not finite at some of the points.
    """

    def __init__(
        self, space: SearchSpace, exact: Callable[[Tensor], Mapping[str, Tensor]], *, points: int, seed: int
    ) -> None:
        """See the class."""
        if points < FEWEST:
            raise SpaceError(f"`points` must be at least {FEWEST}, but got {points}.")
        fitted = space.sample(points - points // _CHECKS, seed=seed).unique(dim=0)
        checks = space.sample(points // _CHECKS, seed=seed, method="random")
        checks = _fresh(checks, fitted)
        if len(fitted) < 2:
            raise SpaceError(f"An emulator needs a space with more than one setting, but got\n{space}")
        values = {name: value.double().cpu().numpy() for name, value in exact(torch.cat([fitted, checks])).items()}
        table = np.stack(list(values.values()), axis=1)
        good = np.isfinite(table).all(1)
        _check_finite(good)
        self.space = space
        self.metrics = tuple(values)
        self._logarithmic = (table[good] > 0).all(0)
        codes = _codes(fitted, space)
        self._center = codes.mean(0)
        self._axes = _axes(codes - self._center)
        kept, known = good[: len(fitted)], table[: len(fitted)]
        self._surface = RBFInterpolator(self._places(fitted)[kept], self._scaled(known[kept]), kernel="cubic")
        self.errors = self._measured(checks, table[len(fitted) :], table[good])
        self._warn(stacklevel=4)

    def __call__(self, units: Float[Tensor, "S d"]) -> dict[str, Float[np.ndarray, "S"]]:
        """Metrics by name; discrete columns are snapped.

        Raises:
            SpaceError: If the shape is not (S, d) or a unit is not in [0, 1].
        """
        units = self.space.check_units(units)
        places = self._places(self.space.snap(units.detach().double().cpu()))
        if len(places) <= _CHUNK:
            scaled = self._surface(places) if len(places) else np.empty((0, len(self.metrics)))
        else:
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # scipy computes without Python's lock
                chunks = np.array_split(places, math.ceil(len(places) / _CHUNK))
                scaled = np.concatenate(list(pool.map(self._surface, chunks)))
        with np.errstate(over="ignore"):
            table = np.where(self._logarithmic, np.exp(np.where(self._logarithmic, scaled, 0.0)), scaled)
        return dict(zip(self.metrics, table.T, strict=True))

    def __repr__(self) -> str:
        """The errors, one line a metric."""
        rows = "".join(f"  {name!r}: {error},\n" for name, error in self.errors.items())
        return f"Emulator({{\n{rows}}})"

    def evaluate_batch(self, configs: Sequence[Config]) -> dict[str, Float[np.ndarray, "S"]]:
        """Metrics at configs, by name, in their order.

        Raises:
            SpaceError: As in `Surrogate.evaluate`.
        """
        return self(self.space.to_unit(configs))

    def check_space(self, space: SearchSpace) -> None:
        """Raise SpaceError unless it is the emulator's."""
        if space != self.space:
            raise SpaceError(f"The emulator is of another space:\n{self.space}\nbut this is\n{space}")

    def _places(self, units: Tensor) -> np.ndarray:
        places: np.ndarray = (_codes(units, self.space) - self._center) @ self._axes
        return places

    def _scaled(self, table: np.ndarray) -> np.ndarray:
        return np.where(self._logarithmic, np.log(np.where(self._logarithmic, table, 1.0)), table)

    def _measured(self, units: Tensor, exact: np.ndarray, known: np.ndarray) -> dict[str, EmulatorAccuracy]:
        errors = {}
        for (name, emulated), true, every in zip(self(units).items(), exact.T, known.T, strict=True):
            good = np.isfinite(true) if np.isfinite(true).any() else slice(None)
            off = np.abs(emulated - true)[good]
            noise = _ROUNDING * float(np.abs(every).max())
            varies = np.ptp(true[good]) > noise
            tau = float(kendalltau(emulated[good], true[good]).statistic) if varies else math.nan
            size = max(float(np.ptp(every)), noise)
            errors[name] = EmulatorAccuracy(float(np.sqrt(np.mean(off**2))), float(off.max()), tau, size)
        return errors

    def _warn(self, stacklevel: int) -> None:
        for name, error in self.errors.items():
            if not error.small:
                warnings.warn(
                    f"The emulator is not to be relied on for {name!r}: {error}. Evaluate that metric exactly, or make"
                    " the emulator with more points.",
                    HypertuneWarning,
                    stacklevel=stacklevel,
                )


def _fresh(checks: Tensor, fitted: Tensor) -> Tensor:
    """Checks that are not among what is fitted; all of them where the space holds nothing else."""
    fresh = ~(checks.unsqueeze(1) == fitted).all(-1).any(1)
    return checks[fresh] if bool(fresh.any()) else checks


def _check_finite(good: np.ndarray) -> None:
    missing = int((~good).sum())
    if 2 * missing > len(good):
        raise DataError(f"An emulator needs finite metrics, but at {missing} of {len(good)} settings one is not.")
    if missing:
        warnings.warn(
            f"At {missing} of {len(good)} settings a metric is not finite; what is emulated there means nothing.",
            HypertuneWarning,
            stacklevel=4,
        )


def _codes(units: Tensor, space: SearchSpace) -> np.ndarray:
    return encode(units, space.dimensions, "none").numpy()


def _axes(codes: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span all differences of settings: one-hot codes have one direction too many."""
    _, spreads, axes = np.linalg.svd(codes, full_matrices=False)
    spanned: np.ndarray = axes[spreads > _NO_SPREAD * spreads.max()].T
    return spanned
