"""Ray as this package starts it where the user has not: no dashboard, and quiet."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray import cloudpickle
from ray.train import ScalingConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hypertune_mip import DataError, HypertuneError, HypertuneWarning, OptionError


def connect() -> bool:
    """Join the cluster that Ray finds, or start one on this machine; a connection of the user's is left as it is.

    Returns:
        Whether one was started: then it is this machine alone, and nothing will be added to it.
    """
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError:
        ray.init(address="local", include_dashboard=False, **quiet)
        return True
    return False


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """For actors that must live as long as the driver does, whatever happens to other nodes."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)


def check_resources(scaling: ScalingConfig, *, own: bool) -> None:
    """See whether the cluster can hold the workers: Ray itself would wait for ever, without a word.

    Args:
        scaling: What is asked for.
        own: Whether Ray was started here, on this machine alone.

    Raises:
        OptionError: If GPUs are asked for, but this machine has none.

    Warns:
        HypertuneWarning: If a cluster has too little, which an autoscaler, or nodes that are starting, may change.
    """
    has = ray.cluster_resources()
    if own and scaling.use_gpu and not has.get("GPU"):
        raise OptionError("`scaling_config` asks for GPUs, but this machine has none. Pass use_gpu=False.")
    each = scaling.resources_per_worker or ({"GPU": 1} if scaling.use_gpu else {"CPU": 1})
    workers = scaling.num_workers if isinstance(scaling.num_workers, int) else scaling.num_workers[0]
    short = [
        f"{workers * amount:g} {name} of which there are {has.get(name, 0):g}"
        for name, amount in each.items()
        if workers * amount > has.get(name, 0)
    ]
    if short:
        warnings.warn(
            f"`scaling_config` asks for {', '.join(short)}: training starts when the Ray cluster has them.",
            HypertuneWarning,
            stacklevel=4,
        )


def how_many(resources: Mapping[str, float]) -> int:
    """How many tasks or actors with such resources the cluster can run at a time, as it is now; at least one."""
    has = ray.cluster_resources()
    return max(1, min((int(has.get(name, 0.0) / amount) for name, amount in resources.items() if amount), default=1))


def task_options(resources: Mapping[str, float]) -> dict[str, Any]:
    """The options of a task or actor with such resources."""
    others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
    return {"num_cpus": resources.get("CPU", 0), "num_gpus": resources.get("GPU", 0), "resources": others}


def own_error(error: BaseException) -> HypertuneError | None:
    """An error of this project behind one of Ray's, if there is one: it says what to do, without Ray's traceback."""
    seen: list[Any] = [error]
    while seen:
        each = seen.pop()
        if isinstance(each, HypertuneError) and not isinstance(each, ray.exceptions.RayTaskError):
            return each
        seen += [inner for name in ("cause", "_base_exc", "controller_failure") if (inner := getattr(each, name, None))]
        seen += list(getattr(each, "worker_failures", {}).values())
    return None


def sent(value: Any, parts: Mapping[str, Any]) -> Any:
    """A reference to a value in the object store.

    Args:
        value: To send.
        parts: Of the value, by the names that users know.

    Raises:
        DataError: If it cannot be pickled; it names the part, down to the attribute.
    """
    return _with_culprit(ray.put, value, parts)


def pickled_or_named(value: Any, parts: Mapping[str, Any]) -> bytes:
    """A value pickled; arguments and errors as those of `sent`."""
    pickled: bytes = _with_culprit(cloudpickle.dumps, value, parts)
    return pickled


def _with_culprit(pickle: Callable[[Any], Any], value: Any, parts: Mapping[str, Any]) -> Any:
    try:
        return pickle(value)
    except Exception as error:
        for name, part in parts.items():
            if culprit := _unpicklable(part, f"`{name}`"):
                where, reason = culprit
                raise DataError(
                    f"{where} cannot be sent to the workers: {reason}. Pass a function that makes the loader there, or"
                    " leave out what cannot be pickled."
                ) from error
        raise


def _unpicklable(value: Any, where: str) -> tuple[str, Exception] | None:
    """The innermost attribute that cannot be pickled, as a path, and why; None if all can."""
    try:
        cloudpickle.dumps(value)
    except Exception as error:
        for name, inner in getattr(value, "__dict__", {}).items():
            found = _unpicklable(inner, f"{where}.{name}")
            if found is not None:
                return found
        return where, error
    return None
