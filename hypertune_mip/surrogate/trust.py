"""Which settings are trained for real, the report on them, and the calibration that follows from reports."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from hypertune_mip.directions import Direction
from hypertune_mip.errors import DataError, SpaceError
from hypertune_mip.evaluation import Evaluator, Measure
from hypertune_mip.space import Value
from hypertune_mip.surrogate.calibrated import CalibratedEvaluator, Correction
from hypertune_mip.surrogate.search import diverse_best
from hypertune_mip.verification.calibration import Calibration
from hypertune_mip.verification.report import Chosen, TrustReport
from hypertune_mip.verification.response import responses

_CANDIDATES = 512
_OTHER_SEED = 1_000_000  # far from the seeds by which settings are spread
_APART = 0.02  # in some column: nearer to a setting that has been trained for real, another one is the same


def settings_to_verify(
    measure: Measure, metric: str, settings: int, *, best: int | None, seed: int, known: Sequence[TrustReport] = ()
) -> tuple[list[dict[str, Value]], tuple[Chosen, ...]]:
    """Configs, spread over the space first, then the best ones, the optimum first; and which is which.

    Those of `known` reports are not among the best again: they are what the surrogate is calibrated by. A space of few
    values may give fewer settings than are asked for.
    """
    space = measure.space
    count = settings - settings // 2 if best is None else best
    units = space.sample(settings - count, seed=seed)
    units = units[_first_of_each([tuple(row) for row in units.tolist()])]
    chosen: list[Chosen] = ["spread"] * len(units)
    if count:
        tried = torch.cat([units[:0], *(space.to_unit(report.configs) for report in known)])
        found = diverse_best(
            measure, metric, count, candidates=_CANDIDATES, seed=seed + _OTHER_SEED, besides=tried, apart=_APART
        )
        units = torch.cat([units, found])
        chosen += ["best"] * len(found)
    return space.from_unit(units), tuple(chosen)


def make_report(
    measure: Evaluator | CalibratedEvaluator,
    metric: str,
    configs: Sequence[Mapping[str, Value]],
    chosen: tuple[Chosen, ...],
    true: Mapping[str, np.ndarray],
    *,
    direction: Direction,
    trainings: float,
    seconds: float,
    unused: tuple[str, ...],
) -> TrustReport:
    """The report on real trainings; arguments as in `TrustReport`."""
    units = measure.space.to_unit(configs)
    intervals = measure.intervals(units) if isinstance(measure, CalibratedEvaluator) else {}
    return TrustReport(
        metric=metric,
        direction=direction,
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


def corrected(evaluator: Evaluator, reports: Sequence[TrustReport], correction: Correction) -> CalibratedEvaluator:
    """The evaluator corrected, metric by metric, by all real trainings in the first reports.

    Metrics that were not measured in all of them stay as they are.

    Raises:
        DataError: If there is no report, or too few real trainings.
        SpaceError: If a report is about another space.
    """
    reports = reports[: correction.reports]
    if not reports:
        raise DataError("There is no trust report to calibrate by; call `verify` first.")
    for report in reports:
        if report.space != evaluator.space:
            raise SpaceError(f"The report is about another space:\n{report.space}\nbut this is\n{evaluator.space}")
    units = torch.cat([evaluator.space.to_unit(report.configs) for report in reports])
    predicted = evaluator(units)
    calibrations = {}
    seeds = max(report.seeds for report in reports)
    for name in predicted:
        if any(name not in report.true for report in reports):
            continue
        true = torch.from_numpy(np.concatenate([_padded(report.true[name], seeds) for report in reports]))
        calibrations[name] = Calibration(
            units, predicted[name], true, method=correction.method, residual=correction.residual
        )
    return CalibratedEvaluator(evaluator, calibrations)


def _padded(runs: np.ndarray, seeds: int) -> np.ndarray:
    """Runs (S, R) as (S, seeds) with NaN where there is none; no run of a setting counts if one of them diverged."""
    whole = np.where(np.isnan(runs).any(1, keepdims=True), np.nan, runs)
    return np.pad(whole, ((0, 0), (0, seeds - runs.shape[1])), constant_values=np.nan)


def _array(values: Tensor) -> np.ndarray:
    return values.numpy()


def _first_of_each(keys: Sequence[Hashable]) -> list[int]:
    """Indices of `keys` without repetitions."""
    return sorted({key: index for index, key in reversed(list(enumerate(keys)))}.values())
