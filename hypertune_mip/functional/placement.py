"""A setting's tensors in the place of a network's parameters, for as long as a function of the network runs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map


class Slot(NamedTuple):
    """A place that holds a parameter.

    Args:
        module: The owner.
        leaf: The parameter's name there.
        name: Its name in the network; that of the first place where it is tied.
    """

    module: nn.Module
    leaf: str
    name: str

    @property
    def tensor(self) -> Tensor:
        """What is there now."""
        tensor = self.module._parameters[self.leaf]
        assert tensor is not None
        return tensor


def find_slots(network: nn.Module, names: Sequence[str]) -> list[Slot]:
    """All places that hold the named parameters, those of tied copies included."""
    by_identity = {id(network.get_parameter(name)): name for name in names}
    return [
        Slot(module, leaf, by_identity[id(parameter)])
        for module in network.modules()
        for leaf, parameter in module._parameters.items()
        if id(parameter) in by_identity
    ]


@contextmanager
def in_place(slots: Sequence[Slot], tensors: dict[str, Tensor]) -> Iterator[None]:
    """Put tensors where a network keeps its parameters, and the parameters back at the end, even on an error.

    Why not `torch.func.functional_call`: it covers one forward call. Here the whole loss runs inside, which may call
    any method of the network and ask for its parameters.
    """
    originals = [slot.tensor for slot in slots]
    try:
        for module, leaf, name in slots:
            module._parameters[leaf] = tensors[name]  # type: ignore[assignment]
        yield
    finally:
        for slot, original in zip(slots, originals, strict=True):
            slot.module._parameters[slot.leaf] = original  # type: ignore[assignment]


@contextmanager
def attention_for_many_settings(device: torch.device) -> Iterator[None]:
    """Keep attention on paths that look at its weights through `__torch_function__` and that vmap can map.

    On a CPU torch has no batching rule for its flash attention and would run one setting after another.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def loop(one: Callable[..., Any], settings: int, numbers: Any, configs: Any, data: Any, *, split: bool) -> Any:
    """What vmap gives, by a Python loop over settings: slower, for operations that vmap cannot serve."""
    results = []
    for index in range(settings):
        own = tree_map(operator.itemgetter(index), (numbers, configs, data if split else ()))
        results.append(one(own[0], own[1], own[2] if split else data))
    return tree_map(lambda *parts: torch.stack(parts), *results)


def about_vmap(error: Exception) -> bool:
    """Whether an error says that vmap cannot serve an operation."""
    return "vmap" in str(error) or "batching rule" in str(error).lower()
