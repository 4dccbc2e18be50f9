"""From a surrogate to a finished network: candidates, branches, and the one that validation data choose.

The surrogate proposes settings that it likes, apart from each other, and some that are spread over the space. Each is
trained for a short while from the weights that the hypernetwork makes there; the better ones, by validation data, are
trained for longer, from the weights at the end of the hypernetwork's training (successive halving; Jamieson and
Talwalkar, AISTATS 2016, where a rung goes on with what the one before has trained).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from scipy.stats import t as student
from torch import nn

from hypertune_mip.directions import Direction, sign
from hypertune_mip.evaluation.sampling import GROUPS
from hypertune_mip.space import Value
from hypertune_mip.trainings import BranchPoint
from hypertune_mip.verification.statistics import Estimate

_KIND = "delivery"
_QUANTILE = float(student.ppf(0.95, GROUPS - 1))  # of both sides of a 90 % interval


class Rung(NamedTuple):
    """One round of branches.

    Args:
        candidates: How many are trained.
        share: Of the recipe that each takes.
        start: Where they start.
    """

    candidates: int
    share: float
    start: BranchPoint


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One branch of a delivery.

    Args:
        config: Native values.
        chosen: "best" by the surrogate, or "spread" over the space.
        rung: Counted from 1.
        share: Of the recipe that it took.
        start: Where it started.
        values: Its metrics on the validation data, by name; NaN if it diverged.
    """

    config: dict[str, Value]
    chosen: str
    rung: int
    share: float
    start: BranchPoint
    values: Mapping[str, float]


@dataclass(frozen=True, eq=False, kw_only=True)
class Delivered:
    """A finished network, and how it was found.

    Args:
        network: Plain, in evaluation mode.
        config: Of the network, native values.
        metric: By which it was chosen.
        direction: Which values of the metric are the better ones.
        values: Its metrics on the validation data, by name, each with a 90 % interval for other validation data of the
            same size. The network was chosen by these data, so its metric is optimistic: keep test data.
        cost: In trainings with the whole recipe: that of `fit`, by the time that it took, and of all branches.
        cost_of_fit: The part of `fit`; NaN where its time is not known.
        candidates: All branches, rung by rung.
        chosen: Index of the network among them.
    """

    network: nn.Module
    config: dict[str, Value]
    metric: str
    direction: Direction
    values: Mapping[str, Estimate]
    cost: float
    cost_of_fit: float
    candidates: tuple[Candidate, ...]
    chosen: int

    @property
    def value(self) -> Estimate:
        """The metric of the network on the validation data, with its 90 % interval."""
        return self.values[self.metric]

    def __repr__(self) -> str:
        """Config, value and cost."""
        return (
            f"Delivered(config={self.config}, {self.metric}={self.value.value:.4g},"
            f" {self.candidates[self.chosen].share:g} of a training, cost={self.cost:.3g})"
        )

    def __str__(self) -> str:
        """The candidates as a table, the best of each rung first."""
        low, high = self.value.low, self.value.high
        interval = "" if math.isnan(low) else f" ({low:.4g} to {high:.4g})"
        names = list(self.config)
        lines = [
            f"Delivered: {self.metric} {self.value.value:.4g}{interval} on validation data,"
            f" for {self.cost:.3g} trainings, {self.cost_of_fit:.3g} of them for `fit`",
            "",
            "".join(["rung  share  start  chosen", f"{self.metric:>12}", *(f"  {name:>12}" for name in names)]),
        ]
        worst_last = sorted(
            enumerate(self.candidates), key=lambda pair: (pair[1].rung, self._order(pair[1]))
        )
        for index, each in worst_last:
            lines.append(
                f"{each.rung:>4}  {each.share:>5.2f}  {each.start:<5}  {each.chosen:<6}{each.values[self.metric]:>12.4g}"
                + "".join(f"  {_shown(each.config[name]):>12}" for name in names)
                + ("  <- this network" if index == self.chosen else "")
            )
        return "\n".join(lines)

    def _order(self, candidate: Candidate) -> float:
        value = sign(self.direction) * candidate.values[self.metric]
        return math.inf if math.isnan(value) else value


def _shown(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
