"""Cost: what `fit` takes on each task of `trust`, in plain trainings of as many epochs, interleaved."""

from __future__ import annotations

import warnings
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from benchmarks import results, tasks, trust_tasks
from benchmarks.cheap import seconds_of

EPOCHS = 5
ROUNDS = 7
BATCHING = ("auto", "split")


def run(smoke: bool = False) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that so short a training responds to little
            makers = trust_tasks.TASKS[-1:] if smoke else trust_tasks.TASKS
            rows = [_row(replace(make(), epochs=1 if smoke else EPOCHS), 1 if smoke else ROUNDS) for make in makers]
        return results.write("cost", {"rows": rows, "epochs": EPOCHS, "rounds": ROUNDS}, smoke=smoke)
    finally:
        torch.set_num_threads(threads)


def _row(task: tasks.Task, rounds: int) -> dict[str, Any]:
    """Median ratio to the plain training of the same round, by batching."""
    config = task.space.from_unit(task.space.sample(1))[0]
    ratios: dict[str, list[float]] = {batching: [] for batching in BATCHING}
    for seed in range(rounds):
        plain = seconds_of(lambda s=seed: tasks.real_training(task, config, s))
        for batching in BATCHING:
            options = {"batching": batching, "validate_every": task.epochs}
            ratios[batching].append(seconds_of(lambda s=seed, o=options: tasks.fitted(task, s, **o)) / plain)
    return {"task": task.name, "parameters": sum(p.numel() for p in task.network().parameters())} | {
        batching: median(values) for batching, values in ratios.items()
    }
