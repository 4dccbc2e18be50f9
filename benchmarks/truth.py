"""Truth: real trainings at Sobol settings, kept in JSON so that they are run once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

from benchmarks import results, tasks

SEED = 123  # of the settings


def truth(name: str, *, settings: int, seeds: int = 2, smoke: bool = False) -> tuple[Tensor, dict[str, np.ndarray]]:
    """Units (settings, d), and each metric as an array (settings, seeds), from real training."""
    make: Callable[[], tasks.Task] = getattr(tasks, name)
    task = tasks.shortened(make()) if smoke else make()
    units = task.space.sample(settings, seed=SEED)
    path = results.path(f"truth_{name}", smoke=smoke)
    stated = {
        "space": task.space.to_json(),
        "settings": settings,
        "seeds": seeds,
        "epochs": task.epochs,
        "batch_size": task.batch_size,
        "learning_rate": task.learning_rate,
    }
    if path.exists():
        document = results.read(f"truth_{name}", smoke=smoke)
        if document["stated"] == json.loads(json.dumps(stated)):
            return units, {k: np.array(v) for k, v in document["metrics"].items()}
    jobs = [(name, smoke, config, seed) for config in task.space.from_unit(units) for seed in range(seeds)]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        runs = list(tqdm(pool.map(_run, jobs), total=len(jobs), desc=f"truth of {name}"))
    metrics = {key: np.array([r[key] for r in runs]).reshape(settings, seeds) for key in runs[0]}
    results.write(f"truth_{name}", {"stated": stated, "metrics": metrics}, smoke=smoke)
    return units, metrics


def _run(job: tuple[str, bool, dict[str, Any], int]) -> dict[str, float]:
    name, smoke, config, seed = job
    torch.set_num_threads(1)
    task = getattr(tasks, name)()
    return tasks.real_training(tasks.shortened(task) if smoke else task, config, seed)


def agreement(predicted: np.ndarray, real: np.ndarray) -> dict[str, Any]:
    """Surrogate (settings,) against truth (settings, seeds): rank correlation, its ceiling, regret, and ranks."""
    mean = real.mean(1)
    order = np.argsort(predicted)
    return {
        "spearman": float(spearmanr(predicted, mean).statistic),
        "ceiling": float(spearmanr(real[:, 0], real[:, -1]).statistic),
        "regret": float((mean[order[0]] - mean.min()) / np.ptp(mean)),
        "rank_of_best": int(np.flatnonzero(order == mean.argmin())[0]) + 1,
        "bias": float((predicted - mean).mean()),
    }
