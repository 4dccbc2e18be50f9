"""What classifier and regressor share: from a table to a surrogate, from a surrogate to a network."""

from __future__ import annotations

import copy
import importlib.util
import math
from abc import ABCMeta, abstractmethod
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Literal, Self

import numpy as np
import torch
from optuna.distributions import BaseDistribution
from sklearn.base import BaseEstimator, _fit_context
from sklearn.callback import CallbackSupportMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import (
    _safe_indexing,
    check_array,
    check_consistent_length,
    check_random_state,
)
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import _check_sample_weight, _num_samples, check_is_fitted, validate_data
from torch import Tensor, nn

import hypertune_mip as ht
from hypertune_mip.evaluation import Metric
from hypertune_mip.training import Loss, Options
from hypertune_mip.verification.calibration import FEWEST
from hypertune_mip_sklearn.defaults import Adam, DefaultLoss, DefaultMetric, Module, default_network, default_space
from hypertune_mip_sklearn.table import Batches, is_frame, make_encoder

Config = Mapping[str, Any]
Space = ht.SearchSpace | Mapping[str, BaseDistribution]
_STEPS = 1500  # of training with epochs="auto", about
_EPOCHS = (10, 200)
_SEARCH = {"candidates": 128, "starts": 4, "steps": 8}  # as good as four times as many on tables
_ROWS = 4096  # predicted at a time


class HyperTuneEstimator(CallbackSupportMixin, BaseEstimator, metaclass=ABCMeta):  # type: ignore[misc]
    """What classifier and regressor share."""

    surrogate_: ht.Surrogate
    module_: nn.Module
    best_config_: dict[str, Any]
    best_score_: float
    history_: list[dict[str, Any]]
    _remembered: tuple[Any, Tensor]
    trust_report_: ht.TrustReport | None

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012
        "module": [nn.Module, callable, None],
        "hidden_layer_sizes": ["array-like"],
        "space": [Mapping, None],
        "config": [Mapping, None],
        "loss": [callable, None],
        "metric": [callable, None],
        "objective": [str],
        "epochs": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "batch_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither"), HasMethods(["split", "get_n_splits"])],
        "refit": [StrOptions({"materialize", "retrain"})],
        "verify": [Interval(Integral, 0, None, closed="left")],
        "random_state": ["random_state"],
        "device": [str],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        module: Module | None = None,
        *,
        hidden_layer_sizes: tuple[int, ...] = (128, 128),
        space: Space | None = None,
        config: Config | None = None,
        loss: Loss | None = None,
        metric: Metric | None = None,
        objective: str = "loss",
        head: Any = None,
        epochs: int | Literal["auto"] = "auto",
        batch_size: int | Literal["auto"] = "auto",
        learning_rate: float = 6e-3,
        validation_fraction: Any = 0.2,
        refit: Literal["materialize", "retrain"] = "retrain",
        verify: int = 0,
        random_state: Any = None,
        device: str = "cpu",
        verbose: bool | int = False,
    ) -> None:
        """See the classes."""
        self.module = module
        self.hidden_layer_sizes = hidden_layer_sizes
        self.space = space
        self.config = config
        self.loss = loss
        self.metric = metric
        self.objective = objective
        self.head = head
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.refit = refit
        self.verify = verify
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train the hypernetwork once, search it, and keep a network at the best setting.

        Args:
            X: A data frame, or an array (N, features) of numbers; missing values are handled, infinite ones are not.
            y: Targets (N,); for regression (N, outputs) as well.
            sample_weight: Of each row (N,), at least 0, or None. Rows of weight 0 count as if they were not there.

        Returns:
            The estimator itself.

        Raises:
            ValueError: If data or a parameter is invalid.
            TrainingError: If a loss is not finite.
        """
        self._check_verify()
        rows = self._rows(X, y, sample_weight)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if self.config is None:
            self._fit_surrogate(rows, *self._split(rows, X, y, seed), seed=seed, shown=(X, y))
            self._choose(rows, seed)
            doubted = self.trust_report_ is not None and not self.trust_report_.trusted()
            made = self.refit == "materialize" and not doubted
            self.module_ = self._at(self.best_config_) if made else self._trained(rows, seed)
        else:
            context = self._init_callback_context().call_on_fit_task_begin(estimator=self, X=X, y=y)
            self.__dict__.pop("surrogate_", None)
            space = self._space()
            (self.best_config_,) = space.from_unit(space.to_unit(dict(self.config)))
            self.best_score_, self.history_, self.trust_report_ = math.nan, [], None
            self.module_ = self._trained(rows, seed)
            context.call_on_fit_task_end(estimator=self, X=X, y=y)
        return self

    def set_config(self, config: Config) -> Self:
        """Predict at another setting from now on, with the network that the hypernetwork makes there.

        Args:
            config: A value for each hyperparameter.

        Raises:
            SpaceError: If the config does not fit the space.
        """
        self.module_ = self._at(config)
        return self

    def response_curve(self, name: str, *, points: int = 25) -> dict[str, np.ndarray]:
        """Metrics on validation data as one hyperparameter goes through its range, the others at their best.

        Args:
            name: Of the hyperparameter.
            points: How many values at most.

        Returns:
            Its values, native scale, under its name, and each metric under its own, (points,).

        Raises:
            SpaceError: If the name is unknown.
        """
        surrogate = self._surrogate()
        space = surrogate.space
        if name not in space:
            raise ht.SpaceError(f"The hyperparameter {name!r} is unknown; the space has {list(space)}.")
        units = space.to_unit(self.best_config_).repeat(points, 1)
        units[:, list(space).index(name)] = torch.linspace(0.0, 1.0, points, dtype=units.dtype)
        units = space.snap(units).unique(dim=0)
        values = np.array([config[name] for config in space.from_unit(units)])
        return {name: values, **surrogate.evaluate_units(units)}

    # From tables to tensors

    def _rows(self, x: Any, y: Any, sample_weight: Any, known: np.ndarray | None = None) -> dict[str, Tensor]:
        """All rows as tensors; the encoder learns from those `known`, or from all."""
        table, y = self._checked(x, y)
        known = np.arange(_num_samples(table)) if known is None else known
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, table, dtype=np.float64, ensure_non_negative=True)
            known = known[sample_weight[known] > 0]
        rows = {"y": self._targets(y, known, sample_weight)}
        weight = self._weight(sample_weight, y, known)
        self.encoder_ = make_encoder(table).fit(_safe_indexing(table, known))
        rows["x"] = torch.as_tensor(self.encoder_.transform(table), dtype=torch.float32)
        if weight is not None:
            rows["weight"] = torch.as_tensor(weight, dtype=torch.float64)
        return rows

    def _checked(self, x: Any, y: Any) -> tuple[Any, Any]:
        if not is_frame(x):
            checked: tuple[Any, Any] = validate_data(
                self, x, y, dtype=np.float64, ensure_all_finite="allow-nan", multi_output=True, ensure_min_samples=2
            )
            return checked
        validate_data(self, x, skip_check_array=True)
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None.")
        y = check_array(y, ensure_2d=False, dtype=None, ensure_min_samples=2, input_name="y")
        check_consistent_length(x, y)
        return x, y

    def _checked_again(self, x: Any) -> Any:
        if is_frame(x):
            validate_data(self, x, skip_check_array=True, reset=False)
            return x
        return validate_data(self, x, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)

    def _batches(self, rows: Mapping[str, Tensor], chosen: np.ndarray | None = None) -> Batches:
        """To train on, all rows or those chosen; sizes follow from all."""
        count = len(rows["y"])
        part = chosen_rows(rows, np.arange(count) if chosen is None else chosen)
        size = max(16, min(256, count // 10)) if self.batch_size == "auto" else int(self.batch_size)
        return Batches(part, min(len(part["y"]), size), shuffle=True)

    @abstractmethod
    def _targets(self, y: Any, known: np.ndarray, weight: np.ndarray | None) -> Tensor:
        """What the network is to give; for numbers, standardised by the rows `known`."""

    @abstractmethod
    def _weight(self, sample_weight: np.ndarray | None, y: Any, known: np.ndarray) -> np.ndarray | None:
        """Of each row, that of its class included, by the rows `known`; None where all weigh the same."""

    # From tensors to a surrogate

    def _split(self, rows: Mapping[str, Tensor], x: Any, y: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows for training and for validation."""
        if hasattr(self.validation_fraction, "split"):
            train, validation = next(iter(self.validation_fraction.split(x, y)))
            return np.asarray(train), np.asarray(validation)
        count = len(rows["y"])
        size = math.ceil(float(self.validation_fraction) * count)
        strata = None
        if self._classes:
            labels = rows["y"].numpy()
            size = max(size, self._classes)
            both = np.bincount(labels).min() >= 2 and count - size >= self._classes
            strata = labels if both else None
        if size >= count:
            raise ValueError(
                f"Too few samples to split: of {count} rows, {size} are for validation. Pass more, or a smaller"
                " `validation_fraction`."
            )
        train, validation = train_test_split(np.arange(count), test_size=size, random_state=seed, stratify=strata)
        return train, validation

    @property
    @abstractmethod
    def _classes(self) -> int:
        """How many; 0 for regression."""

    @property
    @abstractmethod
    def _outputs_count(self) -> int:
        """Of the network."""

    def _space(self) -> ht.SearchSpace:
        space = default_space(classes=self._classes) if self.space is None else self.space
        return space if isinstance(space, ht.SearchSpace) else ht.SearchSpace(dict(space))

    def _network(self, inputs: int, seed: int) -> nn.Module:
        if isinstance(self.module, nn.Module):
            return self.module
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            if self.module is None:
                return default_network(inputs, self._outputs_count, tuple(self.hidden_layer_sizes), self._space())
            return self.module(inputs, self._outputs_count)

    def _goal(self) -> tuple[Loss, Metric]:
        return (
            DefaultLoss(self._classes) if self.loss is None else self.loss,
            DefaultMetric(self._classes) if self.metric is None else self.metric,
        )

    def _epochs(self, rows: Mapping[str, Tensor]) -> int:
        if self.epochs != "auto":
            return int(self.epochs)
        return int(np.clip(round(_STEPS / len(self._batches(rows))), *_EPOCHS))

    def _fit_surrogate(
        self,
        rows: Mapping[str, Tensor],
        train: np.ndarray,
        validation: np.ndarray,
        *,
        seed: int,
        shown: tuple[Any, Any] = (None, None),
    ) -> None:
        """Train the hypernetwork; callbacks see the epochs, and the data that are `shown`."""
        batches = self._batches(rows, train)
        epochs = self._epochs(rows)
        loss, metric = self._goal()
        context = self._init_callback_context(max_subtasks=epochs)
        context.call_on_fit_task_begin(estimator=self, X=shown[0], y=shown[1])

        def each_epoch(record: dict[str, Any]) -> None:
            epoch = context.subcontext(task_name="epoch").call_on_fit_task_begin(estimator=self)
            epoch.call_on_fit_task_end(estimator=self)

        self.surrogate_ = ht.fit(
            ht.HyperNetwork(
                self._network(rows["x"].shape[1], seed),
                self._space(),
                seed=seed,
                **({} if self.head is None else {"head": self.head}),
            ),
            loss,
            batches,
            metric=metric,
            val_loader=Batches(chosen_rows(rows, validation), _ROWS, shuffle=False),
            epochs=epochs,
            optimizer=Adam(self.learning_rate),
            device=self.device,
            seed=seed,
            progress=bool(self.verbose),
            callbacks=[each_epoch],
        )
        if self.objective not in self.surrogate_.metrics:
            raise ht.SpaceError(
                f"The objective {self.objective!r} is unknown; the metric returns {list(self.surrogate_.metrics)}."
            )
        self.history_ = self.surrogate_.history
        context.call_on_fit_task_end(estimator=self, X=shown[0], y=shown[1])

    def _check_verify(self) -> None:
        """Before anything is trained."""
        if self.verify in (1, 2):
            raise ValueError(f"`verify` must be 0, or at least {FEWEST} to say anything, but got {self.verify}.")
        if self.verify and importlib.util.find_spec("botorch") is None:
            raise ht.MissingExtraError("Calibration, which `verify` asks for,", "calibration")

    def _choose(self, rows: Mapping[str, Tensor], seed: int) -> None:
        """The best setting, by the surrogate or, where real training speaks against it, by the best real training."""
        self.trust_report_ = None
        if self.verify:
            truth = self.surrogate_.truth(initialize=self._initialize(rows))
            report = self.surrogate_.verify(
                self.objective, settings=self.verify, truth=truth, progress=bool(self.verbose)
            )
            self.trust_report_ = report
            if report.trusted():
                self.surrogate_ = self.surrogate_.calibrate(report)
            else:
                true = report.true[self.objective].mean(1)
                if not np.isfinite(true).any():
                    raise ht.TrainingError("All real trainings of `verify` diverged. Try a smaller learning rate.")
                best = int(np.nanargmin(true))
                self.best_config_, self.best_score_ = dict(report.configs[best]), -float(true[best])
                return
        optimum = self.surrogate_.minimize(self.objective, **_SEARCH, seed=seed % 1000)
        self.best_config_, self.best_score_ = optimum.config, -optimum.value

    def _trained(self, rows: Mapping[str, Tensor], seed: int) -> nn.Module:
        """A network trained at the best setting, on all rows and without a hypernetwork."""
        loss, metric = self._goal()
        batches = self._batches(rows)
        truth = ht.Truth(
            self._network(rows["x"].shape[1], seed),
            self._space(),
            loss,
            batches,
            metric=metric,
            val_loader=Batches(batches.rows, _ROWS, shuffle=False),
            epochs=self._epochs(rows),
            optimizer=Adam(self.learning_rate),
            initialize=self._initialize(rows),
            device=Options(device=self.device).resolved_device(),
        )
        return truth.network(self.best_config_, seed=seed % 1000)

    def _initialize(self, rows: Mapping[str, Tensor]) -> Any:
        """Where real training starts: from a user's network as it was given, or from what a function makes."""
        if isinstance(self.module, nn.Module):
            return "given"
        module = self.module
        return "reset" if module is None else lambda: module(rows["x"].shape[1], self._outputs_count)

    # From a surrogate to predictions

    def _surrogate(self) -> ht.Surrogate:
        check_is_fitted(self)
        if "surrogate_" not in self.__dict__:
            raise ValueError(
                "There is no surrogate to ask about other settings, since the network was trained at one `config`."
                " Fit again with config=None."
            )
        return self.surrogate_

    def _at(self, config: Config) -> nn.Module:
        return self._surrogate().materialize(dict(config))

    def _outputs(self, x: Any, config: Config | None) -> Tensor:
        """Of the network, (N, outputs), float64."""
        check_is_fitted(self)
        module = self.module_ if config is None else self._at(config)
        columns = self._encoded(x)
        if self.module is None:  # in float32 outputs depend on how many rows come along; own modules may insist on it
            module, columns = copy.deepcopy(module).double(), columns.double()
        device = next(module.parameters()).device
        with torch.no_grad():
            return torch.cat([module(part.to(device)).double().cpu() for part in columns.split(_ROWS)])

    def _encoded(self, x: Any) -> Tensor:
        """What the network reads."""
        if "_remembered" in self.__dict__ and x is self._remembered[0]:
            return self._remembered[1]
        return torch.as_tensor(self.encoder_.transform(self._checked_again(x)), dtype=torch.float32)

    def _at_config(self, config: Config, table: Any, columns: Tensor) -> Self:
        """A copy that predicts at a config, and need not encode a table again."""
        view = copy.copy(self)
        view._remembered = table, columns
        view.module_ = self._at(config)
        return view

    def __sklearn_tags__(self) -> Any:
        """Missing values are welcome."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.target_tags.required = True
        return tags


def chosen_rows(rows: Mapping[str, Tensor], chosen: np.ndarray) -> dict[str, Tensor]:
    """Some of the rows of each tensor, less those of weight 0; weights have the mean 1."""
    index = torch.as_tensor(chosen)
    if "weight" not in rows:
        return {name: values[index] for name, values in rows.items()}
    index = index[rows["weight"][index] > 0]
    if not len(index):
        raise ValueError("All rows of training or validation data have the weight 0. Pass other weights or folds.")
    part = {name: values[index] for name, values in rows.items()}
    return {**part, "weight": (part["weight"] / part["weight"].mean()).float()}
