"""Search: real trainings proposed by random search, TPE, a Gaussian process and `SurrogateSampler`.

Compute is counted in trainings, and training the hypernetwork counts as COST of them. All methods train with the same
seeds. What a method has found after n trainings is the setting with the best validation loss; its regret is how
much worse its test loss is than the best one that any method has seen, as a share of the range over random settings.
"""

from __future__ import annotations

import math
import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import optuna
import torch
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from torch import Tensor, nn
from tqdm import tqdm

import hypertune_mip as ht
from benchmarks import results, tasks, trust_tasks
from benchmarks.trust import optimizer
from hypertune_mip_optuna import SurrogateSampler
from hypertune_mip_optuna.agreement import suggest_config

COST = 3  # trainings that `fit` counts as; measured 2.3 (see `cheap`)
TRIALS = 64
OWN_TRIALS = 32
CASES = {
    "b1_noisy_labels": {},
    "b2_wine": {},
    "b6_denoising": {},
    "b7_simple": {"epochs": 1},  # a surrogate that was trained far too short
}


def run(smoke: bool = False) -> dict[str, Any]:
    jobs = [(case, seed, smoke) for case in (list(CASES)[:1] if smoke else CASES) for seed in range(1 if smoke else 5)]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        rows = [row for part in tqdm(pool.map(_rows, jobs), total=len(jobs), desc="search") for row in part]
    return results.write("search", {"rows": rows, "cost_of_fit": COST, "trials": TRIALS}, smoke=smoke)


def _rows(job: tuple[str, int, bool]) -> list[dict[str, Any]]:
    """What each method has found after each trial, in one case with one seed."""
    case, seed, smoke = job
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore")
    task: tasks.Task = getattr(trust_tasks, case)()
    task = tasks.shortened(task) if smoke else task
    assert task.test is not None
    surrogate = tasks.fitted(task, seed, **CASES[case])
    samplers: dict[str, BaseSampler] = {
        "random": RandomSampler(seed=seed),
        "tpe": TPESampler(seed=seed),
        "gp": GPSampler(seed=seed),
        "surrogate": SurrogateSampler(surrogate, "loss", inner=TPESampler(seed=seed), seed=seed),
    }
    studies = {name: optuna.create_study(sampler=sampler) for name, sampler in samplers.items()}
    truth = ht.Truth(
        task.network(),
        task.space,
        task.loss,
        task.loader(),
        metric=_with_test(task),
        val_loader=[tuple(torch.cat(pair) for pair in zip(task.validation, task.test, strict=True))],
        epochs=task.epochs,
        optimizer=optimizer(task),
    )
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in studies}
    for trial_number in range(4 if smoke else TRIALS):
        active = [name for name in studies if name != "surrogate" or trial_number < OWN_TRIALS]
        trials = {name: studies[name].ask() for name in active}
        configs = [suggest_config(trial, task.space) for trial in trials.values()]
        measured = truth.train(configs, seeds=[seed], progress=False)
        for name, loss, test in zip(active, measured["loss"][:, 0], measured["test_loss"][:, 0], strict=True):
            studies[name].tell(trials[name], None if math.isnan(loss) else loss, state=_state(loss))
            found[name].append((float(loss), float(test)))
    tests = np.array([test for pairs in found.values() for _, test in pairs])
    spread = float(np.nanmax([t for _, t in found["random"]]) - np.nanmin(tests))
    return [
        {
            "case": case,
            "seed": seed,
            "method": name,
            "regret": [_regret(pairs[: n + 1], float(np.nanmin(tests)), spread) for n in range(len(pairs))],
        }
        for name, pairs in found.items()
    ]


def _with_test(task: tasks.Task) -> Any:
    """The task's metric on both parts of one batch: validation first, then test under a name of its own."""
    cut = len(task.validation[0])

    def metric(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        validation, test = (
            task.metric(model, tuple(t[part] for t in batch)) for part in (slice(cut), slice(cut, None))
        )
        return validation | {f"test_{name}": value for name, value in test.items()}

    return metric


def _state(loss: float) -> optuna.trial.TrialState:
    return optuna.trial.TrialState.FAIL if math.isnan(loss) else optuna.trial.TrialState.COMPLETE


def _regret(pairs: list[tuple[float, float]], best: float, spread: float) -> float:
    _, test = min(pairs, key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0])
    return (test - best) / spread
