"""The OptunaHub benchmark: problems for samplers, made of real trainings."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
import yaml

from benchmarks import results
from tests.optuna.test_hub_package import HUB, load

FOLDER = HUB / "benchmarks/regularization_responses"

pytest.importorskip("optunahub")
module = load(FOLDER / "__init__.py")


def native(problem: object, units: list[float]) -> dict[str, float]:
    """A setting by its places between the ends of the ranges."""
    found = {}
    for unit, (name, d) in zip(units, problem.search_space.items(), strict=True):  # type: ignore[attr-defined]
        low, high = (math.log(d.low), math.log(d.high)) if d.log else (d.low, d.high)
        value = low + unit * (high - low)
        found[name] = min(max(math.exp(value) if d.log else value, d.low), d.high)
    return found


def test_problems_are_those_of_the_trainings() -> None:
    """What `trust` trained is what the problems hold, task by task and metric by metric."""
    runs = results.read("trust_runs")
    assert [truth["task"].split("_", 1)[1] for truth in runs["truths"]] == list(module.TASKS)
    kept = {(row["task"], row["metric"]) for row in results.read("responses")["rows"] if row["kept"]}
    for truth in runs["truths"]:
        problem = module.Problem(truth["task"].split("_", 1)[1])
        assert set(problem.metrics) == {metric for task, metric in kept if task == truth["task"]}
        stored = module._RESPONSES[problem.task]
        np.testing.assert_allclose(stored["units"][: len(truth["units"])], truth["units"], atol=1e-6)
        for metric in problem.metrics:
            means = np.array(truth["true"][metric]).mean(1)
            found = np.array(stored["metrics"][metric]["values"][: len(means)], dtype=float)
            np.testing.assert_allclose(found, means, rtol=1e-5)


@pytest.mark.parametrize("task", module.TASKS)
def test_a_problem_foresees_real_trainings(task: str) -> None:
    """At the settings that it is made of, in the order of their losses."""
    problem = module.Problem(task)
    stored = module._RESPONSES[task]
    values = np.array(stored["metrics"]["loss"]["values"], dtype=float)
    known = np.isfinite(values)
    said = np.array([problem.evaluate(native(problem, unit)) for unit in stored["units"]])
    assert np.corrcoef(said[known], values[known])[0, 1] > 0.97
    assert said.shape == (112,)


def test_noise_is_that_of_a_setting_and_of_a_seed() -> None:
    problem, noisy, other = (module.Problem("group_norm", seed=seed) for seed in (None, 0, 1))
    settings = [native(problem, unit) for unit in np.random.default_rng(0).uniform(size=(200, 3))]
    ratios = np.log([[p.evaluate(s) / problem.evaluate(s) for s in settings] for p in (noisy, other)])
    assert noisy.evaluate(settings[0]) == noisy.evaluate(dict(reversed(settings[0].items())))
    assert ratios.std() == pytest.approx(module._RESPONSES["group_norm"]["metrics"]["loss"]["noise"], rel=0.15)
    assert abs(np.corrcoef(ratios)[0, 1]) < 0.2


def test_a_study_runs_on_it() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = load(FOLDER / "example.py").main(module.Problem("digits"), trials=30)
    assert set(found) == {"RandomSampler", "TPESampler"}
    assert max(found.values()) < np.median([v for v in module._RESPONSES["digits"]["metrics"]["loss"]["values"] if v])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: module.Problem("mnist"), "`task` must be one of .*'digits'.*but got 'mnist'"),
        (lambda: module.Problem("vae", "error"), "`metric` must be one of .*'loss'.*but got 'error'"),
        (lambda: module.Problem("vae", seed=-1), "`seed` must not be negative"),
        (lambda: module.Problem("vae").evaluate({}), r"'vae' takes \['beta'\], but got \[\]"),
        (lambda: module.Problem("vae").evaluate({"beta": 1e9}), "'beta' must lie in .* but got"),
    ],
)
def test_what_it_cannot_serve_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_the_front_matter_is_complete() -> None:
    _, front, text = (FOLDER / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(front)
    assert set(fields) == {"author", "title", "description", "tags", "optuna_versions", "license"}
    assert all(fields.values())
    assert all(f"`{task}`" in text for task in module.TASKS)
    assert (FOLDER / "LICENSE").read_text() == (HUB.parents[2] / "LICENSE").read_text()
