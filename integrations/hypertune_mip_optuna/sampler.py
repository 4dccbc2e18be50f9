"""An Optuna sampler for a study of REAL trainings that knows a surrogate of them.

The surrogate's best settings come first, lying apart; settings spread over the space follow until there are results to
learn from; then settings are proposed by expected improvement, in which the surrogate counts for as much as it has
earned beside the results alone. Parameters that it does not know (a learning rate, a width) come from an inner sampler.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
import torch
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from hypertune_mip import HypertuneWarning, SpaceError, Surrogate
from hypertune_mip.directions import Direction
from hypertune_mip.space import Value
from hypertune_mip.surrogate.proposal import Proposer
from hypertune_mip_optuna.agreement import check_directions, directions_of

_PROPOSAL = "hypertune_mip:proposal"
_WEIGHT = "hypertune_mip:weight"
_TELLING = 8  # results, or finished trials, from which on a warning can be relied on
_LEAST_TAU = 0.2  # of predictions with results; below it a surrogate is of little use
_ONE_AT_A_TIME = threading.RLock()  # of a study's threads, so that each sees what the others were proposed
_AHEAD = 16  # workers that may ask at the same time; a trial that was killed before it was proposed anything counts too


class SurrogateSampler(BaseSampler):
    """Proposes settings for real trainings from a surrogate, and learns from each result.

    All that it knows of a study it reads from the study's storage, so it may be restarted, and any number of workers
    may share a study, each with a sampler of its own. Pruned trials count as tried, but their values do not: they
    belong to a shorter training. A trial's system attribute "hypertune_mip:weight" tells how much a difference that the
    surrogate predicts between two settings counted for in what was proposed: 1 as predicted, 0 not at all.

    Args:
        surrogate: Trained on the parameters that are to come from it. One that the objective suggests from another
            distribution than the surrogate's is left to the inner sampler.
        metric: The surrogate's metric that the study's objective measures by real training.
        inner: For all other parameters; None is Optuna's TPE.
        startup: How many of the surrogate's best settings are tried first, unless a trust report doubts it; then
            settings are spread over the space until there are results to learn from.
        candidates: Sobol settings that the surrogate is asked about, once.
        seed: Of the surrogate's proposals, and of the default inner sampler.

    Raises:
        SpaceError: If the metric is unknown; in a study, if the surrogate's stated `directions` contradict its own.
        OptionError: If a number is too small.
        MissingExtraError: If BoTorch is not installed.

    Warns:
        HypertuneWarning: Once, if results tell that the surrogate is of little use, or no trial suggests what it knows.

    Example:
        >>> import hypertune_mip as ht
        >>> space = ht.SearchSpace({"weight_decay": optuna.distributions.FloatDistribution(1e-5, 1e-1, log=True)})
        >>> surrogate = ht.Surrogate(
        ...     ht.HyperNetwork(torch.nn.Linear(4, 1), space),
        ...     metric=lambda model, x: {"loss": model(x).square().mean()},
        ...     val_loader=[torch.ones(8, 4)],
        ... )
        >>> study = optuna.create_study(sampler=SurrogateSampler(surrogate, "loss", seed=0))
        >>> study.optimize(lambda trial: trial.suggest_float("weight_decay", 1e-5, 1e-1, log=True), n_trials=5)
        >>> len(study.trials)
        5
    """

    def __init__(
        self,
        surrogate: Surrogate,
        metric: str,
        *,
        inner: BaseSampler | None = None,
        startup: int = 2,
        candidates: int = 512,
        seed: int | None = None,
    ) -> None:
        """See the class."""
        self.proposer = Proposer(
            surrogate,
            metric,
            startup=startup,
            candidates=candidates,
            seed=0 if seed is None else seed,
        )
        self.inner = TPESampler(seed=seed) if inner is None else inner
        self._warned = False
        self._proposals: dict[tuple[str, int], dict[str, Value]] = {}  # of trials that are running

    def __repr__(self) -> str:
        """The surrogate's metric and the inner sampler."""
        return f"SurrogateSampler(metric={self.proposer.metric!r}, inner={self.inner})"

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """What the inner sampler samples together, less what comes from the surrogate.

        The surrogate's own parameters are sampled one by one, from one proposal: only then is it known from which
        distribution the objective suggests them.
        """
        self._raise_error_if_multi_objective(study)
        inner = self.inner.infer_relative_search_space(study, trial)
        config = self._proposal(study, trial)
        return {n: d for n, d in inner.items() if n not in config or self.proposer.space[n] != d}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The inner sampler's values."""
        self._raise_error_if_multi_objective(study)
        values = self.inner.sample_relative(study, trial, search_space) if search_space else {}
        missing = {name: value for name, value in search_space.items() if name not in values}
        return values | {
            name: self.inner.sample_independent(study, trial, name, value) for name, value in missing.items()
        }

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The proposal's value, where the surrogate knows the parameter and its range; else the inner sampler's."""
        self._raise_error_if_multi_objective(study)
        config = self._proposal(study, trial)
        if param_name in config and self.proposer.space[param_name] == param_distribution:
            return config[param_name]
        return self.inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Let the inner sampler prepare."""
        self.inner.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Let the inner sampler learn; this one reads results from the study."""
        self._proposals.pop((study.study_name, trial.number), None)
        self.inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Reseed the inner sampler; proposals here depend on the trials of the study alone."""
        self.inner.reseed_rng()

    def _proposal(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Value]:
        """The config that the surrogate proposes for a trial, the same whenever asked; empty if it takes no part."""
        check_directions(study, self.proposer.surrogate, [self.proposer.metric])
        key = (study.study_name, trial.number)
        with _ONE_AT_A_TIME:
            if key not in self._proposals:
                self._proposals[key] = self._propose(study, trial)
            return self._proposals[key]

    def _propose(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Value]:
        """A new proposal, which other workers read from the study; empty if the surrogate takes no part."""
        tried, values, pending, ahead = self._results(study, trial)
        if not len(tried) and not len(pending) and self._knows_nothing_of(study):
            return {}
        for _ in range(ahead):
            theirs = self.proposer.propose(tried, values, pending, direction=_direction(study)).unit
            pending = torch.cat([pending, theirs])
        unit, weight = self.proposer.propose(tried, values, pending, direction=_direction(study))
        count, tau = self.proposer.agreement(tried, values)
        if count >= _TELLING and tau < _LEAST_TAU:
            self._warn(
                f"Kendall's tau of the surrogate's predictions with {count} results is {tau:.2f}: it is of little use"
                f" in this search. A difference that it predicts counts for {weight:.0%} now; the results do the rest."
            )
        config = self.proposer.space.from_unit(unit)[0]
        for name, value in ((_PROPOSAL, config), (_WEIGHT, weight)):
            study._storage.set_trial_system_attr(trial._trial_id, name, value)
        return config

    def _results(self, study: optuna.Study, trial: FrozenTrial) -> tuple[Tensor, Tensor, Tensor, int]:
        """What the other trials say: results, what is being tried, and who asks at the same time.

        Returns:
            Units and values of trials that are over, NaN where they failed or were pruned, units of those that are
            running, and how many earlier trials have only just started: their workers are being proposed settings at
            this moment.
        """
        space = self.proposer.space
        tried, values, pending, ahead = [], [], [], 0
        for other in study.get_trials(deepcopy=False):
            config = {name: other.params[name] for name in space if other.distributions.get(name) == space[name]}
            if len(config) < len(space) and other.state == TrialState.RUNNING:
                config = other.system_attrs.get(_PROPOSAL, {})  # another worker's, not all suggested yet
                ahead += other.number < trial.number and not config and not other.params
            if len(config) < len(space) or other.number == trial.number:
                continue
            try:
                unit = space.to_unit(config)
            except SpaceError:  # enqueued or suggested from another range
                continue
            if other.state == TrialState.RUNNING:
                pending.append(unit)
            else:  # what a pruned trial reached belongs to a shorter training
                tried.append(unit)
                values.append(math.nan if other.value is None or other.state != TrialState.COMPLETE else other.value)
        empty = torch.empty(0, len(space), dtype=torch.float64)
        numbers = torch.tensor(values, dtype=torch.float64)
        return torch.cat([empty, *tried]), numbers, torch.cat([empty, *pending]), min(ahead, _AHEAD)

    def _knows_nothing_of(self, study: optuna.Study) -> bool:
        """Whether trials have been finished, but none suggested the surrogate's parameters; said once."""
        finished = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        if finished >= _TELLING:
            self._warn(
                f"The surrogate takes no part in this search: none of {finished} finished trials suggested all of"
                f" {list(self.proposer.space)} from its own space. {type(self.inner).__name__} goes on alone."
            )
        return finished >= _TELLING

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(message, HypertuneWarning, stacklevel=2)


def _direction(study: optuna.Study) -> Direction:
    (direction,) = directions_of(study)
    return direction
