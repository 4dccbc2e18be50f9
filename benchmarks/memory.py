"""Memory on a CPU, in bytes: what autograd keeps for a backward pass, and all tensors that live at a time."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Peak:
    """Bytes that live now, and the most of them since `reset`."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)

    def drop(self, size: int) -> None:
        self.now -= size

    def reset(self) -> None:
        self.most = self.now


class Saved(_Peak):
    """Within the block: what autograd keeps for backward passes; several nodes may keep one storage."""

    def __init__(self) -> None:
        super().__init__()
        self._keepers: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept.tensor)

    def __enter__(self) -> Saved:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> _Kept:
        kept = _Kept(tensor.detach())  # with its history an output would keep itself
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        self._keepers[key] = self._keepers.get(key, 0) + 1
        if self._keepers[key] == 1:
            self.add(size)
        weakref.finalize(kept, self._release, key, size)
        return kept

    def _release(self, key: int, size: int) -> None:
        self._keepers[key] -= 1
        if not self._keepers[key]:
            self.drop(size)


class _Kept:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Live(TorchDispatchMode):
    """Within the block: all tensors that were made there and still live, by their storages.

    What operations use inside and give back before they return is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = _Peak()
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            self._note(leaf, made=False)
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            self._note(leaf, made=True)
        return result

    def _note(self, leaf: Any, *, made: bool) -> None:
        if not isinstance(leaf, Tensor) or leaf.device.type == "meta":
            return
        storage = leaf.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes() if made else 0  # what comes from outside the block is not its own
        self.peak.add(self._known[key])
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.peak.drop(self._known.pop(key))
