"""What to train for real next: the surrogate's best settings first, then expected improvement once trainings are in.

A search with real trainings asks for one setting at a time and hands over all results so far, so nothing has to be kept
between two questions: a restarted search, or several workers, go on where the results stand.
"""

from __future__ import annotations

import importlib.util
import math
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal

from hypertune_mip.arguments import real_number, seed_number
from hypertune_mip.directions import Direction, sign
from hypertune_mip.errors import MissingExtraError, OptionError, SpaceError
from hypertune_mip.space import SearchSpace
from hypertune_mip.surrogate.search import distance_to, diverse_best
from hypertune_mip.surrogate.surrogate import Surrogate
from hypertune_mip.surrogate.turned import Turned
from hypertune_mip.training.options import at_least
from hypertune_mip.verification.calibration import FEWEST, Calibration
from hypertune_mip.verification.statistics import regret, sparse_kendall

_APART = 0.02  # in some column: closer to a setting that is tried already, a proposal teaches little
_LOCAL = 8  # of the best candidates, with as many variations each
_SPREAD = 0.1  # standard deviation of variations, in units
_SMALLEST = 1e-12


class Proposer:
    """Proposes settings to train for real, from a surrogate and the results so far.

    Args:
        surrogate: Trained; as it is, or calibrated.
        metric: What the search is about.
        startup: How many of the surrogate's best settings, lying apart, come first. Then settings are spread over the
            space until results suffice to calibrate the surrogate: they teach more than further best ones.
        explore_every: Every so many-th proposal is a setting spread over the space, whatever the surrogate says.
        min_tau: Least Kendall's tau of the surrogate's predictions with the results; below it is not trusted.
        max_regret: How much worse than the best result the one may be that the surrogate ranks first, as a share of
            the results' range; above it is not trusted.
        gate_after: Results that it takes to look at tau and regret.
        candidates: Sobol settings that the surrogate is asked about, once.
        seed: Of candidates and variations.

    Raises:
        SpaceError: If the metric is unknown.
        OptionError: If a number is too small, or none.
        MissingExtraError: If BoTorch is not installed.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        metric: str,
        *,
        startup: int = 2,
        explore_every: int = 5,
        min_tau: float = 0.2,
        max_regret: float = 0.5,
        gate_after: int = 8,
        candidates: int = 512,
        seed: int = 0,
    ) -> None:
        """See the class."""
        startup, gate_after, candidates = at_least(1, startup=startup, gate_after=gate_after, candidates=candidates)
        (explore_every,) = at_least(2, explore_every=explore_every)
        if metric not in surrogate.metrics:
            raise SpaceError(f"The metric {metric!r} is unknown; `metric` returns {list(surrogate.metrics)}.")
        if importlib.util.find_spec("botorch") is None:
            raise MissingExtraError("Learning from real trainings", "calibration")
        self.surrogate = surrogate
        self.metric = metric
        self.startup = startup
        self.explore_every = explore_every
        self.min_tau = real_number("min_tau", min_tau, error=OptionError)
        self.max_regret = real_number("max_regret", max_regret, error=OptionError)
        self.gate_after = gate_after
        self.candidates = candidates
        self.seed = seed_number(seed, error=OptionError)
        self._found: dict[Direction, Tensor] = {}  # the surrogate's best

    @property
    def space(self) -> SearchSpace:
        """Of the proposals."""
        return self.surrogate.space

    def doubts(self, tried: Float[Tensor, "N d"], values: Float[Tensor, "N"], *, direction: Direction) -> str | None:
        """Why the surrogate is not to be trusted in this search, as a sentence; None if it is.

        Args:
            tried: Settings with a result.
            values: The results; NaN where training failed.
            direction: Whether small or large values are the better ones.
        """
        good = torch.isfinite(values)
        count = int(good.sum())
        if count < self.gate_after:
            same = direction == self.surrogate.directions[self.metric]
            return (" ".join(self.surrogate.doubts(self.metric)) or None) if same else None
        predicted, true = (sign(direction) * column.numpy() for column in (self._predict(tried[good]), values[good]))
        tau, lost = sparse_kendall(predicted, true), regret(predicted, true)
        if not tau >= self.min_tau:
            return f"Kendall's tau of its predictions with {count} results is {tau:.2f}, below {self.min_tau:g}."
        if lost > self.max_regret:
            return (
                f"Of {count} results the one that it ranks first is worse than the best by {lost:.0%} of their range,"
                f" above {self.max_regret:.0%}."
            )
        return None

    def propose(
        self,
        tried: Float[Tensor, "N d"],
        values: Float[Tensor, "N"],
        pending: Float[Tensor, "P d"],
        *,
        direction: Direction,
    ) -> Float[Tensor, "1 d"]:
        """The next setting.

        Args:
            tried: Settings with a result, in any order.
            values: The results: `metric` as real training gave it, NaN where training failed.
            pending: Settings that are being trained, elsewhere.
            direction: Whether small or large values are the better ones.
        """
        known = torch.cat([tried, pending])
        turn, count = divmod(len(known), self.explore_every)
        if count == self.explore_every - 1:
            return self._spread(known, number=turn, seed=self.seed + 1)
        if len(known) < self.startup:
            return self._best_by_surrogate(known, direction)
        predicted = self._predict(tried)
        if int((torch.isfinite(values) & torch.isfinite(predicted)).sum()) < FEWEST:
            return self._spread(known, number=len(known), seed=self.seed + 2)
        calibration = Calibration(tried, predicted, values)
        target = float(torch.where(torch.isfinite(values), sign(direction) * values, math.inf).min())
        return self._best_by_improvement(calibration, target, known, direction)

    def _best_by_surrogate(self, known: Tensor, direction: Direction) -> Tensor:
        best = self._best(direction)
        fresh = best[distance_to(best, known) >= _APART]
        return fresh[:1] if len(fresh) else self._spread(known, number=len(known), seed=self.seed + 2)

    def _spread(self, known: Tensor, *, number: int, seed: int) -> Tensor:
        """A Sobol setting, the first from a number on that is not known, as far as the space has others."""
        units = self.space.sample(number + len(known) + 1, seed=seed)[number:]
        fresh = units[distance_to(units, known) >= _APART]
        return fresh[:1] if len(fresh) else units[:1]

    def _best_by_improvement(
        self, calibration: Calibration, target: float, known: Tensor, direction: Direction
    ) -> Tensor:
        """By how much a value, its sign turned where large ones are better, is expected to lie below `target`."""
        normal = Normal(0.0, 1.0, validate_args=False)  # a surrogate may be NaN somewhere

        def improvement(units: Tensor, predicted: Tensor) -> Tensor:
            calibrated = calibration(units, predicted)
            deviation = calibrated.deviation.clamp_min(_SMALLEST)
            score = (target - sign(direction) * calibrated.mean) / deviation
            expected = deviation * (score * normal.cdf(score) + normal.log_prob(score).exp())
            return torch.where(distance_to(units, known) >= _APART, expected.nan_to_num(nan=-1.0), -1.0)

        units, predicted = self._pool
        best = units[improvement(units, predicted).argsort(descending=True)[:_LOCAL]]
        generator = torch.Generator().manual_seed(self.seed + len(known))
        moves = _SPREAD * torch.randn(_LOCAL, *best.shape, generator=generator, dtype=best.dtype)
        around = torch.cat([best, self.space.snap((best + moves).clamp(0.0, 1.0).reshape(-1, best.shape[1]))])
        winner = improvement(around, self._predict(around)).argmax()
        return around[winner : winner + 1]

    def _predict(self, units: Tensor) -> Tensor:
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
