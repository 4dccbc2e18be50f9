"""Branches: how well short trainings order settings, and how good their networks are, by start and share.

The order is judged at the settings and by truths as in `trust`: tau as a share of the noise ceiling. Networks are those
of settings that the surrogate likes best, apart from each other, and of a few that are spread; validation and test loss
of each are kept, so that ways to choose among them can be compared without training anything again.

Starts: the hypernetwork after a quarter of its training and at its end; shrink-and-perturb (Ash and Adams, 2020): 0.6
times the weights at the end plus 0.4 times fresh ones; and fresh weights alone.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import hypertune_mip as ht
from benchmarks import results, search, tasks, trust_tasks
from benchmarks.trust import JUDGE, SETTINGS
from hypertune_mip.surrogate.search import diverse_best
from hypertune_mip.trainings import FromHypernetwork
from hypertune_mip.trainings.initialization import reinitialized
from hypertune_mip.verification import statistics

SEEDS = 3
SHARES = (0.1, 0.25, 0.5)
STARTS = ("early", "end", "shrunk", "fresh")
BEST = 12  # settings that the surrogate likes
SPREAD = 4  # settings that it was not asked about
_KEPT = 0.6  # of the weights, in shrink-and-perturb


class Shrunk:
    """Weights of a hypernetwork, shrunk and perturbed."""

    def __init__(self, hypernet: ht.HyperNetwork) -> None:
        self._end = FromHypernetwork(hypernet)
        self.without_statistics = hypernet.batch_norms

    def network(self, config: Mapping[str, Any], seed: int) -> nn.Module:
        network = copy.deepcopy(self._end.network(config, seed))
        fresh = reinitialized(network, seed)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.mul_(_KEPT).add_((1 - _KEPT) * fresh.get_parameter(name))
        return network

    def description(self) -> dict[str, Any]:
        return {"from": "shrunk", "end": self._end.description()}

    def on(self, device: torch.device) -> Shrunk:
        return self


class Fresh:
    """First weights of the network, the same at all settings."""

    without_statistics = ()

    def __init__(self, hypernet: ht.HyperNetwork) -> None:
        self._given = hypernet.given

    def network(self, config: Mapping[str, Any], seed: int) -> nn.Module:
        return reinitialized(self._given, seed)

    def description(self) -> dict[str, Any]:
        return {"from": "fresh"}

    def on(self, device: torch.device) -> Fresh:
        return self


def run(smoke: bool = False) -> dict[str, Any]:
    stated = {"settings": SETTINGS, "best": BEST, "spread": SPREAD, "shares": list(SHARES), "seeds": SEEDS}
    document: dict[str, Any] = {**stated, "orders": [], "networks": []}
    document |= results.kept("branches", stated, smoke=smoke)
    names = [make.__name__ for make in (trust_tasks.TASKS[-1:] if smoke else trust_tasks.TASKS)]
    done = {(row["task"], row["seed"]) for row in document["orders"]}
    jobs = [(n, s, smoke) for s in range(1 if smoke else SEEDS) for n in reversed(names) if (n, s) not in done]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for part in tqdm(as_completed([pool.submit(_rows, *job) for job in jobs]), total=len(jobs), desc="branches"):
            for key, rows in part.result().items():
                document[key] = sorted(document[key] + rows, key=lambda row: (names.index(row["task"]), row["seed"]))
            results.write("branches", document, smoke=smoke)
    return results.read("branches", smoke=smoke)


def _rows(name: str, seed: int, smoke: bool) -> dict[str, list[dict[str, Any]]]:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    task: tasks.Task = getattr(trust_tasks, name)()
    task = tasks.shortened(task) if smoke else task
    surrogate = tasks.fitted(task, seed)
    settings = task.space.from_unit(task.space.sample(4 if smoke else SETTINGS, seed=JUDGE))
    plain = _trainer(task, surrogate)
    true = plain.train(settings, seeds=2, progress=False)
    predicted = surrogate.evaluate_batch(settings)
    orders = [_order(name, seed, "surrogate", 0.0, predicted, true)]
    networks = []
    candidates = _candidates(task, surrogate, seed)
    judge = _judge(task, surrogate) if name in search.TASKS else None
    for start in STARTS:
        for share in SHARES:
            found = plain.branch(settings, share=share, start=start, seed=seed, progress=False)  # type: ignore[arg-type]
            orders.append(_order(name, seed, start, share, found.metrics, true))
            if judge is not None:
                each = judge.branch(candidates, share=share, start=start, seed=seed, progress=False).metrics  # type: ignore[arg-type]
                networks.append(
                    {"task": name, "seed": seed, "start": start, "share": share}
                    | {"loss": each["loss"].tolist(), "test": each["test_loss"].tolist()}
                )
    return {"orders": orders, "networks": networks}


def _trainer(task: tasks.Task, surrogate: ht.Surrogate) -> ht.Trainer:
    hypernet = surrogate.hypernet
    points = {"end": FromHypernetwork(hypernet), "shrunk": Shrunk(hypernet), "fresh": Fresh(hypernet)}
    if surrogate.early is not None:
        points["early"] = FromHypernetwork(hypernet, surrogate.early)
    return tasks.trainer(task, branch_points=points)


def _judge(task: tasks.Task, surrogate: ht.Surrogate) -> ht.Trainer:
    """The same, measured on validation and test data."""
    assert task.test is not None
    both = tuple(torch.cat(pair) for pair in zip(task.validation, task.test, strict=True))
    return _trainer(replace(task, metric=search._with_test(task), validation=both), surrogate)


def _candidates(task: tasks.Task, surrogate: ht.Surrogate, seed: int) -> list[dict[str, Any]]:
    units = diverse_best(surrogate._measure, "loss", BEST, candidates=512, seed=seed)
    return task.space.from_unit(torch.cat([units, task.space.sample(SPREAD, seed=1000 + seed)]))


def _order(
    name: str, seed: int, start: str, share: float, found: Mapping[str, Any], true: Mapping[str, Any]
) -> dict[str, Any]:
    """Kendall's tau with truth as a share of the noise ceiling, of the loss and of the error where there is one."""
    taus = {
        metric: statistics.kendall(found[metric], runs.mean(1)) / statistics.ceiling(statistics.kendall, runs)
        for metric, runs in true.items()
        if metric in ("loss", "error")
    }
    return {"task": name, "seed": seed, "start": start, "share": share, **taus}
