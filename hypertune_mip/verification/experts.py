"""Experts: Gaussian processes that foresee true values, beside a surrogate's predictions or without them.

    corrected:  true(u) = line(predicted(u)) + g(u) + noise
    alone:      true(u) = constant + f(u) + noise

The line (or a monotone curve) takes out a bias and a wrong scale; g and f are Gaussian processes on the unit cube
(BoTorch's). g takes out what depends on the setting, such as optimism where real training has not converged yet; f does
not ask the surrogate at all.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from scipy.optimize import isotonic_regression
from torch import Tensor

from hypertune_mip.errors import HypertuneWarning, MissingExtraError
from hypertune_mip.randomness import forked_random_state

MANY = 12
"""Settings, beyond which an expert is not fitted anew for each that is left out."""
SMALLEST = 1e-12
_SLOPE_TRUST = 1.0  # how many settings the belief in a slope of 1 counts for
_NOISE = (math.log(0.3), 1.0)  # prior of the noise's share of the residuals' variance: log-normal, location and scale
_LENGTHSCALE = (0.0, 0.7)  # prior of the length scale, in units of the cube's diagonal: log-normal
_OFFSET = 0.1  # of the median: what the logarithm adds, so that an error rate may be 0
Curve = Callable[[Tensor], Tensor]
"""From predictions, on an expert's scale, to what is expected there."""
Fit = Callable[[Tensor, Tensor], Curve]
"""Makes a curve from predictions and true values."""


class Foreseen(NamedTuple):
    """Mean and standard deviation at each setting, on an expert's scale, (S,)."""

    mean: Tensor
    deviation: Tensor


@dataclass(frozen=True)
class Scale:
    """A scale on which errors are alike: logarithms, of values plus an offset, where all of them allow it.

    Args:
        offset: None is no logarithm.
        unit: What values are divided by where there is none.
    """

    offset: float | None
    unit: float = 1.0

    @classmethod
    def of(cls, predicted: Tensor, true: Tensor) -> Scale:
        """Logarithmic where no value is negative, and few are zero."""
        logarithmic = bool((true >= 0).all() and (predicted >= 0).all() and float(true.median()) > 0)
        if logarithmic:
            return cls(_OFFSET * float(true.median()))
        spread = float(true.std()) if len(true) > 1 else 0.0
        return cls(None, spread if 0.0 < spread < math.inf else 1.0)

    def __call__(self, values: Tensor) -> Tensor:
        """From values to this scale."""
        return values / self.unit if self.offset is None else (values.clamp_min(0.0) + self.offset).log()

    def back(self, values: Tensor) -> Tensor:
        """From this scale to values."""
        return values * self.unit if self.offset is None else (values.exp() - self.offset).clamp_min(0.0)


@dataclass(frozen=True)
class Line:
    """A straight line through (center, level)."""

    center: Tensor
    level: Tensor
    slope: Tensor

    @classmethod
    def fit(cls, predicted: Tensor, true: Tensor) -> Line:
        """Least squares with a prior on the slope, so that few or equal predictions leave it near 1."""
        center, level = predicted.mean(), true.mean()
        x, y = predicted - center, true - level
        belief = _SLOPE_TRUST * x.square().mean()
        total = x @ x + belief
        slope = torch.where(total > SMALLEST, (x @ y + belief) / total.clamp_min(SMALLEST), 1.0)
        return cls(center, level, slope.clamp_min(0.0))

    def __call__(self, values: Tensor) -> Tensor:
        """On the line."""
        return self.level + self.slope * (values - self.center)


@dataclass(frozen=True)
class Monotone:
    """A curve that never falls, linear between its points (N,) and constant beyond them."""

    x: Tensor
    y: Tensor

    @classmethod
    def fit(cls, predicted: Tensor, true: Tensor) -> Monotone:
        """Isotonic regression."""
        x, order = predicted.sort(stable=True)
        return cls(x, torch.from_numpy(isotonic_regression(true[order].numpy()).x))

    def __call__(self, values: Tensor) -> Tensor:
        """On the curve."""
        right = torch.searchsorted(self.x, values.detach()).clamp(1, len(self.x) - 1)
        left = right - 1
        share = (values - self.x[left]) / (self.x[right] - self.x[left]).clamp_min(SMALLEST)
        return self.y[left] + share.clamp(0.0, 1.0) * (self.y[right] - self.y[left])


@dataclass(frozen=True)
class Constant:
    """The mean of the true values, whatever the surrogate says."""

    level: Tensor

    @classmethod
    def fit(cls, predicted: Tensor, true: Tensor) -> Constant:
        """The mean."""
        return cls(true.mean())

    def __call__(self, values: Tensor) -> Tensor:
        """The same for all."""
        return self.level.expand(values.shape)


@dataclass(frozen=True)
class Expert:
    """A curve, and a Gaussian process on what it leaves."""

    curve: Curve
    process: Any

    @classmethod
    def fit(cls, curve: Fit, units: Float[Tensor, "S d"], x: Float[Tensor, "S"], y: Float[Tensor, "S"]) -> Expert:
        """Fitted to settings, what the surrogate says there, and true values, both on one scale."""
        fitted = curve(x, y)
        return cls(fitted, _process(units, y - fitted(x), noisy=_noisy(fitted)))

    def __call__(self, units: Float[Tensor, "S d"], x: Float[Tensor, "S"], *, noise: bool = True) -> Foreseen:
        """What one more training would give; or, without its noise, what is expected of it."""
        mean, deviation = _foreseen(self.process, units, noise=noise)
        return Foreseen(self.curve(x) + mean, deviation)

    def believing(self, units: Float[Tensor, "S d"]) -> Expert:
        """The expert as if it turned out to be right at further settings: of the same opinion there, but surer."""
        with quietly():
            process = self.process.condition_on_observations(units, self.process.posterior(units).mean)
        return replace(self, process=process)


@dataclass(frozen=True)
class Mixture:
    """The surrogate corrected and the true values alone.

    Args:
        experts: The surrogate corrected comes first.
        weights: Of the experts, (2,); their sum is 1.
        left_out: What the mixture would foresee at each of its settings, had it not seen that one.
    """

    experts: tuple[Expert, Expert]
    weights: Float[Tensor, "2"]
    left_out: Foreseen

    @classmethod
    def fit(
        cls, curve: Fit, units: Float[Tensor, "S d"], x: Float[Tensor, "S"], y: Float[Tensor, "S"], *, weighed: bool
    ) -> Mixture:
        """Fitted to settings, what the surrogate says there, and true values, both on one scale.

        Experts weigh the same, or one over the root mean squared error at settings that were left out.
        """
        kinds: tuple[Fit, Fit] = (curve, Constant.fit)
        experts = Expert.fit(kinds[0], units, x, y), Expert.fit(kinds[1], units, x, y)
        parts = [_left_out(kind, expert, units, x, y) for kind, expert in zip(kinds, experts, strict=True)]
        weights = torch.full((2,), 0.5, dtype=y.dtype)
        if weighed:
            weights = torch.stack([(y - part.mean).square().mean().clamp_min(SMALLEST).rsqrt() for part in parts])
            weights = weights / weights.sum()
        return cls(experts, weights, _mixed(parts, weights))

    def __call__(self, units: Float[Tensor, "S d"], x: Float[Tensor, "S"], *, noise: bool = True) -> Foreseen:
        """What one more training would give; or, without its noise, what is expected of it."""
        return _mixed([expert(units, x, noise=noise) for expert in self.experts], self.weights)

    def believing(self, units: Float[Tensor, "S d"]) -> Mixture:
        """The mixture as if its experts turned out to be right at further settings."""
        corrected, alone = (expert.believing(units) for expert in self.experts)
        return replace(self, experts=(corrected, alone))


def _mixed(parts: Sequence[Foreseen], weights: Tensor) -> Foreseen:
    """Of a mixture of normal distributions, given by theirs."""
    means, deviations = (torch.stack(columns) for columns in zip(*parts, strict=True))
    mean = weights @ means
    return Foreseen(mean, (weights @ (deviations.square() + (means - mean).square())).sqrt())


def without(index: int, *columns: Tensor) -> list[Tensor]:
    """The columns less one row."""
    return [torch.cat([column[:index], column[index + 1 :]]) for column in columns]


def _process(units: Float[Tensor, "*B S d"], rest: Float[Tensor, "*B S"], *, noisy: bool) -> Any:
    """A Gaussian process on `rest`: with BoTorch's own priors, or with ones that expect little but noise.

    With leading dimensions, as many processes, fitted at once.

    BoTorch expects hardly any noise. That suits true values; of what a surrogate leaves, much is noise.

    Warns:
        HypertuneWarning: If BoTorch says that its fit has failed, after all tries.
    """
    with quietly():
        try:
            from botorch.exceptions.errors import ModelFittingError
            from botorch.exceptions.warnings import OptimizationWarning
            from botorch.fit import fit_gpytorch_mll
            from botorch.models import SingleTaskGP
            from gpytorch.constraints import GreaterThan
            from gpytorch.kernels import RBFKernel
            from gpytorch.likelihoods import GaussianLikelihood
            from gpytorch.mlls import ExactMarginalLogLikelihood
            from gpytorch.priors import LogNormalPrior
        except ImportError as error:
            raise MissingExtraError("Calibration by a Gaussian process", "calibration") from error
        options: dict[str, Any] = {}
        if noisy:
            location, scale = _LENGTHSCALE
            noise = LogNormalPrior(*_NOISE)
            constraint = GreaterThan(1e-4, transform=None, initial_value=noise.mode)
            shape = units.shape[:-2]
            options["likelihood"] = GaussianLikelihood(noise, constraint, batch_shape=shape)
            lengthscale = LogNormalPrior(location + 0.5 * math.log(units.shape[-1]), scale)
            options["covar_module"] = RBFKernel(lengthscale_prior=lengthscale, batch_shape=shape)
        process = SingleTaskGP(units, rest.unsqueeze(-1), **options)
        goal = ExactMarginalLogLikelihood(process.likelihood, process)
        failed: str | None = None
        with torch.enable_grad(), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                fit_gpytorch_mll(goal, max_attempts=1)  # draws no random number
            except ModelFittingError:
                with forked_random_state(seed=0):  # a fit that fails is tried again, at random
                    told.clear()
                    try:
                        fit_gpytorch_mll(goal)
                    except ModelFittingError as error:  # it is then as it was at the start
                        failed = str(error)
        failed = next((str(w.message) for w in told if issubclass(w.category, OptimizationWarning)), failed)
    if failed is not None:
        warnings.warn(
            f"A Gaussian process of the calibration was not fitted to the end ({failed}). Its intervals may be off;"
            " more real trainings, or `residual=False`, help.",
            HypertuneWarning,
            stacklevel=2,
        )
    return process.eval().requires_grad_(False)


def _left_out(kind: Fit, expert: Expert, units: Tensor, x: Tensor, y: Tensor) -> Foreseen:
    """What an expert would foresee at each of its settings, had it not seen that one.

    The experts that have not seen one are fitted together: independent, so each is what it would be alone.
    """
    if len(y) > MANY:  # then one setting hardly changes the curve and the kernel
        from botorch.cross_validation import efficient_loo_cv

        with quietly():
            posterior: Any = efficient_loo_cv(expert.process).posterior
        return Foreseen(expert.curve(x) + posterior.mean.reshape(-1), posterior.variance.reshape(-1).sqrt())
    others = torch.arange(len(y)).expand(len(y), -1)[~torch.eye(len(y), dtype=torch.bool)].reshape(len(y), -1)
    curves = [kind(x[rows], y[rows]) for rows in others]
    rest = torch.stack([y[rows] - curve(x[rows]) for rows, curve in zip(others, curves, strict=True)])
    mean, deviation = _foreseen(_process(units[others], rest, noisy=_noisy(curves[0])), units, noise=True)
    curved = torch.cat([curve(x[index : index + 1]) for index, curve in enumerate(curves)])
    return Foreseen(curved + mean, deviation)


def _foreseen(process: Any, units: Tensor, *, noise: bool) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation at each setting, from one process or from one each, with noise or without."""
    with quietly():
        posterior = process.posterior(units.unsqueeze(1), observation_noise=noise)  # no S x S matrix
        return posterior.mean.reshape(-1), posterior.variance.reshape(-1).sqrt()


def _noisy(curve: Curve) -> bool:
    """Whether much of what a curve leaves is noise: so it is with a surrogate's predictions."""
    return not isinstance(curve, Constant)


@contextmanager
def quietly() -> Iterator[None]:
    """Without warnings of deprecated parts of PyTorch, inputs that BoTorch would scale, and tiny variances."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
