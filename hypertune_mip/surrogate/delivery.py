"""From a surrogate to a finished network: candidates, branches, and the average of them that validation data choose.

The surrogate proposes settings that it likes, apart from each other, and some that are spread over the space. Each is
trained for a short while from the weights that the hypernetwork makes there. The better ones, by validation data, are
trained for longer, from the average of those so far (successive halving; Jamieson and Talwalkar, AISTATS 2016, where
each goes on with its own weights). What is delivered is an average as well, of all branches of which validation data
say that it is no worse with them (model soups; Wortsman et al., ICML 2022).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from scipy.stats import t as student
from torch import nn

from hypertune_mip.directions import Direction, sign
from hypertune_mip.errors import HypertuneWarning, TrainingError
from hypertune_mip.evaluation.sampling import GROUPS
from hypertune_mip.space import Config, Value
from hypertune_mip.surrogate.candidates import Origin, Plan, Rung, along_front
from hypertune_mip.surrogate.screen import non_dominated
from hypertune_mip.trainings import Average, Branches, BranchPoint, Trainer, greedy_average
from hypertune_mip.verification.statistics import Estimate

_NEAR = 1e-3  # of a metric, by rounding
_QUANTILE = float(student.ppf(0.95, GROUPS - 1))  # of both sides of a 90 % interval


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One branch of a delivery.

    Args:
        config: Native values.
        chosen: "best" by the surrogate, or "spread" over the space.
        rung: Counted from 1.
        share: Of the recipe that it took.
        start: Where it started: a point of the hypernetwork's training, or the average of the branches before.
        values: Its metrics on the validation data, by name; NaN if it diverged.
    """

    config: dict[str, Value]
    chosen: Origin
    rung: int
    share: float
    start: BranchPoint | Literal["average"]
    values: Mapping[str, float]


@dataclass(frozen=True, eq=False, kw_only=True)
class Delivered:
    """A finished network, and how it was found.

    Args:
        network: Plain, in evaluation mode.
        config: Of the best of the branches that the network is made of, native values.
        metric: By which it was chosen.
        direction: Which values of the metric are the better ones.
        values: Its metrics on the validation data, by name, each with a 90 % interval for other validation data of the
            same size. The network was chosen by these data, so its metric is optimistic: keep test data.
        cost: In trainings with the whole recipe: that of `fit`, by the time that it took, of all branches, and of the
            running statistics of averages, where a network has such.
        cost_of_fit: The part of `fit`; NaN where its time is not known.
        candidates: All branches, rung by rung.
        averaged: Indices among them of those whose weights the network is the mean of, the best first: one, where the
            network is that of a single branch.
    """

    network: nn.Module
    config: dict[str, Value]
    metric: str
    direction: Direction
    values: Mapping[str, Estimate]
    cost: float
    cost_of_fit: float
    candidates: tuple[Candidate, ...]
    averaged: tuple[int, ...]

    @property
    def chosen(self) -> int:
        """Index of the best of the branches that are averaged, whose config `config` is."""
        return self.averaged[0]

    @property
    def value(self) -> Estimate:
        """The metric of the network on the validation data, with its 90 % interval."""
        return self.values[self.metric]

    def __repr__(self) -> str:
        """Config, value and cost."""
        return (
            f"Delivered(config={self.config}, {self.metric}={self.value.value:.4g},"
            f" averaged={len(self.averaged)} of {len(self.candidates)} branches, cost={self.cost:.3g})"
        )

    def __str__(self) -> str:
        """The candidates as a table, the best of each rung first; those whose weights are averaged are marked."""
        low, high = self.value.low, self.value.high
        interval = "" if math.isnan(low) else f" ({low:.4g} to {high:.4g})"
        mark = "  <- this network" if len(self.averaged) == 1 else "  <- averaged"
        names = {name: max(12, len(name)) for name in self.config}
        lines = [
            f"Delivered: {self.metric} {self.value.value:.4g}{interval} on validation data,"
            f" for {self.cost:.3g} trainings, {self.cost_of_fit:.3g} of them for `fit`",
            "",
            "".join(
                [
                    "rung  share  start    chosen",
                    f"{self.metric:>12}",
                    *(f"  {name:>{width}}" for name, width in names.items()),
                ]
            ),
        ]
        for index in sorted(range(len(self.candidates)), key=self._place):
            each = self.candidates[index]
            lines.append(
                f"{each.rung:>4}  {each.share:>5.2f}  {each.start:<7}  {each.chosen:<6}"
                + f"{each.values[self.metric]:>12.4g}"
                + "".join(f"  {_shown(each.config[name]):>{width}}" for name, width in names.items())
                + (mark if index in self.averaged else "")
            )
        return "\n".join(lines)

    def _place(self, index: int) -> tuple[int, float]:
        """In the table: rungs in their order, in each the best first."""
        candidate = self.candidates[index]
        value = sign(self.direction) * candidate.values[self.metric]
        return candidate.rung, math.inf if math.isnan(value) else value


def delivered(
    trainer: Trainer,
    plan: Plan,
    rungs: Sequence[Rung],
    metric: str,
    direction: Direction,
    *,
    seed: int,
    progress: bool,
) -> Delivered:
    """The best average of branches, on validation data, that `greedy_average` finds.

    Args:
        trainer: Of the branches.
        plan: The candidates.
        rungs: Each goes on with the best configs of the one before, from the average of all branches before.
        metric: To choose by.
        direction: Which of its values are the better ones.
        seed: Of the branches.
        progress: Whether to show bars.

    Raises:
        TrainingError: If all branches diverge.
    """
    left = list(range(len(plan.configs)))
    candidates: list[Candidate] = []
    makers: list[Callable[[], nn.Module]] = []
    scores: list[float] = []
    average: Average | None = None
    cost = 0.0

    def score(network: nn.Module) -> float:
        return sign(direction) * trainer.measure(network)[metric]

    for number, rung in enumerate(rungs, start=1):
        left = left[: rung.candidates]
        if not left:
            break
        # early weights would order settings better, but these may be delivered as well
        found = trainer.branch(
            [plan.configs[index] for index in left],
            share=rung.share,
            start="end" if average is None else average.network,
            seed=seed,
            progress=progress,
        )
        cost += found.cost
        makers += [partial(found.make, index) for index in range(len(left))]
        candidates += _candidates(found, number, [plan.chosen[index] for index in left])
        values = sign(direction) * found.metrics[metric]
        own = np.where(np.isfinite(values), values, math.inf)
        scores += own.tolist()
        left = [left[index] for index in np.argsort(own, kind="stable") if np.isfinite(own[index])]
        order = [index for index in np.argsort(scores, kind="stable").tolist() if math.isfinite(scores[index])]
        if order:
            costs: list[float] = []
            config = candidates[order[0]].config

            def finish(network: nn.Module, config: Config = config, costs: list[float] = costs) -> None:
                costs.append(trainer.collect_statistics(network, config))

            average = greedy_average(makers, order, score, finish=finish)
            cost += sum(costs)
    if average is None:
        raise _all_diverged(len(candidates), metric)
    best = average.members[0]
    _warn_of_lost_state(candidates[best].values, trainer.measure(makers[best]()))
    return _delivered(trainer, plan, candidates, average.members, average.network, metric, direction, cost)


def delivered_front(
    trainer: Trainer,
    plan: Plan,
    directions: Mapping[str, Direction],
    share: float,
    points: int,
    *,
    seed: int,
    progress: bool,
) -> tuple[Delivered, ...]:
    """Networks that no other one beats in every metric, on validation data, apart from each other.

    Args:
        trainer: Of the branches.
        plan: The candidates, all of which are trained once.
        directions: Of the metrics, by name; networks are sorted by the first.
        share: Of the recipe that a branch takes.
        points: How many networks, at most.
        seed: Of the branches.
        progress: Whether to show a bar.

    Raises:
        TrainingError: If all branches diverge.
    """
    found = trainer.branch(plan.configs, share=share, start="end", seed=seed, progress=progress)
    table = np.stack([sign(way) * found.metrics[name] for name, way in directions.items()], axis=1)
    front = non_dominated(table)
    if not front:
        raise _all_diverged(len(table), ", ".join(directions))
    candidates = _candidates(found, 1, plan.chosen)
    metric, direction = next(iter(directions.items()))
    chosen = [front[index] for index in along_front(table[front], points)]
    networks = [found.make(row) for row in chosen]
    for row, network in zip(chosen, networks, strict=True):
        _warn_of_lost_state(candidates[row].values, trainer.measure(network))
    return tuple(
        _delivered(trainer, plan, candidates, (row,), network, metric, direction, found.cost)
        for row, network in zip(chosen, networks, strict=True)
    )


def _delivered(
    trainer: Trainer,
    plan: Plan,
    candidates: Sequence[Candidate],
    averaged: tuple[int, ...],
    network: nn.Module,
    metric: str,
    direction: Direction,
    cost: float,
) -> Delivered:
    values = _with_intervals(trainer.measure(network), trainer, network)
    return Delivered(
        network=network,
        config=candidates[averaged[0]].config,
        metric=metric,
        direction=direction,
        values=values,
        cost=cost + plan.cost_of_fit,
        cost_of_fit=plan.cost_of_fit,
        candidates=tuple(candidates),
        averaged=averaged,
    )


def _with_intervals(values: Mapping[str, float], trainer: Trainer, network: nn.Module) -> dict[str, Estimate]:
    errors = _errors(trainer, network) or dict.fromkeys(values, math.nan)
    return {
        name: Estimate(value, value - _QUANTILE * errors[name], value + _QUANTILE * errors[name])
        for name, value in values.items()
    }


def _errors(trainer: Trainer, network: nn.Module) -> dict[str, float]:
    """Standard errors by metric, empty where a metric does not take a part of the data."""
    try:
        return trainer.standard_errors(network)
    except Exception as error:  # the user's own, of any kind: the network is there, and must not be lost
        warnings.warn(
            f"The values have no intervals: the metric fails on nine tenths of the validation data: {error}",
            HypertuneWarning,
            stacklevel=6,
        )
        return {}


def _warn_of_lost_state(told: Mapping[str, float], found: Mapping[str, float]) -> None:
    """Warn where a network that was put together again from what is kept is another one than was trained."""
    for name, value in told.items():
        if not np.isclose(value, found[name], rtol=_NEAR, atol=_NEAR, equal_nan=True):
            warnings.warn(
                f"The network that was trained had {name!r} {value:.5g}, but from what is kept of it comes one with"
                f" {found[name]:.5g}. Its modules keep state that is neither a parameter, a buffer, nor a number or"
                " tensor in an attribute, or the metric is random.",
                HypertuneWarning,
                stacklevel=5,
            )
            return


def _all_diverged(count: int, what: str) -> TrainingError:
    return TrainingError(
        f"All {count} branches diverged, or had no {what}, so there is no network to deliver. Lower the learning rate"
        " of the recipe, or the largest penalties in the space."
    )


def _candidates(found: Branches, rung: int, chosen: Sequence[Origin]) -> list[Candidate]:
    return [
        Candidate(
            config=config,
            chosen=origin,
            rung=rung,
            share=found.share,
            start="average" if found.start == "network" else found.start,
            values={name: float(column[index]) for name, column in found.metrics.items()},
        )
        for index, (config, origin) in enumerate(zip(found.configs, chosen, strict=True))
    ]


def _shown(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
