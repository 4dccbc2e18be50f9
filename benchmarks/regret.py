"""Regret of a search on test data, from its finished trainings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Run(NamedTuple):
    """One finished real training, and the trainings that the method has spent up to then, without that of `fit`."""

    spent: float
    validation: float
    test: float


def regrets(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Regret after each training, by method, from the rows of one case and seed; infinite before a run has finished."""
    found = {row["method"]: [Run(*run) for run in row["runs"]] for row in rows}
    best = float(np.nanmin([run.test for runs in found.values() for run in runs]))
    worst = float(np.nanmax([run.test for run in found["random"]]))
    return {
        name: [_regret(runs, n, best, worst - best) for n in range(1, math.floor(runs[-1].spent + 1e-9) + 1)]
        for name, runs in found.items()
    }


def _regret(runs: Sequence[Run], trainings: int, best: float, spread: float) -> float:
    """Of the run that is best on validation data, among those finished after as many trainings."""
    finished = [run for run in runs if run.spent <= trainings + 1e-9 and math.isfinite(run.validation)]
    return (min(finished, key=lambda run: run.validation).test - best) / spread if finished else math.inf
