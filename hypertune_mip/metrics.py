"""What a metric may be: means over a batch, a figure of the whole validation set, or several of both.

metric = [loss, whole_set(predict, score)]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hypertune_mip.batches import targets_of
from hypertune_mip.errors import LossError

MeanMetric = Callable[[nn.Module, Any], Mapping[str, Tensor]]
"""Of (model, batch): 0-d means over the batch, by name, for one setting."""


@dataclass(frozen=True)
class WholeSet:
    """A metric of the outputs for all validation data together; `whole_set` makes it.

    Args:
        predict: (model, batch) to outputs (N, ...), a tensor or a tree of tensors, for one setting.
        score: (outputs, targets) of the whole set, on the CPU, to numbers by name.
        targets: Of a batch: a tensor (N, ...) or a tree of tensors.

    Raises:
        LossError: If one of them is no function.
    """

    predict: Callable[[nn.Module, Any], Any]
    score: Callable[[Any, Any], Mapping[str, Any]]
    targets: Callable[[Any], Any] = targets_of

    def __post_init__(self) -> None:
        """Validate."""
        for name in ("predict", "score", "targets"):
            if not callable(getattr(self, name)):
                raise LossError(f"`{name}` of a metric must be a function, but got {getattr(self, name)!r}.")


Metric = MeanMetric | WholeSet | Sequence[MeanMetric | WholeSet]
"""What `fit` takes as `metric`; the names of all parts of a sequence differ."""


def whole_set(
    predict: Callable[[nn.Module, Any], Any],
    score: Callable[[Any, Any], Mapping[str, Any]],
    *,
    targets: Callable[[Any], Any] | None = None,
) -> WholeSet:
    """A metric that is no mean over examples, such as an AUC, an F1 score, R2 or a root mean square error.

    The outputs of all validation batches are gathered at each setting, then `score` runs once a setting. It has no
    gradient: where one is asked for, that is 0, as of an error rate. Where an output is NaN, so are its figures.

    Args:
        predict: (model, batch) to outputs (N, ...), a tensor or a tree of tensors, for one setting.
        score: (outputs, targets) of the whole set to numbers by name, by any function: both are on the CPU, without
            gradients, outputs of half types as float32.
        targets: Of a batch, (N, ...), a tensor or a tree of tensors. None takes the second element of a batch (x, y),
            or in a dict what is under one of `hypertune_mip.batches.TARGETS`.

    Raises:
        LossError: If an argument is no function.

    Example:
        >>> import torch
        >>> def score(outputs, targets):
        ...     return {"rmse": (outputs - targets).square().mean().sqrt()}
        >>> metric = whole_set(lambda model, batch: model(batch[0]), score)
        >>> metric.score(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 0.0]))
        {'rmse': tensor(1.4142)}
    """
    return WholeSet(predict, score, targets_of if targets is None else targets)


def parts_of(metric: Metric) -> tuple[MeanMetric | WholeSet, ...]:
    """The parts of a metric; of one that is no sequence itself alone.

    Raises:
        LossError: If a part is neither a function nor of the whole set, or there is none.
    """
    parts = tuple(metric) if isinstance(metric, Sequence) and not isinstance(metric, str) else (metric,)
    for part in parts:
        if not isinstance(part, WholeSet) and (not callable(part) or isinstance(part, type)):
            raise LossError(
                f"`metric` must be a function of (model, batch), `metrics.whole_set(...)` or a list of these, but"
                f" got {part!r}."
            )
    if not parts:
        raise LossError("`metric` must hold at least one metric, but got an empty sequence.")
    return parts
