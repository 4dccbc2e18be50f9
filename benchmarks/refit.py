"""How the scikit-learn estimators come to a network: in the ways that `refit` offers, and by fewer or more steps."""

from __future__ import annotations

import warnings
from typing import Any
from unittest.mock import patch

import torch
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits

from benchmarks import results
from benchmarks.peers import FOLDS, SETS, load, ours, scores, split
from hypertune_mip_sklearn import base

REFITS = ("deliver", "materialize", "retrain")
STEPS = (150, 300, 750, 1500)  # of the hypernetwork, however many rows there are
SEED = 20  # of the outer folds, others than those of the benchmark of peers


def run(smoke: bool) -> dict[str, Any]:
    """Score all ways on all folds, two folds at a time; rows of an earlier run are kept."""
    sets = SETS[:2] if smoke else SETS
    stated = {"sets": list(sets), "folds": FOLDS, "refits": list(REFITS), "steps": list(STEPS[:1] if smoke else STEPS)}
    rows = list(results.kept("refit", stated, smoke=smoke).get("rows", []))
    done = {(row["set"], row["fold"]) for row in rows}
    cells = [(name, fold) for name in sets for fold in range(FOLDS) if (name, fold) not in done]
    document = results.write("refit", {**stated, "rows": rows}, smoke=smoke)
    work = (delayed(_cell)(*cell, stated["steps"]) for cell in cells)
    for found in Parallel(n_jobs=2, return_as="generator_unordered")(work):
        rows += found
        document = results.write("refit", {**stated, "rows": rows}, smoke=smoke)
    return document


def _cell(name: str, fold: int, lengths: list[int]) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [{**_fitted(name, fold, refit), "refit": refit, "steps": None} for refit in REFITS]
        for steps in lengths:
            with patch.multiple(base, _STEPS=steps, _FEW_STEPS=steps):
                rows.append({**_fitted(name, fold, "deliver"), "refit": "deliver", "steps": steps})
    return rows


def _fitted(name: str, fold: int, refit: str) -> dict[str, Any]:
    data = load(name)
    train, test = split(data, SEED, fold)
    model = ours(data.classes, fold).set_params(refit=refit).fit(data.x[train], data.y[train])
    found = scores(data, model, data.x[test], data.y[test], data.y[train])
    return {"set": name, "fold": fold, "rounds": model.n_rounds_, "validation_loss": -model.best_score_, **found}
