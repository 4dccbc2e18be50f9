"""Which settings are trained for real, the report on them, and the calibration that follows from reports."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hypertune_mip.directions import Direction
from hypertune_mip.errors import DataError, SpaceError
from hypertune_mip.evaluation import Evaluator, Measure
from hypertune_mip.space import Value
from hypertune_mip.surrogate.calibrated import CalibratedEvaluator, Correction
from hypertune_mip.surrogate.search import diverse_best
from hypertune_mip.training.options import at_least
from hypertune_mip.trainings import Trainer
from hypertune_mip.verification.calibration import FEWEST, Calibration, Chain, Gap
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


def real_values(
    trainer: Trainer,
    configs: Sequence[Mapping[str, Value]],
    share: float | None,
    seeds: int,
    *,
    progress: bool,
) -> tuple[dict[str, np.ndarray], float]:
    """Metrics of real trainings (S, R), by name, and what they cost in trainings with the whole recipe.

    Args:
        trainer: Of them.
        configs: The settings.
        share: Of the recipe that branches take; None is trainings from scratch.
        seeds: How many of each.
        progress: Whether to show a bar.
    """
    if share is None:
        true = trainer.train(configs, seeds=seeds, progress=progress)
        return true, float(next(iter(true.values())).size)
    (seeds,) = at_least(1, seeds=seeds)
    found = [trainer.branch(configs, share=share, seed=seed, progress=progress) for seed in range(seeds)]
    names = found[0].metrics
    return {n: np.stack([each.metrics[n] for each in found], 1) for n in names}, sum(each.cost for each in found)


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
    share: float | None = None,
) -> TrustReport:
    """The report on real trainings; arguments as in `TrustReport`."""
    units = measure.space.to_unit(configs)
    whole = share is None  # intervals are those of whole trainings
    intervals = measure.intervals(units) if whole and isinstance(measure, CalibratedEvaluator) else {}
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
        share=share,
        low={name: _array(one.low) for name, one in intervals.items()},
        high={name: _array(one.high) for name, one in intervals.items()},
    )


def corrected(evaluator: Evaluator, reports: Sequence[TrustReport], correction: Correction) -> CalibratedEvaluator:
    """The evaluator corrected, metric by metric, by all real trainings in the first reports, branches or from scratch.

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
    names = [name for name in evaluator.names() if all(name in report.true for report in reports)]
    return CalibratedEvaluator(evaluator, {name: _calibration(evaluator, name, reports, correction) for name in names})


def _calibration(evaluator: Evaluator, name: str, reports: Sequence[TrustReport], correction: Correction) -> Chain:
    """Of one metric: by branches, those of smaller shares first, and then by trainings from scratch.

    Each kind takes three settings. Branches with fewer are passed over; one or two trainings from scratch, or none,
    tell what they can of the gap to what branches have taught.
    """
    fit = partial(Calibration, method=correction.method, residual=correction.residual)
    by_share = {share: [report for report in reports if report.share == share] for share in {r.share for r in reports}}
    scratch = by_share.pop(None, [])
    links: list[Calibration | Gap] = []
    moved: tuple[Tensor, Tensor] | None = None  # what the surrogate says, and what the last branches gave
    for share in sorted(share for share in by_share if share is not None):
        units, said, true = _trained(evaluator, name, by_share[share])
        foreseen = Chain(links)(units, said).mean
        if _usable(foreseen, true) >= FEWEST or (len(by_share) == 1 and not scratch):
            links.append(fit(units, foreseen, true))
            moved = said, true
    units, said, true = _trained(evaluator, name, scratch)
    foreseen = Chain(links)(units, said).mean
    if moved is None or _usable(foreseen, true) >= FEWEST:
        links.append(fit(units, foreseen, true))
    else:
        links.append(Gap(*moved, foreseen, true))
    return Chain(links)


def _trained(evaluator: Evaluator, name: str, reports: Sequence[TrustReport]) -> tuple[Tensor, Tensor, Tensor]:
    """Settings of some reports (S, d), what the surrogate says there (S,), and what trainings gave (S, R)."""
    if not reports:
        return torch.empty(0, len(evaluator.space)), torch.empty(0), torch.empty(0, 1)
    seeds = max(report.seeds for report in reports)
    units = torch.cat([evaluator.space.to_unit(report.configs) for report in reports])
    true = torch.from_numpy(np.concatenate([_padded(report.true[name], seeds) for report in reports]))
    return units, evaluator(units)[name], true


def _usable(foreseen: Tensor, true: Tensor) -> int:
    """How many settings have a finite prediction and a finite training."""
    return int((torch.isfinite(true).any(1) & torch.isfinite(foreseen)).sum())


def _padded(runs: np.ndarray, seeds: int) -> np.ndarray:
    """Runs (S, R) as (S, seeds) with NaN where there is none; no run of a setting counts if one of them diverged."""
    whole = np.where(np.isnan(runs).any(1, keepdims=True), np.nan, runs)
    return np.pad(whole, ((0, 0), (0, seeds - runs.shape[1])), constant_values=np.nan)


def _array(values: Tensor) -> np.ndarray:
    return values.numpy()


def _first_of_each(keys: Sequence[Hashable]) -> list[int]:
    """Indices of `keys` without repetitions."""
    return sorted({key: index for index, key in reversed(list(enumerate(keys)))}.values())
