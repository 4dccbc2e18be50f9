"""A surrogate asked about very many settings, by actors on all machines of a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
import torch
from jaxtyping import Float
from ray.util import ActorPool
from torch import Tensor
from tqdm.auto import tqdm

from hypertune_mip import Surrogate
from hypertune_mip.training.options import at_least
from hypertune_mip_ray.cluster import connect, how_many, task_options

_RETRIES = 3  # of an actor that is lost, and of what it was asked
_CHUNK = 4096  # settings a call: large enough that calls cost nothing, small enough for a bar that moves


def evaluate_batch(
    surrogate: Surrogate,
    settings: Sequence[Mapping[str, Any]] | Float[Tensor, "S d"],
    *,
    actors: int | None = None,
    resources_per_actor: Mapping[str, float] | None = None,
    progress: bool = True,
) -> dict[str, Float[np.ndarray, "S"]]:
    """`Surrogate.evaluate_batch`, spread over Ray actors, for millions of settings.

    Args:
        surrogate: With validation data. It is put into the object store once.
        settings: Configs, or units (S, d).
        actors: How many at most; not more are started than the cluster has resources for, or pieces of work.
        resources_per_actor: Of each actor, as Ray names them; None is one CPU. With a GPU the surrogate moves there.
        progress: Whether to show a bar.

    Returns:
        Metrics by name, in the order of the settings.

    Raises:
        SpaceError: As in `Surrogate.evaluate_batch`, before anything is sent.
        OptionError: If `actors` is less than 1.
    """
    units = settings if isinstance(settings, (Tensor, np.ndarray)) else surrogate.space.to_unit(settings)
    units = surrogate.space.check_units(units)
    if actors is not None:
        (actors,) = at_least(1, actors=actors)
    connect()
    chunks = units.split(_CHUNK) if len(units) else (units,)
    resources = dict(resources_per_actor or {"CPU": 1})
    count = min(len(chunks), how_many(resources), *([] if actors is None else [actors]))
    options = {**task_options(resources), "max_restarts": _RETRIES, "max_task_retries": _RETRIES}
    shared = ray.put(surrogate.to("cpu"))
    actor: Any = _Evaluator
    pool = ActorPool([actor.options(**options).remote(shared) for _ in range(count)])
    parts = pool.map(lambda each, chunk: each.evaluate.remote(chunk), chunks)
    done = list(tqdm(parts, total=len(chunks), disable=not progress, desc="evaluate", unit="chunk"))
    return {name: np.concatenate([part[name] for part in done]) for name in done[0]}


@ray.remote
class _Evaluator:
    """An actor with the surrogate in its own memory."""

    def __init__(self, surrogate: Surrogate) -> None:
        on_gpu = ray.get_gpu_ids() and torch.cuda.is_available()
        self._surrogate = surrogate.to("cuda") if on_gpu else surrogate

    def evaluate(self, units: Tensor) -> dict[str, np.ndarray]:
        return self._surrogate.evaluate_units(units)
