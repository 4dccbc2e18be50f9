"""Real trainings as Ray tasks: many at once, on all machines of a cluster, repeated where one is lost."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import ray
import torch

from hypertune_mip import HypertuneWarning
from hypertune_mip.training.options import at_least
from hypertune_mip.trainings import Finished, Run, Together, Workshop
from hypertune_mip_ray.cluster import connect, how_many, own_error, sent, task_options

Outcome = list[tuple[Run, Finished]]


def executor(
    *,
    tasks: int | None = None,
    resources_per_task: Mapping[str, float] | None = None,
    max_retries: int = 3,
) -> Tasks:
    """What carries real trainings out as Ray tasks, for `Surrogate.trainer(executor=...)`.

    A task that is lost with its worker or node is run again. Give the trainer a `folder`, and finished trainings are
    kept whatever happens to the driver.

    Args:
        tasks: How many at a time; None is as many as the cluster has resources for. Networks that can be stacked are
            stacked within a task.
        resources_per_task: As Ray names them, fractions of a GPU included; None is one CPU. With a GPU the training
            runs there.
        max_retries: Of a task that is lost.

    Raises:
        OptionError: If a number is too small.

    Example:
        trainer = surrogate.trainer(folder="trainings", executor=executor(resources_per_task={"GPU": 0.25}))
        surrogate.verify("loss", trainer=trainer)
    """
    (max_retries,) = at_least(0, max_retries=max_retries)
    connect()
    resources = dict(resources_per_task or {"CPU": 1})
    if tasks is None:
        tasks = how_many(resources)
    (tasks,) = at_least(1, tasks=tasks)
    return Tasks(tasks, resources, max_retries)


class Tasks:
    """Carries trainings out as Ray tasks; see `executor`, which makes it.

    Args:
        parts: Tasks at a time.
        resources: Of each.
        max_retries: Of a task that is lost.

    Raises:
        DataError: When called, if something of the trainer cannot be sent to tasks.
    """

    def __init__(self, parts: int, resources: dict[str, float], max_retries: int) -> None:
        """See the class."""
        self.parts = parts
        self._options = {**task_options(resources), "max_retries": max_retries}

    def __repr__(self) -> str:
        """How many at a time, and the options that Ray gets."""
        return f"Tasks(parts={self.parts}, {self._options})"

    def __call__(self, workshop: Workshop, work: Iterable[Together]) -> Iterator[tuple[Run, Finished]]:
        """As many tasks at a time as there are parts; results as they come."""
        own = workshop.on("cpu")  # which every machine has; a task moves it to its GPU
        shared = sent(own, {"trainer": own})
        task: Any = ray.remote(_carry_out).options(**self._options)
        waiting = iter(work)
        pending: dict[Any, Together] = {}
        try:
            while True:
                pending |= {task.remote(shared, each): each for each in islice(waiting, self.parts - len(pending))}
                if not pending:
                    return
                (done,), _ = ray.wait(list(pending), num_returns=1)
                pending.pop(done)
                try:
                    outcome, seconds, messages = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise own_error(error) or error from None
                workshop.seconds += seconds
                for message in messages:
                    warnings.warn(message, HypertuneWarning, stacklevel=4)
                yield from outcome
        finally:
            for each in pending:
                ray.cancel(each, force=True)


def _carry_out(workshop: Workshop, together: Together) -> tuple[Outcome, float, list[str]]:
    """One task: what came out, the seconds that training took, and what there was to warn of."""
    if ray.get_gpu_ids() and torch.cuda.is_available():
        workshop = workshop.on("cuda")
    before = workshop.seconds
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", HypertuneWarning)
        outcome = list(workshop.carry_out(together))
    messages = [str(each.message) for each in caught if issubclass(each.category, HypertuneWarning)]
    return outcome, workshop.seconds - before, messages
