"""Tasks: a loss and its metrics together, for `fit` in a loss's place.

Batches are pairs (x, y), or dicts that hold "x" and the targets; see `hypertune_mip.batches.pair_of`. A loss here reads
`label_smoothing`, `mixup`, `weight_decay` and `l1` of the config, each where the space has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypertune_mip import losses
from hypertune_mip.arguments import real_number, whole_number
from hypertune_mip.batches import pair_of
from hypertune_mip.directions import Direction, checked_directions
from hypertune_mip.errors import LossError
from hypertune_mip.metrics import Metric, whole_set

_NONE = -100  # PyTorch's own index of targets that do not count


@dataclass(frozen=True)
class Task:
    """What is trained for, what is measured, and which values are the better ones.

    A task of one's own is one of these, or a function that makes one. To reach Ray's workers its parts must pickle.

    Args:
        loss: As in `fit`.
        metric: As in `fit`; None where nothing is to be measured.
        directions: As in `fit`.

    Raises:
        SpaceError: If a direction is none.

    Example:
        >>> task = Task(
        ...     loss=lambda model, batch, config: losses.mean_squared_error(*model(batch)),
        ...     metric=lambda model, batch: {"loss": losses.mean_squared_error(*model(batch))},
        ... )
        >>> task.directions
        {}
    """

    loss: Callable[[nn.Module, Any, Any], Tensor]
    metric: Metric | None = None
    directions: Mapping[str, Direction] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Validate."""
        object.__setattr__(self, "directions", checked_directions(self.directions))


class Classification(Task):
    """Cross-entropy, with the metrics "loss", the cross-entropy alone, and "error", the share of wrong classes.

    Metrics count every example the same.

    Args:
        weight: Of each class, in training.
        ignore_index: Target of what does not count. The metrics are then of the whole set, since batches differ in how
            much counts, and have no gradient.
        penalized: Pattern of the parameters' names that `weight_decay` and `l1` act on; see `losses.l2`.

    Raises:
        LossError: If a weight is no number, or the index no whole number.

    Example:
        >>> batch = torch.randn(8, 4), torch.randint(3, (8,))
        >>> model, config = nn.Linear(4, 3), {"weight_decay": 0.1, "label_smoothing": 0.2}
        >>> task = Classification()
        >>> bool(task.loss(model, batch, config) > task.loss(model, batch, {"label_smoothing": 0.2}))
        True
        >>> list(task.metric(model, batch))
        ['loss', 'error']
    """

    def __init__(
        self, *, weight: Sequence[float] | None = None, ignore_index: int | None = None, penalized: str = "*"
    ) -> None:
        """See the class."""
        numbers = None if weight is None else tuple(real_number("weight", each, error=LossError) for each in weight)
        if ignore_index is not None:
            ignore_index = whole_number("ignore_index", ignore_index, error=LossError)
        super().__init__(
            loss=ClassificationLoss(numbers, ignore_index, penalized),
            metric=ClassificationMetric()
            if ignore_index is None
            else whole_set(SumsOverExamples(ignore_index), _means),
            directions={"loss": "minimize", "error": "minimize"},
        )


class Regression(Task):
    """Mean squared error, with the metric "loss", the same without penalties and mixup.

    Args:
        penalized: As in `Classification`.

    Example:
        >>> batch = torch.randn(8, 4), torch.randn(8, 1)
        >>> list(Regression().metric(nn.Linear(4, 1), batch))
        ['loss']
    """

    def __init__(self, *, penalized: str = "*") -> None:
        """See the class."""
        super().__init__(RegressionLoss(penalized), RegressionMetric(), {"loss": "minimize"})


@dataclass(frozen=True)
class ClassificationLoss:
    """The loss of `Classification`, with its arguments."""

    weight: tuple[float, ...] | None = None
    ignore_index: int | None = None
    penalized: str = "*"

    def __call__(self, model: nn.Module, batch: Any, config: Mapping[str, Any]) -> Tensor:
        """Of one setting, 0-d.

        Raises:
            DataError: If the batch is neither a pair nor a dict of inputs and targets.
            LossError: If logits and targets do not fit, or mixup is to mix targets that do not count.
        """
        x, y = pair_of(batch)
        shares = None
        if "mixup" in config:
            if self.ignore_index is not None:
                raise LossError("`mixup` mixes targets, so it cannot be in the space of a task with `ignore_index`.")
            shares = losses.mixing_shares(x, config["mixup"])
            x = losses.mixed(x, shares)
        logits = checked_logits(model(x), y)
        if shares is not None:
            y = losses.mixed(y if y.is_floating_point() else _one_hot(y, logits), shares)
        entropy = losses.cross_entropy(
            logits,
            y,
            weight=None if self.weight is None else _on_device(self.weight, logits.device, logits.dtype),
            ignore_index=_NONE if self.ignore_index is None else self.ignore_index,
            label_smoothing=config["label_smoothing"] if "label_smoothing" in config else 0.0,
        )
        return entropy + penalties(model, config, self.penalized)


@dataclass(frozen=True)
class ClassificationMetric:
    """The metrics of `Classification`."""

    def __call__(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Of one setting, 0-d each."""
        x, y = pair_of(batch)
        logits = checked_logits(model(x), y)
        wrong = logits.argmax(1) != (y.argmax(1) if y.is_floating_point() else y)
        return {"loss": losses.cross_entropy(logits, y), "error": wrong.to(logits.dtype).mean()}


@dataclass(frozen=True)
class SumsOverExamples:
    """What the metrics are made of where some targets do not count."""

    ignore_index: int

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Cross-entropy, wrong classes and how many targets count, each summed over an example, (N, 3)."""
        x, y = pair_of(batch)
        logits = checked_logits(model(x), y)
        counts = y != self.ignore_index
        entropy = F.cross_entropy(logits, y.long(), ignore_index=self.ignore_index, reduction="none")
        wrong = (logits.argmax(1) != y) & counts
        columns = [each.to(logits.dtype).reshape(len(y), -1).sum(1) for each in (entropy, wrong, counts)]
        return torch.stack(columns, 1)


def _means(sums: Tensor, targets: Any) -> dict[str, Tensor]:
    """Over all targets that count."""
    entropy, wrong, counts = sums.double().sum(0)
    return {"loss": entropy / counts, "error": wrong / counts}


@dataclass(frozen=True)
class RegressionLoss:
    """The loss of `Regression`, with its arguments."""

    penalized: str = "*"

    def __call__(self, model: nn.Module, batch: Any, config: Mapping[str, Any]) -> Tensor:
        """Of one setting, 0-d.

        Raises:
            DataError: If the batch is neither a pair nor a dict of inputs and targets.
            LossError: If outputs and targets differ in shape.
        """
        x, y = pair_of(batch)
        if "mixup" in config:
            x, y = losses.mixup(x, y, strength=config["mixup"])
        return losses.mean_squared_error(model(x), y) + penalties(model, config, self.penalized)


@dataclass(frozen=True)
class RegressionMetric:
    """The metric of `Regression`."""

    def __call__(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Of one setting, 0-d."""
        x, y = pair_of(batch)
        return {"loss": losses.mean_squared_error(model(x), y)}


def penalties(model: nn.Module, config: Mapping[str, Any], where: str = "*") -> Tensor | float:
    """weight_decay / 2 |theta|_2^2 + l1 |theta|_1, of whichever the config has; 0 without both.

    Args:
        model: What the loss was given.
        config: Of the setting.
        where: Pattern of parameters' names, as in `losses.l2`.
    """
    total: Tensor | float = 0.0
    if "weight_decay" in config:
        total = total + 0.5 * config["weight_decay"] * losses.l2(model, where=where)
    if "l1" in config:
        total = total + config["l1"] * losses.l1(model, where=where)
    return total


def checked_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """The logits (N, classes, ...), if targets (N, ...) or probabilities of the same shape fit them.

    Raises:
        LossError: If they do not, or there is but one column, of which cross-entropy is always 0.
    """
    fitting = logits.shape == targets.shape if targets.is_floating_point() else logits.ndim > 1
    if fitting and not targets.is_floating_point():
        fitting = logits.shape[:1] + logits.shape[2:] == targets.shape
    if not fitting or logits.shape[1] < 2:
        raise LossError(
            "A classifier must give logits (N, classes, ...), two classes at least, for class indices (N, ...) or"
            f" probabilities of the same shape, but got {tuple(logits.shape)} for {targets.dtype} targets of"
            f" {tuple(targets.shape)}. Give the network one output a class, or write a loss of your own."
        )
    return logits


def _one_hot(targets: Tensor, logits: Tensor) -> Tensor:
    return F.one_hot(targets.long(), logits.shape[1]).movedim(-1, 1).to(logits.dtype)


@lru_cache(maxsize=16)
def _on_device(numbers: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Copied once: a CUDA graph records no copies from the host."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, device=device, dtype=dtype)
