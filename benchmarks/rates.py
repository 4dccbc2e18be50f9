"""Learning rates of real training: the validation loss at each, over spread settings; no surrogate is asked."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import hypertune_mip as ht
from benchmarks import results, tasks, trust_tasks

RATES = (1e-3, 3e-3, 1e-2)
SETTINGS = 8
SEED = 1  # of the settings


def run(smoke: bool = False) -> dict[str, Any]:
    names = [make.__name__ for make in (trust_tasks.TASKS[:1] if smoke else trust_tasks.TASKS)]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        rows = list(tqdm(pool.map(_row, names, [smoke] * len(names)), total=len(names), desc="rates"))
    return results.write("rates", {"rows": rows, "settings": SETTINGS}, smoke=smoke)


def _row(name: str, smoke: bool) -> dict[str, Any]:
    """The median loss at each rate, the best rate, and the one that the task states."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ht.HypertuneWarning)
    task: tasks.Task = getattr(trust_tasks, name)()
    task = tasks.shortened(task) if smoke else task
    configs = task.space.from_unit(task.space.sample(SETTINGS, seed=SEED))
    losses = {rate: _loss(replace(task, learning_rate=rate), configs) for rate in RATES}
    return {"task": name, "losses": losses, "best": min(losses, key=losses.__getitem__), "stated": task.learning_rate}


def _loss(task: tasks.Task, configs: list[dict[str, Any]]) -> float:
    """Median validation loss of real training, one seed."""
    return float(np.median(tasks.trainer(task).train(configs, progress=False)["loss"]))
