"""Right: does the surrogate order settings as real training does? Fashion-MNIST, three and eight hyperparameters."""

from __future__ import annotations

from typing import Any

from benchmarks import results, tasks
from benchmarks.truth import agreement, truth

SETTINGS = {"fashion3": 48, "fashion8": 64}


def run(smoke: bool = False) -> dict[str, Any]:
    seeds = range(1) if smoke else range(5)
    rows = []
    for make in tasks.FASHION_TASKS:
        name = make.__name__
        units, real = truth(name, settings=4 if smoke else SETTINGS[name], smoke=smoke)
        task = tasks.shortened(make()) if smoke else make()
        for seed in seeds:
            surrogate = tasks.fitted(task, seed)
            predicted = surrogate.evaluate_units(units)
            for metric, values in real.items():
                rows.append({"task": name, "seed": seed, "metric": metric, **agreement(predicted[metric], values)})
    return results.write("right", {"rows": rows}, smoke=smoke)
