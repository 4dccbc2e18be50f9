"""Trainables for Ray Tune: one asks a surrogate instead of training a network, one trains a branch from it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray
import torch
from ray import cloudpickle, tune

from hypertune_mip import OptionError, Recipe, SpaceError, Surrogate
from hypertune_mip_ray.cluster import pickled_or_named


def trainable(surrogate: Surrogate, metrics: str | Sequence[str]) -> Any:
    """What `tune.Tuner` runs: each trial reports all metrics of the surrogate at its config, and is done.

    The surrogate goes to Ray's object store once, and each actor that runs trials takes it from there; with
    `TuneConfig(reuse_actors=True)` an actor serves many trials. A trial costs Ray more than the surrogate takes: for
    thousands of settings use `evaluate_batch`, or `Surrogate.optimize`.

    Args:
        surrogate: With validation data.
        metrics: Those that the search is about, one or several; they must exist. All are reported.

    Raises:
        SpaceError: If a metric is unknown; in a trial, if its config has an unknown or missing name.

    Warns:
        HypertuneWarning: If the surrogate is not to be trusted for a metric, as its last trust report has it.
    """
    names = _checked(surrogate, metrics)
    surrogate.warn_of_doubts(*names, stacklevel=3)
    return tune.with_parameters(surrogate_trial, pickled=cloudpickle.dumps(surrogate.to("cpu")))


def branch_trainable(
    surrogate: Surrogate,
    metrics: str | Sequence[str],
    *,
    share: float = 0.25,
    recipe: Recipe | None = None,
    recipe_names: Sequence[str] = (),
    folder: str | Path | None = None,
    seed: int = 0,
) -> Any:
    """What `tune.Tuner` runs: each trial trains a branch at its config, and reports `epoch` and all metrics after each.

    A branch is a real network that starts from the hypernetwork's weights: it costs a share of a training, and orders
    settings as whole trainings do. A scheduler such as ASHA may stop it after any epoch; give it `time_attr="epoch"`,
    since a branch that is kept in the folder reports its last epoch at once. A trial trains on a GPU if it is given
    one, with `tune.with_resources`.

    Args:
        surrogate: With loss, training data and validation data, as `fit` makes it.
        metrics: Those that the search is about, one or several; they must exist. All are reported.
        share: Of the recipe that each branch takes, in (0, 1].
        recipe: How one network is trained; None is as `fit` was told.
        recipe_names: Names in the trials' configs that the recipe's optimizer reads, beside those of the space: such as
            that of a learning rate.
        folder: Where finished branches are kept with their networks, on a file system that all machines share: there
            `surrogate.trainer(recipe, folder).branch(...)` finds them. None keeps none.
        seed: Of the order of data and of noise.

    Raises:
        SpaceError: If a metric is unknown, or a name is the space's and the recipe's; in a trial, if its config has an
            unknown or missing name.
        OptionError: If the share is not in (0, 1], or there are `recipe_names` and no recipe.
        DataError: If the surrogate lacks the loss or data, or something of it cannot be sent to trials.

    Example:
        tuner = tune.Tuner(
            ht_ray.branch_trainable(surrogate, "loss", recipe=recipe, recipe_names=["learning_rate"]),
            param_space={**ht_ray.param_space(surrogate.space), "learning_rate": tune.loguniform(1e-4, 1e-2)},
            tune_config=tune.TuneConfig(num_samples=16, scheduler=ASHAScheduler("epoch", "loss", "min")),
        )
    """
    _checked(surrogate, metrics)
    names = list(recipe_names)
    if names and recipe is None:
        raise OptionError(f"`recipe_names` holds {names}, which a recipe is to read: pass `recipe`.")
    if both := [name for name in names if name in surrogate.space]:
        raise SpaceError(f"{both} are in the surrogate's space already: take other `recipe_names`.")
    trainer = surrogate.trainer(recipe, None if folder is None else Path(folder).resolve())  # trials run elsewhere
    (some,) = surrogate.space.from_unit(surrogate.space.sample(1))
    trainer.branch_epochs(some, share=share, seed=seed)  # which refuses what it cannot take, and waits
    pickled = pickled_or_named(trainer.on("cpu"), {"trainer": trainer})
    return tune.with_parameters(branch_trial, pickled=pickled, names=names, share=share, seed=seed)


def surrogate_trial(config: dict[str, Any], pickled: bytes) -> None:
    """One trial."""
    surrogate = _unpickled(pickled)
    tune.report(surrogate.evaluate(config))


def branch_trial(config: dict[str, Any], pickled: bytes, names: Sequence[str], share: float, seed: int) -> None:
    """One trial."""
    trainer = cloudpickle.loads(pickled)  # anew, so that an actor that runs many trials keeps no networks
    if ray.get_gpu_ids() and torch.cuda.is_available():
        trainer = trainer.on("cuda")
    if names:
        if missing := [name for name in names if name not in config]:
            raise SpaceError(f"The trial's config lacks {missing}, which `recipe_names` holds; it has {list(config)}.")
        trainer = trainer.following(trainer.recipe.given({name: config[name] for name in names}))
    own = {name: value for name, value in config.items() if name not in names}
    for epoch, values in trainer.branch_epochs(own, share=share, seed=seed):
        tune.report({"epoch": epoch, **values})


def _checked(surrogate: Surrogate, metrics: str | Sequence[str]) -> list[str]:
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    for name in names:
        if name not in surrogate.metrics:
            raise SpaceError(f"The metric {name!r} is unknown; `metric` returns {list(surrogate.metrics)}.")
    return names


@lru_cache(maxsize=1)
def _unpickled(pickled: bytes) -> Surrogate:
    """Once an actor: Ray itself would unpickle what it passes anew for each trial."""
    surrogate: Surrogate = cloudpickle.loads(pickled)
    return surrogate
