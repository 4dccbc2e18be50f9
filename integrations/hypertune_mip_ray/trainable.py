"""A trainable for Ray Tune that asks a surrogate instead of training a network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ray import cloudpickle, tune

from hypertune_mip import SearchSpace, SpaceError, Surrogate


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
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    for name in names:
        if name not in surrogate.metrics:
            raise SpaceError(f"The metric {name!r} is unknown; `metric` returns {list(surrogate.metrics)}.")
    surrogate.warn_of_doubts(*names, stacklevel=3)
    return tune.with_parameters(surrogate_trial, pickled=cloudpickle.dumps(surrogate.to("cpu")))


def surrogate_trial(config: dict[str, Any], pickled: bytes) -> None:
    """One trial."""
    surrogate = _unpickled(pickled)
    tune.report(surrogate.evaluate(inside(surrogate.space, config)))


@lru_cache(maxsize=1)
def _unpickled(pickled: bytes) -> Surrogate:
    """Once an actor: Ray itself would unpickle what it passes anew for each trial."""
    surrogate: Surrogate = cloudpickle.loads(pickled)
    return surrogate


def inside(space: SearchSpace, config: dict[str, Any]) -> dict[str, Any]:
    """The config with floats that rounding has put a hair outside their range moved to its end.

    Ray draws from a logarithmic range by exp(log(low)), which may be less than low.
    """
    moved = dict(config)
    for name, distribution in space.items():
        value, low, high = moved.get(name), getattr(distribution, "low", None), getattr(distribution, "high", None)
        if isinstance(value, float) and low is not None and high is not None:
            nearest = min(max(value, low), high)
            if abs(nearest - value) <= 1e-9 * abs(nearest):
                moved[name] = nearest
    return moved
