"""Search: real trainings proposed by random search, TPE, a Gaussian process, ASHA and `SurrogateSampler`.

Compute is counted in trainings, and training the hypernetwork counts as COST of them. All methods train with the same
seeds. What a method has found after n trainings is the setting with the best validation loss; its regret is how
much worse its test loss is than the best one that any method has seen, as a share of the range over random settings.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
import optuna
import torch
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from torch import Tensor, nn
from tqdm import tqdm

import hypertune_mip as ht
from benchmarks import results, tasks, trust_tasks
from benchmarks.trust import COST
from hypertune_mip_optuna import SurrogateSampler
from hypertune_mip_optuna.agreement import suggest_config

TRIALS = 64
OWN_TRIALS = 32
CASES: dict[str, dict[str, Any]] = {
    "b3_group_norm": {},  # the longest first
    "b5_two_tasks": {},
    "b2_digits": {},
    "b1_noisy_labels": {},
    "b4_vae": {},
    "b6_denoising": {},
    "b2_wine": {},
    "b7_simple": {"epochs": 1},  # a surrogate that was trained far too short
}
_RUNGS = 3  # ASHA: a ninth, a third and all of the epochs


def run(smoke: bool = False) -> dict[str, Any]:
    jobs = [(case, seed, smoke) for case in (list(CASES)[-1:] if smoke else CASES) for seed in range(1 if smoke else 5)]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        rows = [row for part in tqdm(pool.map(_rows, jobs), total=len(jobs), desc="search") for row in part]
    return results.write("search", {"rows": rows, "cost_of_fit": COST, "trials": TRIALS}, smoke=smoke)


def _rows(job: tuple[str, int, bool]) -> list[dict[str, Any]]:
    """What each method has found after each training, in one case with one seed."""
    case, seed, smoke = job
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore")
    task: tasks.Task = getattr(trust_tasks, case)()
    task = tasks.shortened(task) if smoke else task
    start = time.perf_counter()
    surrogate = tasks.fitted(task, seed, **CASES[case])
    seconds = {"fit": time.perf_counter() - start}
    found, proposing = _trial_by_trial(task, surrogate, seed, trials=4 if smoke else TRIALS)
    start = time.perf_counter()
    found["asha"] = _asha(task, seed, trainings=2 if smoke else OWN_TRIALS + COST)
    seconds |= {"asha": time.perf_counter() - start, **proposing}
    tests = [test for runs in found.values() for run in runs for test in [run.test]]
    best, worst = float(np.nanmin(tests)), float(np.nanmax([run.test for run in found["random"]]))
    count = {name: math.floor(runs[-1].spent + 1e-9) for name, runs in found.items()}
    return [
        {
            "case": case,
            "seed": seed,
            "method": name,
            "regret": [_regret(runs, n + 1, best, worst - best) for n in range(count[name])],
            "seconds": seconds.get(name),
        }
        for name, runs in found.items()
    ]


class _Run(NamedTuple):
    """One finished real training, and the trainings that the method has spent up to then."""

    spent: float
    validation: float
    test: float


def _trial_by_trial(
    task: tasks.Task, surrogate: ht.Surrogate, seed: int, *, trials: int
) -> tuple[dict[str, list[_Run]], dict[str, float]]:
    """Runs by method, each trial of all methods trained together; and the seconds that each took to propose."""
    samplers: dict[str, BaseSampler] = {
        "random": RandomSampler(seed=seed),
        "tpe": TPESampler(seed=seed),
        "gp": GPSampler(seed=seed),
        "surrogate": SurrogateSampler(surrogate, "loss", inner=TPESampler(seed=seed), seed=seed),
    }
    studies = {name: optuna.create_study(sampler=sampler) for name, sampler in samplers.items()}
    assert task.test is not None
    x, y = (torch.cat(pair) for pair in zip(task.validation, task.test, strict=True))
    truth = tasks.truth(replace(task, metric=_with_test(task), validation=(x, y)))
    found: dict[str, list[_Run]] = {name: [] for name in studies}
    seconds = dict.fromkeys(studies, 0.0)
    for number in range(trials):
        active = [name for name in studies if name != "surrogate" or number < OWN_TRIALS]
        asked = {}
        for name in active:
            start = time.perf_counter()
            trial = studies[name].ask()
            asked[name] = (trial, suggest_config(trial, task.space))
            seconds[name] += time.perf_counter() - start
        measured = truth.train([config for _, config in asked.values()], seeds=[seed], progress=False)
        for name, loss, test in zip(active, measured["loss"][:, 0], measured["test_loss"][:, 0], strict=True):
            studies[name].tell(asked[name][0], None if math.isnan(loss) else loss, state=_state(loss))
            found[name].append(_Run(number + 1, float(loss), float(test)))
    return found, seconds


def _asha(task: tasks.Task, seed: int, *, trainings: int) -> list[_Run]:
    """Asynchronous successive halving with random settings, until as many trainings are spent; the finished ones."""
    rungs = [max(1, round(task.epochs / 3**k)) for k in reversed(range(_RUNGS))]
    pruner = SuccessiveHalvingPruner(min_resource=rungs[0], reduction_factor=3)
    study = optuna.create_study(sampler=RandomSampler(seed=seed), pruner=pruner)
    assert task.test is not None
    spent, found = 0.0, []
    while spent < trainings:
        trial = study.ask()
        config = suggest_config(trial, task.space)
        for epoch, network in enumerate(tasks.epochs_of_real_training(task, config, seed), 1):
            if epoch not in rungs:
                continue
            with torch.no_grad():
                parts = (task.metric(network.eval(), part)["loss"] for part in (task.validation, task.test))
                loss, test = (float(value) for value in parts)
            trial.report(loss, rungs[0] * 3 ** rungs.index(epoch))  # rungs as the pruner counts them
            if epoch < task.epochs and trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, None if math.isnan(loss) else loss, state=_state(loss))
            found.append(_Run(spent + 1, loss, test))
        spent += epoch / task.epochs
    return found


def _with_test(task: tasks.Task) -> Any:
    """The task's metric on both parts of one batch: validation first, then test under a name of its own."""
    cut = len(task.validation[0])

    def metric(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        validation, test = (
            task.metric(model, tuple(t[part] for t in batch)) for part in (slice(cut), slice(cut, None))
        )
        return validation | {f"test_{name}": value for name, value in test.items()}

    return metric


def _state(loss: float) -> TrialState:
    return TrialState.FAIL if math.isnan(loss) else TrialState.COMPLETE


def _regret(runs: list[_Run], trainings: int, best: float, spread: float) -> float | None:
    """Of the run that is best on validation data, among those finished after as many trainings; None before any."""
    finished = [run for run in runs if run.spent <= trainings + 1e-9 and math.isfinite(run.validation)]
    return (min(finished, key=lambda run: run.validation).test - best) / spread if finished else None
