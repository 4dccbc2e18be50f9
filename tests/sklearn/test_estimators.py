"""What the estimators do beyond scikit-learn's conventions."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from optuna.distributions import FloatDistribution
from sklearn.base import clone
from sklearn.callback import ProgressBar
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_iris, load_linnerud, load_wine, make_classification
from sklearn.exceptions import NotFittedError
from sklearn.metrics import f1_score, log_loss
from sklearn.model_selection import GroupKFold, ShuffleSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn

import hypertune_mip as ht
from hypertune_mip_sklearn import HyperTuneClassifier, HyperTuneRegressor, HyperTuneSearchCV

X, Y = load_wine(return_X_y=True)
NAMES = np.array(["barolo", "grignolino", "barbera"])[Y]
SMALL: dict[str, Any] = {"epochs": 10, "hidden_layer_sizes": (16,), "random_state": 0}
CONFIG = {"weight_decay": 1e-4, "dropout": 0.1, "input_noise": 0.1, "mixup": 0.1, "label_smoothing": 0.1}

pytestmark = pytest.mark.filterwarnings("ignore::hypertune_mip.HypertuneWarning")  # networks this small


def classifier(**options: Any) -> HyperTuneClassifier:
    return HyperTuneClassifier(**{**SMALL, **options})


def regressor(**options: Any) -> HyperTuneRegressor:
    return HyperTuneRegressor(**{**SMALL, **options})


@pytest.fixture(scope="module")
def fitted() -> HyperTuneClassifier:
    return classifier().fit(X, NAMES)


def test_string_labels_and_what_is_fitted(fitted: HyperTuneClassifier) -> None:
    assert fitted.score(X, NAMES) > 0.95
    assert fitted.classes_.tolist() == ["barbera", "barolo", "grignolino"]
    assert fitted.n_features_in_ == 13
    assert set(fitted.best_config_) == set(CONFIG)
    assert fitted.best_score_ == pytest.approx(-fitted.surrogate_.evaluate(fitted.best_config_)["loss"], rel=1e-4)
    assert len(fitted.history_) == 10
    assert fitted.trust_report_ is None
    probabilities = fitted.predict_proba(X)
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-12)


def test_another_setting_without_fitting_again(fitted: HyperTuneClassifier) -> None:
    """The network there is the hypernetwork's."""
    theirs = fitted.surrogate_.materialize(CONFIG)
    with torch.no_grad():
        expected = theirs(torch.as_tensor(fitted.encoder_.transform(X), dtype=torch.float32)).softmax(-1)
    np.testing.assert_allclose(fitted.predict_proba(X, config=CONFIG), expected.numpy(), atol=1e-6)
    before = fitted.predict_proba(X)
    moved = pickle.loads(pickle.dumps(fitted)).set_config(CONFIG)
    np.testing.assert_allclose(moved.predict_proba(X), expected.numpy(), atol=1e-6)
    np.testing.assert_array_equal(fitted.predict_proba(X), before)


def test_response_curve(fitted: HyperTuneClassifier) -> None:
    curve = fitted.response_curve("dropout", points=7)
    np.testing.assert_allclose(curve["dropout"], np.linspace(0.0, 0.6, 7))
    config = {**fitted.best_config_, "dropout": float(curve["dropout"][3])}
    assert curve["loss"][3] == pytest.approx(fitted.surrogate_.evaluate(config)["loss"], rel=1e-5)
    with pytest.raises(ht.SpaceError, match="'width' is unknown"):
        fitted.response_curve("width")
    with pytest.raises(ht.SpaceError, match="`points` must be a whole number of at least 1, but got 0"):
        fitted.response_curve("dropout", points=0)
    np.testing.assert_array_equal(fitted.response_curve("dropout", points=np.int64(7))["loss"], curve["loss"])


def test_networks_are_made_finished_or_trained_anew() -> None:
    """All at the same setting; the one that is finished stays nearer to the one that it starts from."""
    made = classifier(refit="materialize").fit(X, Y)
    np.testing.assert_allclose(made.predict_proba(X), made.predict_proba(X, config=made.best_config_))
    finished, again = classifier().fit(X, Y), classifier(refit="retrain").fit(X, Y)
    assert again.best_config_ == finished.best_config_ == made.best_config_
    moved = [torch.dist(other.module_[1].weight, made.module_[1].weight) for other in (finished, again)]
    assert 0.0 < moved[0] < 0.5 * moved[1]


def test_a_network_is_finished_on_all_rows() -> None:
    """Also on those that judged the settings, whose labels are the others' opposites here."""
    splitter = ShuffleSplit(1, test_size=0.5, random_state=0)
    x = np.random.default_rng(0).normal(size=(200, 4))
    ((_, judging),) = splitter.split(x)
    y = (x[:, 0] > 0).astype(int)
    y[judging] = 1 - y[judging]
    options = {"validation_fraction": splitter, "epochs": 60}
    made, finished = (classifier(refit=refit, **options).fit(x, y) for refit in ("materialize", "deliver"))
    assert log_loss(y[judging], finished.predict_proba(x[judging])) < log_loss(
        y[judging], made.predict_proba(x[judging])
    )


def test_settings_that_share_a_step_and_real_training_have_batches_of_the_same_size() -> None:
    fitted = classifier(epochs="auto").fit(X, Y)
    surrogate, rows = fitted.surrogate_, 142  # of 178 a fifth is held back
    steps = fitted.history_[-1]["step"] / len(fitted.history_)
    assert steps == 1  # of eight settings with a batch of 17 each
    assert surrogate.train_loader.size == 17
    assert surrogate.recipe.epochs == round(750 * rows / 600 / -(-rows // 17))
    trainer = surrogate.trainer()
    assert (trainer.train_loader, trainer.recipe.epochs) == (surrogate.train_loader, surrogate.recipe.epochs)
    few = classifier(epochs=10).fit(X, Y)
    assert few.history_[-1]["step"] == 10 * -(-rows // 17)  # ten epochs are not ten steps


def test_statistics_of_batch_norm_are_those_of_the_data() -> None:
    def module(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, outputs))

    space = {"weight_decay": FloatDistribution(1e-5, 1e-1, log=True)}
    fitted = classifier(module=module, space=space).fit(X, Y)
    columns = torch.as_tensor(fitted.encoder_.transform(X), dtype=torch.float32)
    before = fitted.module_[0](columns)
    torch.testing.assert_close(fitted.module_[1].running_mean, before.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(fitted.module_[1].running_var, before.var(0), atol=0, rtol=0.2)


def test_labels_of_a_nullable_type_stay_integers() -> None:
    fitted = classifier(epochs=2).fit(pd.DataFrame(X), pd.Series(Y, dtype="Int64"))
    assert fitted.classes_.dtype.kind == "i"
    assert fitted.predict(pd.DataFrame(X)).dtype.kind == "i"


def test_few_rows_that_weigh_anything() -> None:
    weight = np.zeros(len(X))
    weight[::25] = 1
    assert classifier(epochs="auto").fit(X, Y, sample_weight=weight).score(X[::25], Y[::25]) == 1


def test_one_setting_with_a_hypernetwork_around_it() -> None:
    """So that other settings can be asked for; nothing is held back to judge them."""
    one = classifier(config=CONFIG).fit(X, Y)
    assert one.best_config_ == pytest.approx(CONFIG)
    assert np.isnan(one.best_score_)
    assert one.score(X, Y) > 0.9
    other = {**CONFIG, "weight_decay": 0.1, "dropout": 0.6}
    assert np.abs(one.predict_proba(X, config=other) - one.predict_proba(X, config=CONFIG)).max() > 1e-3
    assert sum(len(batch["y"]) for batch in one.surrogate_.train_loader) == len(X)
    with pytest.raises(ValueError, match="no rows are held back to judge"):
        one.response_curve("dropout")
    unfitted = classifier(config={**CONFIG, "dropout": 9.0})
    with pytest.raises(ht.SpaceError, match="dropout"):
        unfitted.fit(X, Y)
    assert not hasattr(unfitted, "surrogate_")  # nothing was trained


def test_one_setting_is_trained_in_the_ordinary_way() -> None:
    """As `refit="retrain"` does at the best setting, so that both give the same network."""
    space = {name: FloatDistribution(0.0, 0.5) for name in ("dropout", "input_noise")}
    tuned = classifier(space=space, refit="retrain").fit(X, Y)
    plain = clone(tuned).set_params(config=tuned.best_config_).fit(X, Y)
    assert plain.best_config_ == tuned.best_config_
    np.testing.assert_allclose(plain.predict_proba(X), tuned.predict_proba(X), atol=1e-6)
    with pytest.raises(ValueError, match=r"no surrogate.*config=None"):
        plain.predict(X, config=tuned.best_config_)


def test_verification_measures_and_calibrates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ht.TrustReport, "doubts", lambda *_, **__: ())
    checked = classifier(verify=4).fit(X, Y)
    plain = classifier().fit(X, Y).surrogate_
    report = checked.trust_report_
    assert report is not None
    assert len(report.configs) == 4
    found = checked.surrogate_.evaluate(checked.best_config_)["loss"]
    assert found == pytest.approx(-checked.best_score_)
    assert abs(found - plain.evaluate(checked.best_config_)["loss"]) > 1e-4
    low, high = (report.true["loss"].min(), report.true["loss"].max())
    assert low - (high - low) < found < high


def test_a_surrogate_with_doubts_gives_way_to_the_best_real_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ht.TrustReport, "doubts", lambda *_, **__: ("None to be had.",))
    checked = classifier(verify=3, refit="materialize").fit(X, Y)
    report = checked.trust_report_
    assert report is not None
    again = classifier(config=checked.best_config_, refit="retrain").fit(X, Y)  # the network is not the hypernetwork's
    np.testing.assert_allclose(checked.predict_proba(X), again.predict_proba(X), atol=1e-6)
    best = int(report.true["loss"][:, 0].argmin())
    assert checked.best_config_ == dict(report.configs[best])
    assert checked.best_score_ == -report.true["loss"][best, 0]


def test_an_objective_that_is_maximised_is_the_minimum_of_its_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ht.TrustReport, "doubts", lambda *_, **__: ("None to be had.",))

    def likelihood(model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        return {"likelihood": -nn.functional.cross_entropy(model(batch["x"]), batch["y"])}

    for options in ({"refit": "materialize"}, {"refit": "materialize", "verify": 3}):
        down = classifier(**options).fit(X, Y)
        up = classifier(
            metric=likelihood, objective="likelihood", directions={"likelihood": "maximize"}, **options
        ).fit(X, Y)
        assert up.best_config_ == pytest.approx(down.best_config_)
        assert up.best_score_ == pytest.approx(down.best_score_)


def test_a_score_of_scikit_learn_s_as_the_objective() -> None:
    def score(outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        return {"f1": f1_score(targets, outputs.argmax(1), average="macro")}

    metric = ht.metrics.whole_set(lambda model, batch: model(batch["x"]), score)
    found = classifier(metric=metric, objective="f1", directions={"f1": "maximize"}).fit(X, Y)
    assert 0.5 < found.best_score_ <= 1.0
    assert found.best_score_ == found.surrogate_.evaluate(found.best_config_)["f1"]


def test_own_network_space_loss_and_metric() -> None:
    space = {"decay": FloatDistribution(1e-5, 1.0, log=True), "rate": FloatDistribution(0.0, 0.5)}

    def module(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), ht.nn.Dropout("rate"), nn.Linear(8, outputs))

    def loss(model: nn.Module, batch: Any, config: Any) -> torch.Tensor:
        fit = nn.functional.cross_entropy(model(batch["x"]), batch["y"])
        return fit + config["decay"] * ht.losses.l2(model)

    def metric(model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        hit = (model(batch["x"]).argmax(-1) == batch["y"]).double().mean()
        return {"miss": 1 - hit}

    own = classifier(module=module, space=space, loss=loss, metric=metric, objective="miss", head=ht.Dense())
    own.fit(X, Y)
    assert set(own.best_config_) == {"decay", "rate"}
    assert own.score(X, Y) > 0.9
    assert isinstance(own.module_[1], nn.Tanh)


def test_frames_with_text_and_missing_values() -> None:
    frame = pd.DataFrame(X[:, :3], columns=["a", "b", "c"]).assign(kind=NAMES, flag=Y == 0)
    frame.loc[::7, "a"] = np.nan
    frame.loc[::5, "kind"] = None
    one = classifier(epochs=40).fit(frame, NAMES)
    other = classifier(epochs=40).fit(pl.from_pandas(frame), NAMES)
    assert one.feature_names_in_.tolist() == ["a", "b", "c", "kind", "flag"]
    assert one.score(frame, NAMES) > 0.9
    np.testing.assert_allclose(one.predict_proba(frame), other.predict_proba(pl.from_pandas(frame)))
    assert np.isfinite(one.predict_proba(frame.assign(kind="a new one"))).all()
    with pytest.raises(ValueError, match="feature names"):
        one.predict(frame[["b", "a", "c", "kind", "flag"]])


def test_in_a_pipeline_with_column_transformer_and_cross_validation() -> None:
    frame = pd.DataFrame({"color": X[:, 9], "kind": NAMES})
    columns = make_column_transformer((StandardScaler(), ["color"]), (OneHotEncoder(sparse_output=False), ["kind"]))
    pipeline = make_pipeline(columns.set_output(transform="pandas"), classifier())
    assert cross_val_score(pipeline, frame, Y, cv=2).mean() > 0.9
    pipeline.fit(frame, Y)
    np.testing.assert_array_equal(
        pipeline.predict(frame, config=pipeline[-1].best_config_).shape, pipeline.predict(frame).shape
    )


def test_several_targets_on_scales_far_apart() -> None:
    x, y = load_linnerud(return_X_y=True)
    y = y * [1.0, 1e12, 1e-6]
    several = regressor(epochs=60).fit(x, y)
    predicted = several.predict(x)
    assert predicted.shape == y.shape
    for column, true in zip(predicted.T, y.T, strict=True):
        assert abs(column.mean() - true.mean()) < true.std()
        assert column.std() > 0.01 * true.std()


def test_weights_move_the_decision() -> None:
    """Two rows for one: what weighs more is predicted where rows contradict each other."""
    x = np.repeat(np.linspace(-1, 1, 60)[:, None], 2, 0)
    y = np.tile([0, 1], 60)
    for heavy in (0, 1):
        weights = np.where(y == heavy, 5.0, 1.0)
        assert (classifier(epochs=40).fit(x, y, sample_weight=weights).predict(x) == heavy).mean() > 0.95
        by_class = classifier(epochs=40, class_weight={heavy: 5.0, 1 - heavy: 1.0}).fit(x, y)
        assert (by_class.predict(x) == heavy).mean() > 0.95


@pytest.mark.parametrize("make", [classifier, regressor])
def test_rows_of_weight_zero_are_not_there(make: Any) -> None:
    """An absurd row of weight 0 changes nothing."""
    x, y = X[:, :4].copy(), Y.astype(float) if make is regressor else Y
    weights = np.ones(len(x))
    weights[[3, 90]] = 0.0
    splitter = ShuffleSplit(1, test_size=0.3, random_state=0)
    absurd_x, absurd_y = x.copy(), y.copy()
    absurd_x[3], absurd_y[90] = 1e9, 2
    if make is regressor:
        absurd_y[3] = 1e9
    options = {"validation_fraction": splitter, "epochs": 3}
    one, other = (make(**options).fit(*data, sample_weight=weights) for data in ((x, y), (absurd_x, absurd_y)))
    np.testing.assert_allclose(one.predict(x), other.predict(x))
    assert one.best_score_ == other.best_score_


def test_validation_metrics_are_means_by_weight() -> None:
    """Heavy rows for validation do not raise the loss; it is that of their weighted mean."""

    class Last(ShuffleSplit):  # type: ignore[misc]
        def split(self, X: Any, y: Any = None, groups: Any = None) -> Any:
            yield np.arange(0, 120), np.arange(120, len(X))

    order = np.random.default_rng(0).permutation(len(X))
    x, y = X[order], Y[order]
    weights = np.where(np.arange(len(x)) < 120, 1.0, 10.0)
    heavy = classifier(validation_fraction=Last(1)).fit(x, y, sample_weight=weights)
    probabilities = heavy.predict_proba(x[120:], config=heavy.best_config_)
    assert -heavy.best_score_ == pytest.approx(log_loss(y[120:], probabilities), rel=1e-4)
    with pytest.raises(ValueError, match="weight 0"):
        classifier(validation_fraction=Last(1)).fit(x, y, sample_weight=np.where(weights > 1, 0.0, 1.0))


def test_balanced_classes() -> None:
    x, y = make_classification(600, 5, weights=[0.93], flip_y=0.1, class_sep=0.4, random_state=1)
    rare = [classifier(class_weight=w, epochs=40).fit(x, y).predict(x)[y == 1].mean() for w in (None, "balanced")]
    assert rare[1] > rare[0] + 0.2


def test_a_splitter_says_what_is_for_validation() -> None:
    seen = []

    class Splitter(ShuffleSplit):  # type: ignore[misc]
        def split(self, X: Any, y: Any = None, groups: Any = None) -> Any:
            for train, test in super().split(X, y, groups):
                seen.append(test)
                yield train, test

    split = classifier(validation_fraction=Splitter(1, test_size=30, random_state=3)).fit(X, Y)
    assert len(seen) == 1
    held_out = torch.as_tensor(split.encoder_.transform(X[seen[0]]), dtype=torch.float32)
    torch.testing.assert_close(next(iter(split.surrogate_._evaluate.data.loader))["x"], held_out)


def test_callbacks_see_the_epochs() -> None:
    class Count:
        def __init__(self) -> None:
            self.tasks: list[str] = []
            self.has_network = False

        def setup(self, estimator: Any, context: Any) -> None:
            self.tasks.append("setup")

        def teardown(self, estimator: Any, context: Any) -> None:
            self.tasks.append("teardown")

        def on_fit_task_begin(self, estimator: Any, context: Any) -> None: ...

        def on_fit_task_end(self, estimator: Any, context: Any) -> None:
            self.tasks.append(context.task_name)
            self.has_network = hasattr(estimator, "module_")

    count = Count()
    classifier(epochs=3).set_callbacks(count).fit(X, Y)
    assert count.has_network
    assert count.tasks == ["setup", *["epoch"] * 3, "fit", "teardown"]
    count.tasks.clear()
    classifier(config=CONFIG, refit="retrain").set_callbacks(count).fit(X, Y)
    assert count.tasks == ["setup", "fit", "teardown"]
    count.tasks.clear()
    inside = classifier(epochs=3).set_callbacks(count)
    HyperTuneSearchCV(inside, cv=2, n_candidates=4, refit=False).fit(X, Y)
    assert count.tasks == []  # they are the estimator's, not the search's
    classifier(epochs=3).set_callbacks(ProgressBar()).fit(X, Y)


def test_a_callback_stops_training() -> None:
    class Stop:
        def setup(self, estimator: Any, context: Any) -> None: ...

        def teardown(self, estimator: Any, context: Any) -> None: ...

        def on_fit_task_begin(self, estimator: Any, context: Any) -> None: ...

        def on_fit_task_end(self, estimator: Any, context: Any) -> bool:
            return bool(context.task_name == "epoch" and context.task_id == 1)

    stopped = classifier(epochs=5).set_callbacks(Stop()).fit(X, Y)
    assert [record["epoch"] for record in stopped.history_] == [1, 2]
    assert stopped.predict(X).shape == Y.shape


def test_training_starts_from_a_users_network() -> None:
    """A rate of nearly 0 leaves it as it was."""
    given = nn.Sequential(nn.Linear(13, 4), nn.ReLU(), nn.Linear(4, 3))
    for parameter in given.parameters():
        nn.init.constant_(parameter, 0.25)
    made = [given, lambda inputs, outputs: copy.deepcopy(given)]
    space = {"weight_decay": FloatDistribution(1e-5, 1e-1, log=True)}
    for module in made:
        for options in ({}, {"config": {"weight_decay": 1e-3}}, {"refit": "materialize"}):
            fitted = classifier(module=module, space=space, learning_rate=1e-9, epochs=1, **options).fit(X, Y)
            torch.testing.assert_close(fitted.module_[0].weight, given[0].weight, atol=1e-5, rtol=0)


def test_fitted_twice() -> None:
    both = classifier(epochs=2).fit(pd.DataFrame(X).rename(columns=str), Y)
    both.set_params(config=CONFIG, refit="retrain").fit(X, Y)
    assert not hasattr(both, "surrogate_")
    assert not hasattr(both, "feature_names_in_")
    both.set_params(config=None).fit(X, Y)
    assert both.surrogate_.space == ht.SearchSpace(both.surrogate_.space)


@pytest.mark.parametrize("module", [nn.Sequential(nn.Linear(1, 1), nn.Flatten(0)), nn.Linear(1, 2)])
def test_a_network_whose_outputs_do_not_fit(module: nn.Module) -> None:
    x = np.linspace(-1, 1, 50)[:, None]
    space = {"weight_decay": FloatDistribution(1e-5, 1e-1, log=True)}
    with pytest.raises(ht.LossError, match="one column a class or target"):
        regressor(module=module, space=space).fit(x, x.ravel())


def test_seeds() -> None:
    one, same = (classifier(random_state=1).fit(X, Y).predict_proba(X) for _ in range(2))
    other = classifier(random_state=2).fit(X, Y).predict_proba(X)
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-4


def test_a_few_rows() -> None:
    x, y = load_iris(return_X_y=True)
    few = np.r_[0:3, 50:53, 100:103]
    assert classifier(epochs=60).fit(x[few], y[few]).score(x[few], y[few]) > 0.6


def _one_class(y: np.ndarray) -> Any:
    return X, np.zeros_like(y)


def _infinite(y: np.ndarray) -> Any:
    return np.where(X > 5, np.inf, X), y


def _missing_label(y: np.ndarray) -> Any:
    return X, np.where(y > 0, y, np.nan)


def _dates(y: np.ndarray) -> Any:
    return pd.DataFrame({"a": X[:, 0], "when": pd.Timestamp("2020-01-01")}), y


def _infinite_frame(y: np.ndarray) -> Any:
    return pd.DataFrame({"a": np.where(X[:, 0] > 13, np.inf, X[:, 0])}), y


def _two_rows(y: np.ndarray) -> Any:
    return X[[0, -1]], y[[0, -1]]


def _another_length(y: np.ndarray) -> Any:
    return pd.DataFrame(X), y[:-1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_one_class, "one class"),
        (_infinite, "infinity"),
        (_infinite_frame, "infinity"),
        (_missing_label, "NaN"),
        (_dates, "'when' holds Datetime"),
        (_two_rows, "Too few samples"),
        (_another_length, "inconsistent numbers of samples"),
    ],
)
def test_bad_data(data: Callable[[np.ndarray], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier().fit(*data(Y))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "'epochs' parameter"),
        ({"validation_fraction": 1.0}, "'validation_fraction' parameter"),
        ({"refit": "again"}, "'refit' parameter"),
        ({"objective": "accuracy"}, "'accuracy'"),
        ({"space": {"learning_rate": FloatDistribution(1e-4, 1e-1, log=True)}}, "learning_rate"),
        ({"config": {"dropout": 0.1}}, "weight_decay"),
        ({"config": {**CONFIG, "dropout": 0.9}}, "dropout"),
        ({"validation_fraction": GroupKFold(2)}, "groups"),
        ({"device": "tpu"}, "tpu|device"),
        ({"verify": 2}, "at least 3"),
        ({"validation_fraction": "0.2"}, "'validation_fraction' parameter"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        classifier(**options).fit(X, Y)


def test_bad_questions(fitted: HyperTuneClassifier) -> None:
    with pytest.raises(NotFittedError):
        classifier().predict(X)
    with pytest.raises(NotFittedError):
        classifier().set_config(CONFIG)
    with pytest.raises(ValueError, match="X has 12 features"):
        fitted.predict(X[:, 1:])
    with pytest.raises(ht.SpaceError, match=r"dropout.*0\.9"):
        fitted.predict(X, config={**CONFIG, "dropout": 0.9})
    with pytest.raises(ht.SpaceError, match="width"):
        fitted.set_config({**CONFIG, "width": 3})
    for ask in (fitted.set_config, lambda config: fitted.predict(X, config=config)):
        with pytest.raises(ht.SpaceError, match="One config is asked for here"):
            ask([CONFIG, CONFIG])
    with pytest.raises(ValueError, match="Negative values"):
        classifier().fit(X, Y, sample_weight=-np.ones(len(X)))


def test_one_split_of_all_rows_is_refused() -> None:
    """More classes than rows that may be left out."""
    with pytest.raises(ValueError, match="Too few samples to split: of 3 rows, 3 are for validation"):
        classifier().fit(X[[0, 70, 150]], Y[[0, 70, 150]])
