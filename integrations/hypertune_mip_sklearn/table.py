"""From a table as users have it to columns that a network can read, and to batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
import torch
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from torch import Tensor

from hypertune_mip import DataError

_CATEGORIES = 30  # of one column at most; rarer ones share one
_CATEGORICAL = (nw.Boolean, nw.String, nw.Categorical, nw.Enum, nw.Object, nw.Unknown)
_LARGEST = 8.0  # standard deviations; what lies further out is bent towards it


def is_frame(x: Any) -> bool:
    """Whether it is a data frame with named columns: pandas, polars or any other that narwhals knows."""
    return isinstance(nw.from_native(x, pass_through=True, eager_only=True), nw.DataFrame)


def make_encoder(x: Any) -> ColumnTransformer | Pipeline:
    """Unfitted: numbers are imputed, standardised and bent, categories one-hot; missing numbers get indicators.

    Args:
        x: A data frame, whose columns of text, categories, objects or booleans are categorical; or an array of numbers.

    Raises:
        DataError: If a column is neither, such as a date.
    """
    numbers = make_pipeline(
        SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True),
        StandardScaler(),
        FunctionTransformer(bent),
    )
    numbers.set_output(transform="default")  # whatever the global one is
    if not is_frame(x):
        return numbers
    schema = nw.from_native(x, eager_only=True).schema
    numeric = [index for index, kind in enumerate(schema.values()) if kind.is_numeric()]  # names may be numbers
    categorical = [index for index in range(len(schema)) if index not in numeric]
    for name, kind in schema.items():
        if not (kind.is_numeric() or isinstance(kind, _CATEGORICAL)):
            raise DataError(
                f"Columns must hold numbers, text, categories or booleans, but '{name}' holds {kind}. Turn it into"
                " numbers, such as the days since some date, or drop it."
            )
    one_hot = OneHotEncoder(
        handle_unknown="infrequent_if_exist", max_categories=_CATEGORIES, sparse_output=False, dtype=np.float64
    )
    categories = make_pipeline(FunctionTransformer(texts), one_hot)
    parts = [("numbers", numbers, numeric), ("categories", categories, categorical)]
    return ColumnTransformer(parts, sparse_threshold=0.0).set_output(transform="default")


def plain_integers(y: Any) -> Any:
    """Labels of a series that could have missing values but has none; scikit-learn would make them floats."""
    series = nw.from_native(y, pass_through=True, allow_series=True)
    if isinstance(series, nw.Series) and series.dtype.is_integer() and not series.null_count():
        return series.to_numpy()
    return y


def texts(columns: Any) -> np.ndarray:
    """Values as text, None where one is missing: so libraries and types of columns make no difference."""
    frame = nw.from_native(columns, eager_only=True)
    found = np.empty(frame.shape, dtype=object)
    for index, series in enumerate(frame.iter_columns()):
        missing = series.is_null().to_list()
        found[:, index] = [None if no else str(v) for v, no in zip(series.to_list(), missing, strict=True)]
    return found


def stacked(first: Any, second: Any) -> Any:
    """The rows of two tables of one kind."""
    if is_frame(first):
        return nw.concat([nw.from_native(part, eager_only=True) for part in (first, second)]).to_native()
    return np.concatenate([np.asarray(first), np.asarray(second)])


def bent(columns: np.ndarray) -> np.ndarray:
    """Nearly the same around zero, never beyond `_LARGEST`: an outlier must not blow up a network."""
    bounded: np.ndarray = columns / np.hypot(1.0, columns / _LARGEST)
    return bounded


class Batches:
    """Rows of tensors that lie in memory, shuffled anew each epoch; a fast stand-in for a DataLoader.

    Args:
        rows: Tensors (N, ...), by name.
        size: Of a batch; the batches of an epoch are about equally large.
        shuffle: Whether to shuffle; the generator is seeded by the training loop.
    """

    def __init__(self, rows: Mapping[str, Tensor], size: int, *, shuffle: bool) -> None:
        """See the class."""
        self.rows = dict(rows)
        self.size = size
        self.generator = torch.Generator() if shuffle else None

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-self._count // self.size)

    @property
    def _count(self) -> int:
        return len(next(iter(self.rows.values())))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The batches of one epoch."""
        if self.generator is None:
            order = torch.arange(self._count)
        else:
            order = torch.randperm(self._count, generator=self.generator)
        for chosen in order.tensor_split(len(self)):
            yield {name: values[chosen] for name, values in self.rows.items()}
