"""What a delivery trains: which settings, how many of them in which rung, and from where."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from hypertune_mip.arguments import positive_number
from hypertune_mip.errors import OptionError, StorageError
from hypertune_mip.evaluation import Measure
from hypertune_mip.space import Value
from hypertune_mip.storage import load_json, save_json
from hypertune_mip.surrogate.search import diverse_best
from hypertune_mip.training import Record
from hypertune_mip.trainings import Trainer
from hypertune_mip.trainings.store import name_of

Origin = Literal["best", "spread"]
_KIND = "delivery"
_FIRST, _LAST = 0.1, 0.5  # shares of the recipe
_ROUNDING = 1e-9
_SCREENED = 512  # settings that the surrogate is asked about
_OTHER_SEED = 2_000_000  # far from the seeds by which settings to verify are spread


class Rung(NamedTuple):
    """One round of branches.

    Args:
        candidates: How many are trained.
        share: Of the recipe that each takes.
    """

    candidates: int
    share: float


class Plan(NamedTuple):
    """What a delivery starts with.

    Args:
        configs: Of the first rung's candidates, native values.
        chosen: Where each comes from.
        cost_of_fit: In trainings; NaN where it is not known.
    """

    configs: list[dict[str, Value]]
    chosen: list[Origin]
    cost_of_fit: float


def candidates(measure: Measure, metric: str, count: int, *, seed: int) -> tuple[list[dict[str, Value]], list[Origin]]:
    """Configs that the surrogate likes, apart from each other, the best first, and then some that are spread.

    A quarter of them is spread, in case that the surrogate is wrong. A space of few values may give fewer.
    """
    spread = count // 4
    best = diverse_best(measure, metric, count - spread, candidates=_SCREENED, seed=seed)
    others = measure.space.sample(spread, seed=seed + _OTHER_SEED)
    configs = measure.space.from_unit(torch.cat([best, others]))
    first = {json.dumps(config): index for index, config in reversed(list(enumerate(configs)))}
    rows = sorted(first.values())
    return [configs[row] for row in rows], ["best" if row < len(best) else "spread" for row in rows]


def along_front(table: Float[np.ndarray, "S metrics"], count: int) -> list[int]:
    """Rows that lie far apart in metrics, each as a share of its range: the best in the first metric, then others.

    Args:
        table: Small values are the better ones.
        count: How many, at most.
    """
    scale = np.ptp(table, axis=0)
    scaled = table / np.where(scale > 0, scale, 1.0)
    chosen = [int(scaled[:, 0].argmin())]
    while len(chosen) < min(count, len(table)):
        distance = np.abs(scaled[:, None] - scaled[chosen]).sum(-1).min(-1)
        if not distance.max() > 0:
            break
        chosen.append(int(distance.argmax()))
    return sorted(chosen, key=lambda row: tuple(scaled[row]))


def kept(folder: str | Path | None, about: Mapping[str, Any], make: Callable[[], Plan]) -> Plan:
    """The plan that an earlier call has kept in a folder, if it was about the same; otherwise one that is kept now.

    Args:
        folder: None keeps nothing.
        about: What the delivery is, in plain values.
        make: Makes the plan.

    Raises:
        StorageError: If the file is damaged, or cannot be written.
    """
    if folder is None:
        return make()
    path = Path(folder) / f"delivery-{name_of(about)}.json"
    if not path.exists():
        plan = make()
        save_json(path, {"about": dict(about), **plan._asdict()}, kind=_KIND)
        return plan
    content = load_json(path, kind=_KIND)
    try:
        return Plan(*(content[field] for field in Plan._fields))
    except (KeyError, TypeError) as error:
        raise StorageError(f"'{path}' does not hold what a delivery needs: {error!r}.") from error


def rungs_of(trainings: float, share_of: Callable[[float], float]) -> tuple[Rung, ...]:
    """Two rungs whose branches cost no more than `trainings`, half for each: 10 of a tenth and 2 of a half for two.

    Args:
        trainings: To spend.
        share_of: What a share of the recipe is in whole steps: short recipes have no tenth.

    Raises:
        OptionError: If `trainings` is no positive number, or too little for one step.
    """
    left = positive_number("trainings", trainings, error=OptionError)
    first, last = share_of(_FIRST), share_of(_LAST)
    if left < last:
        last = share_of(left)
        if last > left + _ROUNDING:
            raise OptionError(
                f"`trainings` must be enough for a step of a branch, {share_of(0.0):g} of a training, but got {left:g}."
            )
    count = max(1, math.floor(left / 2 / last + _ROUNDING))
    before = math.floor((left - count * last) / first + _ROUNDING)
    if before > count and first < last:
        return (Rung(before, first), Rung(count, last))
    return (Rung(max(count, math.floor(left / last + _ROUNDING)), last),)


def cost_of_fit(
    history: Sequence[Record], trainer: Trainer, config: Mapping[str, Value], *, accumulate: int = 1
) -> float:
    """What training a hypernetwork has cost, in trainings by the trainer's recipe, by the clock; NaN if not known.

    Args:
        history: Of its epochs.
        trainer: By which a few steps of a plain network are timed.
        config: Of that network.
        accumulate: Batches of one of the hypernetwork's steps.
    """
    seconds = sum(float(record["seconds"]) for record in history)
    if not seconds > 0:
        return math.nan
    if trainer.steps is not None:
        return seconds / trainer.seconds_of_training(config)
    batches = history[-1]["step"] / len(history) * accumulate  # of an epoch
    steps = batches / trainer.recipe.accumulate * trainer.recipe.epochs
    return seconds / trainer.seconds_of_training(config, steps=round(steps))
