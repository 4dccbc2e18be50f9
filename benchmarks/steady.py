"""Steady: both encodings of MIP, neither, and each alone. Dense head, one setting a step, 10 epochs, Adam and SGD."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from scipy.stats import spearmanr

import hypertune_mip as ht
from benchmarks import results, tasks
from benchmarks.truth import truth

VARIANTS = {
    "both": {"encoding": "mip", "residual": True},
    "input encoding only": {"encoding": "mip", "residual": False},
    "output encoding only": {"encoding": "none", "residual": True},
    "neither": {"encoding": "none", "residual": False},
}
OPTIMIZERS = {
    "Adam 1e-3": lambda parameters: torch.optim.Adam(parameters, lr=1e-3, fused=True),
    "SGD 1e-2, momentum 0.9": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
}


def run(smoke: bool = False) -> dict[str, Any]:
    task = tasks.shortened(tasks.fashion3()) if smoke else tasks.fashion3()
    units, real = truth("fashion3", settings=4 if smoke else 48, smoke=smoke)
    rows = []
    for seed in range(1) if smoke else range(5):
        for optimizer, factory in OPTIMIZERS.items():
            for variant, switches in VARIANTS.items():
                row = {"variant": variant, "optimizer": optimizer, "seed": seed}
                hypernet = {"head": ht.Dense(initialization="fan_out"), **switches}
                try:
                    surrogate = _fitted(task, seed, hypernet, factory, epochs=2 if smoke else 10)
                except ht.TrainingError:
                    rows.append({**row, "outcome": "diverged"})
                    continue
                predicted = surrogate.evaluate_units(units)["loss"]
                correlation = float(spearmanr(predicted, real["loss"].mean(1)).statistic)
                rows.append({**row, "outcome": "trained", "spearman": correlation, "loss": float(predicted.mean())})
        results.write("steady", {"rows": rows}, smoke=smoke)  # after every seed: the run is long
    return results.read("steady", smoke=smoke)


def _fitted(task: tasks.Task, seed: int, hypernet: dict[str, Any], factory: Any, *, epochs: int) -> ht.Surrogate:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ht.HypertuneWarning)  # that is what is measured
        return tasks.fitted(
            task,
            seed,
            hypernet=hypernet,
            optimizer=factory,
            schedule=None,
            settings_per_step=1,
            normalize=False,
            epochs=epochs,
            validate_every=epochs,
        )
