"""prefill: what it adds is what an objective would have recorded, or nothing at all."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial
from tiny_surrogate import SPACE, enough_bias, make_surrogate, metric, undefined_metric

import hypertune_mip as ht
from hypertune_mip_optuna import SurrogateObjective, prefill

CONSTRAINTS = {"size": 0.4, "enough": enough_bias}


def recorded(trial: FrozenTrial) -> dict[str, object]:
    """All that samplers, plots and users read of a trial."""
    return {
        "state": trial.state,
        "params": trial.params,
        "distributions": trial.distributions,
        "values": trial.values and pytest.approx(trial.values, rel=1e-5, abs=1e-6),
        "user_attrs": pytest.approx(trial.user_attrs, rel=1e-5, abs=1e-6, nan_ok=True),
        "constraints": pytest.approx(trial.constraints, rel=1e-5, abs=1e-6),
    }


@pytest.mark.parametrize("make_metric", [metric, undefined_metric])
@pytest.mark.parametrize("metrics", ["loss", ["bias", "loss"]])
def test_trials_are_those_that_the_objective_would_have_recorded(storage, metrics, make_metric):
    surrogate = make_surrogate(metric=make_metric)
    constraints = {**CONSTRAINTS, **({"root": 1.0} if make_metric is undefined_metric else {})}
    directions = ["minimize"] * (1 if metrics == "loss" else 2)
    study = optuna.create_study(storage=storage, directions=directions)
    prefill(study, surrogate, metrics, n=8, constraints=constraints, progress=False)

    one_by_one = optuna.create_study(directions=directions)
    for trial in study.trials:
        one_by_one.enqueue_trial(trial.params)
    one_by_one.optimize(SurrogateObjective(surrogate, metrics, constraints=constraints), n_trials=8)
    for trial, twin in zip(study.trials, one_by_one.trials, strict=True):
        assert recorded(twin) == {key: getattr(trial, key) for key in recorded(twin)}
    states = {trial.state for trial in study.trials}
    assert states == ({TrialState.COMPLETE} if make_metric is metric else {TrialState.COMPLETE, TrialState.FAIL})


def test_settings_are_the_spaces_sobol_settings(surrogate, study):
    prefill(study, surrogate, "loss", n=16, seed=3, progress=False)
    assert [trial.params for trial in study.trials] == SPACE.from_unit(SPACE.sample(16, seed=3))


@pytest.mark.parametrize("sampler", [optuna.samplers.TPESampler(seed=0), optuna.samplers.GPSampler(seed=0)])
def test_samplers_continue_from_there(sampler):
    surrogate = make_surrogate(ht.SearchSpace({"weight_decay": SPACE["weight_decay"], "order": SPACE["order"]}))
    study = optuna.create_study(sampler=sampler)
    prefill(study, surrogate, "loss", n=16, constraints={"size": 0.5}, progress=False)
    study.optimize(SurrogateObjective(surrogate, "loss", constraints={"size": 0.5}), n_trials=2)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 18
    assert study.best_value == min(t.value for t in study.trials if t.constraints["size"] <= 0)


def test_progress_shows_evaluating_and_adding(surrogate, study, capsys):
    prefill(study, surrogate, "loss", n=4)
    shown = capsys.readouterr().err
    assert "evaluate" in shown
    assert "add" in shown


# What is refused, with the study as it was


def _other_space(study: optuna.Study) -> None:
    other = {"dropout": FloatDistribution(0.0, 0.8)}
    study.add_trial(create_trial(params={"dropout": 0.1}, distributions=other, value=0.0))


@pytest.mark.parametrize(
    ("arguments", "prepare", "message"),
    [
        ({"metrics": "accuracy"}, None, "'accuracy' is unknown"),
        ({"metrics": ["loss", "size"]}, None, "one direction for each metric"),
        ({"constraints": {"accuracy": 0.1}}, None, "'accuracy' is unknown"),
        ({"n": 0}, None, "at least 1, but got 0"),
        ({"n": -1}, None, "at least 1, but got -1"),
        ({}, _other_space, "'dropout' from .*high=0.8.*, not .*high=0.7"),
    ],
)
def test_a_misfit_is_refused_and_adds_nothing(surrogate, study, arguments, prepare, message):
    if prepare is not None:
        prepare(study)
    before = len(study.trials)
    with pytest.raises(ht.SpaceError, match=message):
        prefill(study, surrogate, **{"metrics": "loss", "n": 4, "progress": False, **arguments})
    assert len(study.trials) == before


def test_numbers_of_numpy(surrogate, study):
    """Also where the storage keeps JSON."""
    other = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    limits = {"constraints": {"size": np.float32(0.5)}, "progress": False}
    prefill(study, surrogate, "loss", n=np.int64(3), seed=np.int64(1), **limits)
    prefill(other, surrogate, "loss", n=3, seed=1, **limits)
    assert [trial.params for trial in study.trials] == [trial.params for trial in other.trials]
    assert {type(value) for trial in study.trials for value in trial.constraints.values()} == {float}


@pytest.mark.parametrize("given", [{"n": True}, {"n": 2.0}, {"n": 2, "seed": "3"}])
def test_what_is_no_whole_number_is_refused(surrogate, study, given):
    name = list(given)[-1]
    with pytest.raises(ht.SpaceError, match=f"`{name}` must be a whole number"):
        prefill(study, surrogate, "loss", **given)


def test_a_constraint_that_raises_at_the_last_setting_leaves_the_study_empty(surrogate, study):
    last = SPACE.from_unit(SPACE.sample(8))[-1]
    value = SurrogateObjective(surrogate, "loss")(FixedTrial(last))

    def fragile(metrics: dict[str, float]) -> float:
        if metrics["loss"] == pytest.approx(value, rel=1e-5):
            raise ZeroDivisionError
        return 0.0

    with pytest.raises(ZeroDivisionError):
        prefill(study, surrogate, "loss", n=8, constraints={"fragile": fragile}, progress=False)
    assert study.trials == []
