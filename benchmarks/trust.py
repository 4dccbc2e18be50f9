"""Trust: rank correlation against its noise ceiling, before and after calibration by six real trainings; controls.

The rival is a Gaussian process on as many real trainings as the calibrated surrogate costs, the hypernetwork included.

What was trained is kept task by task in `trust_runs.json` and not trained again: delete that file where the surrogate
has changed. Figures follow from it in seconds, so that ways to calibrate can be compared.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
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
from hypertune_mip.verification.calibration import Calibration

SETTINGS = 32  # of the truth that judges, none of them used for calibration
CALIBRATION = 6
COST = 4  # trainings that `fit` counts as; the median of `cost` is 4.1
JUDGE = 4321  # seed of the settings that judge
RIVAL = 1000  # added to the seed of the rival's settings
SEEDS = 5


def run(smoke: bool = False) -> dict[str, Any]:
    runs = _runs(smoke)
    document: dict[str, Any] = {"settings": SETTINGS, "calibration": CALIBRATION, "cost_of_fit": COST}
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        parts = pool.map(_quietly, [rows] * len(runs["tasks"]), runs["tasks"])
        document["rows"] = [row for part in tqdm(parts, total=len(runs["tasks"]), desc="calibrations") for row in part]
    document["fronts"] = [row for one in runs["tasks"] for row in _fronts(one)]
    document["controls"] = runs["controls"]
    return results.write("trust", document, smoke=smoke)


def _runs(smoke: bool) -> dict[str, Any]:
    """All that is trained, by task and control; what an earlier run has kept is not trained again."""
    stated = {"settings": SETTINGS, "calibration": CALIBRATION, "cost_of_fit": COST, "seeds": SEEDS}
    runs: dict[str, Any] = {**stated, "tasks": [], "controls": []}
    runs |= results.kept("trust_runs", stated, smoke=smoke)
    names = [make.__name__ for make in (trust_tasks.TASKS[-1:] if smoke else trust_tasks.TASKS)]
    done = {one["task"] for one in runs["tasks"]} | {one["case"] for one in runs["controls"]}
    jobs: list[tuple[Callable[[str, bool], Any], str]] = [(_task, name) for name in names if name not in done]
    jobs += [(_control, name) for name in CONTROLS if name not in done]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        parts = [pool.submit(_quietly, *job, smoke) for job in jobs]
        for part in tqdm(as_completed(parts), total=len(parts), desc="trust"):
            key, value = part.result()
            runs[key] += value
            runs["tasks"].sort(key=lambda one: names.index(one["task"]))
            runs["controls"].sort(key=lambda one: list(CONTROLS).index(one["case"]))
            results.write("trust_runs", runs, smoke=smoke)
    return results.read("trust_runs", smoke=smoke)


def _quietly(work: Callable[..., Any], *arguments: Any) -> Any:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return work(*arguments)


def _task(name: str, smoke: bool) -> tuple[str, list[dict[str, Any]]]:
    """What is trained for one task: the truth that judges, and by seed a surrogate, its report, the rival's runs."""
    task: tasks.Task = getattr(trust_tasks, name)()
    task = tasks.shortened(task) if smoke else task
    units = task.space.sample(4 if smoke else SETTINGS, seed=JUDGE)
    seeds, true = [], {}
    for seed in range(1 if smoke else SEEDS):
        surrogate = tasks.fitted(task, seed)
        real = surrogate.trainer(tasks.recipe(task))
        if seed == 0:
            true = real.train(task.space.from_unit(units), seeds=2, progress=False)
        report = surrogate.verify("loss", settings=CALIBRATION, best=1, trainer=real, seed=seed, progress=False)
        rival = task.space.sample(CALIBRATION + COST, seed=RIVAL + seed)
        known = real.train(task.space.from_unit(rival), progress=False)
        seeds.append(
            {
                "seed": seed,
                "predicted": surrogate.evaluate_units(units),
                "verified": {
                    "units": task.space.to_unit(report.configs).numpy(),
                    "predicted": dict(report.predicted),
                    "true": {metric: runs[:, 0] for metric, runs in report.true.items()},
                },
                "rival": {"units": rival.numpy(), "true": {metric: runs[:, 0] for metric, runs in known.items()}},
                "trusted": report.trusted(),
            }
        )
    return "tasks", [{"task": name, "front": task.front, "units": units.numpy(), "true": true, "seeds": seeds}]


def rows(one: dict[str, Any], calibration: Callable[..., Calibration] = Calibration) -> list[dict[str, Any]]:
    """A row by metric and seed of one task, from what was trained for it."""
    units = torch.tensor(one["units"], dtype=torch.float64)
    found = []
    for part in one["seeds"]:
        verified, rival = part["verified"], part["rival"]
        for metric, runs in ((metric, np.array(runs)) for metric, runs in one["true"].items()):
            mean, before = runs.mean(1), np.array(part["predicted"][metric])
            known = (_doubles(verified[key]) for key in ("units", "predicted", "true"))
            columns = (values[metric] if isinstance(values, dict) else values for values in known)
            after = calibration(*columns)(units, torch.from_numpy(before))
            process = _process(_doubles(rival["units"]), _doubles(rival["true"])[metric], units)
            low, high = after.low.numpy(), after.high.numpy()
            found.append(
                {
                    "task": one["task"],
                    "metric": metric,
                    "seed": part["seed"],
                    "ceiling": statistics.ceiling(statistics.kendall, runs),
                    "tau": statistics.kendall(before, mean),
                    "calibrated": statistics.kendall(after.mean.numpy(), mean),
                    "process": statistics.kendall(process, mean),
                    "regret": statistics.regret(before, mean),
                    "calibrated_regret": statistics.regret(after.mean.numpy(), mean),
                    "process_regret": statistics.regret(process, mean),
                    "coverage": float(np.mean([statistics.coverage(low, high, run) for run in runs.T])),
                    "width": float(np.median(high - low) / np.ptp(mean)),
                    "trusted": part["trusted"],
                }
            )
    return found


def _doubles(values: Any) -> Any:
    """Tensors (float64) of lists, also where these are the values of a mapping."""
    if isinstance(values, dict):
        return {name: _doubles(value) for name, value in values.items()}
    return torch.tensor(values, dtype=torch.float64)


def _fronts(one: dict[str, Any]) -> list[dict[str, Any]]:
    """By seed, hypervolumes where metrics pull in opposite directions."""
    if not one["front"]:
        return []
    true = {metric: np.array(runs) for metric, runs in one["true"].items()}
    return [
        {"task": one["task"], "seed": part["seed"], **_volumes(one["front"], part["predicted"], true)}
        for part in one["seeds"]
    ]


def _process(units: Tensor, true: Tensor, where: Tensor) -> np.ndarray:
    """What BoTorch's Gaussian process with its own priors foresees from real trainings alone."""
    scale, back = (torch.log, torch.exp) if float(true.min()) > 0 else (torch.clone, torch.clone)
    model = SingleTaskGP(units, scale(true).unsqueeze(-1))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    with torch.no_grad():
        foreseen: np.ndarray = back(model.posterior(where).mean.squeeze(-1)).numpy()
    return foreseen


def _volumes(front: list[str], predicted: dict[str, Any], true: dict[str, np.ndarray]) -> dict[str, float]:
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


CONTROLS: dict[str, tuple[str, dict[str, Any]]] = {  # a task, and what breaks the hypernetwork
    "sound": ("b7_simple", {}),
    "no effect": ("b7_no_effect", {}),
    "network too small": ("b7_simple", {"hypernet": {"trunk": (1,), "generate": ["4.bias"]}}),
    "training too short": ("b7_simple", {"epochs": 1}),
}


def _control(name: str, smoke: bool) -> tuple[str, list[dict[str, Any]]]:
    """Whether a broken surrogate is found out, with what the report says; and the sound one is not."""
    made, options = CONTROLS[name]
    task = getattr(trust_tasks, made)()
    task = tasks.shortened(task) if smoke else task
    reports = []
    for seed in range(1 if smoke else SEEDS):
        surrogate = tasks.fitted(task, seed, **options)
        real = surrogate.trainer(tasks.recipe(task))
        report = surrogate.verify("loss", settings=8, trainer=real, seed=seed, progress=False)
        reports.append(
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
    return "controls", reports
