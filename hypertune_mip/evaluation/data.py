"""Batches: trees of tensors on a device, how many examples they hold, and those of a validation set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from hypertune_mip.errors import DataError
from hypertune_mip.evaluation.modes import gradients

_CACHE_LIMIT = 2**30


def to_device(batch: Any, device: torch.device) -> Any:
    """A tree of tensors on `device`; those of inference mode, which serve no gradient, are copied."""

    def moved(tensor: Tensor) -> Tensor:
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            tensor = tensor.clone()
        return tensor.to(device, non_blocking=True)

    return tree_map_only(Tensor, moved, batch)


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
        with self.own_random_state(), gradients(False):
            self._cache, self._largest = self._read()

    def __iter__(self) -> Iterator[Any]:
        """The batches, on the device."""
        if self._cache is not None:
            return iter(self._cache)
        return (to_device(batch, self.device) for batch in self.loader)

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

    def _read(self) -> tuple[list[Any] | None, Any]:
        """The batches, or None if they are too many, and the largest one."""
        kept: list[Any] = []
        sizes: list[int] = []
        examples = 0
        for batch in self.loader:
            examples += batch_size(batch)
            sizes.append(sum(leaf.nbytes for leaf in tree_leaves(batch)))
            kept.append(to_device(batch, self.device))
            if sum(sizes) > _CACHE_LIMIT:
                break
        if not examples:
            raise DataError("The validation loader holds no example. Pass a DataLoader or list of batches.")
        largest = kept[sizes.index(max(sizes))]
        return (None if sum(sizes) > _CACHE_LIMIT else kept), largest
