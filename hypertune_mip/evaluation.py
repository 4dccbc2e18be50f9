"""Metrics on validation data at many settings: the batches, their means, and chunks that fit a memory budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from hypertune_mip.errors import DataError, LossError
from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.space import SearchSpace

Metric = Callable[[nn.Module, Any], Mapping[str, Tensor]]
"""Of (model, batch): 0-d means over the batch, by name, for one setting."""

_MEMORY_BUDGET = {"cuda": 2**30}  # by type of device: as large as it takes to keep it busy
_OTHER_MEMORY_BUDGET = 2**26  # on a CPU larger chunks are slower: their memory is fetched page by page
_CACHE_LIMIT = 2**30


def to_device(batch: Any, device: torch.device) -> Any:
    """A tree of tensors on `device`."""
    return tree_map_only(Tensor, lambda t: t.to(device, non_blocking=True), batch)


def batch_size(batch: Any) -> int:
    """Number of examples N of a batch whose tensors all have shape (N, ...).

    Raises:
        DataError: If it holds no tensor, something that is neither tensor nor None, or different N.
    """
    leaves = tree_leaves(batch)
    strangers = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)]
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in leaves if isinstance(leaf, Tensor)}
    if strangers or len(sizes) != 1 or None in sizes:
        raise DataError(
            "A batch must be a tree (tuple, list, dict) of tensors that share their first dimension, the examples;"
            f" got tensors with first dimensions {sorted(sizes, key=str)} and other objects {strangers}."
        )
    return int(sizes.pop() or 0)


def named_scalars(metric: Metric, model: nn.Module, batch: Any) -> dict[str, Tensor]:
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


def mean_over_batches(
    measure: Callable[[Any], Mapping[str, Float[Tensor, "S"]]], batches: Iterable[Any]
) -> dict[str, Float[Tensor, "S"]]:
    """Means over examples, float64, of what `measure` gives as means over each batch."""
    totals: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        size = batch_size(batch)
        for name, value in measure(batch).items():
            term = value.double() * size
            totals[name] = totals[name] + term if name in totals else term
        count += size
    return {name: total / count for name, total in totals.items()}


class ValidationData:
    """Batches of validation data that can be read any number of times.

    Args:
        loader: They are read once and kept, on `device`, where they take less than a gigabyte; a larger set is read
            anew each time.
        device: Where to.

    Raises:
        DataError: If the loader is empty or a batch is not a tree of tensors.
    """

    def __init__(self, loader: Iterable[Any], device: torch.device) -> None:
        """See the class."""
        self.loader = loader
        self.device = device
        self._cache: list[Any] | None = None
        with self.own_random_state():
            self._cache = self._read()

    def __iter__(self) -> Iterator[Any]:
        """The batches, on the device."""
        if self._cache is not None:
            return iter(self._cache)
        return (to_device(batch, self.device) for batch in self.loader)

    def own_random_state(self) -> AbstractContextManager[Any]:
        """Reading a DataLoader draws from the global generator, even without shuffling; the caller's stays as it is."""
        return nullcontext() if self._cache is not None else torch.random.fork_rng(devices=[])

    def _read(self) -> list[Any] | None:
        kept: list[Any] = []
        size = examples = 0
        for batch in self.loader:
            examples += batch_size(batch)
            size += sum(leaf.nbytes for leaf in tree_leaves(batch))
            if size > _CACHE_LIMIT:
                return None
            kept.append(to_device(batch, self.device))
        if not examples:
            raise DataError("The validation loader holds no example. Pass a DataLoader or list of batches.")
        return kept


class Measure(Protocol):
    """Metrics at many settings, as `Evaluator` gives them."""

    @property
    def space(self) -> SearchSpace:
        """Of the settings."""

    def __call__(self, units: Tensor, *, differentiable: bool = False) -> dict[str, Tensor]:
        """Metrics by name, (S,)."""


class Evaluator:
    """Means of a metric over a fixed validation set, at any number of settings at once.

    Args:
        hypernet: The trained, or half-trained, hypernetwork.
        metric: Written for one setting.
        loader: Batches of validation data, kept as `ValidationData` does.
        memory_budget: Bytes that the settings of one chunk may take, by an estimate from the network's activations;
            None is 64 MiB on a CPU and 1 GiB on CUDA. One setting is always evaluated, whatever it takes.

    Raises:
        DataError: If the loader is empty or a batch is not a tree of tensors.
        LossError: If the metric does not return 0-d tensors by name.
    """

    def __init__(
        self,
        hypernet: HyperNetwork,
        metric: Metric,
        loader: Iterable[Any],
        *,
        memory_budget: int | None = None,
    ) -> None:
        """See the class."""
        self.hypernet = hypernet
        self.metric = metric
        self.memory_budget = memory_budget
        self.data = ValidationData(loader, hypernet.device)
        self._known: tuple[tuple[str, ...], int] | None = None

    def __call__(self, units: Float[Tensor, "S d"], *, differentiable: bool = False) -> dict[str, Float[Tensor, "S"]]:
        """Metrics by name at each setting, float64; on the hypernetwork's device.

        Args:
            units: The settings.
            differentiable: Whether gradients flow back to `units` (and to the hypernetwork's weights).
        """
        if not len(units):
            return {name: torch.empty(0, dtype=torch.float64) for name in self.names()}
        with self.data.own_random_state(), _evaluating(self.hypernet), torch.set_grad_enabled(differentiable):
            parts = [self._chunk(chunk) for chunk in units.split(self.chunk_size())]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @property
    def space(self) -> SearchSpace:
        """Of the hypernetwork."""
        return self.hypernet.space

    def names(self) -> tuple[str, ...]:
        """Names of the metrics, in the order in which the metric returns them."""
        return self._trial()[0]

    def chunk_size(self) -> int:
        """Settings that are evaluated at once."""
        budget = self.memory_budget
        if budget is None:
            budget = _MEMORY_BUDGET.get(self.hypernet.device.type, _OTHER_MEMORY_BUDGET)
        return max(1, budget // self._trial()[1])

    def _chunk(self, units: Tensor) -> dict[str, Tensor]:
        return mean_over_batches(lambda batch: self.hypernet(self._named, units, batch, split=False), self.data)

    def _named(self, model: nn.Module, batch: Any, config: Any) -> dict[str, Tensor]:
        return named_scalars(self.metric, model, batch)

    def _trial(self) -> tuple[tuple[str, ...], int]:
        """From one setting on the first batch: names of the metrics, and bytes that a setting takes.

        These are its activations, twice for temporaries, and its weights.
        """
        if self._known is None:
            sizes: list[int] = []

            def note(module: nn.Module, inputs: Any, output: Any) -> None:
                sizes.extend(t.numel() * t.element_size() for t in tree_leaves(output) if isinstance(t, Tensor))

            network = self.hypernet.network
            leaves = [module for module in network.modules() if not list(module.children())]
            handles = [module.register_forward_hook(note) for module in leaves]
            try:
                with self.data.own_random_state(), _evaluating(self.hypernet), torch.no_grad():
                    unit = self.space.sample(1)
                    values = self.hypernet(self._named, unit, next(iter(self.data)), split=False)
            finally:
                for handle in handles:
                    handle.remove()
            weights = sum(p.numel() * p.element_size() for p in network.parameters())
            self._known = tuple(values), 2 * sum(sizes) + weights
        return self._known


@contextmanager
def _evaluating(hypernet: HyperNetwork) -> Iterator[None]:
    """The hypernetwork in evaluation mode, and back in its own afterwards."""
    training = hypernet.training
    hypernet.eval()
    try:
        yield
    finally:
        hypernet.train(training)
