"""Cost: a whole `fit` with its defaults on fashion3 and each task of `trust`, in plain trainings, interleaved."""

from __future__ import annotations

import time
import warnings
from statistics import mean, median
from typing import Any

import torch

from benchmarks import results, tasks, trust_tasks
from benchmarks.truth import agreement, truth

ROUNDS = 3
TARGETS = {"fashion3": 2.0, "spearman": 0.985, "trust": 3.0}  # the last of the mean over tasks


def run(smoke: bool = False) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            makers = (tasks.fashion3, *(trust_tasks.TASKS[-1:] if smoke else trust_tasks.TASKS))
            rows = []
            for make in makers:
                rows.append(_row(tasks.shortened(make()) if smoke else make(), 1 if smoke else ROUNDS, smoke))
                content = {"rows": rows, "rounds": ROUNDS, "targets": TARGETS, "mean": _mean(rows)}
                results.write("cost", content, smoke=smoke)  # after every task: the run is long
        return results.read("cost", smoke=smoke)
    finally:
        torch.set_num_threads(threads)


def _mean(rows: list[dict[str, Any]]) -> float | None:
    """Over the tasks of `trust`."""
    costs = [row["auto"] for row in rows if row["task"] not in TARGETS]
    return mean(costs) if costs else None


def _row(task: tasks.Task, rounds: int, smoke: bool) -> dict[str, Any]:
    """Medians of the ratios to the plain training of the same round: by the clock, and in time of the processor.

    The latter is less disturbed by other work on the machine. A validation is part of `fit` and of the training.
    """
    config = task.space.from_unit(task.space.sample(1))[0]
    tasks.real_training(tasks.shortened(task), config, 0)  # warm up
    plain, fit, surrogates = [], [], []
    for seed in range(rounds):
        plain.append(_seconds(lambda s=seed: tasks.real_training(task, config, s)))
        fit.append(_seconds(lambda s=seed: surrogates.append(tasks.fitted(task, s))))
    ratio = lambda kind: median([b[kind] / a[kind] for a, b in zip(plain, fit, strict=True)])  # noqa: E731
    row = {
        "task": task.name,
        "parameters": sum(p.numel() for p in task.network().parameters()),
        "auto": ratio("clock"),
        "processor": ratio("processor"),
        "steps": surrogates[0].history[-1]["step"],
        "seconds": {"plain": plain, "fit": fit},
    }
    if task.name == "fashion3":
        units, real = truth("fashion3", settings=4 if smoke else 48, smoke=smoke)
        found = [agreement(surrogate.evaluate_units(units)["loss"], real["loss"]) for surrogate in surrogates]
        row["spearman"] = [one["spearman"] for one in found]
    return row


def _seconds(function: Any) -> dict[str, float]:
    clock, processor = time.perf_counter(), time.process_time()
    function()
    return {"clock": time.perf_counter() - clock, "processor": time.process_time() - processor}
