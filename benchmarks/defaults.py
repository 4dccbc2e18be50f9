"""Defaults: `fit` without any tuning on six small problems, and without weights of settings, for comparison."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from torch import Tensor

import hypertune_mip as ht
from benchmarks import results, tasks
from benchmarks.truth import agreement, truth

SETTINGS = 16


def run(smoke: bool = False) -> dict[str, Any]:
    rows = []
    for make in tasks.SMALL:
        name = make.__name__
        units, real = truth(name, settings=4 if smoke else SETTINGS, smoke=smoke)
        task = tasks.shortened(make()) if smoke else make()
        for seed in range(1) if smoke else range(5):
            for normalize in (True, False):
                row = {"task": name, "normalize": normalize, "seed": seed}
                rows.append(row | _outcome(task, seed, normalize, units, real["loss"]))
    sizes = [_size(make()) for make in tasks.SMALL]
    return results.write("defaults", {"rows": rows, "tasks": sizes, "settings": SETTINGS}, smoke=smoke)


def _outcome(task: tasks.Task, seed: int, normalize: bool, units: Tensor, real: np.ndarray) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ht.HypertuneWarning)
        try:
            surrogate = tasks.fitted(task, seed, normalize=normalize)
        except ht.TrainingError as error:
            return {"outcome": "diverged", "message": str(error)}
    messages = [str(w.message) for w in caught if issubclass(w.category, ht.HypertuneWarning)]
    collapsed = any("collapsed" in message for message in messages)
    figures = agreement(surrogate.evaluate_units(units)["loss"], real)
    return {"outcome": "collapsed" if collapsed else "trained", "warnings": messages, **figures}


def _size(task: tasks.Task) -> dict[str, Any]:
    return {"task": task.name, "rows": len(task.train[0]), "hyperparameters": len(task.space), "epochs": task.epochs}
