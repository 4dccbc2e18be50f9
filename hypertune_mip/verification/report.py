"""The trust report: a surrogate's predictions beside real training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from hypertune_mip.directions import Direction, checked_direction, sign
from hypertune_mip.errors import SpaceError, StorageError
from hypertune_mip.space import SearchSpace, Value
from hypertune_mip.storage import load_json, save_json
from hypertune_mip.verification import statistics
from hypertune_mip.verification.response import NEGLIGIBLE
from hypertune_mip.verification.statistics import Estimate

Chosen = Literal["spread", "best"]

_KIND = "trust report"
_TABLES = ("predicted", "true", "low", "high")
_FEWEST = 3  # settings, below which there is no order to speak of
MIN_TAU = 0.5
MAX_REGRET = 0.1
MAX_ERROR = 1.0


@dataclass(frozen=True)
class Effect:
    """How much one hyperparameter moves a metric.

    Args:
        response: Of the surrogate: mean range of the metric as this hyperparameter alone goes through its range, as a
            share of the metric's size.
        surrogate: Spearman's correlation of the hyperparameter with the predictions at the verified settings.
        truth: The same with real training.
    """

    response: float
    surrogate: float
    truth: float


@dataclass(frozen=True, eq=False, kw_only=True)
class TrustReport:
    """Predictions of a surrogate beside real training at the same settings, and what follows for trust in it.

    Figures are of `metric`; the others were measured along and are in `predicted` and `true`.

    Args:
        metric: What the report is about.
        space: Of the configs.
        configs: The settings S, native values.
        chosen: For each setting whether it was spread over the space or is among the surrogate's best.
        predicted: By metric, what the surrogate says, (S,).
        true: By metric, what real training gave, (S, R) for R seeds; NaN where it diverged.
        responses: By hyperparameter, the surrogate's `Effect.response`.
        trainings: Compute spent on real training, in units of one training with the epochs of `fit`.
        seconds: Time that it took.
        low: By metric, lower ends of the surrogate's 90 % intervals, (S,); empty where it gives none.
        high: Upper ends.
        unused: Hyperparameters on whose value the training loss does not depend.
        direction: Whether small or large values of the metric are the better ones.
        share: None where real trainings were from scratch, with the whole recipe. Else they were branches, which took
            that share of it: they order settings nearly as whole trainings do, but their values may be others.
    """

    metric: str
    space: SearchSpace
    configs: tuple[Mapping[str, Value], ...]
    chosen: tuple[Chosen, ...]
    predicted: Mapping[str, Float[np.ndarray, "S"]]
    true: Mapping[str, Float[np.ndarray, "S R"]]
    responses: Mapping[str, float]
    trainings: float
    seconds: float
    low: Mapping[str, Float[np.ndarray, "S"]]
    high: Mapping[str, Float[np.ndarray, "S"]]
    unused: tuple[str, ...] = ()
    direction: Direction = "minimize"
    share: float | None = None

    def __post_init__(self) -> None:
        """Validate."""
        checked_direction(self.direction, where="A report's direction")
        if self.metric not in self.predicted or self.metric not in self.true:
            raise SpaceError(f"The metric {self.metric!r} is unknown; the report holds {list(self.predicted)}.")
        sizes = {len(self.configs), len(self.chosen)} | {
            len(v) for v in (*self.predicted.values(), *self.true.values())
        }
        if len(sizes) != 1 or sizes == {0}:
            raise SpaceError(f"A report needs at least one setting and as many values each, but got {sorted(sizes)}.")

    @property
    def rests_on(self) -> str:
        """What the surrogate is compared with, in words."""
        if self.share is None:
            return "trainings from scratch with the whole recipe."
        return (
            f"branches of {self.share:.3g} of the recipe, from the hypernetwork's weights: they tell the order of"
            " settings, while whole trainings may have other values."
        )

    @property
    def seeds(self) -> int:
        """Real trainings at each setting, R."""
        return int(self.true[self.metric].shape[1])

    @cached_property
    def _pair(self) -> tuple[np.ndarray, np.ndarray]:
        """Of predicted and true values, turned so that small ones are the better ones."""
        return self._sign * self.predicted[self.metric], self._sign * self.true[self.metric].mean(1)

    @property
    def _sign(self) -> float:
        return sign(self.direction)

    @cached_property
    def tau(self) -> Estimate:
        """Kendall's tau of surrogate and truth, with its bootstrap interval."""
        return statistics.with_interval(statistics.kendall, *self._pair)

    @cached_property
    def sparse_tau(self) -> Estimate:
        """Kendall's tau over pairs of settings whose truth differs by a twentieth of its range or more."""
        return statistics.with_interval(statistics.sparse_kendall, *self._pair)

    @cached_property
    def spearman(self) -> Estimate:
        """Spearman's rank correlation of surrogate and truth, with its bootstrap interval."""
        return statistics.with_interval(statistics.spearman, *self._pair)

    @cached_property
    def tau_ceiling(self) -> float:
        """Kendall's tau between seeds of real training; NaN for one seed."""
        return statistics.ceiling(statistics.kendall, self._sign * self.true[self.metric])

    @cached_property
    def spearman_ceiling(self) -> float:
        """Spearman's rank correlation between seeds of real training; NaN for one seed."""
        return statistics.ceiling(statistics.spearman, self._sign * self.true[self.metric])

    @cached_property
    def tau_better_half(self) -> Estimate:
        """Kendall's tau over the truly better half of the settings."""
        return statistics.with_interval(statistics.better_half(statistics.kendall), *self._pair)

    @cached_property
    def regret(self) -> float:
        """How much worse the surrogate's best setting is than the truly best one, as a share of the truth's range."""
        return statistics.regret(*self._pair)

    @property
    def k(self) -> int:
        """How many settings count as the top ones in `recall`: a quarter."""
        return max(1, len(self.configs) // 4)

    @cached_property
    def recall(self) -> float:
        """Share of the truly best `k` settings among the surrogate's best `k`."""
        return statistics.recall(*self._pair, k=self.k)

    @cached_property
    def bias(self) -> float:
        """Mean of prediction minus truth, on the metric's scale: optimistic below zero, or above where maximised."""
        predicted, true = self._pair
        return self._sign * float(np.nanmean(predicted - true)) if np.isfinite(true).any() else math.nan

    @cached_property
    def error(self) -> float:
        """Median of the distance between prediction and truth, as a share of the truth's range or size."""
        return statistics.median_error(*self._pair)

    @cached_property
    def coverage(self) -> float:
        """Share of real trainings inside the surrogate's 90 % intervals; NaN where it gives none."""
        if self.metric not in self.low:
            return math.nan
        runs = self.true[self.metric]
        low, high = (np.repeat(side[self.metric], self.seeds) for side in (self.low, self.high))
        return statistics.coverage(low, high, runs.reshape(-1))

    @cached_property
    def effects(self) -> dict[str, Effect]:
        """How much each hyperparameter moves surrogate and truth, by name; those with one value only are left out."""
        units = self.space.to_unit(list(self.configs)).numpy()
        columns = {name: units[:, column] for column, name in enumerate(self.space)}
        return {
            name: Effect(response, *(self._sign * statistics.spearman(columns[name], side) for side in self._pair))
            for name, response in self.responses.items()
        }

    @property
    def ignored(self) -> tuple[str, ...]:
        """Hyperparameters without effect: the surrogate's metric does not respond, or the training loss does not."""
        return tuple(n for n, response in self.responses.items() if response < NEGLIGIBLE or n in self.unused)

    @property
    def judges_order(self) -> bool:
        """Whether there are enough settings, three, to say anything about their order."""
        return len(self.configs) >= _FEWEST

    def doubts(
        self, *, min_tau: float = MIN_TAU, max_regret: float = MAX_REGRET, max_error: float = MAX_ERROR
    ) -> tuple[str, ...]:
        """Reasons not to trust the surrogate, as sentences; empty if there are none.

        One or two settings say nothing about an order, so there are no doubts about it, and no trust in it either.

        Args:
            min_tau: Least `sparse_tau`; the plain tau suffers from the settings around the minimum, which are about
                equally good.
            max_regret: Largest regret.
            max_error: Largest `error`. Beyond it not even a right order is to be relied on: it is luck.
        """
        doubts = []
        if self.judges_order and not self.sparse_tau.value >= min_tau:
            doubts.append(
                f"Kendall's tau over clearly different settings is {self.sparse_tau.value:.2f}, below {min_tau:g}."
            )
        if self.judges_order and not self.regret <= max_regret:
            doubts.append(f"The regret is {self.regret:.1%} of the truth's range, above {max_regret:.0%}.")
        if self.error > max_error:
            doubts.append(
                f"The values are off by {self.error:.0%} of the truth's range or size, above {max_error:.0%}."
            )
        if len(self.ignored) == len(self.responses):
            doubts.append("No hyperparameter moves the surrogate: it has collapsed.")
        return tuple(doubts)

    def trusted(
        self, *, min_tau: float = MIN_TAU, max_regret: float = MAX_REGRET, max_error: float = MAX_ERROR
    ) -> bool:
        """Whether there are no `doubts` at these thresholds, and three settings or more."""
        return self.judges_order and not self.doubts(min_tau=min_tau, max_regret=max_regret, max_error=max_error)

    def __str__(self) -> str:
        """The report as a table."""
        spread, maximized = self.chosen.count("spread"), self.direction == "maximize"
        about = f"{self.metric} (maximized)" if maximized else self.metric
        lines = [
            f"Trust report: {about} at {len(self.configs)} settings x {_count(self.seeds, 'seed')}"
            f" ({spread} spread over the space, {len(self.chosen) - spread} at the surrogate's best),"
            f" {self.trainings:.3g} trainings, {self.seconds:.0f} s",
            f"Truth: {self.rests_on}",
            "",
            f"{'':22}{'value':>8}   {'90 % interval':15}{'noise ceiling':>14}",
            _row("Kendall's tau", self.tau, self.tau_ceiling),
            _row("Spearman", self.spearman, self.spearman_ceiling),
            _row("tau, clear pairs", self.sparse_tau),
            _row("tau, better half", self.tau_better_half),
            f"{'regret':22}{self.regret:>8.1%}   of the truth's range",
            f"{'recall of the top':22}{self.recall:>8.0%}   {self.k} of {len(self.configs)}",
            f"{'bias':22}{self.bias:>8.3g}   {'above' if maximized else 'below'} zero: optimistic",
            f"{'error':22}{self.error:>8.1%}   of the truth's range or size, median",
            f"{'coverage':22}{_or_dash(self.coverage, '.0%'):>8}   of 90 % intervals",
            "",
            f"{'moves the metric':22}{'alone':>8}{'rank correlation: surrogate':>30}{'truth':>8}",
            *(
                f"{name:22}{effect.response:>8.1%}{effect.surrogate:>30.2f}{effect.truth:>8.2f}"
                + ("   no effect on the loss" if name in self.unused else "   ignored" if name in self.ignored else "")
                for name, effect in self.effects.items()
            ),
            "",
            f"Verdict: {self._verdict}",
        ]
        return "\n".join(lines)

    @property
    def _verdict(self) -> str:
        if doubts := self.doubts():
            return " ".join(("not to be trusted.", *doubts))
        return "trusted." if self.judges_order else f"none; an order takes {_FEWEST} settings."

    def __repr__(self) -> str:
        """The figures that matter most."""
        share = "" if self.share is None else f" share={self.share:.3g},"
        return (
            f"TrustReport(metric={self.metric!r}, settings={len(self.configs)}, seeds={self.seeds},{share}"
            f" tau={self.tau.value:.2f}, regret={self.regret:.3f}, trusted={self.trusted()})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values: `TrustReport.from_dict(report.to_dict())` is the same report."""
        return {
            "metric": self.metric,
            "direction": self.direction,
            "share": self.share,
            "space": self.space.to_json(),
            "configs": [dict(config) for config in self.configs],
            "chosen": list(self.chosen),
            "unused": list(self.unused),
            "responses": dict(self.responses),
            "trainings": self.trainings,
            "seconds": self.seconds,
            **{name: {k: column.tolist() for k, column in getattr(self, name).items()} for name in _TABLES},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TrustReport:
        """The report that `to_dict` described; raises StorageError if that is not one."""
        try:
            tables: dict[str, Any] = {
                name: {key: np.array(column, dtype=float) for key, column in content[name].items()} for name in _TABLES
            }
            return cls(
                metric=content["metric"],
                direction=content["direction"],
                share=content["share"],
                space=SearchSpace.from_json(content["space"]),
                configs=tuple(content["configs"]),
                chosen=tuple(content["chosen"]),
                unused=tuple(content["unused"]),
                responses=content["responses"],
                trainings=content["trainings"],
                seconds=content["seconds"],
                **tables,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StorageError(f"This does not hold what a trust report needs: {error!r}.") from error

    def save(self, path: str | Path) -> None:
        """Write the report as one JSON file, atomically; raises StorageError if that fails."""
        save_json(path, self.to_dict(), kind=_KIND)

    @classmethod
    def load(cls, path: str | Path) -> TrustReport:
        """The report that `save` wrote; raises StorageError if the file is missing, altered or something else."""
        return cls.from_dict(load_json(path, kind=_KIND))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _or_dash(value: float, form: str) -> str:
    return "-" if math.isnan(value) else f"{value:{form}}"


def _row(label: str, estimate: Estimate, noise_ceiling: float = math.nan) -> str:
    interval = "-" if math.isnan(estimate.low) else f"{estimate.low:.2f} to {estimate.high:.2f}"
    return f"{label:22}{_or_dash(estimate.value, '.2f'):>8}   {interval:15}{_or_dash(noise_ceiling, '.2f'):>14}"
