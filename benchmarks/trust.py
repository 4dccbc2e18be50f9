"""Trust: rank correlation against its noise ceiling, before and after calibration by a few real trainings; controls.

Calibration learns from short branches, which start from the hypernetwork's weights, from whole trainings, or from both.
The rivals are Gaussian processes for the same cost, the hypernetwork included: on whole trainings, and on four times as
many of a quarter of the epochs, from scratch.

What was trained is kept in `trust_runs.json` and not trained again: delete that file where the surrogate has changed.
Figures follow from it in minutes, so that ways to calibrate can be compared.
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

import hypertune_mip as ht
from benchmarks import results, tasks, trust_tasks
from hypertune_mip.surrogate.trust import settings_to_verify
from hypertune_mip.verification import statistics
from hypertune_mip.verification.calibration import Calibrated, Calibration, Chain, Gap

SETTINGS = 32  # of the truth that judges, none of them learned from
LEARNED = 16  # settings at most that a surrogate learns from, by branches or truths
SHARES = (0.1, 0.125, 0.25, 0.5)  # of branches
SHORT = 0.25  # share of the recipe of the rival's short trainings from scratch
COST = 4  # trainings that `fit` counts as; the median of `cost` is 4.1
SPENT = 2  # trainings, beside those of `fit`
JUDGE = 4321  # seed of the settings that judge
RIVAL = 1000  # added to the seed of the rival's settings
SEEDS = 5
_KINDS = ("truths", "surrogates", "controls")


def run(smoke: bool = False) -> dict[str, Any]:
    runs = _runs(smoke)
    document: dict[str, Any] = {"settings": SETTINGS, "cost_of_fit": COST, "spent": SPENT}
    pairs = [(truth, one) for truth in runs["truths"] for one in runs["surrogates"] if one["task"] == truth["task"]]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        parts = [pool.submit(_quietly, rows, *pair) for pair in pairs]
        document["rows"] = [row for part in tqdm(parts, desc="calibrations") for row in part.result()]
    document["fronts"] = [row for truth, one in pairs for row in _fronts(truth, one)]
    document["controls"] = runs["controls"]
    return results.write("trust", document, smoke=smoke)


def _runs(smoke: bool) -> dict[str, Any]:
    """All that is trained, by task, seed and control; what an earlier run has kept is not trained again."""
    stated = {"settings": SETTINGS, "learned": LEARNED, "shares": list(SHARES), "short": SHORT, "cost_of_fit": COST}
    runs: dict[str, Any] = {**stated, "truths": [], "surrogates": [], "controls": []}
    runs |= results.kept("trust_runs", stated, smoke=smoke)
    names = [make.__name__ for make in (trust_tasks.TASKS[-1:] if smoke else trust_tasks.TASKS)]
    done = {_key(kind, one) for kind in _KINDS for one in runs[kind]}
    jobs: list[tuple[Callable[..., dict[str, Any]], str, tuple[Any, ...]]] = [(_truth, "truths", (n,)) for n in names]
    for seed in range(1 if smoke else SEEDS):
        jobs += [(_surrogate, "surrogates", (name, seed)) for name in names]
        jobs += [(_control, "controls", (case, seed)) for case in CONTROLS]
    jobs = [(work, kind, key) for work, kind, key in jobs if (kind, *key) not in done]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        parts = {pool.submit(_quietly, work, *key, smoke): kind for work, kind, key in jobs}
        for part in tqdm(as_completed(parts), total=len(parts), desc="trust"):
            kind = parts[part]
            order = list(CONTROLS) if kind == "controls" else names
            runs[kind] = sorted([*runs[kind], part.result()], key=lambda one: (order.index(one["task"]), one["seed"]))
            results.write("trust_runs", runs, smoke=smoke)
    return results.read("trust_runs", smoke=smoke)


def _key(kind: str, one: dict[str, Any]) -> tuple[Any, ...]:
    return (kind, one["task"]) if kind == "truths" else (kind, one["task"], one["seed"])


def _quietly(work: Callable[..., Any], *arguments: Any) -> Any:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return work(*arguments)


def _made(name: str, smoke: bool) -> tuple[tasks.Task, Tensor]:
    """A task, and the settings that judge."""
    task: tasks.Task = getattr(trust_tasks, name)()
    task = tasks.shortened(task) if smoke else task
    return task, task.space.sample(4 if smoke else SETTINGS, seed=JUDGE)


def _truth(name: str, smoke: bool) -> dict[str, Any]:
    """The truth that judges, with two seeds."""
    task, units = _made(name, smoke)
    true = tasks.trainer(task).train(task.space.from_unit(units), seeds=2, progress=False)
    return {"task": name, "seed": 0, "front": task.front, "units": units.numpy(), "true": true}


def _surrogate(name: str, seed: int, smoke: bool) -> dict[str, Any]:
    """What one surrogate says, and what real trainings of each kind give that it, or a rival, may learn from."""
    task, units = _made(name, smoke)
    surrogate = tasks.fitted(task, seed)
    real = surrogate.trainer(tasks.recipe(task))
    learned, _ = settings_to_verify(surrogate._measure, "loss", 4 if smoke else LEARNED, best=1, seed=seed)
    truths = real.train(learned, seeds=[RIVAL + seed], progress=False)
    branches = {share: real.branch(learned, share=share, seed=seed, progress=False) for share in SHARES}
    short = ht.Recipe(epochs=max(1, round(SHORT * task.epochs)), optimizer=tasks.recipe(task).optimizer)
    spread = task.space.sample(4 if smoke else round((COST + SPENT) / SHORT), seed=RIVAL + seed)
    fresh = real.following(short).train(task.space.from_unit(spread), seeds=[RIVAL + seed], progress=False)
    return {
        "task": name,
        "seed": seed,
        "predicted": surrogate.evaluate_units(units),
        "learned": {
            "units": task.space.to_unit(learned).numpy(),
            "predicted": surrogate.evaluate_batch(learned),
            "true": {metric: runs[:, 0] for metric, runs in truths.items()},
            "branches": {str(share): {"cost": one.cost, **one.metrics} for share, one in branches.items()},
        },
        "short": {"units": spread.numpy(), "true": {metric: runs[:, 0] for metric, runs in fresh.items()}},
    }


def rows(truth: dict[str, Any], one: dict[str, Any]) -> list[dict[str, Any]]:
    """A row by metric and way to foresee the truth, from what was trained for one surrogate."""
    units = _doubles(truth["units"])
    found = []
    for metric, runs in ((metric, np.array(runs)) for metric, runs in truth["true"].items()):
        mean = runs.mean(1)
        about = {"task": one["task"], "metric": metric, "seed": one["seed"]}
        about["ceiling"] = statistics.ceiling(statistics.kendall, runs)
        for way, (cost, foresee) in WAYS.items():
            foreseen = foresee(one, metric, units)
            row = {**about, "way": way, "cost": cost}
            center = np.asarray(foreseen.mean if isinstance(foreseen, Calibrated) else foreseen)
            row |= {"tau": statistics.kendall(center, mean), "regret": statistics.regret(center, mean)}
            if isinstance(foreseen, Calibrated):
                low, high = foreseen.low.numpy(), foreseen.high.numpy()
                row["coverage"] = float(np.mean([statistics.coverage(low, high, run) for run in runs.T]))
                row["width"] = float(np.median(high - low) / np.ptp(mean))
            found.append(row)
    return found


def _surrogate_alone(one: dict[str, Any], metric: str, units: Tensor) -> Tensor:
    return torch.as_tensor(_doubles(one["predicted"])[metric])


def _by_trainings(one: dict[str, Any], metric: str, units: Tensor) -> Calibrated:
    """As after `verify(settings=6, best=1)`."""
    where, predicted, learned = _learned(one, metric, 6)
    return Calibration(where, predicted, learned["true"])(units, _surrogate_alone(one, metric, units))


def _by_branches(one: dict[str, Any], metric: str, units: Tensor) -> Calibrated:
    """As after `verify(settings=16, best=1, share=0.125)`."""
    return _by_branches_and(0, LEARNED, one, metric)(units, _surrogate_alone(one, metric, units))


def _by_both(one: dict[str, Any], metric: str, units: Tensor) -> Calibrated:
    """As after `verify(settings=8, best=1, share=0.125)` and `verify(settings=1, best=0)`."""
    return _by_branches_and(1, 8, one, metric)(units, _surrogate_alone(one, metric, units))


def _by_branches_and(trainings: int, branches: int, one: dict[str, Any], metric: str) -> Chain:
    where, predicted, learned = _learned(one, metric, branches)
    links: list[Calibration | Gap] = [Calibration(where, predicted, learned["0.125"])]
    foreseen = Chain(links)(where, predicted).mean[:trainings]
    return Chain([*links, Gap(predicted, learned["0.125"], foreseen, learned["true"][:trainings])])


def _process_on_trainings(one: dict[str, Any], metric: str, units: Tensor) -> Tensor:
    where, _, learned = _learned(one, metric, COST + SPENT)
    return _process(where, learned["true"], units)


def _process_on_short(one: dict[str, Any], metric: str, units: Tensor) -> Tensor:
    return _process(_doubles(one["short"]["units"]), _doubles(one["short"]["true"])[metric], units)


WAYS: dict[str, tuple[float, Callable[[dict[str, Any], str, Tensor], Tensor | Calibrated]]] = {
    "surrogate": (COST, _surrogate_alone),
    "16 branches": (COST + SPENT, _by_branches),
    "8 branches, 1 training": (COST + SPENT, _by_both),
    "6 trainings": (COST + 6, _by_trainings),
    "GP, 6 trainings": (COST + SPENT, _process_on_trainings),
    "GP, 24 short trainings": (COST + SPENT, _process_on_short),
}


def _learned(one: dict[str, Any], metric: str, count: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Some of the settings that a surrogate learns from: spread ones, and its best, which comes last.

    Returns:
        Units, predictions, and values by kind of training: "true", or the share of a branch.
    """
    learned = one["learned"]
    total = len(learned["units"])
    kept = [*range(min(count, total) - 1), total - 1]
    values = {"true": learned["true"][metric]} | {share: each[metric] for share, each in learned["branches"].items()}
    columns = {name: _doubles(value)[kept] for name, value in values.items()}
    return _doubles(learned["units"])[kept], _doubles(learned["predicted"])[metric][kept], columns


def _doubles(values: Any) -> Any:
    """Tensors (float64) of lists, also where these are the values of a mapping."""
    if isinstance(values, dict):
        return {name: _doubles(value) for name, value in values.items()}
    return torch.tensor(values, dtype=torch.float64)


def _fronts(truth: dict[str, Any], one: dict[str, Any]) -> list[dict[str, Any]]:
    """Hypervolumes, where metrics pull in opposite directions."""
    if not truth["front"]:
        return []
    true = {metric: np.array(runs) for metric, runs in truth["true"].items()}
    return [{"task": one["task"], "seed": one["seed"], **_volumes(truth["front"], one["predicted"], true)}]


def _process(units: Tensor, true: Tensor, where: Tensor) -> Tensor:
    """What BoTorch's Gaussian process with its own priors foresees from real trainings alone."""
    good = torch.isfinite(true)
    units, true = units[good], true[good]
    scale, back = (torch.log, torch.exp) if float(true.min()) > 0 else (torch.clone, torch.clone)
    model = SingleTaskGP(units, scale(true).unsqueeze(-1))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    with torch.no_grad():
        foreseen: Tensor = back(model.posterior(where).mean.squeeze(-1))
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


def _control(case: str, seed: int, smoke: bool) -> dict[str, Any]:
    """Whether a broken surrogate is found out, with what the report says; and the sound one is not."""
    made, options = CONTROLS[case]
    task, _ = _made(made, smoke)
    surrogate = tasks.fitted(task, seed, **options)
    real = surrogate.trainer(tasks.recipe(task))
    report = surrogate.verify("loss", settings=8, trainer=real, seed=seed, progress=False)
    return {
        "task": case,
        "seed": seed,
        "flagged": "idle" in report.ignored if case == "no effect" else bool(report.doubts()),
        "doubts": report.doubts(),
        "ignored": report.ignored,
        "tau": report.tau.value,
        "regret": report.regret,
    }
