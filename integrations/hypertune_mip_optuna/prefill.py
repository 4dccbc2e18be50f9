"""Thousands of evaluated settings in a study at once.

Trial by trial the storage is the bottleneck, not the surrogate: one trial costs several transactions, one each for its
start, every suggestion, every attribute and its value. A finished trial that is added takes one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from tqdm.auto import tqdm

from hypertune_mip import SpaceError, Surrogate
from hypertune_mip.arguments import whole_number
from hypertune_mip.evaluation import Emulator
from hypertune_mip.space import Value
from hypertune_mip.surrogate.screen import screened
from hypertune_mip_optuna.agreement import directions_of
from hypertune_mip_optuna.objective import Constraint, Outcome, SurrogateObjective


def prefill(
    study: optuna.Study,
    surrogate: Surrogate,
    metrics: str | Sequence[str],
    n: int,
    *,
    seed: int = 0,
    constraints: Mapping[str, Constraint] | None = None,
    emulator: Emulator | None = None,
    candidates: int | None = None,
    progress: bool = True,
) -> None:
    """Evaluate `n` Sobol settings in batches and add them to a study as finished trials.

    Each trial is what `study.optimize` with a `SurrogateObjective` would have recorded at that setting. Samplers, plots
    and a dashboard use it like any other, so `study.optimize` may go on from there. Nothing is added before all
    settings are evaluated.

    Args:
        study: In any storage; a journal file takes many times as many trials a second as SQLite.
        surrogate: As in `SurrogateObjective`.
        metrics: As in `SurrogateObjective`.
        n: Number of settings. Where all hyperparameters are discrete, they may repeat.
        seed: Of the Sobol sequence: the same seed gives the same settings, so take another one for a second call.
        constraints: As in `SurrogateObjective`.
        emulator: From `surrogate.emulator()`. It screens `candidates` Sobol settings; the `n` that it ranks best, or
            nearest to the front, are evaluated and added. The study then holds good settings only, and says little of
            what matters in the rest of the space.
        candidates: With an emulator; None is 100 times `n`.
        progress: Whether to show bars for evaluating and adding.

    Raises:
        SpaceError: As in `SurrogateObjective`, if `n` is less than 1, if the emulator is of another space, or if there
            are fewer candidates than `n`, or some without an emulator.
        DataError: If the surrogate has no validation data.

    Example:
        >>> import hypertune_mip as ht
        >>> import torch
        >>> space = ht.SearchSpace({"weight_decay": optuna.distributions.FloatDistribution(1e-5, 1e-1, log=True)})
        >>> surrogate = ht.Surrogate(
        ...     ht.HyperNetwork(torch.nn.Linear(4, 1), space),
        ...     metric=lambda model, x: {"loss": model(x).square().mean()},
        ...     val_loader=[torch.ones(8, 4)],
        ... )
        >>> study = optuna.create_study()
        >>> prefill(study, surrogate, "loss", n=100, progress=False)
        >>> len(study.trials)
        100
    """
    n = whole_number("n", n, low=1, error=SpaceError)
    objective = SurrogateObjective(surrogate, metrics, constraints=constraints)
    objective.check(study)
    space = surrogate.space
    if emulator is None:
        if candidates is not None:
            raise SpaceError(f"`candidates` is for an `emulator` to choose from, but got {candidates} without one.")
        units = space.sample(n, seed=seed)
    else:
        emulator.check_space(space)
        units = screened(
            emulator,
            objective.metrics,
            n,
            candidates=100 * n if candidates is None else candidates,
            seed=seed,
            directions=directions_of(study),
            feasible=lambda values: _feasible(objective, values),
        )
    measured = surrogate.evaluate_units(units, progress=progress)
    outcomes = _outcomes(objective, measured)
    distributions = dict(space)
    trials = [
        _finished(config, distributions, outcome)
        for config, outcome in zip(space.from_unit(units), outcomes, strict=True)
    ]
    study.add_trials(tqdm(trials, disable=not progress, desc="add", unit="trial"))


def _outcomes(objective: SurrogateObjective, measured: Mapping[str, np.ndarray]) -> list[Outcome]:
    rows = zip(*(column.tolist() for column in measured.values()), strict=True)
    return [objective.outcome(dict(zip(measured, row, strict=True))) for row in rows]


def _feasible(objective: SurrogateObjective, measured: Mapping[str, np.ndarray]) -> np.ndarray:
    outcomes = _outcomes(objective, measured)
    return np.array([not one.failed and all(value <= 0 for value in one.constraints.values()) for one in outcomes])


def _finished(
    config: dict[str, Value], distributions: dict[str, optuna.distributions.BaseDistribution], outcome: Outcome
) -> FrozenTrial:
    return create_trial(
        state=TrialState.FAIL if outcome.failed else TrialState.COMPLETE,
        values=None if outcome.failed else outcome.values,
        params=config,
        distributions=distributions,
        user_attrs=dict(outcome.user_attrs),
        constraints=outcome.constraints,
    )
