"""`HyperTuneClassifier` and `HyperTuneRegressor`: networks whose regularisation is tuned while they are fitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.preprocessing import LabelEncoder, StandardScaler
from sklearn.utils import check_array, compute_class_weight, compute_sample_weight
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d
from torch import Tensor

from hypertune_mip.directions import Direction
from hypertune_mip.evaluation import Metric
from hypertune_mip.training import Loss
from hypertune_mip_sklearn.base import Config, HyperTuneEstimator, Space
from hypertune_mip_sklearn.defaults import Module


class HyperTuneClassifier(ClassifierMixin, HyperTuneEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """A network for classes whose regularisation is tuned while it is fitted.

    `fit` trains one hypernetwork, searches the regularisation by it, and keeps a network at the best setting.

    Args:
        module: The network, whose weights as they are given are the start of every training, or a function that makes
            it from the numbers of inputs and classes. Inputs are what the encoder makes of `X`, standardised; outputs
            are logits. None is a multilayer perceptron.
        hidden_layer_sizes: Widths of that perceptron.
        space: What to tune: Optuna's distributions by name. None is weight decay, dropout, input noise, mixup and label
            smoothing; another space needs a `module` or a `loss` that reads it.
        config: One setting to take instead of searching; with `refit="retrain"` a network is trained there in the
            ordinary way, without a hypernetwork.
        loss: (model, batch, config) to a 0-d tensor; a batch is a dict with "x", "y" and, where given, "weight".
        metric: (model, batch) to a dict of 0-d tensors, `ht.metrics.whole_set(...)`, or a list of both. None is "loss",
            the cross-entropy, and "error".
        objective: The metric that is best at the best setting.
        directions: By metric "maximize", where large values are the better ones, or "minimize", as it is where nothing
            is said.
        head: Of the hypernetwork, such as `ht.RankOne()`.
        epochs: Passes over the data; "auto" is about 750 steps, and fewer for fewer than 600 rows to train on. Each
            round of `refit="deliver"` takes 0.3 of them.
        batch_size: Of each setting; "auto" is a tenth of the data, from 16 to 256. Where there are rows enough, the
            settings of a step have a batch each.
        learning_rate: Of Adam, which decays along half a cosine; in the rounds of `refit="deliver"` it is 0.3 of that.
        validation_fraction: Share of the data that settings are judged by, or a splitter, whose first split is taken.
        refit: "deliver" trains the network that the hypernetwork makes at the best setting further on all data, in
            rounds of which it takes the mean; how many, up to five, is found on the data that settings are judged by.
            There is one where these are fewer than 100 rows, or with `config` none. "materialize" takes the network as
            it is; "retrain" trains one from scratch.
        verify: How many settings to train for real, none or at least three, to measure and calibrate the surrogate
            (needs the extra [calibration]). Where the report has doubts, the best of these trainings is the best
            setting, and a network is trained there.
        class_weight: Weights of the classes by label, "balanced" for inverse frequencies, or None.
        random_state: Seed of everything.
        device: "cpu", "cuda" or "auto".
        verbose: Whether to show progress.

    Attributes:
        best_config_: The setting of the network that predicts, unless `set_config` has changed it.
        best_score_: The objective there, on validation data, or minus it where small values are better; with `config`,
            NaN.
        surrogate_: What answers for any setting (`ht.Surrogate`); with `config` it has no validation data to measure
            by, and with `refit="retrain"` as well there is none.
        module_: The network.
        encoder_: The transformer from `X` to the network's inputs.
        trust_report_: Surrogate beside real training, or None.
        n_rounds_: How many rounds of `refit="deliver"` the fitted network is the mean of; 0 where it was made
            otherwise.
        history_: Records of the epochs.
        classes_: Labels.
        n_features_in_: Columns of `X`.
        feature_names_in_: Their names, where they are strings.

    Example:
        >>> from sklearn.datasets import load_wine
        >>> x, y = load_wine(return_X_y=True)
        >>> classifier = HyperTuneClassifier(epochs=5, random_state=0).fit(x, y)
        >>> classifier.predict_proba(x).shape
        (178, 3)
    """

    _parameter_constraints = {  # noqa: RUF012
        **HyperTuneEstimator._parameter_constraints,
        "class_weight": [StrOptions({"balanced"}), dict, None],
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
        class_weight: Any = None,
        random_state: Any = None,
        device: str = "cpu",
        verbose: bool | int = False,
    ) -> None:
        """See the class."""
        super().__init__(
            module,
            hidden_layer_sizes=hidden_layer_sizes,
            space=space,
            config=config,
            loss=loss,
            metric=metric,
            objective=objective,
            directions=directions,
            head=head,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            validation_fraction=validation_fraction,
            refit=refit,
            verify=verify,
            random_state=random_state,
            device=device,
            verbose=verbose,
        )
        self.class_weight = class_weight

    def predict_proba(self, X: Any, *, config: Config | None = None) -> np.ndarray:
        """Probabilities (N, classes), float64.

        Args:
            X: As in `fit`.
            config: Another setting than the best, by the network that the hypernetwork makes there.
        """
        probabilities: np.ndarray = self._outputs(X, config).softmax(-1).numpy()
        return probabilities

    def predict(self, X: Any, *, config: Config | None = None) -> np.ndarray:
        """Labels (N,); arguments as in `predict_proba`."""
        chosen = self._outputs(X, config).argmax(-1).numpy()
        labels: np.ndarray = self.classes_[chosen]
        return labels

    @property
    def _classes(self) -> int:
        return len(self.classes_)

    @property
    def _outputs_count(self) -> int:
        return len(self.classes_)

    def _targets(self, y: Any, known: np.ndarray, weight: np.ndarray | None) -> Tensor:
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        labels = LabelEncoder().fit(y)
        self.classes_ = labels.classes_
        present = labels.classes_ if weight is None else np.unique(y[weight > 0])
        if len(present) < 2:
            raise ValueError(
                f"A classifier needs at least two classes, but y holds one class only where `sample_weight` is not 0:"
                f" {present}."
            )
        return torch.as_tensor(labels.transform(y), dtype=torch.long)

    def _weight(self, sample_weight: np.ndarray | None, y: Any, known: np.ndarray) -> np.ndarray | None:
        if self.class_weight is None:
            return sample_weight
        y = column_or_1d(y)
        by_class = self.class_weight
        if by_class == "balanced":
            present = np.unique(y[known])
            balanced = compute_class_weight("balanced", classes=present, y=y[known], sample_weight=None)
            by_class = dict(zip(present, balanced, strict=True))
        weight: np.ndarray = compute_sample_weight(by_class, y)
        return weight if sample_weight is None else weight * sample_weight


class HyperTuneRegressor(RegressorMixin, HyperTuneEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """A network for numbers, one or several a row, whose regularisation is tuned while it is fitted.

    Targets are standardised for training, so losses, metrics and `best_score_` are in units of their variance. All else
    is as in `HyperTuneClassifier`; the default space has no label smoothing, and the default metric is "loss", the mean
    squared error.

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> x, y = load_diabetes(return_X_y=True)
        >>> regressor = HyperTuneRegressor(epochs=5, random_state=0).fit(x, y)
        >>> regressor.predict(x, config={**regressor.best_config_, "dropout": 0.5}).shape
        (442,)
    """

    def predict(self, X: Any, *, config: Config | None = None) -> np.ndarray:
        """Numbers (N,) or (N, outputs), float64.

        Args:
            X: As in `fit`.
            config: Another setting than the best, by the network that the hypernetwork makes there.
        """
        outputs = self._outputs(X, config).numpy()
        numbers: np.ndarray = self._scaler.inverse_transform(outputs.reshape(len(outputs), -1))
        return numbers.ravel() if self._flat else numbers

    @property
    def _classes(self) -> int:
        return 0

    @property
    def _outputs_count(self) -> int:
        return int(self._scaler.n_features_in_)

    def _targets(self, y: Any, known: np.ndarray, weight: np.ndarray | None) -> Tensor:
        y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        self._flat = y.ndim == 1
        table = y.reshape(len(y), -1)
        self._scaler = StandardScaler().fit(table[known], sample_weight=None if weight is None else weight[known])
        return torch.as_tensor(self._scaler.transform(table), dtype=torch.float32)

    def _weight(self, sample_weight: np.ndarray | None, y: Any, known: np.ndarray) -> np.ndarray | None:
        return sample_weight

    def __sklearn_tags__(self) -> Any:
        """Several targets are welcome."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
