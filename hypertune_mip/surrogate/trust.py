"""Which settings are trained for real, the report on them, and the calibration that follows from reports."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hypertune_mip.errors import DataError, SpaceError
from hypertune_mip.evaluation import Evaluator, Measure, to_device
from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.space import Value
from hypertune_mip.surrogate.calibrated import CalibratedEvaluator
from hypertune_mip.surrogate.search import diverse_best
from hypertune_mip.training import Loss
from hypertune_mip.training.randomness import forked_random_state
from hypertune_mip.verification.calibration import Calibration
from hypertune_mip.verification.group import Group, unused
from hypertune_mip.verification.report import Chosen, TrustReport
from hypertune_mip.verification.response import responses

_CANDIDATES = 512
_PROBES = 4  # settings at which it is seen whether the loss depends on a hyperparameter


def settings_to_verify(
    measure: Measure, metric: str, settings: int, *, best: int | None, seed: int
) -> tuple[list[dict[str, Value]], tuple[Chosen, ...]]:
    """Configs, spread over the space first, then the best ones, the minimum first; and which is which."""
    count = settings - settings // 2 if best is None else best
    units = measure.space.sample(settings - count, seed=seed)
    chosen: list[Chosen] = ["spread"] * len(units)
    if count:
        units = torch.cat([units, diverse_best(measure, metric, count, candidates=_CANDIDATES, seed=seed + 1)])
        chosen += ["best"] * count
    return measure.space.from_unit(units), tuple(chosen)


def make_report(
    measure: Evaluator | CalibratedEvaluator,
    metric: str,
    configs: Sequence[Mapping[str, Value]],
    chosen: tuple[Chosen, ...],
    true: Mapping[str, np.ndarray],
    *,
    trainings: float,
    seconds: float,
    unused: tuple[str, ...],
) -> TrustReport:
    """The report on real trainings; arguments as in `TrustReport`."""
    units = measure.space.to_unit(configs)
    intervals = measure.intervals(units) if isinstance(measure, CalibratedEvaluator) else {}
    return TrustReport(
        metric=metric,
        space=measure.space,
        configs=tuple(configs),
        chosen=chosen,
        predicted={name: _array(value) for name, value in measure(units).items()},
        true=true,
        responses={name: row[metric] for name, row in responses(measure, bases=8).items()},
        trainings=trainings,
        seconds=seconds,
        unused=unused,
        low={name: _array(one.low) for name, one in intervals.items()},
        high={name: _array(one.high) for name, one in intervals.items()},
    )


def unused_hyperparameters(hypernet: HyperNetwork, loss: Loss, loader: Iterable[Any]) -> tuple[str, ...]:
    """Those on whose value the loss does not depend, at a few settings and one batch."""
    units = hypernet.space.sample(_PROBES)
    with torch.no_grad(), forked_random_state(hypernet.device):
        weights = hypernet.effective(units)
        batch = to_device(next(iter(loader)), hypernet.device)
    configs = {
        name: value.to(hypernet.device, hypernet.dtype) if value.is_floating_point() else value.to(hypernet.device)
        for name, value in hypernet.space.decode(units).items()
    }
    with hypernet.lock:
        network = copy.deepcopy(hypernet.network).requires_grad_(True)
    group = Group(network, [network] * _PROBES, configs, hypernet.mapping)
    group.weights = weights
    with forked_random_state(hypernet.device):
        return unused(group, loss, batch)


def calibrated(
    evaluator: Evaluator,
    reports: Sequence[TrustReport],
    *,
    method: Literal["affine", "monotone"],
    residual: bool,
) -> CalibratedEvaluator:
    """The evaluator corrected, metric by metric, by all real trainings in the reports.

    Raises:
        DataError: If there is no report, or too few real trainings.
        SpaceError: If a report is about another space.
    """
    if not reports:
        raise DataError("There is no trust report to calibrate by; call `verify` first.")
    for report in reports:
        if report.space != evaluator.space:
            raise SpaceError(f"The report is about another space:\n{report.space}\nbut this is\n{evaluator.space}")
    units = torch.cat([evaluator.space.to_unit(report.configs) for report in reports])
    predicted = evaluator(units)
    calibrations = {}
    for name in predicted:
        true = torch.cat([torch.from_numpy(report.true[name].mean(1)) for report in reports])
        calibrations[name] = Calibration(units, predicted[name].cpu(), true, method=method, residual=residual)
    return CalibratedEvaluator(evaluator, calibrations)


def _array(values: Tensor) -> np.ndarray:
    return values.cpu().numpy()
