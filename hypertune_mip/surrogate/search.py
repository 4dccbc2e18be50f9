"""Searching a surrogate directly: descent in the unit cube from many starts, and the non-dominated settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hypertune_mip.evaluation import Emulator, Measure, check_metric, gradients
from hypertune_mip.space import Value
from hypertune_mip.surrogate.screen import non_dominated, screened
from hypertune_mip.surrogate.turned import Turned

_STEP = 0.05  # of Adam, in units
_SCREENED = 4096  # settings at most that are evaluated after an emulator has screened the candidates
_WITHIN = 2.0  # of its root mean square errors


@dataclass(frozen=True)
class Optimum:
    """The setting at which a metric of the surrogate is best.

    Args:
        config: Native values.
        value: The metric there, as the surrogate sees it.
    """

    config: dict[str, Value]
    value: float


@dataclass(frozen=True)
class ParetoPoint:
    """A setting that no other one beats in every metric.

    Args:
        config: Native values.
        values: The metrics there, by name.
    """

    config: dict[str, Value]
    values: dict[str, float]


def optimize(measure: Measure, metric: str, *, candidates: int, starts: int, steps: int, seed: int) -> Optimum:
    """The best setting that Sobol candidates, and descent from the best of them, have met.

    Continuous hyperparameters descend along the metric's gradient (Adam, kept in the unit cube), upwards where large
    values are better; discrete ones keep the values of their start. A metric without a gradient, such as an error rate,
    leaves the best candidate. A setting at which the metric is NaN counts as worse than any other.
    """
    turned = Turned(measure)
    units, values = _candidates(turned, metric, candidates, seed)
    best = descended(turned, metric, units, values, starts=starts, steps=steps)
    return Optimum(best.config, turned.sign(metric) * best.value)


def _candidates(
    measure: Measure, metric: str, count: int, seed: int
) -> tuple[Float[Tensor, "S d"], Float[Tensor, "S"]]:
    """Sobol settings and a metric there, to be small, infinite where it is NaN."""
    with gradients(False):
        units = measure.space.sample(count, seed=seed)
        return units, _nan_last(_metric(measure(units), metric))


def descended(
    measure: Measure,
    metric: str,
    units: Float[Tensor, "S d"],
    values: Float[Tensor, "S"],
    *,
    starts: int,
    steps: int,
) -> Optimum:
    """The setting of the smallest value that descent from the best of some settings has met.

    Args:
        measure: Of the metric.
        metric: Its name; small values are the better ones.
        units: Settings to start from.
        values: The metric there; NaN counts as worse than any other.
        starts: From how many.
        steps: Of each.
    """
    with gradients(False):
        space, values = measure.space, _nan_last(values)
        order = torch.argsort(values)[:starts]
        free = torch.tensor([dim.cells is None for dim in space.dimensions])
        best_units, best_values = units[order], values[order]
        point = units[order].requires_grad_()
        descent = torch.optim.Adam([point], lr=_STEP)
        for _ in range(steps if bool(free.any()) else 0):
            values, slope = measure.value_and_gradient(point, metric)
            values = _nan_last(values)
            better = values < best_values
            best_units[better] = point.detach()[better]
            best_values = torch.fmin(best_values, values)  # not minimum: a NaN is no improvement
            point.grad = torch.where(free, slope, 0.0).nan_to_num(0.0)
            if not bool(point.grad.any()):
                break
            descent.step()
            point.clamp_(0.0, 1.0)
        winner = int(best_values.argmin())
        return Optimum(space.from_unit(best_units[winner : winner + 1])[0], float(best_values[winner]))


def diverse_best(
    measure: Measure,
    metric: str,
    count: int,
    *,
    candidates: int,
    seed: int,
    distance: float = 0.25,
    besides: Float[Tensor, "N d"] | None = None,
    apart: float = 0.0,
) -> Float[Tensor, "S d"]:
    """Units of the best setting and of further good ones, best first, that lie apart.

    Args:
        measure: Of the metrics.
        metric: In whose direction.
        count: How many, S; fewer where a discrete space does not hold as many.
        candidates: Sobol settings to choose from.
        seed: Of the candidates.
        distance: At least this far from each other in some column; less where that leaves too few.
        besides: Settings that are not wanted again.
        apart: How far from all of those the chosen ones lie, at least, in some column.
    """
    space, turned = measure.space, Turned(measure)
    sampled, values = _candidates(turned, metric, candidates, seed)
    optimum = descended(turned, metric, sampled, values, starts=8, steps=30)
    units, places = torch.unique(sampled, dim=0, return_inverse=True)
    order = torch.argsort(torch.empty(len(units), dtype=values.dtype).index_copy(0, places, values))
    units = torch.cat([space.to_unit(optimum.config), units[order]])
    if besides is not None:
        units = units[distance_to(units, besides) >= apart]
    chosen = units[:1]
    while 0 < len(chosen) < count:
        nearest = distance_to(units, chosen)
        if float(nearest.max()) == 0.0:
            break
        far = (nearest >= distance).nonzero().flatten()
        if len(far) == 0:
            distance /= 2
            continue
        chosen = torch.cat([chosen, units[far[:1]]])
    return chosen


def distance_to(units: Float[Tensor, "S d"], others: Float[Tensor, "N d"]) -> Float[Tensor, "S"]:
    """Largest difference in a column to the nearest of `others`; infinite where there are none."""
    if len(others) == 0:
        return torch.full((len(units),), torch.inf, dtype=units.dtype)
    return (units.unsqueeze(1) - others).abs().amax(-1).amin(-1)


def gradient(measure: Measure, unit: Float[Tensor, "1 d"], metric: str) -> dict[str, float]:
    """Derivative of a metric with respect to each continuous hyperparameter, native scale, by name."""
    space = measure.space
    _, slope = measure.value_and_gradient(unit, metric)
    with gradients(True):
        place = unit.detach().clone().requires_grad_()
        native = space.decode(place)
        return {
            dim.name: float(slope[0, column] / _derivative(native[dim.name], place)[0, column])
            for column, dim in enumerate(space.dimensions)
            if dim.cells is None
        }


def pareto_front(
    measure: Measure, metrics: Sequence[str], *, candidates: int, seed: int, emulator: Emulator | None = None
) -> list[ParetoPoint]:
    """The non-dominated ones of `candidates` Sobol settings, the best in the first metric first.

    With an emulator, those of the settings that it sees within two of its errors of the front.
    """
    turned = Turned(measure)
    signs = {name: turned.sign(name) for name in metrics}
    if emulator is None:
        units = measure.space.sample(candidates, seed=seed)
    else:
        most = min(candidates, _SCREENED)
        units = screened(
            emulator,
            metrics,
            most,
            candidates=candidates,
            seed=seed,
            directions=[measure.directions[name] for name in metrics],
            within=_WITHIN,
        )
    values = turned(units)
    table = np.stack([_metric(values, name).numpy() for name in metrics], axis=1)
    rows = sorted(non_dominated(table), key=lambda row: tuple(table[row]))
    configs = measure.space.from_unit(units[rows])
    return [
        ParetoPoint(config, {name: own * float(values[name][row]) for name, own in signs.items()})
        for config, row in zip(configs, rows, strict=True)
    ]


def _metric(values: dict[str, Tensor], name: str) -> Tensor:
    check_metric(name, values)
    return values[name]


def _nan_last(values: Tensor) -> Tensor:
    return values.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)


def _derivative(native: Tensor, place: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(native.sum(), place, retain_graph=True)
    return slope
