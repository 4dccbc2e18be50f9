"""What to train for real next: the surrogate's best settings first, then expected improvement once trainings are in.

A search with real trainings asks for one setting at a time and hands over all results so far, so nothing has to be kept
between two questions: a restarted search, or several workers, go on where the results stand.

The surrogate has to earn its word: what it says, corrected by the results, counts beside a Gaussian process on the
results alone, each for what it foresees of results that it has not seen. There is no point at which it is dropped, nor
one from which it is trusted.
"""

from __future__ import annotations

import importlib.util
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hypertune_mip.arguments import seed_number
from hypertune_mip.directions import Direction
from hypertune_mip.errors import MissingExtraError, OptionError, SpaceError
from hypertune_mip.space import SearchSpace
from hypertune_mip.surrogate.search import descended, distance_to, diverse_best
from hypertune_mip.surrogate.surrogate import Surrogate
from hypertune_mip.surrogate.turned import Turned
from hypertune_mip.training.options import at_least
from hypertune_mip.verification.calibration import FEWEST
from hypertune_mip.verification.experts import quietly
from hypertune_mip.verification.statistics import sparse_kendall

if TYPE_CHECKING:
    from hypertune_mip.surrogate.improvement import Improvement

_APART = 0.02  # in some column: closer to a setting that is tried already, a proposal teaches little
_SHARE = 0.0016  # of the space at most that a known setting bars: less in one dimension, where there is little
_LOCAL = 8  # of the best candidates, with as many variations each
_SPREAD = 0.1  # standard deviation of variations, in units
_STARTS, _STEPS = 4, 8  # of descent: as many settings' gradients a proposal


class Proposal(NamedTuple):
    """What to train next.

    Args:
        unit: The setting, (1, d).
        weight: How much a difference that the surrogate predicts between two settings counted for: 1 as predicted, 0
            not at all.
    """

    unit: Tensor
    weight: float


class Proposer:
    """Proposes settings to train for real, from a surrogate and the results so far.

    Args:
        surrogate: Trained; as it is, or calibrated.
        metric: What the search is about.
        startup: How many of the surrogate's best settings, lying apart, come first, unless a trust report doubts it.
            Then settings are spread over the space until there are results to learn from: they teach more than
            further best ones.
        candidates: Sobol settings that the surrogate is asked about, once.
        seed: Of candidates and variations.

    Raises:
        SpaceError: If the metric is unknown.
        OptionError: If a number is too small, or none.
        MissingExtraError: If BoTorch is not installed.
    """

    def __init__(
        self, surrogate: Surrogate, metric: str, *, startup: int = 2, candidates: int = 512, seed: int = 0
    ) -> None:
        """See the class."""
        startup, candidates = at_least(1, startup=startup, candidates=candidates)
        if metric not in surrogate.metrics:
            raise SpaceError(f"The metric {metric!r} is unknown; `metric` returns {list(surrogate.metrics)}.")
        if importlib.util.find_spec("botorch") is None:
            raise MissingExtraError("Learning from real trainings", "calibration")
        self.surrogate = surrogate
        self.metric = metric
        self.startup = startup
        self.candidates = candidates
        self.seed = seed_number(seed, error=OptionError)
        self._found: dict[Direction, Tensor] = {}  # the surrogate's best

    @property
    def space(self) -> SearchSpace:
        """Of the proposals."""
        return self.surrogate.space

    def propose(
        self,
        tried: Float[Tensor, "N d"],
        values: Float[Tensor, "N"],
        pending: Float[Tensor, "P d"],
        *,
        direction: Direction,
    ) -> Proposal:
        """The next setting, and how much the surrogate had to say in it.

        Args:
            tried: Settings with a result, in any order.
            values: The results: `metric` as real training gave it, NaN where training failed or was stopped.
            pending: Settings that are being trained, elsewhere.
            direction: Whether small or large values are the better ones.
        """
        known = torch.cat([tried, pending])
        if len(known) < self.startup and not self._doubted(direction):
            return Proposal(self._best_by_surrogate(known, direction), 1.0)
        improvement = self._improvement(tried, values, pending, direction)
        if improvement is None:
            return Proposal(self._spread(known), 0.0)
        return Proposal(self._best_by_improvement(improvement, known), improvement.weight)

    def agreement(self, tried: Float[Tensor, "N d"], values: Float[Tensor, "N"]) -> tuple[int, float]:
        """How many results there are where the surrogate foresees something, and Kendall's tau of both; NaN without.

        Args:
            tried: Settings, in any order.
            values: The results; NaN where training failed.
        """
        predicted = self._predict(tried)
        good = torch.isfinite(values) & torch.isfinite(predicted)
        return int(good.sum()), sparse_kendall(predicted[good].numpy(), values[good].numpy())

    def _doubted(self, direction: Direction) -> bool:
        """Whether a trust report says that the surrogate's best settings are no good start."""
        return direction == self.surrogate.directions[self.metric] and bool(self.surrogate.doubts(self.metric))

    def _best_by_surrogate(self, known: Tensor, direction: Direction) -> Tensor:
        best = self._best(direction)
        fresh = best[distance_to(best, known) >= _APART]
        return fresh[:1] if len(fresh) else self._spread(known)

    def _spread(self, known: Tensor) -> Tensor:
        """A Sobol setting, as many into the sequence as are known, that is not known, as far as there are others."""
        units = self.space.sample(2 * len(known) + 1, seed=self.seed + 1)[len(known) :]
        fresh = units[distance_to(units, known) >= _APART]
        return fresh[:1] if len(fresh) else units[:1]

    def _improvement(self, tried: Tensor, values: Tensor, pending: Tensor, direction: Direction) -> Improvement | None:
        """What is expected of a training, by all results so far; None if they do not suffice."""
        predicted = self._predict(tried)
        good = torch.isfinite(values) & torch.isfinite(predicted)
        if int(good.sum()) < FEWEST:
            return None
        with quietly():
            from hypertune_mip.surrogate.improvement import Improvement
        foreseen = self._predict(pending)
        waiting = torch.isfinite(foreseen)
        return Improvement(
            self.surrogate._measure,
            self.metric,
            tried[good],
            predicted[good],
            values[good],
            direction=direction,
            pending=pending[waiting],
            foreseen=foreseen[waiting],
            known=torch.cat([tried, pending]),
            apart=_APART,
        )

    def _best_by_improvement(self, improvement: Improvement, known: Tensor) -> Tensor:
        """The best of the pool and of variations of its best, and what descent from there leads to.

        Where all of a small space is near to what is known, nearer settings are allowed, and at last the same ones.
        """
        units, predicted = self._pool
        widest = min(_APART, 0.5 * _SHARE ** (1 / units.shape[1]))
        for apart in (widest, 0.1 * widest, 0.0):
            improvement.apart = apart
            (scores,) = improvement.where_foreseen(units, predicted).values()
            if bool(torch.isfinite(scores).any()):
                break
        best = units[scores.nan_to_num(nan=torch.inf).argsort()[:_LOCAL]]
        generator = torch.Generator().manual_seed(self.seed + len(known))
        moves = _SPREAD * torch.randn(_LOCAL, *best.shape, generator=generator, dtype=best.dtype)
        around = torch.cat([best, self.space.snap((best + moves).clamp(0.0, 1.0).reshape(-1, best.shape[1]))])
        (scores,) = improvement.where_foreseen(around, self._predict(around)).values()
        (metric,) = improvement.directions
        found = descended(improvement, metric, around, scores, starts=_STARTS, steps=_STEPS)
        return self.space.to_unit([found.config])

    def _predict(self, units: Float[Tensor, "S d"]) -> Float[Tensor, "S"]:
        return torch.from_numpy(self.surrogate.evaluate_units(units)[self.metric]).double()

    @cached_property
    def _pool(self) -> tuple[Tensor, Tensor]:
        units = self.space.sample(self.candidates, seed=self.seed)
        return units, self._predict(units)

    def _best(self, direction: Direction) -> Tensor:
        if direction not in self._found:
            measure = Turned(self.surrogate._measure, {self.metric: direction})
            self._found[direction] = diverse_best(
                measure, self.metric, self.startup, candidates=self.candidates, seed=self.seed
            )
        return self._found[direction]
