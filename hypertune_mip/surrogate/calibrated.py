"""Metrics of a surrogate after calibration, with the interface of `Evaluator`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from hypertune_mip.evaluation import Evaluator
from hypertune_mip.space import SearchSpace
from hypertune_mip.verification.calibration import Calibrated, Calibration


class CalibratedEvaluator:
    """What an evaluator says, calibrated, metric by metric.

    Args:
        evaluator: Of the hypernetwork.
        calibrations: By metric; others stay as they are.
    """

    def __init__(self, evaluator: Evaluator, calibrations: Mapping[str, Calibration]) -> None:
        """See the class."""
        self.evaluator = evaluator
        self.calibrations = dict(calibrations)

    @property
    def space(self) -> SearchSpace:
        """Of the hypernetwork."""
        return self.evaluator.space

    def __call__(self, units: Float[Tensor, "S d"], *, differentiable: bool = False) -> dict[str, Float[Tensor, "S"]]:
        """Calibrated metrics by name, as `Evaluator` gives them."""
        values = self.evaluator(units, differentiable=differentiable)
        with torch.set_grad_enabled(differentiable):
            return values | {name: means.mean for name, means in self._calibrated(units, values).items()}

    @torch.no_grad()
    def intervals(self, units: Float[Tensor, "S d"]) -> dict[str, Calibrated]:
        """Calibrated metrics with their spread, by name; only those that are calibrated."""
        return self._calibrated(units, self.evaluator(units))

    def _calibrated(self, units: Tensor, values: Mapping[str, Tensor]) -> dict[str, Calibrated]:
        return {name: calibration(units, values[name]) for name, calibration in self.calibrations.items()}
