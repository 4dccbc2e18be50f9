"""`HyperTuneSearchCV`: thousands of settings by one hypernetwork a fold."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn
from optuna.distributions import CategoricalDistribution, FloatDistribution
from scipy.stats import loguniform
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_wine
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.model_selection import GroupKFold, KFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler, TargetEncoder
from torch.nn.functional import cross_entropy

import hypertune_mip as ht
from hypertune_mip_sklearn import HyperTuneClassifier, HyperTuneRegressor, HyperTuneSearchCV

X, Y = load_wine(return_X_y=True)
SMALL: dict[str, Any] = {"epochs": 10, "hidden_layer_sizes": (16,), "random_state": 0}
CLASSIFIER = HyperTuneClassifier(**SMALL)

pytestmark = pytest.mark.filterwarnings("ignore::hypertune_mip.HypertuneWarning")  # networks this small


def search(estimator: Any = CLASSIFIER, *arguments: Any, **options: Any) -> HyperTuneSearchCV:
    return HyperTuneSearchCV(estimator, *arguments, **{"cv": 3, "n_candidates": 50, "random_state": 0, **options})


@pytest.fixture(scope="module")
def found() -> HyperTuneSearchCV:
    return search().fit(X, Y)


def test_results(found: HyperTuneSearchCV) -> None:
    frame = pd.DataFrame(found.cv_results_)
    assert len(frame) == 50
    assert {"params", "param_dropout", "split2_test_score", "mean_fit_time", "std_score_time"} <= set(frame)
    folds = frame[[f"split{k}_test_score" for k in range(3)]].to_numpy()
    np.testing.assert_allclose(frame["mean_test_score"], folds.mean(1))
    np.testing.assert_allclose(frame["mean_objective"], -folds.mean(1))
    assert found.best_index_ == frame["mean_test_score"].argmax()
    assert frame["rank_test_score"][found.best_index_] == 1
    assert found.best_score_ == frame["mean_test_score"].max()
    assert found.best_params_ == {"config": found.best_config_}
    assert len({tuple(config["config"].values()) for config in frame["params"]}) == 50


def test_the_best_setting_is_fitted_as_by_the_estimator_itself(found: HyperTuneSearchCV) -> None:
    again = clone(CLASSIFIER).set_params(**found.best_params_).fit(X, Y)
    np.testing.assert_allclose(found.predict_proba(X), again.predict_proba(X), atol=1e-6)
    assert found.score(X, Y) == accuracy_score(Y, found.predict(X))
    assert found.classes_.tolist() == [0, 1, 2]
    assert found.n_features_in_ == 13


def test_scores_are_those_of_hypernetworks_trained_on_the_other_folds() -> None:
    """The same by hand: the estimator, whose validation data are the fold that was left out."""
    splitter = KFold(2, shuffle=True, random_state=0)
    by_loss = search(cv=splitter).fit(X, Y)
    by_count = search(cv=splitter, scoring="accuracy").fit(X, Y)
    assert by_count.cv_results_["params"] == by_loss.cv_results_["params"]
    for k, (train, test) in enumerate(splitter.split(X)):
        one = clone(CLASSIFIER)
        rows = one._rows(X, Y, None, known=train)
        one._fit_surrogate(one._shared(rows, train, _seed()), rows, train, test, seed=_seed())
        for index in (0, 7):
            config = by_loss.cv_results_["params"][index]["config"]
            loss = one.surrogate_.evaluate(config)["loss"]
            assert by_loss.cv_results_[f"split{k}_test_score"][index] == pytest.approx(-loss, rel=1e-4)
            hits = accuracy_score(Y[test], one.predict(X[test], config=config))
            assert by_count.cv_results_[f"split{k}_test_score"][index] == pytest.approx(hits)


def test_an_objective_that_is_maximised_is_the_minimum_of_its_negative() -> None:
    def likelihood(model: Any, batch: Any) -> dict[str, Any]:
        return {"likelihood": -cross_entropy(model(batch["x"]), batch["y"])}

    turned = {"metric": likelihood, "objective": "likelihood", "directions": {"likelihood": "maximize"}}
    down = search(cv=2, refit=False).fit(X, Y)
    up = search(clone(CLASSIFIER).set_params(**turned), cv=2, refit=False).fit(X, Y)
    assert up.best_config_ == down.best_config_
    assert up.best_score_ == pytest.approx(down.best_score_)


def _seed() -> int:
    """What the search makes of `random_state=0`."""
    return int(np.random.RandomState(0).randint(2**31 - 1))


def test_a_score_that_ties_is_broken_by_the_objective() -> None:
    found = search(clone(CLASSIFIER).set_params(epochs=40), scoring="accuracy").fit(X, Y)
    results = found.cv_results_
    best = results["mean_test_score"] == results["mean_test_score"].max()
    assert best.sum() > 1
    assert results["mean_objective"][found.best_index_] == results["mean_objective"][best].min()


def test_an_outer_study_for_what_a_hypernetwork_cannot_cover(caplog: pytest.LogCaptureFixture) -> None:
    outer = {
        "hidden_layer_sizes": [(4,), (32,), (16, 16)],
        "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        "batch_size": CategoricalDistribution((16, 32)),
    }
    with caplog.at_level(logging.INFO):
        found = search(CLASSIFIER, outer, n_trials=3, cv=2).fit(X, Y)
    assert caplog.messages == []
    assert len(found.study_.trials) == 3
    assert len(found.cv_results_["params"]) == 3 * 50
    assert set(found.best_params_) == {*outer, "config"}
    assert found.study_.best_value == pytest.approx(found.best_score_)
    assert len({*found.cv_results_["param_learning_rate"]}) == 3
    assert found.best_estimator_.hidden_layer_sizes == found.best_params_["hidden_layer_sizes"]


def test_folds_in_parallel_are_the_same(found: HyperTuneSearchCV) -> None:
    parallel = search(n_jobs=2).fit(X, Y)
    np.testing.assert_allclose(parallel.cv_results_["mean_test_score"], found.cv_results_["mean_test_score"], rtol=1e-4)


def test_a_pipeline_is_fitted_to_each_folds_training_rows() -> None:
    seen = []

    class Products(PolynomialFeatures):  # type: ignore[misc]
        def fit(self, X: Any, y: Any = None) -> Any:
            seen.append(len(X))
            return super().fit(X, y)

    pipeline = make_pipeline(Products(2, interaction_only=True), CLASSIFIER)
    found = search(pipeline, {"hypertuneclassifier__batch_size": [16, 32]}, n_trials=1, cv=KFold(2, shuffle=True))
    found.fit(X, Y, hypertuneclassifier__sample_weight=np.ones(len(X)))
    assert seen == [89, 89, 178]
    assert set(found.best_params_) == {"hypertuneclassifier__batch_size", "hypertuneclassifier__config"}
    assert found.score(X, Y) > 0.9


def test_a_scorer_may_ask_for_other_rows_and_sees_the_table_as_it_is() -> None:
    frame = pd.DataFrame(X, columns=[f"c{i}" for i in range(13)])

    def agreement(model: Any, x: pd.DataFrame, y: Any) -> float:
        assert x["c0"].max() > 10
        return float((model.predict(-x) == model.predict(x)).mean())

    for estimator in (CLASSIFIER, make_pipeline(StandardScaler(), CLASSIFIER)):
        found = search(estimator, scoring=agreement, cv=2, n_candidates=4).fit(frame, Y)
        assert found.cv_results_["mean_test_score"].max() < 0.9


def test_steps_that_transform_what_they_are_fitted_to_differently() -> None:
    """Rows of training see their own target only across folds, in the search as in a fit."""
    seen: list[Any] = []

    class Noted(TargetEncoder):  # type: ignore[misc]
        def fit_transform(self, X: Any, y: Any) -> Any:
            seen.append(np.corrcoef(super().fit_transform(X, y).ravel(), y)[0, 1])
            return super().fit_transform(X, y)

    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 60, (200, 1)), generator.integers(0, 2, 200)
    search(make_pipeline(Noted(), CLASSIFIER), cv=2, refit=False).fit(x, y)
    assert len(seen) == 2
    assert max(np.abs(seen)) < 0.4


def test_an_outer_trial_that_diverges_is_a_failed_one() -> None:
    rates = {"learning_rate": [1e-3, 1e30]}
    with pytest.warns(ht.HypertuneWarning, match="A fold is left out"):
        found = search(CLASSIFIER, rates, n_trials=8, cv=2, n_candidates=8).fit(X, Y)
    assert found.best_params_["learning_rate"] == 1e-3
    assert {trial.state.name for trial in found.study_.trials} == {"COMPLETE", "FAIL"}
    assert np.isnan(found.cv_results_["mean_test_score"]).any()


def test_parameters_of_other_steps_reach_them() -> None:
    class Weighed(StandardScaler):  # type: ignore[misc]
        def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
            seen.append(None if sample_weight is None else len(sample_weight))
            return super().fit(X, y, sample_weight)

    seen: list[Any] = []
    search(make_pipeline(Weighed(), CLASSIFIER), cv=2).fit(X, Y, weighed__sample_weight=np.ones(len(X)))
    assert seen == [89, 89, 178]


def test_regression_and_groups() -> None:
    x, y = load_diabetes(return_X_y=True)
    found = search(HyperTuneRegressor(**SMALL), cv=GroupKFold(2), scoring="r2").fit(x, y, groups=np.arange(442) // 10)
    assert 0.2 < found.best_score_ < 0.7
    assert found.predict(x).shape == (442,)


def test_metadata_routing() -> None:
    """Weights reach training and the scorer, when asked for; heavy rows of one class win."""
    x = np.repeat(np.linspace(-1, 1, 60)[:, None], 2, 0)
    y = np.tile([0, 1], 60)
    weights = np.where(y == 1, 5.0, 1.0)
    with sklearn.config_context(enable_metadata_routing=True):
        asking = HyperTuneClassifier(**{**SMALL, "epochs": 40})
        asking.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        found = search(asking, cv=2).fit(x, y, sample_weight=weights)
        assert (found.predict(x) == 1).mean() > 0.95
        ignoring = HyperTuneClassifier(**SMALL).set_fit_request(sample_weight=False)
        ignoring.set_score_request(sample_weight=False)
        with pytest.raises(TypeError, match="sample_weight"):
            search(ignoring, cv=2).fit(x, y, sample_weight=weights)
        scorer = make_scorer(accuracy_score).set_score_request(sample_weight=True)
        scored = search(asking, cv=2, scoring=scorer).fit(x, y, sample_weight=weights)
        assert scored.best_score_ == pytest.approx(5 / 6, abs=0.03)  # of the weight, not of the rows
        pipeline = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), asking)
        found = search(pipeline, cv=2).fit(x, y, sample_weight=weights)
        assert (found.predict(x) == 1).mean() > 0.95


def test_without_refit() -> None:
    found = search(refit=False).fit(X, Y)
    assert set(found.best_config_) == set(found.best_params_["config"])
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        found.predict(X)


@pytest.mark.parametrize(
    ("estimator", "outer", "error", "message"),
    [
        (MLPClassifier(), None, TypeError, "HyperTuneClassifier or HyperTuneRegressor.*MLPClassifier"),
        (CLASSIFIER, {"dropout": FloatDistribution(0, 1)}, ValueError, "'dropout'.*estimator's `space`"),
        (CLASSIFIER, {"config": [{}]}, ValueError, "`config` is what this search is about"),
        (clone(CLASSIFIER).set_params(config={"dropout": 0.1}), None, ValueError, "nothing to search"),
        (CLASSIFIER, {"space": [{}]}, ValueError, "`space` is what this search is about"),
        (CLASSIFIER, {"learning_rate": loguniform(1e-4, 1e-1)}, ValueError, "distribution of Optuna's or a list"),
        (clone(CLASSIFIER).set_params(objective="accuracy"), None, ValueError, "'accuracy' is unknown"),
        (clone(CLASSIFIER).set_params(learning_rate=1e30), None, RuntimeError, "No candidate has a finite score"),
        (clone(CLASSIFIER).set_params(epochs=-1), None, ValueError, "'epochs' parameter"),
    ],
)
def test_bad_input(estimator: Any, outer: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        search(estimator, outer).fit(X, Y)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="'n_candidates' parameter"):
        search(n_candidates=0).fit(X, Y)
    with pytest.raises(ValueError, match="'scoring' parameter"):
        search(scoring="goodness").fit(X, Y)
    with pytest.raises(ValueError, match="must return one number, but returned"):
        search(scoring=lambda *_: {"accuracy": 1.0}, cv=2, n_candidates=2).fit(X, Y)
    with pytest.raises(ht.SpaceError, match="'learning_rate'"):
        search(clone(CLASSIFIER).set_params(space={"learning_rate": FloatDistribution(0.1, 1)})).fit(X, Y)
