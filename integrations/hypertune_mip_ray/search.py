"""A search algorithm for Ray Tune, with trials that train for REAL, that knows a surrogate of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import TrialState, create_trial
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain

from hypertune_mip import SpaceError, StorageError, Surrogate
from hypertune_mip.directions import Direction
from hypertune_mip.evaluation import check_metric
from hypertune_mip.storage import load_json, save_json
from hypertune_mip_optuna import SurrogateSampler
from hypertune_mip_ray.domains import distribution

_KIND = "Ray Tune search"
_MODES: dict[Direction, Literal["min", "max"]] = {"minimize": "min", "maximize": "max"}


class SurrogateSearch(OptunaSearch):  # type: ignore[misc]  # Ray ships no types
    """Proposes settings for Ray Tune's trials from a surrogate, and learns from each that finishes.

    It is Ray's own search on Optuna with a `SurrogateSampler`: the surrogate's best settings come first, then expected
    improvement, in which the surrogate counts for as much as it has earned. A trial that fails counts as tried; one
    that a scheduler stops early counts with the value that it reached.

    Args:
        surrogate: Trained on the hyperparameters that are to come from it.
        metric: The surrogate's metric, which trials report under the same name.
        mode: "min" or "max"; None is the metric's direction.
        others: Domains of Ray Tune, or Optuna's distributions, of what the surrogate does not know, such as a learning
            rate; the inner sampler proposes them.
        inner: As in `SurrogateSampler`.
        seed: As in `SurrogateSampler`.
        **options: Of `SurrogateSampler`.

    Raises:
        SpaceError: If the metric is unknown, `mode` contradicts its stated direction, or a name in `others` is the
            surrogate's.
        OptionError: If a number is too small.
        MissingExtraError: If BoTorch is not installed.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        metric: str,
        mode: Literal["min", "max"] | None = None,
        *,
        others: Mapping[str, Domain | BaseDistribution] | None = None,
        inner: BaseSampler | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        """See the class."""
        check_metric(metric, surrogate.metrics)
        if mode is None:
            mode = _MODES[surrogate.directions[metric]]
        if mode not in _MODES.values():
            raise SpaceError(f'`mode` must be "min" or "max", but got {mode!r}.')
        stated = surrogate.stated_directions.get(metric)
        if stated is not None and _MODES[stated] != mode:
            raise SpaceError(
                f'`mode="{mode}"` contradicts the direction that the surrogate was told for {metric!r}, "{stated}".'
                " Leave `mode` out, or state other `directions` for the surrogate."
            )
        known = [name for name in others or {} if name in surrogate.space]
        if known:
            raise SpaceError(f"`others` names {known}, which the surrogate's space holds already.")
        distributions = {
            n: d if isinstance(d, BaseDistribution) else distribution(n, d) for n, d in (others or {}).items()
        }
        super().__init__(
            {**surrogate.space, **distributions},
            metric=metric,
            mode=mode,
            sampler=SurrogateSampler(surrogate, metric, inner=inner, seed=seed, **options),
        )

    def save(self, checkpoint_path: str) -> None:
        """Write the trials so far as JSON; the surrogate and the sampler's options are not written."""
        trials = [
            {"params": trial.params, "value": trial.value, "state": trial.state.name}
            for trial in self._ot_study.get_trials(deepcopy=False)
            if trial.state.is_finished()
        ]
        running = {name: trial.params for name, trial in self._ot_trials.items() if name not in self._completed_trials}
        content = {"metric": self.metric, "mode": self.mode, "names": list(self._space)}
        save_json(checkpoint_path, {**content, "trials": trials, "running": running}, kind=_KIND)

    def restore(self, checkpoint_path: str) -> None:
        """Learn from the trials that `save` wrote, in addition to what is known.

        Raises:
            StorageError: If the file is damaged or foreign, or belongs to another search.
        """
        content = load_json(checkpoint_path, kind=_KIND)
        expected = {"metric": self.metric, "mode": self.mode, "names": list(self._space)}
        if {key: content.get(key) for key in expected} != expected:
            raise StorageError(
                f"'{checkpoint_path}' belongs to another search: {content.get('names')}, not {expected}."
            )
        for trial in content["trials"]:
            self._add(trial["params"], TrialState[trial["state"]], trial["value"])
        for name, params in content["running"].items():  # Tune starts them again under their names
            self._ot_trials[name] = self._add(params, TrialState.RUNNING, None)

    def _add(self, params: dict[str, Any], state: TrialState, value: float | None) -> optuna.Trial:
        distributions = dict(self._space) if params else {}
        study = self._ot_study
        study.add_trial(create_trial(state=state, value=value, params=params, distributions=distributions))
        return optuna.Trial(study, study.get_trials(deepcopy=False)[-1]._trial_id)

    @property
    def study(self) -> optuna.Study:
        """The Optuna study of all trials so far."""
        study: optuna.Study = self._ot_study
        return study
