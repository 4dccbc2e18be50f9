"""Delivery: the network that `deliver` ends in, against what the same compute, or the same time, finds otherwise.

What is compared is a network: validation data choose it, test data judge it. Regret is as in `search`, whose 64 real
trainings by random search, TPE, a Gaussian process and ASHA are the rivals there: 0 is the best test loss that any of
them has found, so that less is better than all of them, as a share of the range over random settings.

The larger tasks, whose trainings are dear, have fewer seeds, and their rivals are those of `rivals` alone.

Methods, each with its cost in trainings:
- "deliver": `fit` and `deliver` with their defaults;
- "lean": the same after a `fit` with one setting a step;
- "fresh": the same rungs from fresh weights at random settings, for as many trainings as `deliver` and `fit` cost;
- "default": one whole training in the middle of the space, from which the same rungs go on at random settings, for as
  many trainings in all;
- "stacked": whole trainings at random settings, as many at once as the library stacks, for as long by the clock.

Results are kept after every case and seed, and what is kept is not measured again: delete the JSON file for that.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import nn
from tqdm import tqdm

import hypertune_mip as ht
from benchmarks import results, rivals, tasks
from benchmarks.branches import Fresh
from benchmarks.search import CASES
from hypertune_mip.surrogate.candidates import Plan, rungs_of
from hypertune_mip.surrogate.delivery import delivered
from hypertune_mip.trainings.networks import like
from hypertune_mip.trainings.starts import FromNetwork, Starts

METHODS = ["deliver", "lean", "fresh", "default", "stacked"]
SEEDS = 5
TRAININGS = 2.0  # beside `fit`
_TOGETHER = 16  # networks in a stack
_MOST = 256  # trainings of "stacked"


def run(smoke: bool = False) -> dict[str, Any]:
    stated = {"trainings": TRAININGS, "methods": METHODS}
    rows = list(results.kept("delivery", stated, smoke=smoke).get("rows", []))
    done = {(row["case"], row["seed"]) for row in rows}
    cases = [*CASES, *rivals.LARGE]
    jobs = [
        (case, seed, smoke)
        for some, seeds in ((list(CASES), SEEDS), (rivals.LARGE, rivals.SEEDS["large"]))
        for seed in range(1 if smoke else seeds)
        for case in (some[:1] if smoke else some)
        if (case, seed) not in done
    ]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for part in tqdm(as_completed([pool.submit(_rows, *job) for job in jobs]), total=len(jobs), desc="delivery"):
            rows += part.result()
            rows.sort(key=lambda row: (cases.index(row["case"]), METHODS.index(row["method"]), row["seed"]))
            results.write("delivery", {**stated, "rows": rows}, smoke=smoke)
    return results.read("delivery", smoke=smoke)


def _rows(case: str, seed: int, smoke: bool) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    threadpool_limits(1)
    warnings.simplefilter("ignore")
    name, options = CASES.get(case, (case, {}))
    task = tasks.shortened(rivals.task_of(name)) if smoke else rivals.task_of(name)
    found = []
    for method in ("deliver", "lean"):
        begin = time.perf_counter()
        surrogate = tasks.fitted(task, seed, **options, **({"settings_per_step": 1} if method == "lean" else {}))
        fit = time.perf_counter() - begin
        own = surrogate.deliver("loss", TRAININGS, recipe=tasks.recipe(task), seed=seed, progress=False)
        seconds = time.perf_counter() - begin
        found.append(_row(task, case, seed, method, own, seconds) | {"seconds_of_fit": fit})
    whole = found[0]
    found.append(_fresh(task, case, seed, whole["cost"], surrogate.hypernet))
    found.append(_default(task, case, seed, whole["cost"]))
    found.append(_stacked(task, case, seed, whole["seconds"], whole["cost"], most=4 if smoke else _MOST))
    return found


def _row(task: tasks.Task, case: str, seed: int, method: str, own: ht.Delivered, seconds: float) -> dict[str, Any]:
    return {
        "case": case,
        "seed": seed,
        "method": method,
        "cost": own.cost,
        "cost_of_fit": own.cost_of_fit,
        "seconds": seconds,
        "validation": own.value.value,
        "test": _test(task, own.network),
        "config": own.config,
        "averaged": len(own.averaged),
        "rung": own.candidates[own.chosen].rung,
        "origin": own.candidates[own.chosen].chosen,
    }


def _fresh(task: tasks.Task, case: str, seed: int, cost: float, hypernet: ht.HyperNetwork) -> dict[str, Any]:
    """The policy of `deliver` without a hypernetwork."""
    begin = time.perf_counter()
    own = _by_the_rungs(task, Fresh(hypernet), cost, 0.0, seed)
    return _row(task, case, seed, "fresh", own, time.perf_counter() - begin)


def _default(task: tasks.Task, case: str, seed: int, cost: float) -> dict[str, Any]:
    """The policy of `deliver` from a network that was trained in the middle of the space."""
    begin = time.perf_counter()
    (middle,) = task.space.from_unit(torch.full((1, len(task.space)), 0.5))
    network = tasks.trainer(task).network(middle, seed=seed)
    own = _by_the_rungs(task, FromNetwork(like(task.network(), network)), cost, 1.0, seed)
    return _row(task, case, seed, "default", own, time.perf_counter() - begin)


def _by_the_rungs(task: tasks.Task, start: Starts, cost: float, spent: float, seed: int) -> ht.Delivered:
    trainer = tasks.trainer(task, branch_points={"end": start})
    rungs = rungs_of(cost - spent, trainer.share_of)
    configs = task.space.from_unit(task.space.sample(rungs[0].candidates, seed=seed))
    plan = Plan(configs, ["spread"] * len(configs), spent)
    return delivered(trainer, plan, rungs, "loss", "minimize", seed=seed, progress=False)


def _stacked(task: tasks.Task, case: str, seed: int, seconds: float, cost: float, *, most: int) -> dict[str, Any]:
    """The best of as many whole trainings at random settings as the time allows, the last ones begun within it."""
    begin, count = time.perf_counter(), 0
    trainer = tasks.trainer(task, branch_points={"end": Fresh(ht.HyperNetwork(task.network(), task.space))})
    together = _TOGETHER if case in CASES else math.ceil(cost)  # a larger stack of the larger tasks would take longer
    configs = task.space.from_unit(task.space.sample(most, seed=seed))
    best: tuple[float, nn.Module | None, dict[str, Any]] = (math.inf, None, {})
    while count < most and time.perf_counter() - begin < seconds:
        some = configs[count : count + together]
        each = trainer.branch(some, share=1.0, start="end", seed=seed, progress=False)
        for index, value in enumerate(each.metrics["loss"]):
            if value < best[0]:
                best = float(value), each.make(index), some[index]
        count += len(some)
    value, network, config = best
    return {
        "case": case,
        "seed": seed,
        "method": "stacked",
        "cost": float(count),
        "seconds": time.perf_counter() - begin,
        "validation": value,
        "test": math.nan if network is None else _test(task, network),
        "config": config,
    }


def _test(task: tasks.Task, network: nn.Module) -> float:
    assert task.test is not None
    with torch.no_grad():
        return float(task.metric(network, task.test)["loss"])
