"""Metrics of a surrogate after calibration, with the interface of `Evaluator`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hypertune_mip.directions import Direction
from hypertune_mip.evaluation import Evaluator, gradients
from hypertune_mip.space import SearchSpace
from hypertune_mip.surrogate.composed import value_and_gradient_through
from hypertune_mip.verification.calibration import Calibrated, Chain

_CHUNK = 1024  # settings: a Gaussian process takes some memory for each


@dataclass(frozen=True, kw_only=True)
class Correction:
    """How a surrogate is calibrated.

    Args:
        method: See `Calibration`.
        residual: See `Calibration`.
        reports: By how many of the surrogate's reports, its first ones; later ones tell how good it is since.
    """

    method: Literal["affine", "monotone"]
    residual: bool
    reports: int


class CalibratedEvaluator:
    """What an evaluator says, calibrated, metric by metric.

    Args:
        evaluator: Of the hypernetwork.
        calibrations: By metric; others stay as they are.
    """

    def __init__(self, evaluator: Evaluator, calibrations: Mapping[str, Chain]) -> None:
        """See the class."""
        self.evaluator = evaluator
        self.calibrations = dict(calibrations)

    @property
    def space(self) -> SearchSpace:
        """Of the hypernetwork."""
        return self.evaluator.space

    @property
    def directions(self) -> dict[str, Direction]:
        """Of all metrics, by name."""
        return self.evaluator.directions

    def __call__(self, units: Float[Tensor, "S d"], *, progress: bool = False) -> dict[str, Float[Tensor, "S"]]:
        """Calibrated metrics by name, as `Evaluator` gives them."""
        values = self.evaluator(units, progress=progress)
        return values | {name: one.mean for name, one in self._calibrated(units, values).items()}

    def value_and_gradient(
        self, units: Float[Tensor, "S d"], metric: str
    ) -> tuple[Float[Tensor, "S"], Float[Tensor, "S d"]]:
        """One calibrated metric and its derivative, as `Evaluator.value_and_gradient` gives them.

        The calibration depends on the setting and on the evaluator's value there: the chain rule joins both.
        """
        if metric not in self.calibrations:
            return self.evaluator.value_and_gradient(units, metric)
        calibrated = lambda units, values: self.calibrations[metric](units, values).mean  # noqa: E731
        return value_and_gradient_through(self.evaluator, units, metric, calibrated)

    def intervals(self, units: Float[Tensor, "S d"]) -> dict[str, Calibrated]:
        """Calibrated metrics with their spread, by name; only those that are calibrated."""
        return self._calibrated(units, self.evaluator(units))

    def _calibrated(self, units: Tensor, values: Mapping[str, Tensor]) -> dict[str, Calibrated]:
        with gradients(False):
            return {
                name: _in_chunks(calibration, units, values[name]) for name, calibration in self.calibrations.items()
            }


def _in_chunks(calibration: Chain, units: Tensor, values: Tensor) -> Calibrated:
    pairs = zip(units.split(_CHUNK), values.split(_CHUNK), strict=True)
    parts = [calibration(*pair) for pair in pairs]
    return Calibrated(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
