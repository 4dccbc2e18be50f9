"""The three ways in which the scikit-learn estimators come to a network, at the settings of the same hypernetworks."""

from __future__ import annotations

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
    sets = SETS[:2] if smoke else SETS
    cells = [(name, fold) for name in sets for fold in range(FOLDS)]
    rows = [row for found in Parallel(n_jobs=2)(delayed(_cell)(*cell) for cell in cells) for row in found]
    content = {"sets": list(sets), "folds": FOLDS, "refits": list(REFITS), "rows": rows}
    return results.write("refit", content, smoke=smoke)


def _cell(name: str, fold: int) -> list[dict[str, Any]]:
    data = load(name)
    train, test = split(data, 0, fold)
    torch.set_num_threads(1)
    rows = []
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for refit in REFITS:
            model = ours(data.classes, fold).set_params(refit=refit).fit(data.x[train], data.y[train])
            found = scores(data, model, data.x[test], data.y[test], data.y[train])
            rows.append({"set": name, "fold": fold, "refit": refit, **found})
    return rows
