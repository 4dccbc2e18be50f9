"""Nested cross-validation of the scikit-learn estimators and of what users would take instead, at equal time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import optuna
import torch
from joblib import Parallel, delayed
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from optuna_integration import OptunaSearchCV
from scipy.stats import loguniform
from sklearn import datasets
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import log_loss, root_mean_squared_error
from sklearn.model_selection import KFold, ParameterSampler, ShuffleSplit, StratifiedKFold, StratifiedShuffleSplit
from sklearn.model_selection._search import BaseSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier, NeuralNetRegressor
from skorch.callbacks import LRScheduler
from threadpoolctl import threadpool_limits
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmarks import results
from hypertune_mip_sklearn import HyperTuneClassifier, HyperTuneRegressor

WIDTHS = (128, 128)  # of every network
INNER = 3  # folds of the peers' searches on small sets, where one split says little
LARGE = 2000  # rows; from here on one split, so that more settings fit into the time
SEEDS, FOLDS = 5, 2  # as in Dietterich's 5 x 2 cross-validation
STEPS, EPOCHS = 750, (10, 750)  # of skorch's networks: as ours


@dataclass(frozen=True)
class Data:
    """A table; classes are 0 for regression."""

    x: np.ndarray
    y: np.ndarray
    classes: int


@cache
def load(name: str) -> Data:
    made = {
        "digits": lambda: datasets.load_digits(return_X_y=True),
        "wine": lambda: datasets.load_wine(return_X_y=True),
        "breast_cancer": lambda: datasets.load_breast_cancer(return_X_y=True),
        "diabetes": lambda: datasets.load_diabetes(return_X_y=True),
        "clusters": lambda: datasets.make_classification(
            10_000, 50, n_informative=15, n_redundant=10, n_classes=4, n_clusters_per_class=4, flip_y=0.1,
            random_state=0,
        ),
        "friedman": lambda: datasets.make_friedman1(10_000, 20, noise=2.0, random_state=0),
        "hastie": lambda: (lambda x, y: (x, (y > 0).astype(int)))(*datasets.make_hastie_10_2(random_state=0)),
    }  # fmt: skip
    x, y = made[name]()
    return Data(x, y, 0 if name in ("diabetes", "friedman") else len(np.unique(y)))


SETS = ("wine", "diabetes", "breast_cancer", "digits", "friedman", "clusters", "hastie")


def run(smoke: bool) -> dict[str, Any]:
    """Score all methods on all folds, two folds at a time, each on one thread."""
    sets, seeds = (SETS[:2], 1) if smoke else (SETS, SEEDS)
    stated = {"sets": list(sets), "seeds": seeds, "folds": FOLDS, "methods": list(METHODS)}
    rows = results.kept("peers", stated, smoke=smoke).get("rows", [])
    done = {(row["set"], row["seed"], row["fold"]) for row in rows}
    cells = [(name, seed, fold) for seed in range(seeds) for name in sets for fold in range(FOLDS)]
    todo = [cell for cell in cells if cell not in done]
    document = results.write("peers", {**stated, "rows": rows}, smoke=smoke)
    for found in Parallel(n_jobs=2, return_as="generator_unordered")(delayed(compared)(*cell) for cell in todo):
        rows += found
        document = results.write("peers", {**stated, "rows": rows}, smoke=smoke)
    return document


def compared(name: str, seed: int, fold: int) -> list[dict[str, Any]]:
    """Rows of all methods on one fold, one after another; ours comes first and sets the time for the others."""
    data, rows, limit = load(name), [], 0.0
    train, test = split(data, seed, fold)
    x, y, x_test, y_test = data.x[train], data.y[train], data.x[test], data.y[test]
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of networks that have not converged; our own are tests' business
        for method, make in METHODS.items():
            start = time.perf_counter()
            model = make(Search(data.classes, 10 * seed + fold, limit, len(x))).fit(x, y)
            seconds = time.perf_counter() - start
            limit = limit or seconds
            row = {"set": name, "seed": seed, "fold": fold, "method": method, "seconds": seconds}
            rows.append({**row, "settings": _settings(model), **scores(data, model, x_test, y_test, y)})
    return rows


def split(data: Data, seed: int, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one outer fold, for training and for the test."""
    splitter: Any = (StratifiedKFold if data.classes else KFold)(FOLDS, shuffle=True, random_state=seed)
    train, test = list(splitter.split(data.x, data.y))[fold]
    return train, test


def _settings(model: Any) -> int | None:
    """How many were tried."""
    if hasattr(model, "n_trials_"):
        return int(model.n_trials_)
    return len(model.cv_results_["params"]) if hasattr(model, "cv_results_") else None


def scores(data: Data, model: Any, x: np.ndarray, y: np.ndarray, y_train: np.ndarray) -> dict[str, float]:
    """Error and loss, the smaller the better; those of regression in the target's standard deviations."""
    if data.classes:
        probabilities = np.asarray(model.predict_proba(x), dtype=np.float64)
        labels = np.arange(data.classes)
        probabilities /= probabilities.sum(1, keepdims=True)
        return {
            "error": float(np.mean(probabilities.argmax(1) != y)),
            "loss": log_loss(y, probabilities, labels=labels),
        }
    error = float(root_mean_squared_error(y, np.asarray(model.predict(x)).ravel()) / y_train.std())
    return {"error": error, "loss": error**2}


@dataclass(frozen=True)
class Search:
    """What a method is told: classes, or 0 for regression; a seed; seconds; rows."""

    classes: int
    seed: int
    limit: float
    rows: int

    @property
    def scoring(self) -> str:
        return "neg_log_loss" if self.classes else "neg_mean_squared_error"

    @property
    def inner(self) -> Any:
        """How settings are judged."""
        if self.rows < LARGE:
            return INNER
        return self.holdout

    @property
    def holdout(self) -> Any:
        """A fifth of the rows, as ours does."""
        return (StratifiedShuffleSplit if self.classes else ShuffleSplit)(1, test_size=0.2, random_state=self.seed)

    def study(self, defaults: dict[str, Any]) -> optuna.Study:
        """That begins with what the method does unless told otherwise."""
        direction = "maximize" if defaults.pop("score", True) else "minimize"
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=self.seed), direction=direction)
        study.enqueue_trial(defaults)
        return study

    def optuna(self, estimator: Any, distributions: dict[str, BaseDistribution], defaults: dict[str, Any]) -> Any:
        return OptunaSearchCV(
            estimator, distributions, cv=self.inner, scoring=self.scoring, timeout=self.limit, n_trials=None,
            random_state=self.seed, study=self.study(defaults),
        )  # fmt: skip


def ours(classes: int, seed: int) -> Any:
    """Our estimator as it comes."""
    return (HyperTuneClassifier if classes else HyperTuneRegressor)(hidden_layer_sizes=WIDTHS, random_state=seed)


def _mlp(search: Search) -> Any:
    """With standardised columns and, as ours, standardised targets."""
    options = {"hidden_layer_sizes": WIDTHS, "max_iter": 500, "random_state": search.seed}
    if search.classes:
        return make_pipeline(StandardScaler(), MLPClassifier(**options))
    network = make_pipeline(StandardScaler(), MLPRegressor(**options))
    return TransformedTargetRegressor(network, transformer=StandardScaler())


def _of_mlp(search: Search, values: dict[str, Any]) -> dict[str, Any]:
    """Under the names that the parameters have there."""
    prefix = "mlpclassifier__" if search.classes else "regressor__mlpregressor__"
    return {f"{prefix}{name}": value for name, value in values.items()}


_MLP_DEFAULTS = {"alpha": 1e-4, "learning_rate_init": 1e-3, "early_stopping": False}
_MLP_SPACE: dict[str, BaseDistribution] = {
    "alpha": FloatDistribution(1e-6, 10.0, log=True),
    "learning_rate_init": FloatDistribution(1e-4, 3e-2, log=True),
    "early_stopping": CategoricalDistribution([False, True]),
}


class _RandomSearch(BaseSearchCV):  # type: ignore[misc]
    """`RandomizedSearchCV` that begins with the defaults and draws until its time is over."""

    def __init__(self, estimator: Any, defaults: Any, distributions: Any, *, search: Search) -> None:
        super().__init__(estimator, cv=search.inner, scoring=search.scoring)
        self.defaults, self.distributions, self.search = defaults, distributions, search

    def _run_search(self, evaluate_candidates: Callable[[list[dict[str, Any]]], Any]) -> None:
        end = time.perf_counter() + self.search.limit
        evaluate_candidates([self.defaults])
        for params in ParameterSampler(self.distributions, 10_000, random_state=self.search.seed):
            if time.perf_counter() > end:
                break
            evaluate_candidates([params])


def _mlp_random(search: Search) -> Any:
    distributions = {
        "alpha": loguniform(1e-6, 10.0),
        "learning_rate_init": loguniform(1e-4, 3e-2),
        "early_stopping": [False, True],
    }
    defaults = _of_mlp(search, _MLP_DEFAULTS)
    return _RandomSearch(_mlp(search), defaults, _of_mlp(search, distributions), search=search)


def _mlp_optuna(search: Search) -> Any:
    return search.optuna(_mlp(search), _of_mlp(search, _MLP_SPACE), _of_mlp(search, _MLP_DEFAULTS))


class _Network(nn.Sequential):
    """Our default network as skorch takes it."""

    def __init__(self, inputs: int = 1, outputs: int = 1, dropout: float = 0.0) -> None:
        layers: list[nn.Module] = []
        for before, after in zip((inputs, *WIDTHS[:-1]), WIDTHS, strict=True):
            layers += [nn.Linear(before, after), nn.SiLU(), nn.Dropout(dropout)]
        super().__init__(*layers, nn.Linear(WIDTHS[-1], outputs))


class _Skorch:
    """An Optuna study over skorch's networks, judged on a fifth of the rows, then trained on all."""

    def __init__(self, search: Search) -> None:
        self.search, self.classes = search, search.classes

    def fit(self, x: np.ndarray, y: np.ndarray) -> _Skorch:
        self.x_scaler, self.y_scaler = StandardScaler().fit(x), None if self.classes else StandardScaler()
        x = self._inputs(x)
        y = y.astype(np.int64) if self.y_scaler is None else self.y_scaler.fit_transform(y[:, None]).astype(np.float32)
        ((train, validation),) = self.search.holdout.split(x, y)

        def objective(trial: optuna.Trial) -> float:
            config = {
                "lr": trial.suggest_float("lr", 3e-4, 3e-2, log=True),
                "optimizer__weight_decay": trial.suggest_float("weight_decay", 1e-5, 1.0, log=True),
                "module__dropout": trial.suggest_float("dropout", 0.0, 0.6),
            }
            if self.classes:
                config["criterion__label_smoothing"] = trial.suggest_float("label_smoothing", 0.0, 0.3)
            trial.set_user_attr("config", config)
            network = self._network(len(train), x.shape[1], config).fit(x[train], y[train])
            if self.classes:
                return log_loss(y[validation], network.predict_proba(x[validation]), labels=range(self.classes))
            return root_mean_squared_error(y[validation], network.predict(x[validation]))

        defaults = {"lr": 2e-3, "weight_decay": 1e-2, "dropout": 0.1, "label_smoothing": 0.0}
        study = self.search.study({**defaults, "score": False})
        study.optimize(objective, timeout=self.search.limit, catch=(ValueError,))  # of one that has diverged
        self.n_trials_ = len(study.get_trials(states=(TrialState.COMPLETE,)))
        self.network = self._network(len(x), x.shape[1], study.best_trial.user_attrs["config"]).fit(x, y)
        return self

    def _network(self, rows: int, inputs: int, config: dict[str, Any]) -> Any:
        size = max(16, min(256, rows // 10))
        steps = -(-rows // size)
        epochs = int(np.clip(round(STEPS / steps), *EPOCHS))
        torch.manual_seed(self.search.seed)
        own = {"criterion": nn.CrossEntropyLoss} if self.classes else {}
        return (NeuralNetClassifier if self.classes else NeuralNetRegressor)(
            _Network, module__inputs=inputs, module__outputs=self.classes or 1, max_epochs=epochs, batch_size=size,
            optimizer=torch.optim.AdamW, train_split=None, iterator_train__shuffle=True, verbose=0,
            callbacks=[LRScheduler(CosineAnnealingLR, T_max=epochs)], **own, **config,
        )  # fmt: skip

    def _inputs(self, x: np.ndarray) -> np.ndarray:
        return self.x_scaler.transform(x).astype(np.float32)

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        return self.network.predict_proba(self._inputs(x))

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.y_scaler.inverse_transform(self.network.predict(self._inputs(x)))


def _boosting(search: Search) -> Any:
    return (HistGradientBoostingClassifier if search.classes else HistGradientBoostingRegressor)(
        random_state=search.seed
    )


def _boosting_optuna(search: Search) -> Any:
    space: dict[str, BaseDistribution] = {
        "learning_rate": FloatDistribution(1e-2, 0.5, log=True),
        "max_iter": IntDistribution(20, 500, log=True),
        "max_leaf_nodes": IntDistribution(4, 64, log=True),
        "min_samples_leaf": IntDistribution(2, 60, log=True),
        "l2_regularization": FloatDistribution(1e-6, 100.0, log=True),
        "max_features": FloatDistribution(0.2, 1.0),
    }
    defaults = {
        "learning_rate": 0.1,
        "max_iter": 100,
        "max_leaf_nodes": 31,
        "min_samples_leaf": 20,
        "l2_regularization": 1e-6,
        "max_features": 1.0,
    }
    return search.optuna(_boosting(search), space, defaults)


METHODS: dict[str, Callable[[Search], Any]] = {  # the first sets the time of the others
    "HyperTune": lambda search: ours(search.classes, search.seed),
    "MLP": _mlp,
    "MLP + random search": _mlp_random,
    "MLP + OptunaSearchCV": _mlp_optuna,
    "skorch + Optuna": _Skorch,
    "gradient boosting": _boosting,
    "gradient boosting + OptunaSearchCV": _boosting_optuna,
}
