"""Rivals of a delivery that begin to model early: TPE and a Gaussian process after four random trials, and SMAC.

Optuna's TPE and Gaussian process draw their first ten settings at random; `search` has them so. Here they draw four,
and SMAC has its own initial design, as many trials as a delivery costs several times over. The larger tasks, whose
trainings are dear, are searched here alone, with random search beside it.

Results are kept after every case and seed, and what is kept is not measured again: delete the JSON file for that.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import optuna
import torch
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import hypertune_mip as ht
from benchmarks import large_tasks, results, search, tasks, trust_tasks
from benchmarks.regret import Run
from hypertune_mip.space.dimension import Continuous
from hypertune_mip_optuna.agreement import suggest_config

TRIALS = {"small": 16, "large": 12}
SEEDS = {"small": 5, "large": 1}
METHODS = {"small": ["tpe4", "gp4", "smac"], "large": ["random", "tpe4", "gp4"]}
LARGE = tuple(make.__name__ for make in large_tasks.TASKS)
_STARTUP = 4


def run(smoke: bool = False) -> dict[str, Any]:
    stated = {"trials": TRIALS, "methods": METHODS, "startup": _STARTUP}
    rows = list(results.kept("rivals", stated, smoke=smoke).get("rows", []))
    done = {(row["case"], row["seed"]) for row in rows}
    cases = list(search.TASKS + LARGE)
    jobs = [
        (case, seed, smoke)
        for seed in range(max(SEEDS.values()))
        for case in (["b2_wine"] if smoke else cases)
        if (case, seed) not in done and seed < (1 if smoke else SEEDS[_size(case)])
    ]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for part in tqdm(as_completed([pool.submit(_rows, *job) for job in jobs]), total=len(jobs), desc="rivals"):
            rows += part.result()
            rows.sort(key=lambda row: (cases.index(row["case"]), row["method"], row["seed"]))
            results.write("rivals", {**stated, "rows": rows}, smoke=smoke)
    return results.read("rivals", smoke=smoke)


def task_of(case: str) -> tasks.Task:
    """A larger task, or one of those on which trust is tested."""
    task: tasks.Task = getattr(large_tasks if case in LARGE else trust_tasks, case)()
    return task


def _size(case: str) -> str:
    return "large" if case in LARGE else "small"


def _rows(case: str, seed: int, smoke: bool) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    threadpool_limits(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore")
    task = tasks.shortened(task_of(case)) if smoke else task_of(case)
    trials, judge = 4 if smoke else TRIALS[_size(case)], search._judge(task)
    with tempfile.TemporaryDirectory() as folder:
        proposers = {name: _proposer(name, task.space, seed, trials, Path(folder)) for name in METHODS[_size(case)]}
        found: dict[str, list[Run]] = {name: [] for name in proposers}
        for number in range(trials):
            asked = {name: proposer.ask() for name, proposer in proposers.items()}
            measured = judge.train(list(asked.values()), seeds=[seed], progress=False)
            for name, loss, test in zip(asked, measured["loss"][:, 0], measured["test_loss"][:, 0], strict=True):
                proposers[name].tell(float(loss))
                found[name].append(Run(number + 1, float(loss), float(test)))
    return [{"case": case, "seed": seed, "method": name, "runs": runs} for name, runs in found.items()]


class Proposer(Protocol):
    """Proposes a config, and learns how good it was before it is asked again."""

    def ask(self) -> dict[str, Any]: ...

    def tell(self, loss: float) -> None: ...


def _proposer(name: str, space: ht.SearchSpace, seed: int, trials: int, folder: Path) -> Proposer:
    if name == "smac":
        return Smac(space, seed, trials, folder)
    samplers: dict[str, BaseSampler] = {
        "random": RandomSampler(seed=seed),
        "tpe4": TPESampler(seed=seed, n_startup_trials=_STARTUP),
        "gp4": GPSampler(seed=seed, n_startup_trials=_STARTUP),
    }
    return Study(space, samplers[name])


class Study:
    """One of Optuna's samplers."""

    def __init__(self, space: ht.SearchSpace, sampler: BaseSampler) -> None:
        self._space, self._study = space, optuna.create_study(sampler=sampler)

    def ask(self) -> dict[str, Any]:
        self._trial = self._study.ask()
        return suggest_config(self._trial, self._space)

    def tell(self, loss: float) -> None:
        diverged = math.isnan(loss)
        state = TrialState.FAIL if diverged else TrialState.COMPLETE
        self._study.tell(self._trial, None if diverged else loss, state=state)


class Smac:
    """SMAC with a random forest, its facade for hyperparameters."""

    def __init__(self, space: ht.SearchSpace, seed: int, trials: int, folder: Path) -> None:
        from ConfigSpace import ConfigurationSpace, Float
        from smac import HyperparameterOptimizationFacade, Scenario

        ranges = ConfigurationSpace(seed=seed)
        for dimension in space.dimensions:
            assert isinstance(dimension, Continuous)
            ranges.add(Float(dimension.name, (dimension.low, dimension.high), log=dimension.log))
        scenario = Scenario(ranges, deterministic=True, n_trials=trials, seed=seed, output_directory=folder)
        self._facade = HyperparameterOptimizationFacade(
            scenario, lambda config, seed: 0.0, overwrite=True, logging_level=logging.ERROR
        )

    def ask(self) -> dict[str, Any]:
        self._trial = self._facade.ask()
        return dict(self._trial.config)

    def tell(self, loss: float) -> None:
        from smac.runhistory.dataclasses import TrialValue
        from smac.runhistory.enumerations import StatusType

        diverged = not math.isfinite(loss)
        status = StatusType.CRASHED if diverged else StatusType.SUCCESS
        self._facade.tell(self._trial, TrialValue(cost=1e3 if diverged else loss, status=status))
