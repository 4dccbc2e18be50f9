"""What a delivery trains: which settings, how many of them in which rung, and from where."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from hypertune_mip.arguments import real_number
from hypertune_mip.errors import StorageError
from hypertune_mip.evaluation import Measure
from hypertune_mip.space import Value
from hypertune_mip.storage import load_json, save_json
from hypertune_mip.surrogate.search import diverse_best
from hypertune_mip.training import OptionError
from hypertune_mip.trainings import BranchPoint

Origin = Literal["best", "spread"]
_KIND = "delivery"
_FIRST, _MIDDLE, _LAST = 0.1, 0.25, 0.5  # shares of the recipe
_ROUNDING = 1e-9
_SCREENED = 512  # settings that the surrogate is asked about
_OTHER_SEED = 2_000_000  # far from the seeds by which settings to verify are spread


class Rung(NamedTuple):
    """One round of branches.

    Args:
        candidates: How many are trained.
        share: Of the recipe that each takes.
        start: Where they start.
    """

    candidates: int
    share: float
    start: BranchPoint


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
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:20]
    path = Path(folder) / f"delivery-{name}.json"
    if not path.exists():
        plan = make()
        save_json(path, {"about": dict(about), **plan._asdict()}, kind=_KIND)
        return plan
    content = load_json(path, kind=_KIND)
    try:
        return Plan(*(content[field] for field in Plan._fields))
    except (KeyError, TypeError) as error:
        raise StorageError(f"'{path}' does not hold what a delivery needs: {error!r}.") from error


def rungs_of(trainings: float) -> tuple[Rung, ...]:
    """Rungs whose branches cost no more than `trainings`: 7 of a tenth, 3 of a quarter and 1 of a half for two.

    All start from the end of the hypernetwork's training: early weights would order settings better, but these are also
    to be networks that may be delivered.

    Raises:
        OptionError: If `trainings` is no positive number.
    """
    left = real_number("trainings", trainings, error=OptionError)
    if not 0.0 < left < math.inf:
        raise OptionError(f"`trainings` must be a positive number, but got {left}.")
    last = max(1, math.floor(left / 2))
    rungs = [Rung(last, min(left, _LAST), "end")]
    left -= rungs[0].share * last
    middle = math.floor(left / 2 / _MIDDLE + _ROUNDING)
    if middle > last:
        rungs.insert(0, Rung(middle, _MIDDLE, "end"))
        left -= _MIDDLE * middle
    first = math.floor(left / _FIRST + _ROUNDING)
    if first > rungs[0].candidates:
        rungs.insert(0, Rung(first, _FIRST, "end"))
    return tuple(rungs)
