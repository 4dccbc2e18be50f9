"""Validation metrics of neural networks by their regularisation, from real trainings, as problems for samplers."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution
from optunahub.benchmarks import BaseProblem
from scipy.interpolate import RBFInterpolator

_RESPONSES: dict[str, Any] = json.loads((Path(__file__).parent / "responses.json").read_text())

TASKS = tuple(_RESPONSES)


class Problem(BaseProblem):
    """What one training would give at a setting: interpolated between 112 real trainings.

    Args:
        task: One of `TASKS`.
        metric: Of the task's `metrics`; each is to be small.
        seed: Of noise as large as that between two trainings that differ in their seed alone; a setting has the same
            noise whenever it is asked about. None is no noise.
    """

    def __init__(self, task: str = "digits", metric: str = "loss", *, seed: int | None = None) -> None:
        if task not in _RESPONSES:
            raise ValueError(f"`task` must be one of {list(TASKS)}, but got {task!r}.")
        self.metrics = tuple(_RESPONSES[task]["metrics"])
        if metric not in self.metrics:
            raise ValueError(f"`metric` must be one of {list(self.metrics)} in {task!r}, but got {metric!r}.")
        if seed is not None and seed < 0:
            raise ValueError(f"`seed` must not be negative, but got {seed}.")
        self.task, self.metric, self.seed = task, metric, seed
        self._space = {name: FloatDistribution(**limits) for name, limits in _RESPONSES[task]["space"].items()}
        units, response = np.array(_RESPONSES[task]["units"]), _RESPONSES[task]["metrics"][metric]
        values = np.array(response["values"], dtype=float)
        known = np.isfinite(values)
        self._logarithmic = bool(values[known].min() > 0)
        self._noise = float(response["noise"])
        self._surface = RBFInterpolator(
            units[known],
            np.log(values[known]) if self._logarithmic else values[known],
            kernel=response["kernel"],
            smoothing=response["smoothing"],
        )

    @property
    def search_space(self) -> dict[str, BaseDistribution]:
        """Regularisation hyperparameters and loss weights."""
        return dict(self._space)

    @property
    def directions(self) -> list[str]:
        """All metrics are to be small."""
        return ["minimize"]

    def evaluate(self, params: dict[str, Any]) -> float:
        """The metric at a setting.

        Raises:
            ValueError: If a parameter is missing, unknown or out of its range.
        """
        if set(params) != set(self._space):
            raise ValueError(f"{self.task!r} takes {list(self._space)}, but got {list(params)}.")
        unit = np.array([_unit(name, self._space[name], params[name]) for name in self._space])
        value = float(self._surface(unit[None])[0])
        if self.seed is not None:
            bits = np.round(unit * 1e9).astype(np.int64)
            about = zlib.crc32(f"{self.task} {self.metric}".encode())
            value += self._noise * float(np.random.default_rng([self.seed, about, *bits]).standard_normal())
        return math.exp(value) if self._logarithmic else value


def _unit(name: str, limits: FloatDistribution, value: float) -> float:
    """The value's place between the ends of its range."""
    if not limits.low <= value <= limits.high:
        raise ValueError(f"{name!r} must lie in [{limits.low:g}, {limits.high:g}], but got {value!r}.")
    low, high, at = (math.log(x) if limits.log else x for x in (limits.low, limits.high, value))
    return (at - low) / (high - low)
