"""Calibration: what a few real trainings say about a surrogate's predictions, everywhere in the space.

Two experts foresee the true values. Where all of these are positive they do so on a logarithmic scale, since a
surrogate that is off tends to be off by a share of the value:

    corrected:  true(u) = line(predicted(u)) + g(u) + noise
    alone:      true(u) = constant + f(u) + noise

The line (or a monotone curve) takes out a bias and a wrong scale; g and f are Gaussian processes on the unit cube
(BoTorch's). g takes out what depends on the setting, such as optimism where real training has not converged yet; f does
not ask the surrogate at all. Their mean ranks better than either, since their errors have different causes. How much
either is to be relied on cannot be told from a few trainings, where equal weights are hard to beat; from more than a
dozen it can, by one over the root mean squared error at those that were left out (forecast combination: Bates and
Granger, 1969; Clemen, 1989). A surrogate that ranks all the real trainings rightly keeps its ranking: then the line
alone corrects it. Intervals are as wide as the errors at trainings that were left out ask for.

Trainings may be of several kinds: short branches, which are cheap and order settings nearly as whole trainings do, and
whole trainings, which have the right values. A `Chain` corrects by one after the other, the cheapest first. Intervals
are those of a whole training: where there are too few of these to learn from, a `Gap` says how far off they may be.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from scipy.optimize import isotonic_regression
from scipy.stats import norm
from torch import Tensor

from hypertune_mip.errors import DataError, HypertuneWarning, MissingExtraError
from hypertune_mip.verification.statistics import LEVEL

FEWEST = 3
"""Real trainings that calibration needs."""
_SLOPE_TRUST = 1.0  # how many settings the belief in a slope of 1 counts for
_NOISE = (math.log(0.3), 1.0)  # prior of the noise's share of the residuals' variance: log-normal, location and scale
_LENGTHSCALE = (0.0, 0.7)  # prior of the length scale, in units of the cube's diagonal: log-normal
_MANY = 12  # settings, beyond which experts are weighed, and not fitted anew for each that is left out
_OFFSET = 0.1  # of the median: what the logarithm adds, so that an error rate may be 0
_RIGHT = 1e-6  # of the largest value: where residuals are smaller, there is nothing to correct
_STILL_OFF = 0.5  # of how far branches have moved from the surrogate: standard deviation of what is left to move
_SMALLEST = 1e-12
_Curve = Callable[[Tensor], Tensor]
_Fit = Callable[[Tensor, Tensor], _Curve]
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


class Chain:
    """Calibrations one after another: each corrects what those before it say.

    Args:
        links: The first corrects the surrogate.
    """

    def __init__(self, links: Sequence[Calibration | Gap]) -> None:
        """See the class."""
        self.links = tuple(links)

    def __call__(self, units: Float[Tensor, "S d"], predicted: Float[Tensor, "S"]) -> Calibrated:
        """As `Calibration` does. Errors of links have different causes, so their margins add up in squares."""
        mean, below, above = predicted, torch.zeros(()), torch.zeros(())
        for link in self.links:
            mean, low, high = link(units, mean)
            below, above = below + (mean - low).square(), above + (high - mean).square()
        return Calibrated(mean, mean - below.sqrt(), mean + above.sqrt())


class Gap:
    """How far whole trainings are off from what short branches have taught, where fewer than three of them tell it.

    Real training is expected to go on from a branch by half as much as the branch has moved from the surrogate: at all
    settings alike, and at each on its own, so two independent normal distributions of the same standard deviation.
    Trainings, where there are any, then tell the common part. Half is what made intervals cover nine in ten over the
    tasks of `benchmarks/trust.py`, whatever the share of the branches.

    Args:
        surrogate: What the surrogate says where branches were trained, (B,).
        branches: What the branches gave there, (B,), or (B, R) for up to R seeds, NaN where there is none.
        foreseen: What is foreseen where there are whole trainings, (S,); may be empty.
        true: What these gave, (S,) or (S, R).
    """

    def __init__(
        self,
        surrogate: Float[Tensor, "B"],
        branches: Float[Tensor, "B"] | Float[Tensor, "B R"],
        foreseen: Float[Tensor, "S"],
        true: Float[Tensor, "S"] | Float[Tensor, "S R"],
    ) -> None:
        """See the class."""
        before, after = _both_known(surrogate, branches)
        foreseen, true = _both_known(foreseen, true)
        self._scale = _Scale.of(torch.cat([before, foreseen]), torch.cat([after, true]))
        moved = self._scale(after) - self._scale(before)
        size = _STILL_OFF * float(moved.square().mean().sqrt())
        share = 1 / (len(true) + 1)  # of the common part that stays unknown
        self._common = share * float((self._scale(true) - self._scale(foreseen)).sum())
        self._margin = _QUANTILE * size * math.sqrt(share + 1)

    def __call__(self, units: Float[Tensor, "S d"], predicted: Float[Tensor, "S"]) -> Calibrated:
        """What one whole training would give, where branches would give what is predicted."""
        center = self._scale(predicted.double().cpu()) + self._common
        return Calibrated(
            *(self._scale.back(values) for values in (center, center - self._margin, center + self._margin))
        )


def _both_known(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """What is predicted and the mean of what is true, where both are finite."""
    mean = (true if true.ndim == 2 else true.unsqueeze(1)).double().nanmean(1)
    good = torch.isfinite(mean) & torch.isfinite(predicted)
    return predicted[good].double(), mean[good]


@dataclass(frozen=True)
class _Scale:
    """Logarithms, where values allow it."""

    offset: float | None

    @classmethod
    def of(cls, predicted: Tensor, true: Tensor) -> _Scale:
        logarithmic = bool((true >= 0).all() and (predicted >= 0).all() and float(true.median()) > 0)
        return cls(_OFFSET * float(true.median()) if logarithmic else None)

    def __call__(self, values: Tensor) -> Tensor:
        return values if self.offset is None else (values.clamp_min(0.0) + self.offset).log()

    def back(self, values: Tensor) -> Tensor:
        return values if self.offset is None else (values.exp() - self.offset).clamp_min(0.0)


class Calibration:
    """The map from settings and predictions to calibrated predictions, fitted to real trainings.

    Args:
        units: Settings that were trained for real, (S, d).
        predicted: What the surrogate says there, (S,).
        true: What the trainings gave, (S,), or (S, R) where a setting was trained with up to R seeds and NaN stands for
            no training; settings without any are left out.
        method: "affine" for a line whose slope is pulled towards 1, "monotone" for isotonic regression, which needs
            more settings (a dozen, say).
        residual: Whether Gaussian processes may help.

    Raises:
        DataError: If fewer than three settings have finite values.
        MissingExtraError: If BoTorch is not installed and `residual` is asked for.
    """

    def __init__(
        self,
        units: Float[Tensor, "S d"],
        predicted: Float[Tensor, "S"],
        true: Float[Tensor, "S"] | Float[Tensor, "S R"],
        *,
        method: Literal["affine", "monotone"] = "affine",
        residual: bool = True,
    ) -> None:
        """See the class."""
        runs = true.double() if true.ndim == 2 else true.double().unsqueeze(1)
        true = runs.nanmean(1)
        good = torch.isfinite(true) & torch.isfinite(predicted)
        if int(good.sum()) < FEWEST:
            raise DataError(
                f"Calibration needs at least {FEWEST} settings with finite values, but got {int(good.sum())} of"
                f" {len(true)}. Train more of them, for example by verify(settings=8)."
            )
        units, predicted, true, runs = units[good].double(), predicted[good].double(), true[good], runs[good]
        self._scale = _Scale.of(predicted, true)
        x, y = self._scale(predicted), self._scale(true)
        fit = _Monotone.fit if method == "monotone" else _Line.fit
        self._curve = fit(x, y)
        errors = torch.stack([y[i] - fit(*_without(i, x, y))(x[i : i + 1])[0] for i in range(len(y))])
        self._margin = _widening(errors)
        self._noise = _QUANTILE * _missing_noise(self._scale(runs))
        self._mixture: _Mixture | None = None
        right = float((y - self._curve(x)).abs().max()) <= _RIGHT * float(y.abs().max())
        if residual and not right and not _ranks_rightly(x, y):
            self._mixture = _Mixture.fit(fit, units, x, y)

    def __call__(self, units: Float[Tensor, "S d"], predicted: Float[Tensor, "S"]) -> Calibrated:
        """Calibrated predictions, float64, on the CPU; differentiable in both arguments."""
        x = self._scale(predicted.double().cpu())
        center, margin = (self._curve(x), self._margin) if self._mixture is None else self._mixture(units, x)
        margin = (torch.as_tensor(margin).square() + self._noise**2).sqrt()
        return Calibrated(*(self._scale.back(values) for values in (center, center - margin, center + margin)))


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
    """A curve that never falls, linear between its points (N,) and constant beyond them."""

    x: Tensor
    y: Tensor

    @classmethod
    def fit(cls, predicted: Tensor, true: Tensor) -> _Monotone:
        """Isotonic regression."""
        x, order = predicted.sort(stable=True)
        return cls(x, torch.from_numpy(isotonic_regression(true[order].numpy()).x))

    def __call__(self, values: Tensor) -> Tensor:
        right = torch.searchsorted(self.x, values.detach()).clamp(1, len(self.x) - 1)
        left = right - 1
        share = (values - self.x[left]) / (self.x[right] - self.x[left]).clamp_min(_SMALLEST)
        return self.y[left] + share.clamp(0.0, 1.0) * (self.y[right] - self.y[left])


@dataclass(frozen=True)
class _Constant:
    """The mean of the true values, whatever the surrogate says."""

    level: Tensor

    @classmethod
    def fit(cls, predicted: Tensor, true: Tensor) -> _Constant:
        return cls(true.mean())

    def __call__(self, values: Tensor) -> Tensor:
        return self.level.expand(values.shape)


@dataclass(frozen=True)
class _Expert:
    """A curve, and a Gaussian process on what it leaves."""

    curve: _Curve
    process: Any

    @classmethod
    def fit(cls, curve: _Fit, units: Tensor, x: Tensor, y: Tensor) -> _Expert:
        fitted = curve(x, y)
        return cls(fitted, _process(units, y - fitted(x), noisy=_noisy(fitted)))

    def __call__(self, units: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of one more training at each setting."""
        mean, deviation = _foreseen(self.process, units)
        return self.curve(x) + mean, deviation


@dataclass(frozen=True)
class _Mixture:
    """The surrogate corrected and the true values alone; `widening` turns the spread of both into a margin."""

    experts: tuple[_Expert, _Expert]
    weights: Tensor
    widening: float

    @classmethod
    def fit(cls, curve: _Fit, units: Tensor, x: Tensor, y: Tensor) -> _Mixture:
        kinds: tuple[_Fit, _Fit] = (curve, _Constant.fit)
        experts = _Expert.fit(kinds[0], units, x, y), _Expert.fit(kinds[1], units, x, y)
        parts = [_left_out(kind, expert, units, x, y) for kind, expert in zip(kinds, experts, strict=True)]
        weights = torch.full((2,), 0.5, dtype=y.dtype)
        if len(y) > _MANY:
            weights = torch.stack([(y - mean).square().mean().clamp_min(_SMALLEST).rsqrt() for mean, _ in parts])
            weights = weights / weights.sum()
        mean, deviation = _mixed(parts, weights)
        return cls(experts, weights, _widening((y - mean) / deviation))

    def __call__(self, units: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of one more training at each setting, and half the width of its interval."""
        mean, deviation = _mixed([expert(units.double().cpu(), x) for expert in self.experts], self.weights)
        return mean, self.widening * deviation


def _mixed(parts: Sequence[tuple[Tensor, Tensor]], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a mixture of normal distributions, given by theirs."""
    means, deviations = (torch.stack(columns) for columns in zip(*parts, strict=True))
    mean = weights @ means
    return mean, (weights @ (deviations.square() + (means - mean).square())).sqrt()


def _ranks_rightly(predicted: Tensor, true: Tensor) -> bool:
    """Whether no two settings are the wrong way round."""
    order = true.argsort()
    return bool((predicted[order].diff() > 0).all())


def _widening(errors: Tensor) -> float:
    """Half the width that intervals need so that a share LEVEL of left-out errors, or of fresh ones, lies inside.

    The quantile of conformal prediction; where that is beyond the largest of so few errors, the one of a normal
    distribution with their root mean square.
    """
    sizes, count = errors.abs().sort().values, len(errors)
    rank = math.ceil(LEVEL * (count + 1))
    return float(sizes[rank - 1]) if rank <= count else _QUANTILE * float(sizes.square().mean().sqrt())


def _missing_noise(runs: Float[Tensor, "S R"]) -> float:
    """Standard deviation that one training has beyond the mean of those at its setting; 0 where there is one each."""
    known = torch.isfinite(runs)
    count = known.sum(1)
    if int((count - 1).sum()) == 0:
        return 0.0
    spread = torch.where(known, runs - runs.nanmean(1, keepdim=True), 0.0).square().sum() / (count - 1).sum()
    return float((spread * (1 - (1 / count).mean())).sqrt())


def _without(index: int, *columns: Tensor) -> list[Tensor]:
    return [torch.cat([column[:index], column[index + 1 :]]) for column in columns]


def _process(units: Float[Tensor, "*B S d"], rest: Float[Tensor, "*B S"], *, noisy: bool) -> Any:
    """A Gaussian process on `rest`: with BoTorch's own priors, or with ones that expect little but noise.

    With leading dimensions, as many processes, fitted at once.

    BoTorch expects hardly any noise. That suits true values; of what a surrogate leaves, much is noise.

    Warns:
        HypertuneWarning: If BoTorch says that its fit has failed, after all tries.
    """
    with _quietly():
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
        failed: str | None = None
        with torch.enable_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings(record=True) as told:
            torch.default_generator.manual_seed(0)  # a fit that fails is tried again, at random
            warnings.simplefilter("always")
            try:
                fit_gpytorch_mll(ExactMarginalLogLikelihood(process.likelihood, process))
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


def _left_out(kind: _Fit, expert: _Expert, units: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """What an expert would foresee at each of its settings, mean and standard deviation, had it not seen that one.

    The experts that have not seen one are fitted together: independent, so each is what it would be alone.
    """
    if len(y) > _MANY:  # then one setting hardly changes the curve and the kernel
        from botorch.cross_validation import efficient_loo_cv

        with _quietly():
            posterior: Any = efficient_loo_cv(expert.process).posterior
        return expert.curve(x) + posterior.mean.reshape(-1), posterior.variance.reshape(-1).sqrt()
    others = torch.arange(len(y)).expand(len(y), -1)[~torch.eye(len(y), dtype=torch.bool)].reshape(len(y), -1)
    curves = [kind(x[rows], y[rows]) for rows in others]
    rest = torch.stack([y[rows] - curve(x[rows]) for rows, curve in zip(others, curves, strict=True)])
    mean, deviation = _foreseen(_process(units[others], rest, noisy=_noisy(curves[0])), units)
    return torch.cat([curve(x[index : index + 1]) for index, curve in enumerate(curves)]) + mean, deviation


def _foreseen(process: Any, units: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of one more training at each setting, from one process or from one each."""
    with _quietly():
        posterior = process.posterior(units.unsqueeze(1), observation_noise=True)  # no S x S matrix
        return posterior.mean.reshape(-1), posterior.variance.reshape(-1).sqrt()


def _noisy(curve: _Curve) -> bool:
    """Whether much of what a curve leaves is noise: so it is with a surrogate's predictions."""
    return not isinstance(curve, _Constant)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without warnings of deprecated parts of PyTorch, inputs that BoTorch would scale, and tiny variances."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
