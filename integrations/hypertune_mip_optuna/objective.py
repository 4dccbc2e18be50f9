"""An Optuna objective that asks a surrogate instead of training a network."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import BaseTrial

from hypertune_mip import SpaceError, Surrogate
from hypertune_mip_optuna.agreement import check_study, suggest_config

Constraint = float | Callable[[Mapping[str, float]], float]
"""The largest allowed value of the metric that bears the constraint's key, or a function of all metrics, by name, whose
result is at most 0 where a setting is feasible."""


@dataclass(frozen=True)
class Outcome:
    """What a trial records of one setting.

    Args:
        values: One a study direction; all NaN where one of them or of the constraints is, which fails the trial.
        user_attrs: The metrics that are not optimised.
        constraints: At most 0 where satisfied; without those that are NaN, which Optuna refuses.
    """

    values: tuple[float, ...]
    user_attrs: dict[str, float]
    constraints: dict[str, float]

    @property
    def failed(self) -> bool:
        """Whether the values are NaN."""
        return any(math.isnan(value) for value in self.values)


class SurrogateObjective:
    """An objective for `study.optimize`: suggests every hyperparameter of the surrogate's space and evaluates there.

    It serves any sampler, `n_jobs` > 1, and several processes on one storage; it pickles where the surrogate's network,
    metric and data do. A call with one of Optuna's own trials first checks the study; see Raises.

    Args:
        surrogate: With validation data.
        metrics: Name of the metric to optimise, or a list of names, one for each direction of the study. The other
            metrics become user attributes of each trial.
        constraints: What makes a setting feasible, by key. `{"error": 0.1}` asks that the metric "error" is at most
            0.1; for anything else pass a function of all metrics with a result of at most 0 where feasible:
            `{"accuracy": lambda metrics: 0.9 - metrics["accuracy"]}`. (Several processes need one that pickles.)

    Raises:
        SpaceError: If a metric is unknown. When called: if the study has another number of directions, or one that the
            surrogate's stated `directions` contradict, if one of its trials suggested a hyperparameter from another
            distribution than the space's, or if a value, for example an enqueued one, lies outside the space.
        DataError: If the surrogate has no validation data.

    Warns:
        HypertuneWarning: If the surrogate is not to be trusted for a metric, as its last trust report has it.

    Example:
        >>> import hypertune_mip as ht
        >>> import optuna
        >>> import torch
        >>> space = ht.SearchSpace({"weight_decay": optuna.distributions.FloatDistribution(1e-5, 1e-1, log=True)})
        >>> surrogate = ht.Surrogate(
        ...     ht.HyperNetwork(torch.nn.Linear(4, 1), space),
        ...     metric=lambda model, x: {"loss": model(x).square().mean(), "size": model.weight.square().sum()},
        ...     val_loader=[torch.ones(8, 4)],
        ... )
        >>> study = optuna.create_study()
        >>> study.optimize(SurrogateObjective(surrogate, "loss", constraints={"size": 2.0}), n_trials=3)
        >>> study.best_trial.user_attrs["size"] <= 2.0
        True
    """

    def __init__(
        self,
        surrogate: Surrogate,
        metrics: str | Sequence[str],
        *,
        constraints: Mapping[str, Constraint] | None = None,
    ) -> None:
        """See the class."""
        self.surrogate = surrogate
        self.metrics = (metrics,) if isinstance(metrics, str) else tuple(metrics)
        self.constraints = dict(constraints or {})
        self._single = isinstance(metrics, str)
        self._checked: weakref.WeakSet[optuna.Study] = weakref.WeakSet()
        _check_names(surrogate.metrics, self.metrics, self.constraints)
        surrogate.warn_of_doubts(*self.metrics, stacklevel=3)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the studies that were checked: another process looks at its own."""
        return {**self.__dict__, "_checked": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """See `__getstate__`."""
        self.__dict__.update(state, _checked=weakref.WeakSet())

    def __call__(self, trial: BaseTrial) -> float | tuple[float, ...]:
        """The metric at the setting that the trial suggests, or one value a metric where a list of names was given."""
        if isinstance(trial, optuna.Trial):
            self.check(trial.study)
        config = suggest_config(trial, self.surrogate.space)
        outcome = self.outcome(self.surrogate.evaluate(config))
        for name, value in outcome.user_attrs.items():
            trial.set_user_attr(name, value)
        recorded = trial.constraints if outcome.constraints else {}  # by a finished trial that is evaluated again
        for key, value in outcome.constraints.items():
            if key not in recorded:
                trial.set_constraint(key, value)
        return outcome.values[0] if self._single else outcome.values

    def check(self, study: optuna.Study) -> None:
        """Raise SpaceError if a study does not fit; looks at the trials of each study once, when it first meets it."""
        if study not in self._checked:
            check_study(study, self.surrogate, self.metrics)
            self._checked.add(study)

    def outcome(self, measured: Mapping[str, float]) -> Outcome:
        """What a trial records where all metrics, by name, are as `measured`."""
        values = tuple(measured[name] for name in self.metrics)
        constraints = {key: _excess(measured, key, limit) for key, limit in self.constraints.items()}
        valid = {key: value for key, value in constraints.items() if not math.isnan(value)}
        if len(valid) < len(constraints) or any(math.isnan(value) for value in values):
            values = (math.nan,) * len(values)
        return Outcome(values, {name: v for name, v in measured.items() if name not in self.metrics}, valid)


def _excess(measured: Mapping[str, float], key: str, limit: Constraint) -> float:
    return float(limit(measured)) if callable(limit) else float(measured[key] - limit)


def _check_names(known: Sequence[str], metrics: Sequence[str], constraints: Mapping[str, Constraint]) -> None:
    if not metrics:
        raise SpaceError(f"`metrics` must name at least one of {list(known)}, but got none.")
    bounded = [key for key, limit in constraints.items() if not callable(limit)]
    for name in (*metrics, *bounded):
        if name not in known:
            raise SpaceError(
                f"The metric {name!r} is unknown; `metric` returns {list(known)}."
                " (A constraint that is a number bounds the metric of its key; any other is a function of all metrics.)"
            )
