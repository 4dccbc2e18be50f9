"""Real trainings as Ray tasks: many at once, on all machines of a cluster, repeated where one is lost."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import ray
import torch

from hypertune_mip import HypertuneWarning, Truth
from hypertune_mip.training.options import at_least
from hypertune_mip.verification.truth import InThisProcess, Runs
from hypertune_mip_ray.cluster import connect, how_many, own_error, sent, task_options

Results = list[dict[str, float]]


def in_parallel(
    truth: Truth,
    *,
    tasks: int | None = None,
    resources_per_task: Mapping[str, float] | None = None,
    max_retries: int = 3,
) -> Truth:
    """A truth like this one whose real trainings run as Ray tasks, for `Surrogate.verify(truth=...)`.

    A task that is lost with its worker or node is run again. Give the truth a `folder`, and finished trainings are kept
    whatever happens to the driver.

    Args:
        truth: As from `Surrogate.truth`; its loss, loaders and network are sent to the tasks.
        tasks: How many at a time; None is as many as the cluster has resources for. Networks that can be stacked are
            stacked within a task.
        resources_per_task: As Ray names them, fractions of a GPU included; None is one CPU. With a GPU the training
            runs there.
        max_retries: Of a task that is lost.

    Raises:
        OptionError: If a number is too small.
        DataError: If something of the truth cannot be sent to tasks.

    Example:
        surrogate.verify("loss", truth=in_parallel(surrogate.truth(folder="truth"), resources_per_task={"GPU": 0.25}))
    """
    (max_retries,) = at_least(0, max_retries=max_retries)
    connect()
    resources = dict(resources_per_task or {"CPU": 1})
    if tasks is None:
        tasks = how_many(resources)
    (tasks,) = at_least(1, tasks=tasks)
    spread = copy.copy(truth)
    spread.executor = _Tasks(tasks, resources, max_retries)
    return spread


class _Tasks:
    """See `hypertune_mip.verification.truth.Executor`."""

    def __init__(self, parts: int, resources: dict[str, float], max_retries: int) -> None:
        """One task for each of the `Runs`."""
        self.parts = parts
        self._options = {**task_options(resources), "max_retries": max_retries}

    def __call__(self, truth: Truth, work: Iterable[Runs]) -> Iterator[tuple[Runs, Results]]:
        """As many at a time as there are parts; results as they come."""
        own = truth.on("cpu")  # which every machine has; a task moves it to its GPU
        own.executor = InThisProcess()
        shared = sent(own, {"truth": own})
        task: Any = ray.remote(_carry_out).options(**self._options)
        waiting = iter(work)
        pending: dict[Any, Runs] = {}
        try:
            while True:
                pending |= {task.remote(shared, runs): runs for runs in islice(waiting, self.parts - len(pending))}
                if not pending:
                    return
                (done,), _ = ray.wait(list(pending), num_returns=1)
                runs = pending.pop(done)
                try:
                    results, seconds, messages = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise own_error(error) or error from None
                truth.seconds += seconds
                for message in messages:
                    warnings.warn(message, HypertuneWarning, stacklevel=4)
                yield runs, results
        finally:
            for each in pending:
                ray.cancel(each, force=True)


def _carry_out(truth: Truth, runs: Runs) -> tuple[Results, float, list[str]]:
    """One task: metrics, the seconds that training took, and what there was to warn of."""
    if ray.get_gpu_ids() and torch.cuda.is_available():
        truth = truth.on("cuda")
    before = truth.seconds
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", HypertuneWarning)
        results = truth.carry_out(runs)
    messages = [str(each.message) for each in caught if issubclass(each.category, HypertuneWarning)]
    return results, truth.seconds - before, messages
