"""What metrics say of a validation set: means over its batches, and scores of all outputs together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hypertune_mip.arguments import real_number
from hypertune_mip.errors import LossError
from hypertune_mip.evaluation.data import batch_size
from hypertune_mip.metrics import MeanMetric, Metric, WholeSet, parts_of
from hypertune_mip.trees import leaves, mapped, structure

Run = Callable[[Callable[[nn.Module, Any], Any], Any], Any]
"""Of (function, batch): `function(model, batch)` at all settings, its result with an axis S in front."""


def measured(metric: Metric, run: Run, batches: Iterable[Any]) -> dict[str, Float[Tensor, "S"]]:
    """Metrics of a validation set at all settings, by name: float64, on the CPU.

    Args:
        metric: Written for one setting.
        run: Runs a function of (model, batch) at all settings; gradients are off.
        batches: The validation set, read once.

    Raises:
        LossError: If a metric returns something else than agreed, or two have the same name.
        DataError: If a batch holds nothing to count examples by, or no targets.
    """
    return merged(measured_parts(parts_of(metric), run, batches))


def measured_parts(
    parts: Sequence[MeanMetric | WholeSet], run: Run, batches: Iterable[Any]
) -> list[dict[str, Float[Tensor, "S"]]]:
    """As `measured`, each part of a metric apart."""
    sums: list[_Gathered | _Averaged] = [
        _Gathered(part) if isinstance(part, WholeSet) else _Averaged(part) for part in parts
    ]

    def function(model: nn.Module, batch: Any) -> tuple[Any, ...]:
        return tuple(each.of(model, batch) for each in sums)

    for batch in batches:
        for each, result in zip(sums, run(function, batch), strict=True):
            each.add(result, batch)
    return [each.values() for each in sums]


def merged(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """All metrics by name; raises LossError if two have the same."""
    values: dict[str, Tensor] = {}
    for part in parts:
        if twice := [name for name in part if name in values]:
            raise LossError(f"Names of metrics must differ, but {twice} are those of two. Rename one of them.")
        values |= part
    return values


def named_scalars(metric: MeanMetric, model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """What a metric returns.

    Raises:
        LossError: If that is not 0-d tensors by name.
    """
    values = metric(model, batch)
    good = isinstance(values, Mapping) and len(values) > 0
    if not good or not all(isinstance(v, Tensor) and v.ndim == 0 for v in values.values()):
        shown = (
            {k: tuple(v.shape) if isinstance(v, Tensor) else v for k, v in values.items()}
            if isinstance(values, Mapping)
            else type(values).__name__
        )
        raise LossError(
            "A metric must return 0-d tensors by name, for example"
            f' {{"loss": F.cross_entropy(model(x), y)}}, but got {shown}.'
        )
    return dict(values)


class Mean:
    """Means over examples, float64, of means over batches."""

    def __init__(self) -> None:
        """See the class."""
        self._totals: dict[str, Tensor] = {}
        self._count = 0

    def add(self, values: Mapping[str, Float[Tensor, "S ..."]], batch: Any) -> None:
        """Take in means over a batch, by name."""
        size = batch_size(batch)
        for name, value in values.items():
            term = value.double() * size
            self._totals[name] = self._totals[name] + term if name in self._totals else term
        self._count += size

    def values(self) -> dict[str, Float[Tensor, "S ..."]]:
        """By name, on the device of what was added."""
        return {name: total / self._count for name, total in self._totals.items()}


def mean_over_batches(
    measure: Callable[[Any], Mapping[str, Float[Tensor, "S ..."]]], batches: Iterable[Any]
) -> dict[str, Float[Tensor, "S ..."]]:
    """Means over examples, float64, of what `measure` gives as means over each batch."""
    mean = Mean()
    for batch in batches:
        mean.add(measure(batch), batch)
    return mean.values()


class _Averaged:
    """A metric that is a mean over examples."""

    def __init__(self, metric: MeanMetric) -> None:
        self._metric = metric
        self._mean = Mean()

    def of(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return named_scalars(self._metric, model, batch)

    def add(self, result: Mapping[str, Tensor], batch: Any) -> None:
        self._mean.add(result, batch)

    def values(self) -> dict[str, Tensor]:
        return {name: value.cpu() for name, value in self._mean.values().items()}


class _Gathered:
    """A metric of the whole set: outputs (S, N, ...) of all batches, and their targets."""

    def __init__(self, metric: WholeSet) -> None:
        self._metric = metric
        self._outputs: list[Any] = []
        self._targets: list[Any] = []

    def of(self, model: nn.Module, batch: Any) -> Any:
        outputs = self._metric.predict(model, batch)
        if not all(isinstance(leaf, Tensor) and leaf.ndim for leaf in leaves(outputs)):
            raise LossError(f"`predict` must give outputs (N, ...), one row an example, but got {_shown(outputs)}.")
        return outputs

    def add(self, result: Any, batch: Any) -> None:
        self._outputs.append(mapped(_on_cpu, result))
        self._targets.append(mapped(_on_cpu, self._metric.targets(batch)))

    def values(self) -> dict[str, Tensor]:
        outputs, targets = _joined("outputs", self._outputs, 1), _joined("targets", self._targets, 0)
        count = len(next(leaves(outputs)))
        rows = [self._scored(_row(outputs, index), targets) for index in range(count)]
        if different := [list(row) for row in rows if row.keys() != rows[0].keys()]:
            raise LossError(f"`score` must give the same names each time, but gave {list(rows[0])} and {different[0]}.")
        return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}

    def _scored(self, outputs: Any, targets: Any) -> dict[str, float]:
        """Of one setting; many a score refuses NaN, which would end a search at the first network that diverged."""
        unknown = any(bool(leaf.isnan().any()) for leaf in leaves(outputs))
        scores = self._metric.score(mapped(_without_nan, outputs) if unknown else outputs, targets)
        if not isinstance(scores, Mapping) or not scores:
            raise LossError(
                f'`score` must give numbers by name, for example {{"auc": roc_auc_score(targets, outputs)}}, but got'
                f" {scores!r}."
            )
        numbers = {name: real_number(name, value, error=LossError) for name, value in scores.items()}
        return dict.fromkeys(numbers, float("nan")) if unknown else numbers


def _on_cpu(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    kept = leaf.detach().cpu()
    return kept.float() if kept.dtype in (torch.float16, torch.bfloat16) else kept  # which NumPy does not know


def _row(tree: Any, index: int) -> Any:
    return mapped(lambda leaf: leaf[index], tree)


def _without_nan(leaf: Tensor) -> Tensor:
    return leaf.where(~leaf.isnan(), 0)


def _joined(what: str, trees: Sequence[Any], axis: int) -> Any:
    """One tree of those of all batches."""
    columns = [list(leaves(tree)) for tree in trees]
    fitting = all(structure(tree) == structure(trees[0]) for tree in trees)
    try:
        if not fitting:
            raise TypeError("their containers differ")
        rest = iter([torch.cat(column, axis) for column in zip(*columns, strict=True)])
    except (TypeError, RuntimeError, IndexError) as error:
        raise LossError(
            f"{what.capitalize()} of all batches must be tensors with the examples in front that fit behind each other,"
            f" but got {_shown(trees[0])} and {_shown(trees[-1])}: {error}. Shape them alike in `predict` and `targets`"
            " of `metrics.whole_set`."
        ) from error
    return mapped(lambda leaf: next(rest), trees[0])


def _shown(tree: Any) -> list[Any]:
    return [tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in leaves(tree)]
