"""Batches: where their tensors are, how many examples they hold, and those of a validation set."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hypertune_mip.errors import DataError, HypertuneWarning
from hypertune_mip.evaluation.modes import gradients
from hypertune_mip.trees import leaves, mapped, structure, tensors_of

_CACHE_LIMIT = 2**30


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with all that can be moved on `device`; tensors of inference mode, which serve no gradient, are copied.

    What is no tensor is moved by its own method `to`, if it has one, as batches of graphs do.
    """

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf.to(device) if callable(getattr(leaf, "to", None)) else leaf
        if leaf.is_inference() and not torch.is_inference_mode_enabled():
            leaf = leaf.clone()
        return leaf.to(device, non_blocking=True)

    return mapped(moved, batch)


def batch_size(batch: Any) -> int:
    """Number of examples N of a batch.

    It is what the batch, or an object in it, says of itself (`batch_size`, or a batch of graphs' `num_graphs`; in a
    dict by that key), or else the first dimension of its tensors. Tensors may count other things than examples, such as
    the edges of a graph: then it is what most of them have.

    Raises:
        DataError: If nothing in the batch tells.

    Warns:
        HypertuneWarning: If tensors have different first dimensions, and nothing says which is that of the examples.
    """
    for item in (batch, *leaves(batch)):
        if not isinstance(item, Tensor) and (said := _said(item)) is not None:
            return said
    sizes = Counter(tensor.shape[0] for tensor in tensors_of(batch) if tensor.ndim)
    if not sizes:
        raise DataError(
            "A batch must hold tensors whose first dimension is the examples, or say how many it holds by its"
            f" `batch_size` or `num_graphs`; got {_shown(batch)}."
        )
    size = sizes.most_common(1)[0][0]
    if len(sizes) > 1:
        warnings.warn(
            f"How many examples does a batch of {_shown(batch)} hold? It is taken for {size}, by which means over"
            " batches are weighted. Give the batch an attribute or a key `batch_size` to say so.",
            HypertuneWarning,
            stacklevel=2,
        )
    return size


def _said(item: Any) -> int | None:
    for name in ("num_graphs", "batch_size"):
        size = item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)
        if isinstance(size, tuple) and size:
            size = size[0]
        if isinstance(size, int):
            return size
    return None


def _shown(batch: Any) -> str:
    """What a batch holds, for a message."""
    shapes = [tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in leaves(batch)]
    return f"{type(batch).__name__} with {shapes}"


def _bytes(batch: Any) -> int:
    """What a batch takes, as far as its tensors can be seen: those in objects by what the objects hold."""
    total = 0
    for leaf in leaves(batch):
        if isinstance(leaf, Tensor):
            total += leaf.numel() * leaf.element_size()  # `nbytes` is not there for sparse ones
        elif isinstance(leaf, tuple):  # a packed sequence
            total += _bytes(list(leaf))
        elif hasattr(leaf, "__dict__") and callable(getattr(leaf, "to", None)):
            total += sum(_bytes(value) for value in vars(leaf).values())
    return total


class ValidationData:
    """Batches of validation data that can be read any number of times.

    Args:
        loader: They are read once and kept, on `device`, where they take less than a gigabyte; a larger set is read
            anew each time.
        device: Where to.
        join_last: Whether a last batch that is less than half as large as the one before becomes a part of it, where
            that can be: for networks whose answers depend on who else is in the batch.

    Raises:
        DataError: If the loader is empty or a batch holds nothing to count examples by.
    """

    def __init__(self, loader: Iterable[Any], device: torch.device, *, join_last: bool = False) -> None:
        """See the class."""
        self.loader = loader
        self.device = device
        self.join_last = join_last
        self._cache: list[Any] | None = None
        with self.own_random_state(), gradients(False):
            self._cache, self._largest = self._read()

    def __iter__(self) -> Iterator[Any]:
        """The batches, on the device."""
        if self._cache is not None:
            return iter(self._cache)
        return self._batches()

    @property
    def largest(self) -> Any:
        """The batch of most bytes, on the device; of a set that is not kept, among those of the first gigabyte."""
        return self._largest

    @property
    def batches(self) -> int | None:
        """How many batches there are; None of a set that is not kept."""
        return None if self._cache is None else len(self._cache)

    def own_random_state(self) -> AbstractContextManager[Any]:
        """Reading a DataLoader draws from the global generator, even without shuffling; the caller's stays as it is."""
        return nullcontext() if self._cache is not None else torch.random.fork_rng(devices=[])

    def _batches(self) -> Iterator[Any]:
        batches = (to_device(batch, self.device) for batch in self.loader)
        return _with_last_joined(batches) if self.join_last else batches

    def _read(self) -> tuple[list[Any] | None, Any]:
        """The batches, or None if they are too many, and the largest one."""
        kept: list[Any] = []
        sizes: list[int] = []
        examples = 0
        for batch in self._batches():
            examples += batch_size(batch)
            sizes.append(_bytes(batch))
            kept.append(batch)
            if sum(sizes) > _CACHE_LIMIT:
                break
        if not examples:
            raise DataError("The validation loader holds no example. Pass a DataLoader or list of batches.")
        largest = kept[sizes.index(max(sizes))]
        return (None if sum(sizes) > _CACHE_LIMIT else kept), largest


def _with_last_joined(batches: Iterable[Any]) -> Iterator[Any]:
    before: list[Any] = []
    for batch in batches:
        if len(before) == 2:
            yield before.pop(0)
        before.append(batch)
    if len(before) == 2 and 2 * batch_size(before[1]) < batch_size(before[0]):
        one = joined(*before)
        before = before if one is None else [one]
    yield from before


def joined(first: Any, second: Any) -> Any | None:
    """One batch of two, or None where that cannot be: where leaves differ that have no examples in front."""
    if structure(first) != structure(second):
        return None
    sizes, parts = (batch_size(first), batch_size(second)), []
    for one, other in zip(leaves(first), leaves(second), strict=True):
        if one is other:  # the same for both, such as weights of classes
            parts.append(one)
        elif isinstance(one, Tensor) and isinstance(other, Tensor) and _have_examples((one, other), sizes):
            parts.append(torch.cat([one, other]))
        else:
            return None
    rest = iter(parts)
    return mapped(lambda leaf: next(rest), first)


def _have_examples(tensors: tuple[Tensor, Tensor], sizes: tuple[int, int]) -> bool:
    """Whether two tensors have so many examples in front, all of one shape."""
    one, other = tensors
    return one.shape[:1] + other.shape[:1] == sizes and one.shape[1:] == other.shape[1:]
