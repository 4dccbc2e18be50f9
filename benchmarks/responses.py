"""Responses: the losses of real trainings at many settings, as problems for samplers that need no training.

What `trust` has trained for real, 32 settings with two seeds and 80 with one in each of ten tasks, becomes the data of
an OptunaHub benchmark: smooth surfaces over each task's space. How a surface is smoothed is chosen by the error at
settings that are left out, and that error is written beside it. A metric that is mostly noise makes no problem.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from optuna.distributions import FloatDistribution
from scipy.interpolate import RBFInterpolator
from scipy.stats import kendalltau

from benchmarks import results, trust_tasks
from benchmarks.trust import LEARNED, SEEDS, SETTINGS

FOLDER = results.FOLDER.parents[1] / "integrations/optunahub/package/benchmarks/regularization_responses"
KERNELS = ("linear", "thin_plate_spline", "cubic")  # the first needs the fewest settings
LEAST_TAU = 0.6  # of what is foreseen of settings left out with what was measured; metrics below it make no problem
SMOOTHINGS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def run(smoke: bool = False) -> dict[str, Any]:
    runs = results.read("trust_runs", smoke=smoke)
    problems, rows = {}, []
    for truth in runs["truths"]:
        name = truth["task"]
        learned = [one["learned"] for one in runs["surrogates"] if one["task"] == name]
        space = getattr(trust_tasks, name)().space
        problems[name.split("_", 1)[1]] = problem = {
            "space": {column: _range(space[column]) for column in space},
            "units": np.round([*truth["units"], *(unit for one in learned for unit in one["units"])], 6).tolist(),
            "metrics": {},
        }
        for metric, pairs in truth["true"].items():
            pairs = np.array(pairs)
            values = [*pairs.mean(1), *(value for one in learned for value in one["true"][metric])]
            surface = _surface(np.array(problem["units"]), np.array(values), pairs, KERNELS[: 1 if smoke else None])
            kept = surface["tau"] >= LEAST_TAU
            if kept:
                problem["metrics"][metric] = {key: surface[key] for key in ("values", "kernel", "smoothing", "noise")}
            figures = {key: surface[key] for key in ("settings", "error", "tau", "kernel", "smoothing", "noise")}
            rows.append({"task": name, "metric": metric, **figures, "kept": kept})
    if not smoke:
        (FOLDER / "responses.json").write_text(json.dumps(problems, indent=1) + "\n")
    stated = {"settings": SETTINGS, "learned": LEARNED, "seeds": SEEDS}
    return results.write("responses", {**stated, "rows": rows}, smoke=smoke)


def _range(distribution: FloatDistribution) -> dict[str, Any]:
    assert isinstance(distribution, FloatDistribution)
    return {"low": distribution.low, "high": distribution.high, "log": distribution.log}


def _surface(units: np.ndarray, values: np.ndarray, pairs: np.ndarray, kernels: Sequence[str]) -> dict[str, Any]:
    """The values, the interpolation that foresees those left out best, and how well that does."""
    known = np.isfinite(values)
    scale = np.log if values[known].min() > 0 else np.asarray
    errors = {
        choice: _left_out(units[known], scale(values[known]), *choice)
        for choice in itertools.product(kernels, SMOOTHINGS)
    }
    kernel, smoothing = min(errors, key=lambda choice: float(np.sqrt(np.mean(errors[choice] ** 2))))
    wrong, true = errors[kernel, smoothing], scale(values[known])
    pairs = scale(pairs[np.isfinite(pairs).all(1)])
    return {
        "values": [float(f"{value:.6g}") if np.isfinite(value) else None for value in values],
        "kernel": kernel,
        "smoothing": smoothing,
        "noise": float(np.std(pairs[:, 0] - pairs[:, 1]) / np.sqrt(2)),
        "settings": int(known.sum()),
        "error": float(np.sqrt(np.mean(wrong**2)) / np.std(true)),
        "tau": float(kendalltau(true, true + wrong).statistic),
    }


def _left_out(units: np.ndarray, values: np.ndarray, kernel: str, smoothing: float) -> np.ndarray:
    """How much too high each value is foreseen from the others."""
    rows = np.arange(len(values))
    surfaces = (RBFInterpolator(units[rows != r], values[rows != r], kernel=kernel, smoothing=smoothing) for r in rows)
    return np.array([float(surface(units[r : r + 1])[0]) for r, surface in zip(rows, surfaces, strict=True)]) - values
