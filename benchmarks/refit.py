"""The three ways in which the scikit-learn estimators come to a network, at the settings of the same hypernetworks."""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits

from benchmarks import results
from benchmarks.peers import FOLDS, SETS, load, ours, scores, split

REFITS = ("finetune", "materialize", "retrain")


def run(smoke: bool) -> dict[str, Any]:
    """Score all ways on all folds, two folds at a time."""
    sets, seeds = (SETS[:2], 1) if smoke else (SETS, 2)
    cells = [(name, seed, fold) for seed in range(seeds) for name in sets for fold in range(FOLDS)]
    rows = [row for found in Parallel(n_jobs=2)(delayed(_cell)(*cell) for cell in cells) for row in found]
    content = {"sets": list(sets), "seeds": seeds, "folds": FOLDS, "refits": list(REFITS), "rows": rows}
    return results.write("refit", content, smoke=smoke)


def _cell(name: str, seed: int, fold: int) -> list[dict[str, Any]]:
    data = load(name)
    train, test = split(data, seed, fold)
    torch.set_num_threads(1)
    rows = []
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for refit in REFITS:
            start = time.perf_counter()
            model = ours(data.classes, 10 * seed + fold).set_params(refit=refit).fit(data.x[train], data.y[train])
            seconds = time.perf_counter() - start
            found = scores(data, model, data.x[test], data.y[test], data.y[train])
            rows.append({"set": name, "seed": seed, "fold": fold, "refit": refit, "seconds": seconds, **found})
    return rows
