"""Metrics at many settings: chunk by chunk, as memory allows, and batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from hypertune_mip.directions import Direction, checked_directions
from hypertune_mip.errors import SpaceError
from hypertune_mip.evaluation.data import ValidationData
from hypertune_mip.evaluation.means import warn_of_no_means
from hypertune_mip.evaluation.memory import PeakBytes
from hypertune_mip.evaluation.metrics import Run, mean_over_batches, measured_parts, merged, named_scalars
from hypertune_mip.evaluation.modes import evaluating, gradients
from hypertune_mip.execution import FACTORED, FORMED, Execution
from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.metrics import MeanMetric, Metric, WholeSet, parts_of
from hypertune_mip.space import SearchSpace

_MEMORY_BUDGET = {"cuda": 2**30}  # by type of device: as large as it takes to keep it busy
_OTHER_MEMORY_BUDGET = 2**25  # on a CPU larger chunks are slower: their memory is fetched page by page
_WORTH_MAPPING = 4  # settings: where fewer fit into a chunk, one alone keeps the processor busy


class Measure(Protocol):
    """Metrics at many settings, as `Evaluator` gives them."""

    @property
    def space(self) -> SearchSpace:
        """Of the settings."""

    @property
    def directions(self) -> Mapping[str, Direction]:
        """Of all metrics, by name."""

    def __call__(self, units: Float[Tensor, "S d"]) -> dict[str, Float[Tensor, "S"]]:
        """Metrics by name."""

    def value_and_gradient(
        self, units: Float[Tensor, "S d"], metric: str
    ) -> tuple[Float[Tensor, "S"], Float[Tensor, "S d"]]:
        """One metric, and its derivative with respect to each unit."""


class Evaluator:
    """Metrics of a fixed validation set, at any number of settings at once.

    Memory grows neither with the number of settings nor with that of batches, but for the results, and for the outputs
    that a metric of the whole set gathers at the settings of one chunk.

    Args:
        hypernet: The trained, or half-trained, hypernetwork.
        metric: Written for one setting; see `metrics.Metric`.
        loader: Batches of validation data, kept as `ValidationData` does.
        memory_budget: Bytes that the settings of one chunk may take, by what is really allocated on the largest batch,
            or on all of them where outputs are gathered; None is 32 MiB on a CPU and 1 GiB on CUDA. One setting is
            always evaluated, whatever it takes.
        directions: By metric; "minimize" where nothing is said.

    Raises:
        SpaceError: If a direction is none, or of a metric that is unknown.
        DataError: If the loader is empty or a batch holds nothing to count examples by.
        LossError: If a metric does not return what is agreed, or two have the same name.
    """

    def __init__(
        self,
        hypernet: HyperNetwork,
        metric: Metric,
        loader: Iterable[Any],
        *,
        memory_budget: int | None = None,
        directions: Mapping[str, Direction] | None = None,
    ) -> None:
        """See the class."""
        self.hypernet = hypernet
        self.metric = metric
        self.memory_budget = memory_budget
        self.data = ValidationData(loader, hypernet.device, join_last=bool(hypernet.batch_norms))
        self._parts = parts_of(metric)
        self._part_of: dict[str, MeanMetric | WholeSet] = {}
        self._sizes: dict[str | None, int] = {}
        self._looked_at_means = False
        self.stated_directions = checked_directions(directions)
        for name in self.stated_directions:
            check_metric(name, self.names(), where="`directions`")

    def __call__(self, units: Float[Tensor, "S d"], *, progress: bool = False) -> dict[str, Float[Tensor, "S"]]:
        """Metrics by name at each setting, float64, on the CPU.

        Args:
            units: The settings.
            progress: Whether to show a bar.

        Warns:
            HypertuneWarning: The first time, if a metric is no mean over examples, as it is taken for.
        """
        names = self.names()
        self._look_at_means(units[:1])
        with self._running(backward=False), tqdm(total=len(units), disable=not progress, desc="evaluate") as bar:
            values = {name: torch.empty(len(units), dtype=torch.float64) for name in names}
            for rows in _slices(len(units), self.chunk_size()):
                for name, value in self._values(units[rows], self._parts).items():
                    values[name][rows] = value  # one array: small results kept between chunks would scatter the heap
                bar.update(rows.stop - rows.start)
        return values

    def value_and_gradient(
        self, units: Float[Tensor, "S d"], metric: str
    ) -> tuple[Float[Tensor, "S"], Float[Tensor, "S d"]]:
        """One metric at each setting, and its derivative with respect to each unit; float64, on the CPU.

        Each batch goes backward at once, so memory is that of one batch. Switched-off gradients do not matter. A metric
        without a gradient, such as an error rate or one of the whole set, has the derivative 0.

        Args:
            units: The settings.
            metric: Name.

        Raises:
            SpaceError: If the metric is unknown.
        """
        check_metric(metric, self.names())
        part = self._part_of[metric]
        whole = isinstance(part, WholeSet)
        with self._running(backward=not whole):
            values = torch.empty(len(units), dtype=torch.float64)
            slopes = torch.zeros(units.shape, dtype=torch.float64)
            for rows in _slices(len(units), self.chunk_size(None if whole else metric)):
                if isinstance(part, WholeSet):
                    values[rows] = self._values(units[rows], [part])[metric]
                else:
                    execution = self._execution(rows.stop - rows.start, metric)
                    means = self._slopes(units[rows], part, metric, self.data, execution)
                    values[rows], slopes[rows] = means["value"], means["slope"]
        return values, slopes

    @property
    def space(self) -> SearchSpace:
        """Of the hypernetwork."""
        return self.hypernet.space

    @property
    def directions(self) -> dict[str, Direction]:
        """Of all metrics, by name, in the order of `names`."""
        return {name: self.stated_directions.get(name, "minimize") for name in self.names()}

    def on(self, hypernet: HyperNetwork) -> Evaluator:
        """The same metrics and data with a copy of the hypernetwork, on that one's device."""
        moved = Evaluator(
            hypernet,
            self.metric,
            self.data.loader,
            memory_budget=self.memory_budget,
            directions=self.stated_directions,
        )
        moved._looked_at_means = self._looked_at_means
        return moved

    def names(self) -> tuple[str, ...]:
        """Names of the metrics, in the order in which the metric returns them."""
        if not self._part_of:
            self.chunk_size()
        return tuple(self._part_of)

    def chunk_size(self, metric: str | None = None) -> int:
        """Settings that are evaluated at once: for their values, or for the gradient of a metric."""
        if metric not in self._sizes:
            self._sizes[metric] = self._fitting(metric)
        return self._sizes[metric]

    def _fitting(self, metric: str | None) -> int:
        """As many settings as fit, by what two of them take.

        Why not one: copies that many settings need are views of a single one. S settings take at most S / 2 times what
        two take, since what they share counts once.
        """
        budget = self.memory_budget
        if budget is None:
            budget = _MEMORY_BUDGET.get(self.hypernet.device.type, _OTHER_MEMORY_BUDGET)
        if 2 * self._trial(1, metric) > budget:
            return 1
        return max(1, 2 * budget // max(1, self._trial(2, metric)))

    def _trial(self, settings: int, metric: str | None) -> int:
        """Bytes that so many settings take on the largest batch, or on all whose outputs are gathered."""
        units = self.space.sample(settings)
        memory = PeakBytes()
        largest = [self.data.largest]
        with self._running(backward=metric is not None), memory:
            if metric is None:
                gathers = any(isinstance(part, WholeSet) for part in self._parts)
                batches = self.data if gathers else largest
                values = measured_parts(self._parts, self._run(units, None), batches)
                merged(values)
                self._part_of = {n: part for part, own in zip(self._parts, values, strict=True) for n in own}
            else:
                self._slopes(units, cast(MeanMetric, self._part_of[metric]), metric, largest, None)
        return memory.peak

    def _values(self, units: Tensor, parts: Sequence[MeanMetric | WholeSet]) -> dict[str, Tensor]:
        run = self._run(units, self._execution(len(units), None))
        return merged(measured_parts(parts, run, self.data))

    def _look_at_means(self, unit: Float[Tensor, "S d"]) -> None:
        """Once, at the first setting that is asked for, if there is one."""
        if self._looked_at_means or not len(unit):
            return
        self._looked_at_means = True
        if self.hypernet.batch_norms:  # whose answers are those of a batch
            return
        means = [part for part in self._parts if not isinstance(part, WholeSet)]
        device = self.hypernet.device
        with self._running(backward=False), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            run = self._run(unit, self._execution(1, None))
            errors = [torch.finfo(p.dtype).eps for p in self.hypernet.network.parameters() if p.is_floating_point()]
            warn_of_no_means(means, run, self.data, precision=max(errors), stacklevel=6)

    def _run(self, units: Tensor, execution: Execution | None) -> Run:
        def run(function: Callable[[nn.Module, Any], Any], batch: Any) -> Any:
            def one(model: nn.Module, batch: Any, config: Any) -> Any:
                return function(model, batch)

            return self.hypernet(one, units, batch, split=False, execution=execution)

        return run

    def _execution(self, count: int, metric: str | None) -> Execution | None:
        """How settings run, by a rule of sizes, so that the same question has the same answer to the last bit."""
        if self.hypernet.kernel.mapping != "auto":
            return None
        return FORMED if count == 1 or self.chunk_size(metric) < _WORTH_MAPPING else FACTORED

    def _slopes(
        self, units: Tensor, part: MeanMetric, metric: str, batches: Iterable[Any], execution: Execution | None
    ) -> dict[str, Tensor]:
        """Value (S,) and slope (S, d) of one metric of a part: the others stay out of the backward pass."""
        point = units.detach().clone().requires_grad_()

        def one(model: nn.Module, batch: Any, config: Any) -> Tensor:
            return named_scalars(part, model, batch)[metric]

        def measure(batch: Any) -> dict[str, Tensor]:
            value = self.hypernet(one, point, batch, split=False, execution=execution)
            if not value.requires_grad:
                return {"value": value, "slope": torch.zeros_like(point)}
            (slope,) = torch.autograd.grad(value.sum(), point, allow_unused=True, materialize_grads=True)
            return {"value": value.detach(), "slope": slope}

        return mean_over_batches(measure, batches)

    @contextmanager
    def _running(self, *, backward: bool) -> Iterator[None]:
        with self.data.own_random_state(), evaluating(self.hypernet), gradients(backward):
            yield


def check_metric(name: str, known: Iterable[str], *, where: str = "") -> None:
    """Raise SpaceError unless a metric has that name; `where` says who asks for it."""
    if name not in known:
        of = f" in {where}" if where else ""
        raise SpaceError(f"The metric {name!r}{of} is unknown; `metric` returns {list(known)}.")


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
