"""Search: real trainings proposed by random search, TPE, a Gaussian process, ASHA and `SurrogateSampler`.

Compute is counted in trainings, and training the hypernetwork counts as COST of them. The seconds that a method takes
to propose are kept, and those of `fit` and of one plain training, so that methods can be compared by the clock as well.
All methods are judged by the same seed of real training, ASHA's finished settings as well. What a method has found
after n trainings is the setting with the best validation loss; its regret is how much worse its test loss is than the
best one that any method has seen, as a share of the range over random settings.

Results are kept after every case and seed, and what is kept is not measured again: delete the JSON file, or the rows
of a method whose code has changed.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import optuna
import torch
from optuna.pruners import SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from tqdm import tqdm

import hypertune_mip as ht
from benchmarks import results, tasks, trust_tasks
from benchmarks.cheap import seconds_of
from benchmarks.regret import Run
from benchmarks.trust import CONTROLS, COST
from hypertune_mip_optuna import SurrogateSampler
from hypertune_mip_optuna.agreement import suggest_config

METHODS = ["random", "tpe", "gp", "surrogate", "asha"]
TRIALS = 64
OWN_TRIALS = 32
SEEDS = 5
TASKS = (  # the longest first
    "b3_group_norm",
    "b5_two_tasks",
    "b2_digits",
    "b1_noisy_labels",
    "b4_vae",
    "b6_denoising",
    "b2_wine",
)
BROKEN = ["no effect", "network too small", "training too short"]  # controls whose surrogate must not do harm
CASES: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in TASKS} | {
    name: CONTROLS[name] for name in BROKEN
}
_RUNGS = 3  # ASHA: a ninth, a third and all of the epochs


def run(smoke: bool = False) -> dict[str, Any]:
    stated = {"cost_of_fit": COST, "trials": TRIALS, "own_trials": OWN_TRIALS, "methods": METHODS, "broken": BROKEN}
    rows = list(results.kept("search", stated, smoke=smoke).get("rows", []))
    done = {(row["case"], row["seed"], row["method"]) for row in rows}
    jobs = [
        (case, seed, missing, smoke)
        for case in (list(CASES)[-1:] if smoke else CASES)
        for seed in range(1 if smoke else SEEDS)
        if (missing := [method for method in METHODS if (case, seed, method) not in done])
    ]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for part in tqdm(as_completed([pool.submit(_rows, *job) for job in jobs]), total=len(jobs), desc="search"):
            rows += part.result()
            rows.sort(key=lambda row: (list(CASES).index(row["case"]), METHODS.index(row["method"]), row["seed"]))
            results.write("search", {**stated, "rows": rows}, smoke=smoke)
    return results.read("search", smoke=smoke)


def _rows(case: str, seed: int, methods: Sequence[str], smoke: bool) -> list[dict[str, Any]]:
    """What some methods have found in one case with one seed: spent trainings, validation and test loss of each run."""
    torch.set_num_threads(1)
    threadpool_limits(1)  # else BLAS's threads of two processes wait for each other, many times as long
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore")
    task: tasks.Task = getattr(trust_tasks, CASES[case][0])()
    task = tasks.shortened(task) if smoke else task
    surrogate, clock = _fitted(task, case, seed) if "surrogate" in methods else (None, {})
    found, seconds = _trial_by_trial(task, surrogate, seed, methods, trials=4 if smoke else TRIALS)
    if "asha" in methods:
        found["asha"] = _asha(task, seed, trainings=2 if smoke else OWN_TRIALS + COST)
    return [
        {"case": case, "seed": seed, "method": name, "seconds": seconds.get(name), "runs": runs}
        | (clock if name == "surrogate" else {})
        for name, runs in found.items()
    ]


def _fitted(task: tasks.Task, case: str, seed: int) -> tuple[ht.Surrogate, dict[str, float]]:
    """The surrogate of a case, the seconds that it took, and those of one plain training in the same process."""
    start = time.perf_counter()
    surrogate = tasks.fitted(task, seed, **CASES[case][1])
    seconds = time.perf_counter() - start
    config = task.space.from_unit(task.space.sample(1))[0]
    plain = seconds_of(lambda: tasks.real_training(task, config, seed))
    return surrogate, {"seconds_of_fit": seconds, "seconds_of_training": plain}


def _sampler(method: str, surrogate: ht.Surrogate | None, seed: int) -> BaseSampler:
    if method == "surrogate":
        assert surrogate is not None
        return SurrogateSampler(surrogate, "loss", inner=TPESampler(seed=seed), seed=seed)
    return {"random": RandomSampler, "tpe": TPESampler, "gp": GPSampler}[method](seed=seed)


def _trial_by_trial(
    task: tasks.Task, surrogate: ht.Surrogate | None, seed: int, methods: Sequence[str], *, trials: int
) -> tuple[dict[str, list[Run]], dict[str, float]]:
    """Runs by method, each trial of all methods trained together; and the seconds that each took to propose."""
    samplers = {name: _sampler(name, surrogate, seed) for name in methods if name != "asha"}
    studies = {name: optuna.create_study(sampler=sampler) for name, sampler in samplers.items()}
    judge = _judge(task)
    found: dict[str, list[Run]] = {name: [] for name in studies}
    seconds = dict.fromkeys(studies, 0.0)
    for number in range(trials):
        active = [name for name in studies if name != "surrogate" or number < OWN_TRIALS]
        if not active:
            break
        asked = {}
        for name in active:
            start = time.perf_counter()
            trial = studies[name].ask()
            asked[name] = (trial, suggest_config(trial, task.space))
            seconds[name] += time.perf_counter() - start
        measured = judge.train([config for _, config in asked.values()], seeds=[seed], progress=False)
        for name, loss, test in zip(active, measured["loss"][:, 0], measured["test_loss"][:, 0], strict=True):
            studies[name].tell(asked[name][0], None if math.isnan(loss) else loss, state=_state(loss))
            found[name].append(Run(number + 1, float(loss), float(test)))
    return found, seconds


def _asha(task: tasks.Task, seed: int, *, trainings: int) -> list[Run]:
    """Successive halving with random settings, until as many trainings are spent; those finished, trained as others."""
    rungs = [max(1, round(task.epochs / 3**k)) for k in reversed(range(_RUNGS))]
    pruner = SuccessiveHalvingPruner(min_resource=rungs[0], reduction_factor=3)
    study = optuna.create_study(sampler=RandomSampler(seed=seed), pruner=pruner)
    spent, finished = 0.0, []
    while spent < trainings:
        trial = study.ask()
        config = suggest_config(trial, task.space)
        for epoch, network in enumerate(tasks.epochs_of_real_training(task, config, seed), 1):
            if epoch not in rungs:
                continue
            with torch.no_grad():
                loss = float(task.metric(network.eval(), task.validation)["loss"])
            trial.report(loss, rungs[0] * 3 ** rungs.index(epoch))  # rungs as the pruner counts them
            if epoch < task.epochs and trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            study.tell(trial, None if math.isnan(loss) else loss, state=_state(loss))
            finished.append((spent + 1, config))
        spent += epoch / task.epochs
    judged = _judge(task).train([config for _, config in finished], seeds=[seed], progress=False)
    losses = zip(judged["loss"][:, 0], judged["test_loss"][:, 0], strict=True)
    return [Run(at, float(loss), float(test)) for (at, _), (loss, test) in zip(finished, losses, strict=True)]


def _judge(task: tasks.Task) -> ht.Trainer:
    """Real training, with the metrics of validation and test."""
    assert task.test is not None
    x, y = (torch.cat(pair) for pair in zip(task.validation, task.test, strict=True))
    return tasks.trainer(replace(task, metric=_with_test(task), validation=(x, y)))


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
