"""Whether a study and a surrogate speak of the same thing: directions and metrics, suggestions and search space.

Optuna accepts a study whose trials come from different spaces, and a surrogate cannot tell a value's origin. Both would
answer, with nonsense; so what differs is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import BaseTrial

from hypertune_mip import SearchSpace, SpaceError, Surrogate
from hypertune_mip.directions import Direction
from hypertune_mip.space import Value


def check_study(study: optuna.Study, surrogate: Surrogate, metrics: Sequence[str]) -> None:
    """Raise SpaceError unless a study has one direction a metric, that stated for it, and trials of the same space."""
    if len(study.directions) != len(metrics):
        raise SpaceError(
            f"A study needs one direction for each metric, but '{study.study_name}' has"
            f" {[direction.name.lower() for direction in study.directions]} for the metrics {list(metrics)}."
            " Pass as many metrics as directions, or create_study(directions=[...]) anew."
        )
    check_directions(study, surrogate, metrics)
    for trial in study.get_trials(deepcopy=False):
        check_distributions(
            trial.distributions, surrogate.space, where=f"Trial {trial.number} of study '{study.study_name}'"
        )


def check_directions(study: optuna.Study, surrogate: Surrogate, metrics: Sequence[str]) -> None:
    """Raise SpaceError if a study wants the opposite of what was stated of a metric when the surrogate was made."""
    stated = surrogate.stated_directions
    for name, wanted in zip(metrics, directions_of(study), strict=True):
        if stated.get(name, wanted) != wanted:
            raise SpaceError(
                f"Study '{study.study_name}' wants to {wanted} {name!r}, but the surrogate was told to {stated[name]}"
                f' it. Create the study with direction="{stated[name]}", or state other `directions` for the surrogate.'
            )


def directions_of(study: optuna.Study) -> list[Direction]:
    """A study's directions in words."""
    return ["maximize" if each == StudyDirection.MAXIMIZE else "minimize" for each in study.directions]


def check_distributions(suggested: Mapping[str, BaseDistribution], space: SearchSpace, *, where: str) -> None:
    """Raise SpaceError if a name that the space holds was suggested from another distribution than the space's.

    Names that the space does not hold are no concern of the surrogate, and names may be missing.
    """
    differing = [name for name in space if name in suggested and suggested[name] != space[name]]
    if differing:
        rows = "".join(f"\n  '{name}' from {suggested[name]}, not {space[name]}" for name in differing)
        raise SpaceError(
            f"A study must suggest from the surrogate's own space, but {where} suggested{rows}\nStart a new study, or"
            " train a hypernetwork on the study's ranges."
        )


def suggest_config(trial: BaseTrial, space: SearchSpace) -> dict[str, Value]:
    """One config that the trial suggests, native scale, in declaration order.

    Raises:
        SpaceError: If the trial holds a value, or a former suggestion, that the space does not.
    """
    check_distributions(trial.distributions, space, where=f"trial {trial.number}")
    for name, distribution in space.items():
        try:
            suggest(trial, name, distribution)
        except ValueError as error:
            raise SpaceError(f"Trial {trial.number} must give '{name}' from {distribution}, but: {error}") from error
    recorded = trial.params  # what the study shows; `suggest_int` would cut an enqueued 2.5 to 2 in its return value
    return {name: recorded[name] for name in space}


def suggest(trial: BaseTrial, name: str, distribution: BaseDistribution) -> Any:
    """What the trial suggests from a distribution."""
    if isinstance(distribution, FloatDistribution):
        return trial.suggest_float(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    assert isinstance(distribution, CategoricalDistribution)  # Optuna has no other
    return trial.suggest_categorical(name, distribution.choices)
