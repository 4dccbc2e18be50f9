"""Trials per second on a surrogate: an objective trial by trial against `prefill`, on three storages.

The surrogate is small, so most of what is measured is Optuna's samplers and storages; its own rate without any study
stands beside them. Each repeat runs every combination once, in turn, so that a slow minute of the machine meets all of
them; the load of the machine is recorded.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from torch import nn

import hypertune_mip as ht
from benchmarks import results
from hypertune_mip_optuna import SurrogateObjective, prefill

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "random": lambda seed: RandomSampler(seed=seed),
    "tpe": lambda seed: TPESampler(seed=seed),
}
TRIALS = {"memory": 500, "journal": 300, "sqlite": 100}
PREFILLED = {"memory": 10_000, "journal": 5_000, "sqlite": 300}
SMOKE = {"memory": 5, "journal": 5, "sqlite": 3}


def make_surrogate() -> ht.Surrogate:
    """Three hyperparameters, an MLP 64-64-10 and 100 validation examples; untrained, which costs the same."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(100, 64, generator=generator), torch.randint(10, (100,), generator=generator)
    space = ht.SearchSpace(
        {
            "weight_decay": FloatDistribution(1e-5, 1e-1, log=True),
            "dropout": FloatDistribution(0.0, 0.8),
            "label_smoothing": FloatDistribution(0.0, 0.5),
        }
    )

    def metric(model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        logits = model(batch[0])
        return {
            "loss": nn.functional.cross_entropy(logits, batch[1]),
            "error": (logits.argmax(-1) != batch[1]).float().mean(),
        }

    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), ht.nn.Dropout("dropout"), nn.Linear(64, 10))
    return ht.Surrogate(ht.HyperNetwork(network, space), metric=metric, val_loader=[(x, y)])


def make_storage(kind: str, folder: Path) -> BaseStorage | str | None:
    if kind == "journal":
        return JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    return f"sqlite:///{folder / 'study.db'}" if kind == "sqlite" else None


def measure(surrogate: ht.Surrogate, storage: str, method: str, trials: int, seed: int) -> float:
    """Seconds that one fresh study takes for its trials."""
    with tempfile.TemporaryDirectory() as folder:
        sampler = SAMPLERS[method](seed) if method in SAMPLERS else None
        study = optuna.create_study(storage=make_storage(storage, Path(folder)), sampler=sampler)
        start = time.perf_counter()
        if method == "prefill":
            prefill(study, surrogate, "loss", n=trials, seed=seed, progress=False)
        else:
            study.optimize(SurrogateObjective(surrogate, "loss"), n_trials=trials)
        return time.perf_counter() - start


def surrogate_rates(surrogate: ht.Surrogate, *, single: int, batch: int) -> dict[str, float]:
    """Settings per second without any study: one after another, and all at once."""
    configs = surrogate.space.from_unit(surrogate.space.sample(single))
    start = time.perf_counter()
    for config in configs:
        surrogate.evaluate(config)
    alone = single / (time.perf_counter() - start)
    units = surrogate.space.sample(batch)
    start = time.perf_counter()
    surrogate.evaluate_units(units)
    return {"single": alone, "batch": batch / (time.perf_counter() - start)}


def run(smoke: bool = False) -> dict[str, Any]:
    threads, verbosity = torch.get_num_threads(), optuna.logging.get_verbosity()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a line a trial would be measured, too
    try:
        return results.write("optuna_rate", _measured(smoke), smoke=smoke)
    finally:
        torch.set_num_threads(threads)
        optuna.logging.set_verbosity(verbosity)


def _measured(smoke: bool) -> dict[str, Any]:
    repeats = 1 if smoke else 3
    load = [os.getloadavg()[0]]
    trials = {
        (storage, method): (SMOKE if smoke else PREFILLED if method == "prefill" else TRIALS)[storage]
        for storage in TRIALS
        for method in ("random", "tpe", "prefill")
    }
    surrogate = make_surrogate()
    surrogate.evaluate_units(surrogate.space.sample(16))  # warm up
    seconds: dict[tuple[str, str], list[float]] = {cell: [] for cell in trials}
    alone = []
    for seed in range(repeats):
        alone.append(surrogate_rates(surrogate, single=10 if smoke else 300, batch=10 if smoke else 10_000))
        for storage, method in trials:
            seconds[storage, method].append(measure(surrogate, storage, method, trials[storage, method], seed))
    load.append(os.getloadavg()[0])
    return {
        "settings": {"repeats": repeats, "network": "MLP 64-64-10", "hyperparameters": 3, "validation_examples": 100},
        "load_average": load,  # over a minute, at start and end: above the number of cores, rates are too low
        "surrogate_settings_per_second": {
            name: statistics.median(rates[name] for rates in alone) for name in ("single", "batch")
        },
        "rates": [
            {
                "storage": storage,
                "method": method,
                "trials": trials[storage, method],
                "seconds": seconds[storage, method],
                "trials_per_second": trials[storage, method] / statistics.median(seconds[storage, method]),
            }
            for storage, method in trials
        ],
    }
