"""From tables, targets and weights as users pass them to tensors: the half of the estimators that trains nothing."""

from __future__ import annotations

import math
from abc import ABCMeta, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import _safe_indexing, check_array, check_consistent_length
from sklearn.utils.validation import _check_sample_weight, _num_samples, validate_data
from torch import Tensor

from hypertune_mip_sklearn.table import Batches, is_frame, make_encoder, plain_integers


class TableEstimator(BaseEstimator, metaclass=ABCMeta):  # type: ignore[misc]  # scikit-learn ships no types
    """An estimator that reads tables; what it trains on is its own affair."""

    batch_size: Any
    validation_fraction: Any
    _remembered: tuple[Any, Tensor]

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
        y = plain_integers(y)
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
        part = chosen_rows(rows, np.arange(len(rows["y"])) if chosen is None else chosen)
        return Batches(part, min(len(part["y"]), self._batch_size(rows)), shuffle=True)

    def _batch_size(self, rows: Mapping[str, Tensor]) -> int:
        """Of one setting."""
        return max(16, min(256, len(rows["y"]) // 10)) if self.batch_size == "auto" else int(self.batch_size)

    @abstractmethod
    def _targets(self, y: Any, known: np.ndarray, weight: np.ndarray | None) -> Tensor:
        """What the network is to give; for numbers, standardised by the rows `known`."""

    @abstractmethod
    def _weight(self, sample_weight: np.ndarray | None, y: Any, known: np.ndarray) -> np.ndarray | None:
        """Of each row, that of its class included, by the rows `known`; None where all weigh the same."""

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

    def _encoded(self, x: Any) -> Tensor:
        """What the network reads."""
        if "_remembered" in self.__dict__ and x is self._remembered[0]:
            return self._remembered[1]
        return torch.as_tensor(self.encoder_.transform(self._checked_again(x)), dtype=torch.float32)

    @property
    @abstractmethod
    def _classes(self) -> int:
        """How many; 0 for regression."""

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
