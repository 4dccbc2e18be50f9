"""SurrogateObjective: what a trial records, which studies it refuses, threads and processes."""

from __future__ import annotations

import math
import multiprocessing
import pickle
import time
from pathlib import Path

import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FixedTrial, TrialState, create_trial
from tiny_surrogate import BATCH, CONFIG, SPACE, enough_bias, make_surrogate, metric, undefined_metric

import hypertune_mip as ht
from hypertune_mip_optuna import SurrogateObjective

FLOAT32 = 1e-5  # relative


def test_the_value_is_that_of_the_materialised_network(surrogate):
    trial = FixedTrial(CONFIG)
    value = SurrogateObjective(surrogate, "loss")(trial)
    with torch.no_grad():
        truth = metric(surrogate.materialize(CONFIG), BATCH)
    assert isinstance(value, float)
    assert value == pytest.approx(float(truth["loss"]), rel=FLOAT32)
    assert trial.user_attrs == pytest.approx({"size": float(truth["size"]), "bias": float(truth["bias"])}, rel=FLOAT32)


def test_trials_record_suggestions_from_the_spaces_own_distributions(surrogate, storage):
    study = optuna.create_study(storage=storage, sampler=RandomSampler(seed=0))
    study.optimize(SurrogateObjective(surrogate, "loss"), n_trials=2)
    for trial in study.trials:
        assert trial.distributions == dict(SPACE)
        measured = surrogate.evaluate(trial.params)
        assert trial.value == measured.pop("loss")
        assert trial.user_attrs == measured
    assert len({trial.value for trial in study.trials}) == 2


def test_several_metrics_are_one_value_each_in_the_given_order(surrogate, storage):
    study = optuna.create_study(storage=storage, directions=["minimize", "maximize"], sampler=RandomSampler(seed=0))
    study.optimize(SurrogateObjective(surrogate, ["size", "loss"]), n_trials=2)
    for trial in study.trials:
        measured = surrogate.evaluate(trial.params)
        assert trial.values == [measured["size"], measured["loss"]]
        assert trial.user_attrs == {"bias": measured["bias"]}


def test_a_list_of_one_metric_serves_a_study_of_one_direction(surrogate, study):
    study.optimize(SurrogateObjective(surrogate, ["loss"]), n_trials=1)
    assert study.best_value == surrogate.evaluate(study.best_params)["loss"]


def test_constraints_are_the_excess_over_a_bound_or_what_a_function_says(surrogate, storage):
    study = optuna.create_study(storage=storage, sampler=RandomSampler(seed=0))
    objective = SurrogateObjective(surrogate, "loss", constraints={"size": 0.4, "enough": enough_bias})
    study.optimize(objective, n_trials=2)
    for trial in study.trials:
        measured = surrogate.evaluate(trial.params)
        assert trial.constraints == {"size": measured["size"] - 0.4, "enough": 0.1 - measured["bias"]}


def test_the_best_trial_of_a_constrained_study_satisfies_the_constraints(surrogate, study):
    study.optimize(SurrogateObjective(surrogate, "loss"), n_trials=30)
    sizes = sorted(trial.user_attrs["size"] for trial in study.trials)
    smallest_loss = study.best_trial.user_attrs["size"]
    bound = next(size for size in reversed(sizes) if size < smallest_loss)

    constrained = optuna.create_study(sampler=RandomSampler(seed=0))
    constrained.optimize(SurrogateObjective(surrogate, "loss", constraints={"size": bound}), n_trials=30)
    assert constrained.best_trial.user_attrs["size"] <= bound
    assert constrained.best_value > study.best_value


@pytest.mark.parametrize("target", ["loss", "root"])
def test_a_setting_where_a_metric_or_constraint_is_nan_fails_that_trial_only(study, target):
    surrogate = make_surrogate(metric=undefined_metric)
    study.optimize(SurrogateObjective(surrogate, target, constraints={"root": 1.0}), n_trials=20)
    undefined = [math.isnan(surrogate.evaluate(trial.params)["root"]) for trial in study.trials]
    assert {True, False} == set(undefined)
    assert [trial.state is TrialState.FAIL for trial in study.trials] == undefined
    assert [trial.constraints == {} for trial in study.trials] == undefined


def test_the_best_trial_can_be_evaluated_again(surrogate, study):
    objective = SurrogateObjective(surrogate, "loss", constraints={"size": 9.0})
    study.optimize(objective, n_trials=2)
    assert objective(study.best_trial) == study.best_value


@pytest.mark.parametrize("sampler", [optuna.samplers.TPESampler(n_startup_trials=4, seed=0), None])
def test_samplers_that_model_the_space_continue_a_study(surrogate, sampler):
    study = optuna.create_study(sampler=sampler)
    study.optimize(SurrogateObjective(surrogate, "loss", constraints={"size": 0.5}), n_trials=12)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 12


# What is refused


@pytest.mark.parametrize("metrics", ["accuracy", ["loss", "accuracy"]])
def test_an_unknown_metric_is_refused_by_name(surrogate, metrics):
    with pytest.raises(ht.SpaceError, match=r"'accuracy' is unknown.*'loss', 'size', 'bias'"):
        SurrogateObjective(surrogate, metrics)


def test_a_bound_on_an_unknown_metric_is_refused_by_name(surrogate):
    with pytest.raises(ht.SpaceError, match="'accuracy' is unknown"):
        SurrogateObjective(surrogate, "loss", constraints={"accuracy": 0.1})


def test_no_metric_is_refused(surrogate):
    with pytest.raises(ht.SpaceError, match="at least one of"):
        SurrogateObjective(surrogate, [])


def test_a_surrogate_without_validation_data_is_refused(surrogate):
    with pytest.raises(ht.DataError, match="no validation data"):
        SurrogateObjective(ht.Surrogate(surrogate.hypernet), "loss")


@pytest.mark.parametrize(("metrics", "directions"), [("loss", 2), (["loss", "size"], 1), (["loss", "size"], 3)])
def test_a_study_with_another_number_of_directions_is_refused(surrogate, metrics, directions):
    study = optuna.create_study(directions=["minimize"] * directions)
    with pytest.raises(ht.SpaceError, match="one direction for each metric"):
        study.optimize(SurrogateObjective(surrogate, metrics), n_trials=1)


OTHERS = {
    "weight_decay": FloatDistribution(1e-5, 1e-1),
    "dropout": FloatDistribution(0.0, 0.8),
    "smoothing": FloatDistribution(0.0, 0.3),
    "order": FloatDistribution(1, 9),
    "groups": IntDistribution(2, 10, step=2),
    "scale": IntDistribution(1, 64),
    "penalty": CategoricalDistribution(["l2", "l1", None]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_study_built_on_another_space_is_refused_by_what_differs(surrogate, study, name):
    study.add_trial(create_trial(params={name: CONFIG[name]}, distributions={name: OTHERS[name]}, value=0.0))
    with pytest.raises(ht.SpaceError, match=rf"Trial 0 of study (?s:.*)'{name}' from .*, not ") as refusal:
        study.optimize(SurrogateObjective(surrogate, "loss"), n_trials=1)
    assert str(OTHERS[name]) in str(refusal.value)
    assert str(SPACE[name]) in str(refusal.value)
    assert not any(f"'{other}' from" in str(refusal.value) for other in SPACE if other != name)


def test_a_study_that_agrees_is_continued_from_its_storage(surrogate, storage):
    distributions = {"penalty": SPACE["penalty"], "smoothing": SPACE["smoothing"], "scale": SPACE["scale"]}
    params = {name: CONFIG[name] for name in distributions}
    study = optuna.create_study(storage=storage)
    study.add_trial(create_trial(params=params, distributions=distributions, value=0.0))
    study.optimize(SurrogateObjective(surrogate, "loss"), n_trials=1)
    assert study.trials[1].state is TrialState.COMPLETE


def test_each_study_is_checked_also_by_an_objective_that_served_another(surrogate, study):
    objective = SurrogateObjective(surrogate, "loss")
    study.optimize(objective, n_trials=1)
    with pytest.raises(ht.SpaceError, match="one direction for each metric"):
        optuna.create_study(directions=["minimize"] * 2).optimize(objective, n_trials=1)


def test_trials_with_more_or_fewer_hyperparameters_are_welcome(surrogate, study):
    extra = {"learning_rate": FloatDistribution(0.0, 1.0), "dropout": SPACE["dropout"]}
    study.add_trial(create_trial(params={"learning_rate": 0.1, "dropout": 0.1}, distributions=extra, value=0.0))
    study.optimize(SurrogateObjective(surrogate, "loss"), n_trials=1)
    assert study.trials[1].state is TrialState.COMPLETE


def test_enqueued_values_are_evaluated_and_the_rest_is_sampled(surrogate, study):
    study.enqueue_trial({"dropout": 0.25, "penalty": None})
    study.optimize(SurrogateObjective(surrogate, "loss"), n_trials=1)
    assert study.best_params["dropout"] == 0.25
    assert study.best_params["penalty"] is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"dropout": 0.9}, r"'dropout' must lie in \[0, 0.7\]"),
        ({"order": 2.5}, r"'order' must be 1 plus a multiple of 1, but got 2.5"),
        ({"groups": 4}, r"'groups' must be 2 plus a multiple of 4"),
        ({"scale": 100}, r"'scale' must lie in \[1, 64\]"),
    ],
)
@pytest.mark.parametrize("source", ["enqueued", "fixed"])
def test_a_value_outside_the_space_is_refused_by_name(surrogate, study, value, message, source):
    objective = SurrogateObjective(surrogate, "loss")
    with pytest.warns(UserWarning, match="out of (the )?range"), pytest.raises(ht.SpaceError, match=message):
        if source == "fixed":
            objective(FixedTrial({**CONFIG, **value}))
        else:
            study.enqueue_trial(value)
            study.optimize(objective, n_trials=1)


@pytest.mark.parametrize(
    "config",
    [{**CONFIG, "penalty": "l3"}, {**CONFIG, "penalty": 7}, {n: v for n, v in CONFIG.items() if n != "penalty"}],
)
def test_a_value_that_is_missing_or_no_choice_is_refused_by_name(surrogate, config):
    with pytest.raises(ht.SpaceError, match="Trial 0 must give 'penalty' from CategoricalDistribution"):
        SurrogateObjective(surrogate, "loss")(FixedTrial(config))


def test_a_hyperparameter_suggested_before_from_another_range_is_refused(surrogate, study):
    objective = SurrogateObjective(surrogate, "loss")
    study.optimize(objective, n_trials=1)

    def outer(trial: optuna.Trial):
        trial.suggest_float("dropout", 0.0, 0.1)
        return objective(trial)

    with pytest.raises(ht.SpaceError, match=r"trial 1 suggested\n  'dropout' from .*high=0.1"):
        study.optimize(outer, n_trials=1)


# Threads and processes


def waiting_metric(model: torch.nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """As `metric`, but other threads run while this one's weights are in the network."""
    time.sleep(0.002)
    return metric(model, batch)


def test_threads_find_what_one_after_another_finds(surrogate, storage):
    trials = 4 if isinstance(storage, str) else 16  # SQLite is slow
    study = optuna.create_study(storage=storage, sampler=RandomSampler(seed=0))
    objective = SurrogateObjective(make_surrogate(metric=waiting_metric), "loss", constraints={"size": 0.5})
    study.optimize(objective, n_trials=trials, n_jobs=2)
    assert len(study.trials) == trials
    for trial in study.trials:
        assert trial.value == surrogate.evaluate(trial.params)["loss"]
        assert trial.constraints == {"size": trial.user_attrs["size"] - 0.5}


def test_it_pickles_and_forgets_which_studies_it_has_checked(surrogate, study):
    objective = SurrogateObjective(surrogate, "loss", constraints={"enough": enough_bias})
    study.optimize(objective, n_trials=1)
    copy = pickle.loads(pickle.dumps(objective))
    assert copy(FixedTrial(CONFIG)) == objective(FixedTrial(CONFIG))
    with pytest.raises(ht.SpaceError, match="one direction for each metric"):
        optuna.create_study(directions=["minimize"] * 2).optimize(copy, n_trials=1)


def _work(path: str, objective: SurrogateObjective, seed: int) -> None:
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(
        study_name="shared", storage=JournalStorage(JournalFileBackend(path)), sampler=RandomSampler(seed=seed)
    )
    study.optimize(objective, n_trials=5)


def test_two_processes_share_a_journal(surrogate, tmp_path: Path):
    path = str(tmp_path / "study.journal")
    study = optuna.create_study(study_name="shared", storage=JournalStorage(JournalFileBackend(path)))
    objective = SurrogateObjective(surrogate, "loss", constraints={"size": 0.5})
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(path, objective, seed)) for seed in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(study.trials) == 10
    for trial in study.trials:
        assert trial.value == pytest.approx(surrogate.evaluate(trial.params)["loss"], rel=FLOAT32)
        assert trial.constraints.keys() == {"size"}
