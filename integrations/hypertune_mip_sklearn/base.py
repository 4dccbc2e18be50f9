"""What classifier and regressor share: from rows to a surrogate, from a surrogate to a network."""

from __future__ import annotations

import copy
import importlib.util
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, Self

import numpy as np
import torch
from optuna.distributions import BaseDistribution
from sklearn.base import _fit_context
from sklearn.callback import CallbackSupportMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

import hypertune_mip as ht
from hypertune_mip.arguments import whole_number
from hypertune_mip.directions import Direction, checked_directions, sign
from hypertune_mip.evaluation import Metric
from hypertune_mip.randomness import forked_random_state
from hypertune_mip.training import Loss, Options
from hypertune_mip.trainings import AnyConfig, FromHypernetwork
from hypertune_mip.verification.calibration import FEWEST
from hypertune_mip_sklearn.defaults import Adam, DefaultLoss, DefaultMetric, Module, default_network, default_space
from hypertune_mip_sklearn.rounds import trained_in_rounds
from hypertune_mip_sklearn.rows import TableEstimator, chosen_rows
from hypertune_mip_sklearn.table import Batches

Config = Mapping[str, Any]
Space = ht.SearchSpace | Mapping[str, BaseDistribution]
_STEPS = 750  # of training with epochs="auto", about
_FEW_ROWS, _FEW_STEPS = 600, 150  # with fewer rows there are fewer steps in proportion, but at least so many
_FEWEST_EPOCHS = 10
_FINE = 0.3  # of the epochs and of the learning rate, in each round that trains what the hypernetwork made further
_ROUNDS = 5  # at most
_JUDGES = 100  # rows; fewer cannot tell whether a further round pays
_SETTINGS = (3, 8)  # that share a step, each with a batch of its own
_FEWEST_STEPS = 10  # in an epoch that settings may share, where the epochs are given
_AT_ONCE = 2**24  # multiplications, about: a step with fewer takes no time beside its overhead
_SEARCH = {"candidates": 128, "starts": 4, "steps": 8}  # as good as four times as many on tables
_ROWS = 4096  # predicted at a time


@dataclass(frozen=True)
class _Shared:
    """A training whose steps several settings share.

    Args:
        network: The primary network.
        batches: For all settings of a step together.
        options: Of `ht.fit`, about the settings.
        epochs: Passes over the rows.
    """

    network: nn.Module
    batches: Batches
    options: dict[str, Any]
    epochs: int


class HyperTuneEstimator(CallbackSupportMixin, TableEstimator):  # type: ignore[misc]
    """What classifier and regressor share."""

    surrogate_: ht.Surrogate
    module_: nn.Module
    best_config_: dict[str, Any]
    best_score_: float
    history_: list[dict[str, Any]]
    trust_report_: ht.TrustReport | None
    n_rounds_: int

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012
        "module": [nn.Module, callable, None],
        "hidden_layer_sizes": ["array-like"],
        "space": [Mapping, None],
        "config": [Mapping, None],
        "loss": [callable, None],
        "metric": [callable, ht.metrics.WholeSet, list, tuple, None],
        "objective": [str],
        "directions": [Mapping, None],
        "epochs": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "batch_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither"), HasMethods(["split", "get_n_splits"])],
        "refit": [StrOptions({"deliver", "materialize", "retrain"})],
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
        directions: Mapping[str, Direction] | None = None,
        head: Any = None,
        epochs: int | Literal["auto"] = "auto",
        batch_size: int | Literal["auto"] = "auto",
        learning_rate: float = 6e-3,
        validation_fraction: Any = 0.2,
        refit: Literal["deliver", "materialize", "retrain"] = "deliver",
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
        self.directions = directions
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
        if self.config is None:
            self._check_verify()
        rows = self._rows(X, y, sample_weight)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        train, validation = np.arange(len(rows["y"])), None
        if self.config is None:
            train, validation = self._split(rows, X, y, seed)
        else:
            self._space().to_unit(dict(self.config))  # which says what is wrong with it before anything is trained
        plain = self.config is not None and self.refit == "retrain"
        shared = None if plain else self._shared(rows, train, seed)
        context = self._init_callback_context(max_subtasks=0 if shared is None else shared.epochs)
        context.call_on_fit_task_begin(estimator=self, X=X, y=y)
        self.__dict__.pop("surrogate_", None)
        self.history_, self.trust_report_, self.n_rounds_ = [], None, 0
        if shared is not None:
            self._fit_surrogate(shared, rows, train, validation, seed=seed, context=context)
        self._choose(rows, seed)
        if self.refit == "retrain" or (self.trust_report_ is not None and not self.trust_report_.trusted()):
            self.module_ = self._retrained(rows, seed)
        elif self.refit == "materialize":
            self.module_ = self._at(self.best_config_)
        else:
            self.module_ = self._delivered(rows, train, validation, seed)
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
            SpaceError: If the name is unknown, or there is not at least one point.
        """
        surrogate = self._surrogate()
        if self.config is not None:
            raise ValueError("With `config` no rows are held back to judge other settings by. Fit with config=None.")
        space = surrogate.space
        if name not in space:
            raise ht.SpaceError(f"The hyperparameter {name!r} is unknown; the space has {list(space)}.")
        points = whole_number("points", points, low=1, error=ht.SpaceError)
        units = space.to_unit(self.best_config_).repeat(points, 1)
        units[:, list(space).index(name)] = torch.linspace(0.0, 1.0, points, dtype=units.dtype)
        units = space.snap(units).unique(dim=0)
        values = np.array([config[name] for config in space.from_unit(units)])
        return {name: values, **surrogate.evaluate_units(units)}

    # From tensors to a surrogate

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
        with forked_random_state(seed=seed):
            if self.module is None:
                return default_network(inputs, self._outputs_count, tuple(self.hidden_layer_sizes), self._space())
            return self.module(inputs, self._outputs_count)

    def _goal(self) -> tuple[Loss, Metric]:
        return (
            DefaultLoss(self._classes) if self.loss is None else self.loss,
            DefaultMetric(self._classes) if self.metric is None else self.metric,
        )

    @property
    def _objective_sign(self) -> float:
        return sign(checked_directions(self.directions).get(self.objective, "minimize"))

    def _epochs(self, batches: Batches) -> int:
        if self.epochs != "auto":
            return int(self.epochs)
        share = len(batches.rows["y"]) / _FEW_ROWS
        steps = min(_STEPS, max(_FEW_STEPS, _STEPS * share))
        return max(_FEWEST_EPOCHS, round(steps / len(batches)))

    def _shared(self, rows: Mapping[str, Tensor], train: np.ndarray, seed: int) -> _Shared:
        """How the hypernetwork is to be trained on the rows `train`."""
        network = self._network(rows["x"].shape[1], seed)
        batches = self._batches(rows, train)
        size, count = self._batch_size(rows), len(batches.rows["y"])
        work = size * sum(p.numel() for p in network.parameters() if not isinstance(p, UninitializedParameter))
        steps = 1 if self.epochs == "auto" else _FEWEST_STEPS
        settings = min(int(np.clip(_AT_ONCE // max(1, work), *_SETTINGS)), count // (size * steps))
        if settings < _SETTINGS[0]:
            return _Shared(network, batches, {}, self._epochs(batches))
        batches = Batches(batches.rows, -(-count // (count // (settings * size))), shuffle=True)
        options = {"settings_per_step": settings, "batching": "split"}
        return _Shared(network, batches, options, self._epochs(batches))

    def _fit_surrogate(
        self,
        shared: _Shared,
        rows: Mapping[str, Tensor],
        train: np.ndarray,
        validation: np.ndarray | None,
        *,
        seed: int,
        context: Any = None,
    ) -> None:
        """Train the hypernetwork; callbacks see the epochs, if there is a context of theirs."""
        loss, metric = self._goal()
        judged: dict[str, Any] = {}
        if validation is not None:
            batches = Batches(chosen_rows(rows, validation), _ROWS, shuffle=False)
            judged = {"metric": metric, "val_loader": batches, "directions": self.directions}

        def each_epoch(record: dict[str, Any]) -> bool:
            epoch = context.subcontext(task_name="epoch").call_on_fit_task_begin(estimator=self)
            return bool(epoch.call_on_fit_task_end(estimator=self))

        head = {} if self.head is None else {"head": self.head}
        surrogate = ht.fit(
            ht.HyperNetwork(shared.network, self._space(), seed=seed, **head),
            loss,
            shared.batches,
            **judged,
            **shared.options,
            epochs=shared.epochs,
            optimizer=Adam(float(self.learning_rate)),
            device=self.device,
            seed=seed,
            progress=bool(self.verbose),
            callbacks=[] if context is None else [each_epoch],
        )
        if judged and self.objective not in surrogate.metrics:
            raise ht.SpaceError(
                f"The objective {self.objective!r} is unknown; the metric returns {list(surrogate.metrics)}."
            )
        single = self._batches(rows, train)  # with which a network is trained for real
        self.surrogate_ = surrogate.replace(train_loader=single, recipe=self._recipe(single))
        self.history_ = self.surrogate_.history

    def _check_verify(self) -> None:
        """Before anything is trained."""
        if self.verify in (1, 2):
            raise ValueError(f"`verify` must be 0, or at least {FEWEST} to say anything, but got {self.verify}.")
        if self.verify and importlib.util.find_spec("botorch") is None:
            raise ht.MissingExtraError("Calibration, which `verify` asks for,", "calibration")

    def _choose(self, rows: Mapping[str, Tensor], seed: int) -> None:
        """The best setting: what was asked for, or else by the surrogate, or by real training where that has doubts."""
        if self.config is not None:
            space = self._space()
            (self.best_config_,) = space.from_unit(space.to_unit(dict(self.config)))
            self.best_score_ = math.nan
            return
        if self.verify:
            trainer = self.surrogate_.trainer(initialize=self._initialize(rows))
            report = self.surrogate_.verify(
                self.objective, settings=self.verify, trainer=trainer, progress=bool(self.verbose)
            )
            self.trust_report_ = report
            if report.trusted():
                self.surrogate_ = self.surrogate_.calibrated(report)
            else:
                true = self._objective_sign * report.true[self.objective].mean(1)
                if not np.isfinite(true).any():
                    raise ht.TrainingError("All real trainings of `verify` diverged. Try a smaller learning rate.")
                best = int(np.nanargmin(true))
                self.best_config_, self.best_score_ = dict(report.configs[best]), -float(true[best])
                return
        optimum = self.surrogate_.optimize(self.objective, **_SEARCH, seed=seed % 1000)
        self.best_config_, self.best_score_ = optimum.config, -self._objective_sign * optimum.value

    def _delivered(
        self, rows: Mapping[str, Tensor], train: np.ndarray, validation: np.ndarray | None, seed: int
    ) -> nn.Module:
        """What the hypernetwork makes at the best setting, trained further on all rows, as long as it pays.

        How long that is, trainings on the rows `train` tell, from the same weights: their rounds end with the last one
        that is better for the rows `validation`. Where few or none were held back there is one round.
        """
        seed, rounds = seed % 1000, 1
        if validation is not None and len(validation) >= _JUDGES:
            judge, way = self._trainer(rows, _FINE, train=train, validation=validation), self._objective_sign

            def score(network: nn.Module) -> float:
                return way * judge.measure(network)[self.objective]

            _, rounds = trained_in_rounds(judge, "end", self.best_config_, _ROUNDS, seed=seed, score=score)
        trainer = self._trainer(rows, _FINE)
        network, self.n_rounds_ = trained_in_rounds(trainer, "end", self.best_config_, rounds, seed=seed)
        return network

    def _retrained(self, rows: Mapping[str, Tensor], seed: int) -> nn.Module:
        """A network trained at the best setting on all rows, from scratch."""
        network = self._network(rows["x"].shape[1], seed)
        trainer = self._trainer(rows, 1.0, network=network, initialize=self._initialize(rows))
        return trainer.network(self.best_config_, seed=seed % 1000)

    def _trainer(
        self,
        rows: Mapping[str, Tensor],
        share: float,
        *,
        train: np.ndarray | None = None,
        validation: np.ndarray | None = None,
        network: nn.Module | None = None,
        initialize: Any = "given",
    ) -> ht.Trainer:
        """Of plain networks, for a share of the epochs at a share of the learning rate.

        All rows train and judge where none are named; without a network it branches from the hypernetwork.
        """
        loss, metric = self._goal()
        batches = self._batches(rows, train)
        judged = batches.rows if validation is None else chosen_rows(rows, validation)
        return ht.Trainer(
            self.surrogate_.hypernet.given if network is None else network,
            self._space(),
            loss,
            batches,
            metric=metric,
            val_loader=Batches(judged, _ROWS, shuffle=False),
            recipe=self._recipe(batches, share),
            branch_points={"end": FromHypernetwork(self.surrogate_.hypernet)} if network is None else None,
            initialize=initialize,
            device=Options(device=self.device).resolved_device(),
        )

    def _recipe(self, batches: Any, share: float = 1.0) -> ht.Recipe:
        """How one network is trained, or finished: for a share of the epochs, at a share of the learning rate."""
        epochs = max(1, round(share * self._epochs(batches)))
        return ht.Recipe(epochs=epochs, optimizer=AnyConfig(Adam(share * float(self.learning_rate))))

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
                ' Fit again with config=None or refit="deliver".'
            )
        return self.surrogate_

    def _at(self, config: Config) -> nn.Module:
        return self._surrogate().materialize(config)

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

    def _at_config(self, config: Config, table: Any, columns: Tensor) -> Self:
        """A copy that predicts at a config, and need not encode a table again."""
        view = copy.copy(self)
        view._remembered = table, columns
        view.module_ = self._at(config)
        return view
