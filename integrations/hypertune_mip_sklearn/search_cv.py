"""`HyperTuneSearchCV`: thousands of settings, cross-validated for the price of one hypernetwork a fold."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import TPESampler
from optuna.trial import TrialState
from scipy.stats import rankdata
from sklearn import get_config
from sklearn.base import BaseEstimator, _fit_context, clone, is_classifier
from sklearn.metrics import check_scoring, get_scorer_names
from sklearn.model_selection import check_cv
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import _safe_indexing, check_array, check_random_state, get_tags, indexable
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metadata_routing import get_routing_for_object, process_routing
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import _check_method_params

import hypertune_mip as ht
from hypertune_mip_optuna.agreement import suggest
from hypertune_mip_sklearn.base import HyperTuneEstimator
from hypertune_mip_sklearn.table import stacked

Outer = Mapping[str, BaseDistribution | Sequence[Any]]


class HyperTuneSearchCV(BaseSearchCV):  # type: ignore[misc]  # scikit-learn ships no types
    """Cross-validated search over thousands of settings, at the price of one hypernetwork a fold.

    Stands where `RandomizedSearchCV` stands. What regularises, the estimator's `space`, needs no training of its own:
    each fold trains one hypernetwork and judges all candidates by it. What a hypernetwork cannot cover, such as widths
    and the learning rate, comes from an outer Optuna study, each trial of which trains every fold anew. The
    estimator is then fitted to all data with the best setting as its `config`.

    Args:
        estimator: A `HyperTuneClassifier` or `HyperTuneRegressor`, or a pipeline that ends with one. Its
            `validation_fraction` and `verify` take no part in the search, its `refit` only in the last fit,
            where "deliver" takes one round.
        param_distributions: Other parameters of the estimator to search: Optuna's distributions, or lists of choices,
            by name as in `set_params`.
        n_candidates: Settings to judge.
        n_trials: Of the outer study.
        scoring: A scorer or its name. None judges settings by the estimator's `objective`, which ranks them better than
            a score that counts errors does; `score` is then the estimator's own.
        n_jobs: Folds at the same time, as joblib has it.
        refit: Whether to train a network at the best setting.
        cv: As in `RandomizedSearchCV`; None is five folds.
        random_state: Seed of candidates and of the outer study.
        verbose: Whether to show progress.

    Attributes:
        cv_results_: Of each setting in each trial, as `RandomizedSearchCV` has it. Times are a setting's share of the
            hypernetwork's.
        best_params_: For `estimator.set_params`: `config`, and what the outer study has found.
        best_config_: The setting.
        best_score_: Its mean score; with `scoring=None`, the objective, minus it where small values are better.
        best_index_: Its row.
        best_estimator_: The estimator with `best_params_`, fitted to all data.
        study_: The outer study, or None. Its parameters are indices where choices were a list; a trial's user
            attribute "params" shows them.

    Example:
        >>> from sklearn.datasets import load_wine
        >>> from hypertune_mip_sklearn import HyperTuneClassifier
        >>> x, y = load_wine(return_X_y=True)
        >>> classifier = HyperTuneClassifier(epochs=5, hidden_layer_sizes=(16,), random_state=0)
        >>> search = HyperTuneSearchCV(classifier, cv=2, n_candidates=100, random_state=0).fit(x, y)
        >>> len(search.cv_results_["params"])
        100
    """

    _parameter_constraints = {  # noqa: RUF012
        **{name: BaseSearchCV._parameter_constraints[name] for name in ("estimator", "n_jobs", "cv", "verbose")},
        "param_distributions": [Mapping, None],
        "n_candidates": [Interval(Integral, 1, None, closed="left")],
        "n_trials": [Interval(Integral, 1, None, closed="left")],
        "scoring": [StrOptions(set(get_scorer_names())), callable, None],
        "refit": ["boolean"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator: Any,
        param_distributions: Outer | None = None,
        *,
        n_candidates: int = 1000,
        n_trials: int = 10,
        scoring: Any = None,
        n_jobs: int | None = None,
        refit: bool = True,
        cv: Any = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        """See the class."""
        super().__init__(estimator, scoring=scoring, n_jobs=n_jobs, refit=refit, cv=cv, verbose=verbose)
        self.param_distributions = param_distributions
        self.n_candidates = n_candidates
        self.n_trials = n_trials
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=False)  # type: ignore[untyped-decorator]
    def fit(self, X: Any, y: Any = None, **params: Any) -> Self:
        """Train a hypernetwork a fold, judge all settings, and train at the best.

        Args:
            X: As in the estimator's `fit`.
            y: As in the estimator's `fit`.
            **params: `sample_weight`, and `groups` for the splitter; or as metadata routing has it.

        Returns:
            The search itself.

        Raises:
            ValueError: If data or a parameter is invalid.
            TypeError: If the estimator is none of ours.
        """
        _last(self.estimator)
        self.__dict__.pop("feature_names_in_", None)
        self.scorer_ = check_scoring(self.estimator, self.scoring)
        X, y = indexable(X, y)
        if y is not None:
            check_array(y, ensure_2d=False, dtype=None, input_name="y")  # before folds are made of it
        routed = self._get_routed_params_for_fit(_check_method_params(X, params=params))
        splits = list(
            check_cv(self.cv, y, classifier=is_classifier(self.estimator)).split(X, y, **routed.splitter.split)
        )
        self.n_splits_, self.multimetric_ = len(splits), False
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        names = self._outer_names()
        trials = self.n_trials if names else 1
        context = self._init_callback_context(max_subtasks=trials + bool(self.refit))
        context.call_on_fit_task_begin(estimator=self, X=X, y=y)
        self.study_ = _quiet_study(seed) if names else None
        found: list[_Trial] = []
        scorer = None if self.scoring is None else self.scorer_
        with Parallel(n_jobs=self.n_jobs, verbose=self.verbose) as parallel:
            for _ in range(trials):
                task = context.subcontext(task_name="folds").call_on_fit_task_begin(estimator=self, X=X, y=y)
                trial = None if self.study_ is None else self.study_.ask()
                chosen = {} if trial is None else {name: self._suggested(trial, name) for name in names}
                fold = delayed(_fold)
                folds = parallel(
                    fold(
                        clone(self.estimator).set_params(**copy.deepcopy(chosen)),
                        X, y, train, test,
                        candidates=self.n_candidates, seed=seed, scorer=scorer, fit_params=routed.estimator.fit,
                        score_params=routed.scorer.score,
                    )
                    for train, test in splits
                )  # fmt: skip
                found.append(_Trial(chosen, folds))
                if trial is not None:
                    assert self.study_ is not None
                    best = found[-1].best
                    state = TrialState.FAIL if math.isnan(best) else TrialState.COMPLETE
                    trial.set_user_attr("params", {name: repr(value) for name, value in chosen.items()})
                    self.study_.tell(trial, None if math.isnan(best) else best, state=state)
                task.call_on_fit_task_end(estimator=self, X=X, y=y)
        if all(math.isnan(trial.best) for trial in found):
            raise ht.TrainingError("No candidate has a finite score in all folds. Try a smaller learning rate.")
        self._keep(found)
        if self.refit:
            task = context.subcontext(task_name="refit").call_on_fit_task_begin(estimator=self, X=X, y=y)
            start = time.perf_counter()
            self.best_estimator_ = clone(self.estimator).set_params(**copy.deepcopy(self.best_params_))
            self.best_estimator_.fit(X, y, **routed.estimator.fit)
            self.refit_time_ = time.perf_counter() - start
            if hasattr(self.best_estimator_, "feature_names_in_"):
                self.feature_names_in_ = self.best_estimator_.feature_names_in_
            task.call_on_fit_task_end(estimator=self, X=X, y=y)
        context.call_on_fit_task_end(estimator=self, X=X, y=y)
        return self

    def __sklearn_tags__(self) -> Any:
        """What the estimator takes, this takes."""
        tags, own = super().__sklearn_tags__(), get_tags(self.estimator)
        tags.input_tags.allow_nan = own.input_tags.allow_nan
        tags.target_tags.multi_output = own.target_tags.multi_output
        return tags

    def _outer_names(self) -> list[str]:
        """Of what the outer study searches."""
        known = self.estimator.get_params()
        names = list(self.param_distributions or {})
        prefix = _prefix(self.estimator)
        for name in names:
            if name in (f"{prefix}config", f"{prefix}space"):
                raise ht.SpaceError(f"`{name}` is what this search is about; set the estimator's `{prefix}space`.")
            if name not in known:
                raise ht.SpaceError(
                    f"`param_distributions` names {name!r}, which is no parameter of the estimator. What a hypernetwork"
                    f" covers, such as a weight decay, belongs to the estimator's `{prefix}space`."
                )
            choices = (self.param_distributions or {})[name]
            if not isinstance(choices, BaseDistribution) and (
                not isinstance(choices, (Sequence, np.ndarray)) or not len(choices)
            ):
                raise ht.SpaceError(
                    f"`param_distributions[{name!r}]` must be a distribution of Optuna's or a list of choices, but got"
                    f" {choices!r}."
                )
        return names

    def _suggested(self, trial: optuna.Trial, name: str) -> Any:
        assert self.param_distributions is not None
        distribution = self.param_distributions[name]
        if isinstance(distribution, CategoricalDistribution):
            distribution = distribution.choices
        if not isinstance(distribution, BaseDistribution):  # by index: choices may be anything, such as tuples
            return distribution[trial.suggest_categorical(name, range(len(distribution)))]
        return suggest(trial, name, distribution)

    def _keep(self, found: Sequence[_Trial]) -> None:
        """What the trials say, as `cv_results_`, and the best of it."""
        space = found[0].space
        configs = [(trial, config) for trial in found for config in trial.configs]
        prefix = _prefix(self.estimator)
        scores, objectives = (np.concatenate([getattr(t, key) for t in found]) for key in ("scores", "objectives"))
        mean = scores.mean(1)
        results: dict[str, Any] = {
            "params": [{**trial.chosen, f"{prefix}config": config} for trial, config in configs],
            **{f"param_{name}": _column([trial.chosen[name] for trial, _ in configs]) for name in found[0].chosen},
            **{f"param_{name}": _column([config[name] for _, config in configs]) for name in space},
            **{f"split{k}_test_score": scores[:, k] for k in range(self.n_splits_)},
            "mean_test_score": mean,
            "std_test_score": scores.std(1),
            "rank_test_score": rankdata(-np.nan_to_num(mean, nan=-math.inf), method="min").astype(np.int32),
            "mean_objective": objectives.mean(1),
        }
        for key in ("fit_time", "score_time"):
            times = np.concatenate([np.repeat([getattr(t, key)], len(t.configs), 0) / len(t.configs) for t in found])
            results |= {f"mean_{key}": times.mean(1), f"std_{key}": times.std(1)}
        self.cv_results_ = results
        best = np.flatnonzero(mean == np.nanmax(mean))
        objective = _last(self.estimator)._objective_sign * results["mean_objective"]
        self.best_index_ = int(best[np.argmin(objective[best])])  # a score that counts errors ties
        self.best_score_ = float(mean[self.best_index_])
        self.best_params_ = results["params"][self.best_index_]
        self.best_config_ = self.best_params_[f"{prefix}config"]


@dataclass(frozen=True)
class _Fold:
    """What one fold says of each candidate, scores and objectives (S,), and the seconds that it took."""

    space: ht.SearchSpace
    configs: list[dict[str, Any]]
    scores: np.ndarray
    objectives: np.ndarray
    fit_time: float
    score_time: float


@dataclass(frozen=True)
class _Trial:
    """Parameters that the outer study has chosen, and what the folds say."""

    chosen: dict[str, Any]
    folds: list[_Fold]

    @property
    def space(self) -> ht.SearchSpace:
        return self.folds[0].space

    @property
    def configs(self) -> list[dict[str, Any]]:
        return self.folds[0].configs

    @property
    def scores(self) -> np.ndarray:
        """(S, folds)."""
        return np.stack([fold.scores for fold in self.folds], 1)

    @property
    def objectives(self) -> np.ndarray:
        """(S, folds)."""
        return np.stack([fold.objectives for fold in self.folds], 1)

    @property
    def best(self) -> float:
        """Mean score of the best candidate; NaN if no candidate has one."""
        mean = self.scores.mean(1)
        return float(np.nanmax(mean)) if np.isfinite(mean).any() else math.nan

    @property
    def fit_time(self) -> list[float]:
        return [fold.fit_time for fold in self.folds]

    @property
    def score_time(self) -> list[float]:
        return [fold.score_time for fold in self.folds]


def _fold(
    estimator: Any,
    x: Any,
    y: Any,
    train: np.ndarray,
    test: np.ndarray,
    *,
    candidates: int,
    seed: int,
    scorer: Any,
    fit_params: Mapping[str, Any],
    score_params: Mapping[str, Any],
) -> _Fold:
    """Train one hypernetwork on `train` and judge all candidates on `test`; NaN where training diverges."""
    start = time.perf_counter()
    last = _last(estimator)
    last._validate_params()
    steps = estimator[:-1] if isinstance(estimator, Pipeline) and len(estimator.steps) > 1 else None
    x_test, y_test = _safe_indexing(x, test), _safe_indexing(y, test)
    weight = _own_fit_params(estimator, fit_params).get("sample_weight")
    if steps is None:
        table, table_test, known, judged = x, x_test, train, test
    else:
        own = _check_method_params(x, _fit_params_of(steps, estimator, fit_params), indices=train)
        fitted_to = steps.fit_transform(_safe_indexing(x, train), _safe_indexing(y, train), **own)
        table_test = steps.transform(x_test)
        table, order = stacked(fitted_to, table_test), np.concatenate([train, test])
        y, weight = _safe_indexing(y, order), None if weight is None else np.asarray(weight)[order]
        known, judged = np.arange(len(train)), np.arange(len(train), len(order))
    rows = last._rows(table, y, weight, known=known)
    try:
        last._fit_surrogate(last._shared(rows, known, seed), rows, known, judged, seed=seed)
    except ht.TrainingError as error:
        warnings.warn(f"A fold is left out, since its training diverged: {error}", ht.HypertuneWarning, stacklevel=2)
        space = last._space()
        failed = np.full(candidates, np.nan)
        configs = space.from_unit(space.sample(candidates, seed=seed % 2**16))
        return _Fold(space, configs, failed, failed, time.perf_counter() - start, 0.0)
    fitted = time.perf_counter()
    surrogate = last.surrogate_
    units = surrogate.space.sample(candidates, seed=seed % 2**16)
    configs = surrogate.space.from_unit(units)
    objectives = surrogate.evaluate_units(units)[last.objective]
    scores = -last._objective_sign * objectives
    if scorer is not None:
        own = {name: _safe_indexing(value, test) for name, value in score_params.items()}
        known_steps = [] if steps is None else [("steps", FunctionTransformer(_Remembered(steps, x_test, table_test)))]
        columns = rows["x"][judged]

        def at(config: dict[str, Any]) -> Any:
            view = last._at_config(config, table_test, columns)
            return Pipeline([*known_steps, ("last", view)]) if known_steps else view

        found = [scorer(at(config), x_test, y_test, **own) for config in configs]
        if not all(isinstance(score, Real) for score in found):
            raise ValueError(f"`scoring` must return one number, but returned {found[0]!r}.")
        scores = np.array(found, dtype=np.float64)
    done = time.perf_counter()
    return _Fold(surrogate.space, configs, scores, objectives, fitted - start, done - fitted)


@dataclass(frozen=True)
class _Remembered:
    """Fitted steps of a pipeline that know what comes out for one table."""

    steps: Pipeline
    table: Any
    transformed: Any

    def __call__(self, table: Any) -> Any:
        return self.transformed if table is self.table else self.steps.transform(table)


def _fit_params_of(steps: Pipeline, estimator: Pipeline, params: Mapping[str, Any]) -> dict[str, Any]:
    """Those for all steps but the last."""
    if get_config()["enable_metadata_routing"]:
        wanted = get_routing_for_object(steps).consumes("fit", params.keys())
        return {key: value for key, value in params.items() if key in wanted}
    return {key: value for key, value in params.items() if not key.startswith(_prefix(estimator))}


def _quiet_study(seed: int) -> optuna.Study:
    """In memory; Optuna would announce it."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(direction="maximize", sampler=TPESampler(seed=seed))
    finally:
        optuna.logging.set_verbosity(verbosity)


def _last(estimator: Any) -> HyperTuneEstimator:
    """The estimator itself, or the last step of a pipeline."""
    last = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    if not isinstance(last, HyperTuneEstimator):
        raise TypeError(
            "HyperTuneSearchCV needs a HyperTuneClassifier or HyperTuneRegressor, or a pipeline that ends with one, but"
            f" got {_name(last)}."
        )
    if last.config is not None:
        raise ht.SpaceError("The estimator trains at one `config` only, so there is nothing to search: config=None.")
    return last


def _own_fit_params(estimator: Any, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Those for the last step of a pipeline."""
    if not isinstance(estimator, Pipeline):
        return params
    name = estimator.steps[-1][0]
    if get_config()["enable_metadata_routing"]:
        own: Mapping[str, Any] = process_routing(estimator, "fit", **params)[name]["fit"]
        return own
    return {key.removeprefix(f"{name}__"): value for key, value in params.items() if key.startswith(f"{name}__")}


def _prefix(estimator: Any) -> str:
    return f"{estimator.steps[-1][0]}__" if isinstance(estimator, Pipeline) else ""


def _name(estimator: Any) -> str:
    return type(estimator).__name__ if isinstance(estimator, BaseEstimator) else repr(estimator)


def _column(values: Sequence[Any]) -> np.ma.MaskedArray[Any, Any]:
    """A column of `cv_results_`."""
    if all(isinstance(value, (int, float)) for value in values):
        return np.ma.MaskedArray(np.array(values))
    column = np.ma.MaskedArray(np.empty(len(values), dtype=object))
    for index, value in enumerate(values):
        column[index] = value
    return column
