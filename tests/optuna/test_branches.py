"""BranchObjective: each trial is a branch, reports its epochs, can be pruned, and searches along the recipe."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial, TrialState

import hypertune_mip as ht
from hypertune_mip_optuna import BranchObjective
from tests import small_problem as problem

RATE = {"learning_rate": FloatDistribution(1e-4, 1e-1, log=True)}


@functools.cache
def surrogate() -> ht.Surrogate:
    return problem.fit(epochs=8, **problem.validation())


def by_rate(parameters: Any, config: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=config["learning_rate"])


def studied(objective: Any, trials: int = 4, **options: Any) -> optuna.Study:
    study = optuna.create_study(sampler=RandomSampler(seed=0), **options)
    study.optimize(objective, n_trials=trials)
    return study


def test_a_trial_is_the_branch_at_its_config() -> None:
    study = studied(BranchObjective(surrogate(), "error", share=0.5, seed=3))
    for trial in study.trials:
        assert trial.distributions == dict(problem.SPACE)
        branch = surrogate().trainer().branch([trial.params], share=0.5, seed=3, progress=False)
        assert trial.value == branch.metrics["error"][0]
        assert trial.user_attrs == {"size": branch.metrics["size"][0]}
        assert list(trial.intermediate_values) == [1, 2, 3, 4]
        assert trial.intermediate_values[4] == trial.value


class EveryThird(optuna.pruners.BasePruner):
    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.number % 3 == 0 and len(trial.intermediate_values) == 2


def test_a_pruned_trial_trains_no_further(tmp_path: Path) -> None:
    steps = 0

    def counted(model: Any, batch: Any, config: Any) -> Any:
        nonlocal steps
        steps += 1
        return problem.loss(model, batch, config)

    own = surrogate().replace(loss=counted)
    study = studied(BranchObjective(own, "error", share=0.5, folder=tmp_path), pruner=EveryThird())
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.PRUNED, TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED]
    assert [len(trial.intermediate_values) for trial in study.trials] == [2, 4, 4, 2]
    assert steps == 3 * (2 + 4 + 4 + 2)
    assert len(list(tmp_path.glob("training-*.json"))) == 2


def test_the_recipe_is_searched_along() -> None:
    recipe = ht.Recipe(epochs=8, optimizer=by_rate)
    objective = BranchObjective(surrogate(), "error", share=0.5, recipe=recipe, recipe_space=RATE)
    study = studied(objective)
    rates = set()
    for trial in study.trials:
        assert trial.distributions == dict(problem.SPACE) | RATE
        params = dict(trial.params)
        rates.add(rate := params.pop("learning_rate"))
        fixed = ht.Recipe(epochs=8, optimizer=lambda p, config, rate=rate: torch.optim.Adam(p, lr=rate))  # type: ignore[misc]
        branch = surrogate().trainer(fixed).branch([params], share=0.5, progress=False)
        assert trial.value == branch.metrics["error"][0]
        problem.assert_same_state(objective.network(trial), branch.networks[0])
    assert len(rates) == 4


def test_a_task_and_a_decay_of_the_recipe_that_is_searched_along() -> None:
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    data = [(x, (x.sum(1) > 0).long())] * 50
    own = ht.fit(
        torch.nn.Linear(3, 2), ht.Classification(), data, val_loader=data, epochs=8, progress=False,
        space=ht.SearchSpace({"weight_decay": FloatDistribution(1e-4, 1.0, log=True)}),
    )  # fmt: skip
    objective = BranchObjective(
        own,
        "loss",
        recipe=ht.Recipe(epochs=8, optimizer=lambda p, c: torch.optim.AdamW(p, lr=0.01, weight_decay=c["decay"])),
        recipe_space={"decay": FloatDistribution(1e-3, 1e-2)},
    )
    with pytest.warns(ht.HypertuneWarning, match="Weights decay twice"):
        study = studied(objective, trials=2)
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)


def test_a_folder_serves_another_study_at_once(tmp_path: Path) -> None:
    first = studied(BranchObjective(surrogate(), "error", folder=tmp_path))
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = studied(BranchObjective(surrogate(), "error", folder=tmp_path))
    assert [trial.value for trial in again.trials] == [trial.value for trial in first.trials]
    assert [list(trial.intermediate_values) for trial in again.trials] == [[2]] * 4  # of the last epoch
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files


def test_a_branch_that_diverges_fails_its_trial() -> None:
    recipe = ht.Recipe(epochs=8, optimizer=lambda p, config: torch.optim.SGD(p, lr=1e30))
    with pytest.warns(ht.HypertuneWarning, match="Real training diverged at"):
        study = studied(BranchObjective(surrogate(), "error", recipe=recipe), trials=1)
    assert study.trials[0].state == TrialState.FAIL


def test_large_values_may_be_the_better_ones() -> None:
    own = problem.fit(epochs=2, directions={"size": "maximize"}, **problem.validation())
    study = studied(BranchObjective(own, "size", share=0.5), trials=2, direction="maximize")
    for trial in study.trials:
        branch = own.trainer().branch([trial.params], share=0.5, progress=False)
        assert trial.value == branch.metrics["size"][0]
    assert study.best_trial.value == max(trial.value for trial in study.trials)
    with pytest.raises(ht.SpaceError, match="wants to minimize 'size', but the surrogate was told to maximize it"):
        studied(BranchObjective(own, "size"), trials=1)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ht.SpaceError, match="'accuracy' is unknown"):
        BranchObjective(surrogate(), "accuracy")
    with pytest.raises(ht.OptionError, match=r"`recipe_space` holds \['learning_rate'\].*pass `recipe`"):
        BranchObjective(surrogate(), "error", recipe_space=RATE)
    with pytest.raises(ht.SpaceError, match=r"\['decay'\] are in the surrogate's space already"):
        BranchObjective(
            surrogate(), "error", recipe=ht.Recipe(epochs=1), recipe_space={"decay": FloatDistribution(0.0, 1.0)}
        )
    with pytest.raises(ht.OptionError, match="`share` must lie in"):
        BranchObjective(surrogate(), "error", share=0.0)
    with pytest.raises(ht.DataError, match="training data"):
        BranchObjective(ht.Surrogate(surrogate().hypernet, **problem.validation()), "error")
    with pytest.raises(ht.SpaceError, match="one direction for each metric"):
        studied(BranchObjective(surrogate(), "error"), directions=["minimize", "minimize"])


def test_a_fixed_trial_is_served() -> None:
    trial = FixedTrial(problem.CONFIG)
    value = BranchObjective(surrogate(), "error")(trial)
    expected = surrogate().branch([problem.CONFIG], progress=False)
    assert value == pytest.approx(expected.metrics["error"][0])
