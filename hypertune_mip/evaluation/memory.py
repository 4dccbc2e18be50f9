"""How many bytes a computation takes at a time, by looking at every tensor that it makes.

Why not hooks on the modules' outputs: a network may call functions instead of modules, and attention makes its scores
inside one. Why not the allocator's own figures: a CPU has none, and on CUDA resetting them is seen by everybody else.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """Within the block: the most bytes that storages made in it, by this thread, take at a time.

    What a kernel of PyTorch takes and frees inside, such as a convolution's workspace, is not seen.

    Example:
        >>> import torch
        >>> with PeakBytes() as memory:
        ...     x = torch.zeros(1000)
        ...     y = (x + 1).sum()
        >>> memory.peak // 1000
        8
    """

    def __init__(self) -> None:
        """See the class."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it has made."""
        options = kwargs or {}
        for storage in _storages((args, options)):
            self._note(storage, 0)  # an operation may return what it was given, or a view of it
        result = func(*args, **options)
        for storage in _storages(result):
            self._note(storage, storage.nbytes())
        return result

    def _note(self, storage: UntypedStorage, size: int) -> None:
        key = id(storage)
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, size).atexit = False

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _storages(tree: Any) -> Iterator[UntypedStorage]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            try:
                yield leaf.untyped_storage()
            except (NotImplementedError, RuntimeError):  # a sparse tensor, or a subclass that stands for others
                continue
