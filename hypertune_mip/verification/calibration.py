"""Calibration: what a few real trainings say about a surrogate's predictions, everywhere in the space.

    true(u) = line(predicted(u)) + g(u) + noise

Where all values are positive this holds on a logarithmic scale, since a surrogate that is off tends to be off by a
share of the value. The line (or a monotone curve) takes out a bias and a wrong scale; g, a Gaussian process on the unit
cube (BoTorch's), takes out what depends on the setting, such as optimism where real training has not converged yet. It
stays only if it clearly foresees real trainings that it has not seen (leave one out): with few of them it often does
harm. Intervals are as wide as those left-out errors ask for, in the way of conformal prediction.

Why not a Gaussian process on the true values alone: it needs as many trainings as a search without a surrogate does. It
is what the benchmarks compare with. Why not BoTorch's own prior on the noise: it expects hardly any, and then follows
the noise of single trainings.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import isotonic_regression
from scipy.stats import norm
from torch import Tensor

from hypertune_mip.errors import DataError, MissingExtraError
from hypertune_mip.verification.statistics import LEVEL

FEWEST = 3
"""Real trainings that calibration needs."""
_SLOPE_TRUST = 1.0  # how many settings the belief in a slope of 1 counts for
_GAIN = 0.8  # share of the squared error of the line alone that the process may leave
_NOISE = (math.log(0.3), 1.0)  # prior of the noise's share of the residuals' variance: log-normal, location and scale
_LENGTHSCALE = (0.0, 0.7)  # prior of the length scale, in units of the cube's diagonal: log-normal
_TOO_FEW = 1.25  # of the largest error, where there are too few for the interval's level
_MANY = 12  # settings, from which on the kernel is not fitted anew for each that is left out
_OFFSET = 0.1  # of the median: what the logarithm adds, so that an error rate may be 0
_RIGHT = 1e-6  # of the largest value: where residuals are smaller, there is nothing to correct
_SMALLEST = 1e-12
_QUANTILE = float(norm.ppf(0.5 + LEVEL / 2))


class Calibrated(NamedTuple):
    """What one real training would give: calibrated predictions and the ends of their 90 % intervals, each (S,)."""

    mean: Tensor
    low: Tensor
    high: Tensor

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of a normal distribution with intervals of the same width."""
        return (self.high - self.low) / (2 * _QUANTILE)


class Calibration:
    """The map from settings and predictions to calibrated predictions, fitted to real trainings.

    Args:
        units: Settings that were trained for real, (S, d).
        predicted: What the surrogate says there, (S,).
        true: What the trainings gave, (S,); settings with a NaN are left out.
        method: "affine" for a line whose slope is pulled towards 1, "monotone" for isotonic regression, which needs
            more settings (a dozen, say) and has no gradient.
        residual: Whether a Gaussian process may be added.

    Raises:
        DataError: If fewer than three settings have finite values.
        MissingExtraError: If BoTorch is not installed and `residual` is asked for.
    """

    def __init__(
        self,
        units: Float[Tensor, "S d"],
        predicted: Float[Tensor, "S"],
        true: Float[Tensor, "S"],
        *,
        method: Literal["affine", "monotone"] = "affine",
        residual: bool = True,
    ) -> None:
        """See the class."""
        good = torch.isfinite(true) & torch.isfinite(predicted)
        if int(good.sum()) < FEWEST:
            raise DataError(
                f"Calibration needs at least {FEWEST} settings with finite values, but got {int(good.sum())} of"
                f" {len(true)}. Train more of them, for example by verify(settings=8)."
            )
        units, predicted, true = units[good].double(), predicted[good].double(), true[good].double()
        logarithmic = bool((true >= 0).all() and (predicted >= 0).all() and float(true.median()) > 0)
        self._offset = _OFFSET * float(true.median()) if logarithmic else None
        x, y = self._scaled(predicted), self._scaled(true)
        fit = _Monotone.fit if method == "monotone" else _Line.fit
        self._curve = fit(x, y)
        errors = torch.stack([y[i] - fit(*_without(i, x, y))(x[i : i + 1])[0] for i in range(len(y))])
        self._margin = _conformal(errors)
        self._process: Any = None
        self._widening = 1.0
        rest = y - self._curve(x)
        if residual and float(rest.abs().max()) > _RIGHT * float(y.abs().max()):
            process = _process(units, rest)
            left, deviations = _left_out(process, units, rest)
            if float(left.square().sum()) < _GAIN * float(errors.square().sum()):
                self._process, self._widening = process, _conformal(left / deviations)

    def __call__(self, units: Float[Tensor, "S d"], predicted: Float[Tensor, "S"]) -> Calibrated:
        """Calibrated predictions, float64, on the CPU; with "affine" differentiable in both arguments."""
        center = self._curve(self._scaled(predicted.double().cpu()))
        margin: Tensor | float = self._margin
        if self._process is not None:
            mean, deviation = _foreseen(self._process, units.double().cpu())
            center = center + mean
            margin = self._widening * deviation
        return Calibrated(*(self._native(values) for values in (center, center - margin, center + margin)))

    def _scaled(self, values: Tensor) -> Tensor:
        return values if self._offset is None else (values.clamp_min(0.0) + self._offset).log()

    def _native(self, values: Tensor) -> Tensor:
        return values if self._offset is None else (values.exp() - self._offset).clamp_min(0.0)


@dataclass(frozen=True)
class _Line:
    """A straight line through (center, level)."""

    center: Tensor
    level: Tensor
    slope: Tensor

    @classmethod
    def fit(cls, predicted: Tensor, true: Tensor) -> _Line:
        """Least squares with a prior on the slope, so that few or equal predictions leave it near 1."""
        center, level = predicted.mean(), true.mean()
        x, y = predicted - center, true - level
        belief = _SLOPE_TRUST * x.square().mean()
        slope = (x @ y + belief) / (x @ x + belief).clamp_min(_SMALLEST)
        return cls(center, level, slope.clamp_min(0.0))

    def __call__(self, values: Tensor) -> Tensor:
        return self.level + self.slope * (values - self.center)


@dataclass(frozen=True)
class _Monotone:
    """A curve that never falls, linear between its points and constant beyond them."""

    x: np.ndarray
    y: np.ndarray

    @classmethod
    def fit(cls, predicted: Tensor, true: Tensor) -> _Monotone:
        """Isotonic regression."""
        order = np.argsort(predicted.numpy(), kind="stable")
        return cls(predicted.numpy()[order], isotonic_regression(true.numpy()[order]).x)

    def __call__(self, values: Tensor) -> Tensor:
        return torch.from_numpy(np.interp(values.detach().numpy(), self.x, self.y))


def _conformal(errors: Tensor) -> float:
    """Half the width that intervals need so that a share LEVEL of left-out errors, or of fresh ones, lies inside."""
    sizes, count = errors.abs().sort().values, len(errors)
    rank = math.ceil(LEVEL * (count + 1))
    return float(sizes[rank - 1]) if rank <= count else _TOO_FEW * float(sizes[-1])


def _without(index: int, *columns: Tensor) -> list[Tensor]:
    return [torch.cat([column[:index], column[index + 1 :]]) for column in columns]


def _process(units: Tensor, rest: Tensor) -> Any:
    """A Gaussian process on the residuals."""
    with _quietly():
        try:
            from botorch.fit import fit_gpytorch_mll
            from botorch.models import SingleTaskGP
            from gpytorch.constraints import GreaterThan
            from gpytorch.kernels import RBFKernel
            from gpytorch.likelihoods import GaussianLikelihood
            from gpytorch.mlls import ExactMarginalLogLikelihood
            from gpytorch.priors import LogNormalPrior
        except ImportError as error:
            raise MissingExtraError("Calibration by a Gaussian process", "calibration") from error
        location, scale = _LENGTHSCALE
        noise = LogNormalPrior(*_NOISE)
        process = SingleTaskGP(
            units,
            rest.unsqueeze(-1),
            likelihood=GaussianLikelihood(
                noise_prior=noise, noise_constraint=GreaterThan(1e-4, transform=None, initial_value=noise.mode)
            ),
            covar_module=RBFKernel(lengthscale_prior=LogNormalPrior(location + 0.5 * math.log(units.shape[1]), scale)),
        )
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):  # a fit that fails is tried again, at random
            torch.default_generator.manual_seed(0)
            fit_gpytorch_mll(ExactMarginalLogLikelihood(process.likelihood, process))
    return process.eval().requires_grad_(False)


def _left_out(process: Any, units: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Errors and standard deviations of a process at each of its settings when that one is left out."""
    if len(rest) > _MANY:  # then one setting hardly changes the kernel
        from botorch.cross_validation import efficient_loo_cv

        with _quietly():
            result = efficient_loo_cv(process)
        posterior: Any = result.posterior
        return (result.observed_Y - posterior.mean).reshape(-1), posterior.variance.reshape(-1).sqrt()
    errors, deviations = [], []
    for index in range(len(rest)):
        mean, deviation = _foreseen(_process(*_without(index, units, rest)), units[index : index + 1])
        errors.append(rest[index] - mean)
        deviations.append(deviation)
    return torch.cat(errors), torch.cat(deviations)


def _foreseen(process: Any, units: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of one more training at each setting."""
    with _quietly():
        posterior = process.posterior(units.unsqueeze(1), observation_noise=True)  # one by one: no S x S matrix
        return posterior.mean.reshape(-1), posterior.variance.reshape(-1).sqrt()


@contextmanager
def _quietly() -> Iterator[None]:
    """Without warnings of deprecated parts of PyTorch, inputs that BoTorch would scale, and tiny variances."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
