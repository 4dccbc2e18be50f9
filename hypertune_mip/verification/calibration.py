"""Calibration: what a few real trainings say about a surrogate's predictions, everywhere in the space.

Two experts foresee the true values: the surrogate, corrected by a line and a Gaussian process, and a Gaussian process
on the true values alone. Where all of these are positive they do so on a logarithmic scale, since a surrogate that is
off tends to be off by a share of the value. Their mean ranks better than either, since their errors have different
causes. How much either is to be relied on cannot be told from a few trainings, where equal weights are hard to beat;
from more than a dozen it can, by one over the root mean squared error at those that were left out (forecast
combination: Bates and Granger, 1969; Clemen, 1989). A surrogate that ranks all the real trainings rightly keeps its
ranking: then the line alone corrects it. Intervals are as wide as the errors at trainings that were left out ask for.

Trainings may be of several kinds: short branches, which are cheap and order settings nearly as whole trainings do, and
whole trainings, which have the right values. A `Chain` corrects by one after the other, the cheapest first. Intervals
are those of a whole training: where there are too few of these to learn from, a `Gap` says how far off they may be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from scipy.stats import norm
from torch import Tensor

from hypertune_mip.errors import DataError
from hypertune_mip.verification.experts import MANY, Line, Mixture, Monotone, Scale, without
from hypertune_mip.verification.statistics import LEVEL

FEWEST = 3
"""Real trainings that calibration needs."""
_RIGHT = 1e-6  # of the largest value: where residuals are smaller, there is nothing to correct
_STILL_OFF = 0.5  # of how far branches have moved from the surrogate: standard deviation of what is left to move
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
        low = mean - below.sqrt()
        positive = all(link.positive for link in self.links) and len(self.links) > 0
        return Calibrated(mean, low.clamp_min(0.0) if positive else low, mean + above.sqrt())


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
        self._scale = Scale.of(torch.cat([before, foreseen]), torch.cat([after, true]))
        moved = self._scale(after) - self._scale(before)
        size = _STILL_OFF * float(moved.square().mean().sqrt())
        share = 1 / (len(true) + 1)  # of the common part that stays unknown
        self._common = share * float((self._scale(true) - self._scale(foreseen)).sum())
        self._margin = _QUANTILE * size * math.sqrt(share + 1)

    @property
    def positive(self) -> bool:
        """Whether no value is negative."""
        return self._scale.offset is not None

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
        self._scale = Scale.of(predicted, true)
        x, y = self._scale(predicted), self._scale(true)
        fit = Monotone.fit if method == "monotone" else Line.fit
        self._curve = fit(x, y)
        errors = torch.stack([y[i] - fit(*without(i, x, y))(x[i : i + 1])[0] for i in range(len(y))])
        self._margin = _widening(errors)  # in units of the deviation, which is 1 without a mixture
        self._noise = _QUANTILE * _missing_noise(self._scale(runs))
        self._mixture: Mixture | None = None
        right = float((y - self._curve(x)).abs().max()) <= _RIGHT * float(y.abs().max())
        if residual and not right and not _ranks_rightly(x, y):
            self._mixture = Mixture.fit(fit, units, x, y, weighed=len(y) > MANY)
            self._margin = _widening((y - self._mixture.left_out.mean) / self._mixture.left_out.deviation)

    @property
    def positive(self) -> bool:
        """Whether no value is negative."""
        return self._scale.offset is not None

    def __call__(self, units: Float[Tensor, "S d"], predicted: Float[Tensor, "S"]) -> Calibrated:
        """Calibrated predictions, float64, on the CPU; differentiable in both arguments."""
        x = self._scale(predicted.double().cpu())
        if self._mixture is None:
            center, deviation = self._curve(x), torch.ones_like(x)
        else:
            center, deviation = self._mixture(units.double().cpu(), x)
        margin = ((self._margin * deviation).square() + self._noise**2).sqrt()
        return Calibrated(*(self._scale.back(values) for values in (center, center - margin, center + margin)))


def _ranks_rightly(predicted: Tensor, true: Tensor) -> bool:
    """Whether no two settings are the wrong way round."""
    order = predicted.argsort()
    order = order[true[order].argsort(stable=True)]  # equal ones by what is predicted
    return bool(((predicted[order].diff() > 0) | (true[order].diff() == 0)).all())


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
