"""Agreement of predictions with truth: rank correlation and its ceiling, regret, recall, with bootstrap intervals.

Small values are the better ones everywhere. A NaN, from a training that diverged, counts as worse than any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import bootstrap, kendalltau, spearmanr

Statistic = Callable[[np.ndarray, np.ndarray], float]
"""Of (predicted, true), both (S,)."""

LEVEL = 0.9
"""Share of intervals, here and in calibration, that should hold the true value."""
_RESAMPLES = 999
_CLEAR = 0.05  # of the range of the true values
_SMALLEST = 1e-300
_FEWEST = 4  # settings; with fewer a bootstrap interval means nothing


@dataclass(frozen=True)
class Estimate:
    """A value and the interval that it probably lies in.

    Args:
        value: The estimate.
        low: Lower end of the interval, NaN where there is none.
        high: Upper end.
    """

    value: float
    low: float = math.nan
    high: float = math.nan


def kendall(predicted: Float[np.ndarray, "S"], true: Float[np.ndarray, "S"]) -> float:
    """Kendall's tau-b; 0 where either side is constant, NaN for fewer than two settings."""
    return _correlation(kendalltau, predicted, true)


def spearman(predicted: Float[np.ndarray, "S"], true: Float[np.ndarray, "S"]) -> float:
    """Spearman's rank correlation; 0 where either side is constant, NaN for fewer than two settings."""
    return _correlation(spearmanr, predicted, true)


def sparse_kendall(predicted: Float[np.ndarray, "S"], true: Float[np.ndarray, "S"]) -> float:
    """Kendall's tau over the pairs whose true values differ clearly, by a twentieth of their range or more.

    A search gathers settings that are about equally good, whose order is noise; this leaves such pairs out, as sparse
    Kendall's tau does in neural architecture search by rounding. 0 without any such pair, NaN for fewer than two
    settings.
    """
    predicted, true = finite(predicted), finite(true)
    if len(true) < 2:
        return math.nan
    rows, columns = np.triu_indices(len(true), 1)
    differences = true[rows] - true[columns]
    clear = np.abs(differences) >= max(_CLEAR * float(np.ptp(true)), _SMALLEST)
    agreeing = np.sign(predicted[rows] - predicted[columns]) * np.sign(differences)
    return float(agreeing[clear].mean()) if clear.any() else 0.0


def with_interval(
    statistic: Statistic, predicted: Float[np.ndarray, "S"], true: Float[np.ndarray, "S"], *, seed: int = 0
) -> Estimate:
    """A statistic with its 90 % percentile bootstrap interval over settings."""
    value = statistic(predicted, true)
    if len(true) < _FEWEST or math.isnan(value):
        return Estimate(value)
    interval = bootstrap(
        (predicted, true),
        statistic,
        paired=True,
        vectorized=False,
        n_resamples=_RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def ceiling(statistic: Statistic, runs: Float[np.ndarray, "S R"]) -> float:
    """How well seeds of real training agree: each seed's runs against the mean of the others, averaged.

    It is what one training says about another, the mark for a prediction of ONE training; a perfect prediction agrees
    with the mean over seeds better than that. NaN for a single seed, which says nothing about noise.
    """
    seeds = runs.shape[1]
    if seeds < 2:
        return math.nan
    others = [runs[:, [s for s in range(seeds) if s != seed]].mean(1) for seed in range(seeds)]
    return float(np.mean([statistic(runs[:, seed], others[seed]) for seed in range(seeds)]))


def better_half(statistic: Statistic) -> Statistic:
    """The statistic over the half of the settings that are truly better, where a search has to decide."""

    def over_half(predicted: np.ndarray, true: np.ndarray) -> float:
        kept = np.argsort(finite(true), kind="stable")[: (len(true) + 1) // 2]
        return statistic(predicted[kept], true[kept])

    return over_half


def regret(predicted: Float[np.ndarray, "S"], true: Float[np.ndarray, "S"]) -> float:
    """How much worse than the truly best setting the predicted best one is, as a share of the truth's range."""
    true = finite(true)
    span = float(np.ptp(true))
    return float(true[np.argmin(finite(predicted))] - true.min()) / span if span > 0 else 0.0


def median_error(predicted: Float[np.ndarray, "S"], true: Float[np.ndarray, "S"]) -> float:
    """Median of the distance between predicted and true values, as a share of the truth's range.

    Or of its median size, where that is larger: between settings that are all about equally good the range is noise.
    """
    distance = np.abs(predicted - true)
    known = np.isfinite(distance)
    if not known.any():
        return 0.0
    scale = max(float(np.ptp(finite(true))), float(np.median(np.abs(true[known]))))
    return float(np.median(distance[known])) / scale if scale > 0 else 0.0


def recall(predicted: Float[np.ndarray, "S"], true: Float[np.ndarray, "S"], *, k: int) -> float:
    """Share of the truly best `k` settings that are among the predicted best `k`."""
    best = [set(np.argsort(finite(values), kind="stable")[:k].tolist()) for values in (predicted, true)]
    return len(best[0] & best[1]) / k


def coverage(low: Float[np.ndarray, "S"], high: Float[np.ndarray, "S"], true: Float[np.ndarray, "S"]) -> float:
    """Share of true values inside their intervals; NaN without settings."""
    return float(np.mean((low <= true) & (true <= high))) if len(true) else math.nan


def finite(values: Float[np.ndarray, "S"]) -> Float[np.ndarray, "S"]:
    """`values` with NaN and infinities moved to the worst finite value, so that ranks and ranges are defined."""
    good = np.isfinite(values)
    if good.all():
        return values
    return np.where(good, values, values[good].max() if good.any() else 0.0)


def _correlation(function: Callable[..., object], predicted: np.ndarray, true: np.ndarray) -> float:
    predicted, true = finite(predicted), finite(true)
    if len(true) < 2:
        return math.nan
    if np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return 0.0
    return float(function(predicted, true).statistic)  # type: ignore[attr-defined]
