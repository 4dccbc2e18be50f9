"""Trust: rank correlation against its noise ceiling, before and after calibration by six real trainings; controls."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

import hypertune_mip as ht
from benchmarks import results, tasks, trust_tasks
from hypertune_mip.verification import statistics

SETTINGS = 32  # of the truth that judges, none of them used for calibration
CALIBRATION = 6
JUDGE = 4321  # seed of the settings that judge


def run(smoke: bool = False) -> dict[str, Any]:
    warnings.simplefilter("ignore", ht.HypertuneWarning)
    rows: list[dict[str, Any]] = []
    for make in trust_tasks.TASKS[:1] if smoke else trust_tasks.TASKS:
        task = tasks.shortened(make()) if smoke else make()
        rows += _task_rows(task, seeds=1 if smoke else 5, settings=4 if smoke else SETTINGS)
    return results.write("trust", {"rows": rows, "controls": _controls(smoke)}, smoke=smoke)


def optimizer(task: tasks.Task) -> Any:
    return lambda parameters: torch.optim.Adam(parameters, lr=task.learning_rate, fused=True)


def _task_rows(task: tasks.Task, *, seeds: int, settings: int) -> list[dict[str, Any]]:
    units = task.space.sample(settings, seed=JUDGE)
    configs = task.space.from_unit(units)
    rows = []
    for seed in range(seeds):
        surrogate = tasks.fitted(task, seed)
        real = surrogate.truth(optimizer=optimizer(task))
        if seed == 0:
            true = real.train(configs, seeds=2, progress=False)
        report = surrogate.verify("loss", settings=CALIBRATION, truth=real, seed=seed, progress=False)
        before = surrogate.evaluate_units(units)
        surrogate.calibrate(report)
        after = surrogate.evaluate_units(units)
        intervals = surrogate.intervals(units)
        for metric, runs in true.items():
            mean = runs.mean(1)
            inside = [
                statistics.coverage(intervals[metric].low.numpy(), intervals[metric].high.numpy(), r) for r in runs.T
            ]
            width = float((intervals[metric].high - intervals[metric].low).median()) / float(np.ptp(mean))
            rows.append(
                {
                    "task": task.name,
                    "metric": metric,
                    "seed": seed,
                    "ceiling": statistics.ceiling(statistics.kendall, runs),
                    "tau": statistics.kendall(before[metric], mean),
                    "calibrated": statistics.kendall(after[metric], mean),
                    "regret": statistics.regret(before[metric], mean),
                    "calibrated_regret": statistics.regret(after[metric], mean),
                    "coverage": float(np.mean(inside)),
                    "width": width,
                    "trusted": report.trusted(),
                }
            )
        print(rows[-len(true) :])
    return rows


def _controls(smoke: bool) -> list[dict[str, Any]]:
    """Whether each broken surrogate is found out, with what the report says; and the sound one is not."""
    plain = trust_tasks.b7_simple()
    cases: dict[str, tuple[tasks.Task, dict[str, Any]]] = {
        "sound": (plain, {}),
        "no effect": (trust_tasks.b7_no_effect(), {}),
        "network too small": (plain, {"hypernet": {"trunk": (1,), "generate": ["4.bias"]}}),
        "training too short": (plain, {"epochs": 1}),
    }
    rows = []
    for name, (task, options) in cases.items():
        task = tasks.shortened(task) if smoke else task
        for seed in range(1 if smoke else 5):
            surrogate = tasks.fitted(task, seed, **options)
            real = surrogate.truth(optimizer=optimizer(task), epochs=task.epochs)
            report = surrogate.verify("loss", settings=8, truth=real, seed=seed, progress=False)
            flagged = "idle" in report.ignored if name == "no effect" else bool(report.doubts())
            rows.append(
                {
                    "case": name,
                    "seed": seed,
                    "flagged": flagged,
                    "doubts": report.doubts(),
                    "ignored": report.ignored,
                    "tau": report.tau.value,
                    "regret": report.regret,
                }
            )
            print(rows[-1])
    return rows
