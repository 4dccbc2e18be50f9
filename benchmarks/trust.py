"""Trust: rank correlation against its noise ceiling, before and after calibration by six real trainings; controls.

The rival is a Gaussian process on as many real trainings as the calibrated surrogate costs, the hypernetwork included.
"""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.utils.multi_objective.hypervolume import Hypervolume
from botorch.utils.multi_objective.pareto import is_non_dominated
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor
from tqdm import tqdm

from benchmarks import results, tasks, trust_tasks
from hypertune_mip.verification import statistics

SETTINGS = 32  # of the truth that judges, none of them used for calibration
CALIBRATION = 6
COST = 3  # trainings that `fit` counts as; measured 2.3 (see `cheap`)
JUDGE = 4321  # seed of the settings that judge
RIVAL = 1000  # added to the seed of the rival's settings
SEEDS = 5


def run(smoke: bool = False) -> dict[str, Any]:
    names = [make.__name__ for make in (trust_tasks.TASKS[-1:] if smoke else trust_tasks.TASKS)]
    jobs = [(_task, name, smoke) for name in names] + [(_control, name, smoke) for name in CONTROLS]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        parts = list(tqdm(pool.map(_done, jobs), total=len(jobs), desc="trust"))
    keys = ("rows", "fronts", "controls")
    document = {key: [row for part in parts for row in part.get(key, [])] for key in keys}
    stated = {"settings": SETTINGS, "calibration": CALIBRATION, "cost_of_fit": COST}
    return results.write("trust", stated | document, smoke=smoke)


def _done(job: tuple[Any, str, bool]) -> dict[str, list[dict[str, Any]]]:
    work, name, smoke = job
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    part: dict[str, list[dict[str, Any]]] = work(name, smoke)
    return part


def _task(name: str, smoke: bool) -> dict[str, list[dict[str, Any]]]:
    """A row by metric and seed; and, where metrics pull in opposite directions, the fronts by seed."""
    task: tasks.Task = getattr(trust_tasks, name)()
    task = tasks.shortened(task) if smoke else task
    units = task.space.sample(4 if smoke else SETTINGS, seed=JUDGE)
    rows, fronts = [], []
    for seed in range(1 if smoke else SEEDS):
        surrogate = tasks.fitted(task, seed)
        real = surrogate.truth(optimizer=tasks.optimizer(task))
        if seed == 0:
            true = real.train(task.space.from_unit(units), seeds=2, progress=False)
        report = surrogate.verify("loss", settings=CALIBRATION, best=1, truth=real, seed=seed, progress=False)
        before = surrogate.evaluate_units(units)
        surrogate.calibrate(report)
        after, intervals = surrogate.evaluate_units(units), surrogate.intervals(units)
        rival = task.space.sample(CALIBRATION + COST, seed=RIVAL + seed)
        known = real.train(task.space.from_unit(rival), progress=False)
        for metric, runs in true.items():
            mean = runs.mean(1)
            process = _process(rival, torch.from_numpy(known[metric][:, 0]), units)
            low, high = (end.numpy() for end in (intervals[metric].low, intervals[metric].high))
            rows.append(
                {
                    "task": name,
                    "metric": metric,
                    "seed": seed,
                    "ceiling": statistics.ceiling(statistics.kendall, runs),
                    "tau": statistics.kendall(before[metric], mean),
                    "calibrated": statistics.kendall(after[metric], mean),
                    "process": statistics.kendall(process, mean),
                    "regret": statistics.regret(before[metric], mean),
                    "calibrated_regret": statistics.regret(after[metric], mean),
                    "process_regret": statistics.regret(process, mean),
                    "coverage": float(np.mean([statistics.coverage(low, high, one) for one in runs.T])),
                    "width": float(np.median(high - low) / np.ptp(mean)),
                    "trusted": report.trusted(),
                }
            )
        if task.front:
            fronts.append({"task": name, "seed": seed, **_volumes(task.front, before, true)})
    return {"rows": rows, "fronts": fronts}


def _process(units: Tensor, true: Tensor, where: Tensor) -> np.ndarray:
    """What BoTorch's Gaussian process with its own priors foresees from real trainings alone."""
    scale, back = (torch.log, torch.exp) if float(true.min()) > 0 else (torch.clone, torch.clone)
    model = SingleTaskGP(units, scale(true).unsqueeze(-1))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    with torch.no_grad():
        foreseen: np.ndarray = back(model.posterior(where).mean.squeeze(-1)).numpy()
    return foreseen


def _volumes(front: tuple[str, ...], predicted: dict[str, np.ndarray], true: dict[str, np.ndarray]) -> dict[str, float]:
    """Hypervolumes, in units of the box that all points span, by where the networks come from.

    "made" by the hypernetwork at the judging settings, "trained" there for real, and as many of the latter as `fit`
    costs (mean over disjoint draws).
    """
    made = -torch.tensor(np.stack([predicted[name] for name in front], 1), dtype=torch.float64)
    trained = -torch.tensor(np.stack([true[name][:, 0] for name in front], 1), dtype=torch.float64)
    both = torch.cat([made, trained])
    low, high = both.amin(0), both.amax(0)
    made, trained = ((points - low) / (high - low) for points in (made, trained))
    draws = [_volume(draw) for draw in trained.split(COST) if len(draw) == COST]
    return {"made": _volume(made), "trained": _volume(trained), "trained_at_equal_cost": float(np.mean(draws))}


def _volume(points: Tensor) -> float:
    """Hypervolume above zero, larger values being better."""
    return float(
        Hypervolume(torch.zeros(points.shape[1], dtype=points.dtype)).compute(points[is_non_dominated(points)])
    )


CONTROLS: dict[str, dict[str, Any]] = {
    "sound": {},
    "no effect": {},
    "network too small": {"hypernet": {"trunk": (1,), "generate": ["4.bias"]}},
    "training too short": {"epochs": 1},
}


def _control(name: str, smoke: bool) -> dict[str, list[dict[str, Any]]]:
    """Whether a broken surrogate is found out, with what the report says; and the sound one is not."""
    task = trust_tasks.b7_no_effect() if name == "no effect" else trust_tasks.b7_simple()
    task = tasks.shortened(task) if smoke else task
    rows = []
    for seed in range(1 if smoke else SEEDS):
        surrogate = tasks.fitted(task, seed, **CONTROLS[name])
        real = surrogate.truth(optimizer=tasks.optimizer(task), epochs=task.epochs)
        report = surrogate.verify("loss", settings=8, truth=real, seed=seed, progress=False)
        rows.append(
            {
                "case": name,
                "seed": seed,
                "flagged": "idle" in report.ignored if name == "no effect" else bool(report.doubts()),
                "doubts": report.doubts(),
                "ignored": report.ignored,
                "tau": report.tau.value,
                "regret": report.regret,
            }
        )
    return {"controls": rows}
