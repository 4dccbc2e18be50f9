"""The arguments of `fit` that are no options, checked and completed first, wherever training is to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.loss import _Loss

from hypertune_mip.directions import Direction, checked_directions
from hypertune_mip.errors import DataError, LossError, NetworkError, OptionError
from hypertune_mip.evaluation import Evaluator
from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.metrics import Metric, WholeSet
from hypertune_mip.space import SearchSpace
from hypertune_mip.tasks import Task
from hypertune_mip.training import Loss


def as_hypernetwork(network: Any, space: SearchSpace | None) -> HyperNetwork:
    """The hypernetwork itself, or one with defaults around a plain network, over `space`.

    Raises:
        NetworkError: If it is neither, or a plain network without a space.
        OptionError: If a hypernetwork comes with a space besides its own.
    """
    if isinstance(network, HyperNetwork):
        if space is not None and space != network.space:
            raise OptionError(f"The HyperNetwork has a space of its own, but got `space` as well:\n{space}")
        return network
    if not isinstance(network, nn.Module):
        raise NetworkError(
            f"`fit` takes a HyperNetwork, or a plain network with `space`, first, but got a {type(network).__name__}."
        )
    if space is None:
        raise NetworkError(
            f"{type(network).__name__} is a plain network: pass `space` as well, the hyperparameters, or"
            " HyperNetwork(network, space) in its place."
        )
    return HyperNetwork(network, space)


def goal_of(
    loss: Loss | Task,
    metric: Metric | None,
    directions: Mapping[str, Direction] | None,
    val_loader: Any,
) -> tuple[Loss, Metric | None, Mapping[str, Direction]]:
    """Loss, metric and directions, where a task may stand in the loss's place.

    A metric beside a task overrides the task's, with its directions; without validation data it has none.
    """
    stated = directions or {}
    if not isinstance(loss, Task):
        return loss, metric, stated
    if metric is not None or val_loader is None:
        return loss.loss, metric, stated
    return loss.loss, loss.metric, {**loss.directions, **stated}


def check_functions(loss: Any, metric: Any) -> None:
    """Raise LossError unless the loss is a function, and the metric, where there is one, is made of such."""
    if isinstance(loss, type) and issubclass(loss, Task):
        raise LossError(f"`loss` must be a function or a task, but got the class {loss.__name__}. Add parentheses.")
    _check_function("loss", loss, "(model, batch, config)")
    if isinstance(metric, Sequence) and not isinstance(metric, str):
        for part in metric:
            check_functions(loss, part)
    elif metric is not None and not isinstance(metric, WholeSet):
        _check_function("metric", metric, "(model, batch)")


def _check_function(name: str, function: Any, of: str) -> None:
    if not callable(function) or isinstance(function, type):
        raise LossError(f"`{name}` must be a function of {of}, but got {_kind(function)}.")
    if isinstance(function, _Loss):
        raise LossError(
            f"`{name}` must be a function of {of}, but {type(function).__name__} compares outputs with targets."
            f" Write for example: lambda {of[1:-1]}: criterion(model(batch[0]), batch[1])."
        )


def check_loader(name: str, loader: Any) -> None:
    """Raise DataError unless a loader is a collection of batches."""
    if isinstance(loader, nn.Module) or not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
        raise DataError(
            f"`{name}` must be a DataLoader or a list of batches, but got {_kind(loader)}. Is it in another argument's"
            " place?"
        )


def check_validation(metric: Metric | None, val_loader: Any) -> None:
    """Raise DataError unless metric and validation data are both there, or neither, and the data is batches."""
    if (metric is None) != (val_loader is None):
        raise DataError("`metric` and `val_loader` belong together: pass both, or neither.")
    if val_loader is not None:
        check_loader("val_loader", val_loader)


def evaluator_of(
    hypernet: HyperNetwork,
    metric: Metric | None,
    val_loader: Iterable[Any] | None,
    *,
    memory_budget: int | None = None,
    directions: Mapping[str, Direction] | None = None,
) -> Evaluator | None:
    """What measures a hypernetwork; None where there is no metric.

    Args:
        hypernet: On the device where it is to be measured.
        metric: See `Evaluator`.
        val_loader: See `Evaluator`, which reads it.
        memory_budget: See `Evaluator`.
        directions: See `Evaluator`.

    Raises:
        SpaceError: If a direction is none, or of a metric that is unknown.
        DataError: If `metric` or `val_loader` is there without the other, or the loader is no batches or empty.
    """
    check_validation(metric, val_loader)
    stated = checked_directions(directions)
    if metric is None or val_loader is None:
        return None
    return Evaluator(hypernet, metric, val_loader, memory_budget=memory_budget, directions=stated)


def _kind(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Callable) and hasattr(value, "__name__"):  # type: ignore[arg-type]
        return f"the function {value.__name__}"
    return f"a {type(value).__name__}"
