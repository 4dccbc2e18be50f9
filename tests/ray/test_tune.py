"""Surrogates in Ray Tune: trials on a surrogate, real trials proposed by one, and settings without trials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_problem as problem
import torch
from optuna.distributions import FloatDistribution

import hypertune_mip as ht

ray = pytest.importorskip("ray")

from ray import cloudpickle, tune  # noqa: E402
from ray.tune.schedulers import ASHAScheduler  # noqa: E402

from hypertune_mip_ray import SurrogateSearch, branch_trainable, evaluate_batch, param_space, trainable  # noqa: E402
from hypertune_mip_ray.trainable import branch_trial  # noqa: E402


@pytest.fixture(scope="module")
def surrogate() -> ht.Surrogate:
    return problem.fit(epochs=20, **problem.validation())


def results(tuner: Any, folder: Path) -> Any:
    found = tuner.fit()
    assert not found.errors
    return found


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_trials_report_what_the_surrogate_says(surrogate: ht.Surrogate, tmp_path: Path) -> None:
    tuner = tune.Tuner(
        trainable(surrogate, "error"),
        param_space=param_space(surrogate.space),
        tune_config=tune.TuneConfig(num_samples=4, metric="error", mode="min", reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    )
    found = results(tuner, tmp_path)
    assert len(found) == 4
    for result in found:
        expected = surrogate.evaluate(result.config)
        assert {name: result.metrics[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert len({result.metrics["error"] for result in found}) == 4


RECIPE = ht.Recipe(epochs=12, optimizer=lambda p, config: torch.optim.SGD(p, lr=config["rate"]))


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_trials_that_are_branches_report_their_epochs(surrogate: ht.Surrogate, tmp_path: Path) -> None:
    """A scheduler stops those that are behind; the others end as the branches of this process do, and are kept."""
    folder = tmp_path / "branches"
    tuner = tune.Tuner(
        branch_trainable(surrogate, "error", share=0.5, recipe=RECIPE, recipe_names=["rate"], folder=folder, seed=1),
        param_space={"rate": 0.05, **param_space(surrogate.space)},
        tune_config=tune.TuneConfig(
            num_samples=4,
            scheduler=ASHAScheduler("epoch", "error", "min", grace_period=1, max_t=6, reduction_factor=2),
            max_concurrent_trials=1,
        ),
        run_config=tune.RunConfig(storage_path=str(tmp_path / "tune"), verbose=0),
    )
    found = results(tuner, tmp_path)
    epochs = [result.metrics["epoch"] for result in found]
    assert epochs == [result.metrics["training_iteration"] for result in found]
    assert max(epochs) == 6
    assert min(epochs) < 6
    trainer = surrogate.trainer(RECIPE.given({"rate": 0.05}), folder)
    for result in found:
        if result.metrics["training_iteration"] == 6:
            own = {name: result.config[name] for name in surrogate.space}
            expected = trainer.branch([own], share=0.5, seed=1, progress=False)
            assert result.metrics["error"] == expected.metrics["error"][0]
    assert trainer.seconds == 0.0  # all of them were kept


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metrics": "accuracy"}, ht.SpaceError, "'accuracy' is unknown"),
        ({"share": 0.0}, ht.OptionError, "`share` must lie in"),
        ({"recipe_names": ["rate"]}, ht.OptionError, "a recipe is to read: pass `recipe`"),
        ({"recipe": RECIPE, "recipe_names": ["decay"]}, ht.SpaceError, "in the surrogate's space already"),
    ],
)
def test_branches_that_cannot_be_served(
    surrogate: ht.Surrogate, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        branch_trainable(surrogate, **{"metrics": "error", **options})


def test_a_trial_without_what_the_recipe_reads(surrogate: ht.Surrogate) -> None:
    pickled = cloudpickle.dumps(surrogate.trainer(RECIPE))
    with pytest.raises(ht.SpaceError, match=r"lacks \['rate'\], which `recipe_names` holds"):
        branch_trial(dict(problem.CONFIG), pickled, ["rate"], 0.5, 0)
    with pytest.raises(ht.SpaceError, match="'momentum'"):
        branch_trial({**problem.CONFIG, "rate": 0.1, "momentum": 0.9}, pickled, ["rate"], 0.5, 0)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_settings_without_trials(surrogate: ht.Surrogate) -> None:
    units = surrogate.space.sample(5000)
    spread = evaluate_batch(surrogate, units, actors=2, progress=False)
    alone = surrogate.evaluate_units(units)
    assert spread.keys() == alone.keys()
    np.testing.assert_allclose(spread["error"], alone["error"], rtol=1e-5)
    of_numpy = evaluate_batch(surrogate, units[:3].numpy(), actors=np.int64(1), progress=False)
    np.testing.assert_allclose(of_numpy["error"], alone["error"][:3], rtol=1e-5)
    configs = surrogate.space.from_unit(units[:3])
    np.testing.assert_allclose(evaluate_batch(surrogate, configs, progress=False)["size"], alone["size"][:3], rtol=1e-5)
    large = {"CPU": 3}  # of four in all: no second actor is waited for
    wide = evaluate_batch(surrogate, units, actors=2, resources_per_actor=large, progress=False)
    np.testing.assert_allclose(wide["error"], alone["error"], rtol=1e-5)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_real_trials_are_proposed_by_the_surrogate(surrogate: ht.Surrogate, tmp_path: Path) -> None:
    search = SurrogateSearch(surrogate, "error", others={"learning_rate": tune.loguniform(1e-4, 1e-1)}, seed=0)
    tuner = tune.Tuner(
        lambda config: {"error": config["decay"] + config["learning_rate"]},
        tune_config=tune.TuneConfig(num_samples=3, search_alg=search, max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    )
    first = results(tuner, tmp_path)[0]
    assert set(first.config) == {"decay", "dropout", "learning_rate"}
    best = surrogate.optimize("error")
    assert surrogate.evaluate({n: first.config[n] for n in surrogate.space})["error"] <= best.value * 1.05


def ask_and_tell(search: SurrogateSearch, names: list[str]) -> list[dict[str, Any]]:
    """Trials with the values 0, 1, ...; the last one fails."""
    configs = []
    for index, name in enumerate(names):
        configs.append(search.suggest(name))
        failed = index == len(names) - 1
        search.on_trial_complete(name, None if failed else {"error": float(index)}, error=failed)
    return configs


def test_a_search_goes_on_from_its_file(surrogate: ht.Surrogate, tmp_path: Path) -> None:
    first, second = (SurrogateSearch(surrogate, "error", seed=0) for _ in range(2))
    configs = ask_and_tell(first, ["a", "b", "c"])
    file = tmp_path / "searcher-state.pkl"  # as Ray names it
    first.save(str(file))
    json.loads(file.read_text())
    second.restore(str(file))
    assert [t.params for t in second.study.trials] == configs
    assert [t.value for t in second.study.trials] == [0.0, 1.0, None]
    assert second.suggest("d") == first.suggest("d")


def test_trials_that_were_running_go_on_after_a_restart(surrogate: ht.Surrogate, tmp_path: Path) -> None:
    """Tune starts them again under their names, without asking."""
    first, second = (SurrogateSearch(surrogate, "error", seed=0) for _ in range(2))
    ask_and_tell(first, ["a", "b"])
    running = first.suggest("c")
    first.save(str(tmp_path / "state"))
    second.restore(str(tmp_path / "state"))
    second.on_trial_result("c", {"error": 0.7, "training_iteration": 1})
    second.on_trial_complete("c", {"error": 0.5, "training_iteration": 2})
    last = second.study.trials[-1]
    assert (last.params, last.value, last.state.name) == (running, 0.5, "COMPLETE")


def test_errors(surrogate: ht.Surrogate, tmp_path: Path) -> None:
    with pytest.raises(ht.SpaceError, match="'accuracy' is unknown"):
        trainable(surrogate, "accuracy")
    with pytest.raises(ht.SpaceError, match="'accuracy' is unknown"):
        SurrogateSearch(surrogate, "accuracy")
    with pytest.raises(ht.SpaceError, match=r"\['decay'\], which the surrogate's space holds already"):
        SurrogateSearch(surrogate, "error", others={"decay": FloatDistribution(0.0, 1.0)})
    with pytest.raises(ht.SpaceError, match="`mode` must be"):
        SurrogateSearch(surrogate, "error", mode="minimize")  # type: ignore[arg-type]
    assert SurrogateSearch(surrogate, "error").study.direction.name == "MINIMIZE"
    evaluator = surrogate._evaluate
    stated = ht.Surrogate(
        surrogate.hypernet,
        metric=evaluator.metric,
        val_loader=evaluator.data.loader,
        directions={"error": "maximize"},
    )
    assert SurrogateSearch(stated, "error").study.direction.name == "MAXIMIZE"
    with pytest.raises(ht.SpaceError, match=r'`mode="min"` contradicts the direction .* "maximize"'):
        SurrogateSearch(stated, "error", mode="min")
    with pytest.raises(ht.OptionError, match="`actors` must be a whole number of at least 1, but got 0"):
        evaluate_batch(surrogate, [problem.CONFIG], actors=0)
    with pytest.raises(ht.SpaceError, match="decay"):
        evaluate_batch(surrogate, [{"decay": 9.0, "dropout": 0.0}])
    other = SurrogateSearch(surrogate, "error", others={"width": tune.randint(1, 9)})
    file = str(tmp_path / "state")
    other.save(file)
    with pytest.raises(ht.StorageError, match="belongs to another search"):
        SurrogateSearch(surrogate, "error").restore(file)
