"""`fit`: from a hypernetwork, a loss and data to a surrogate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Unpack

from torch import nn

from hypertune_mip.directions import Direction
from hypertune_mip.evaluation import Evaluator, Metric
from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.space import SearchSpace
from hypertune_mip.surrogate.arguments import (
    as_hypernetwork,
    check_functions,
    check_loader,
    check_validation,
    evaluator_of,
    goal_of,
)
from hypertune_mip.surrogate.surrogate import Surrogate
from hypertune_mip.tasks import Task
from hypertune_mip.training import Loss, Options, train
from hypertune_mip.training.keywords import FitKeywords, check_names, takes_options
from hypertune_mip.training.run_state import Trained
from hypertune_mip.trainings import AnyConfig, Recipe
from hypertune_mip.verification.response import warn_of_no_response


@takes_options(FitKeywords.__annotations__)
def fit(
    network: HyperNetwork | nn.Module,
    loss: Loss | Task,
    train_loader: Iterable[Any],
    *,
    space: SearchSpace | None = None,
    metric: Metric | None = None,
    val_loader: Iterable[Any] | None = None,
    directions: Mapping[str, Direction] | None = None,
    **options: Unpack[FitKeywords],
) -> Surrogate:
    """Train a hypernetwork once over its whole search space and return the surrogate that answers for any setting.

    Args:
        network: A hypernetwork, which is trained in place and moved to `device`; or a plain network with `space`, which
            stays as it is: a hypernetwork with defaults is made around a copy of it.
        loss: (model, batch, config) to a 0-d tensor, written for one setting; `config` maps a name to a 0-d tensor.
            Or a task, such as `Classification()`, which brings a loss, metric and directions.
        train_loader: A DataLoader, or any collection of batches that can be read once an epoch.
        space: Hyperparameters, for a plain network.
        metric: (model, batch) to 0-d means over the batch, by name; `metrics.whole_set(...)`, for what is no mean; or a
            list of such. Needed to evaluate anything. Beside a task it takes the place of the task's own.
        val_loader: Validation data for `metric`.
        directions: By metric "maximize", where large values are the better ones, or "minimize", as it is where nothing
            is said.
        **options: How to train; `hypertune_mip.training.Options` declares each.

    Raises:
        OptionError: If an option is invalid; if there is none of that name, it is a TypeError as well.
        DataError: If a loader is empty or a batch cannot be split.
        NetworkError: If `network` is neither, or needs a space.
        SpaceError: If a direction is none, or of a metric that is unknown.
        LossError: If the loss or metric is no function, or returns something else than agreed.
        TrainingError: If a loss is not finite; it names the setting, and the hypernetwork keeps the last good state.
        StorageError: If a checkpoint cannot be written, read, or belongs to another run.

    Warns:
        HypertuneWarning: If no metric responds to a hyperparameter, or to any.
    """
    check_names(fit, options)
    hypernet = as_hypernetwork(network, space)
    loss, metric, directions = goal_of(loss, metric, directions, val_loader)
    check_functions(loss, metric)
    check_loader("train_loader", train_loader)
    check_validation(metric, val_loader)
    chosen = Options(**options)
    hypernet.to(chosen.resolved_device())
    evaluator = evaluator_of(hypernet, metric, val_loader, directions=directions)
    trained = train(hypernet, loss, train_loader, chosen, evaluator=evaluator)
    return finished(hypernet, trained, chosen, loss=loss, train_loader=train_loader, evaluator=evaluator, stacklevel=3)


def recipe_of(options: Options) -> Recipe:
    """How `fit` trained, for a single network."""
    return Recipe(
        epochs=options.epochs,
        optimizer=AnyConfig(options.optimizer),
        schedule=options.schedule,
        gradient_clip=options.gradient_clip,
        accumulate=options.accumulate,
        precision=options.precision,
    )


def finished(
    hypernet: HyperNetwork,
    trained: Trained,
    options: Options,
    *,
    loss: Loss,
    train_loader: Iterable[Any] | None,
    evaluator: Evaluator | None,
    stacklevel: int = 2,
) -> Surrogate:
    """The surrogate in which training ends, wherever it ran.

    Args:
        hypernet: Trained.
        trained: What training reported.
        options: How it was trained.
        loss: What it was trained for.
        train_loader: For real trainings.
        evaluator: Of the hypernetwork, if there is a metric.
        stacklevel: Whose line warnings name: 2 for the one that calls this.

    Warns:
        HypertuneWarning: If no metric responds to a hyperparameter, or to any.
    """
    surrogate = Surrogate(
        hypernet,
        loss=loss,
        train_loader=train_loader,
        recipe=recipe_of(options),
        history=trained.history,
        execution=trained.execution,
        early=trained.snapshot,
        evaluator=evaluator,
    )
    if evaluator is not None:
        warn_of_no_response(surrogate.responses(bases=2), trained.unread, stacklevel=stacklevel + 1)
    return surrogate
