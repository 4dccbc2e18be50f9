"""A setting's tensors in a network, for as long as a function of it runs: the only code that puts them there."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor
from torch.utils._pytree import tree_leaves

from hypertune_mip.functional import ActiveConfig, ConfigModule, active, as_number, hyperparameters_in

_OF_TORCH = frozenset(nn.Module().__dict__)  # what every module has; of these a forward pass changes `training` at most
_CONTAINERS = (list, dict, set, deque, OrderedDict)


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


class Places:
    """The places of a module's parameters.

    Args:
        module: Whose.
        prefix: Of the parameters' names.
    """

    def __init__(self, module: nn.Module, prefix: str = "") -> None:
        """See the class."""
        by_identity = {id(parameter): prefix + name for name, parameter in module.named_parameters()}
        self._slots = [
            Slot(owner, leaf, by_identity[id(parameter)])
            for owner in module.modules()
            for leaf, parameter in owner._parameters.items()
            if parameter is not None
        ]

    def parameters(self) -> dict[str, nn.Parameter]:
        """The module's own parameters, by name, while nothing else stands in their places."""
        return {slot.name: slot.module._parameters[slot.leaf] for slot in self._slots}  # type: ignore[misc]

    @contextmanager
    def holding(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """A block in which `tensors` stand in the places of parameters of those names."""
        placed = [(slot, slot.module._parameters[slot.leaf]) for slot in self._slots if slot.name in tensors]
        try:
            for slot, _ in placed:
                slot.module._parameters[slot.leaf] = tensors[slot.name]  # type: ignore[assignment]
            yield
        finally:
            for slot, parameter in placed:
                slot.module._parameters[slot.leaf] = parameter


class Swap:
    """The places of a network's parameters, and the way in and out of them.

    Why not `torch.func.functional_call`: it covers one forward call. Here a whole loss runs inside, which may call any
    method of the network and ask for its parameters, and so may its backward pass, which recomputes activations of a
    checkpointed block from what stands in the network then.

    Args:
        network: Whose parameters are replaced. One thread at a time may do so.
    """

    def __init__(self, network: nn.Module) -> None:
        """See the class."""
        self._modules = list(network.named_modules())
        self.reassigned: dict[str, bool] = {}
        """Buffers that functions have assigned anew, which is undone: whether to other values, when first seen."""
        self._places = Places(network)
        self._configured = [module for _, module in self._modules if isinstance(module, ConfigModule)]
        self._numbers = [(m, place, name) for _, m in self._modules for place, name in hyperparameters_in(m).items()]

    def parameters(self) -> dict[str, nn.Parameter]:
        """The network's own parameters, by name, while nothing else stands in their places."""
        return self._places.parameters()

    @contextmanager
    def __call__(self, tensors: Mapping[str, Tensor], config: ActiveConfig) -> Iterator[None]:
        """The network has `tensors` in place of parameters of those names, and its layers read `config`, inside.

        Attributes that stand for hyperparameters hold their values. At the end, also on an error, parameters are back,
        and so is whatever holds tensors that the function has put into modules meanwhile: kept activations, caches,
        reassigned buffers. Numbers that modules count, and buffers that are changed in place, stay changed: they are
        the network's own state, one for all settings.
        """
        before = [(path, _Before.of(module)) for path, module in self._modules]
        configs = [layer.active for layer in self._configured]
        stand_ins = [vars(module)[attribute] for module, attribute, _ in self._numbers]
        try:
            with self._places.holding(tensors), active(config):
                for layer in self._configured:
                    layer.active = config
                values = {name: as_number(config[name]) for name in {name for _, _, name in self._numbers}}
                for module, attribute, name in self._numbers:
                    vars(module)[attribute] = values[name]
                yield
        finally:
            for layer, former in zip(self._configured, configs, strict=True):
                layer.active = former
            for (module, attribute, _), stand_in in zip(self._numbers, stand_ins, strict=True):
                vars(module)[attribute] = stand_in
            for path, state in before:
                for buffer, value in state.restore().items():
                    name = f"{path}.{buffer}".lstrip(".")
                    if name not in self.reassigned:
                        self.reassigned[name] = _is_another(value, state.buffers.get(buffer))


class _Before(NamedTuple):
    """What a module held before: its attributes, the contents of those that are containers, and its buffers."""

    module: nn.Module
    attributes: dict[str, Any]
    contents: dict[str, Any]
    buffers: dict[str, Tensor | None]

    @classmethod
    def of(cls, module: nn.Module) -> _Before:
        attributes = module.__dict__.copy()
        contents = {
            name: value.copy()
            for name, value in attributes.items()
            if name not in _OF_TORCH and isinstance(value, _CONTAINERS)
        }
        return cls(module, attributes, contents, module._buffers.copy())

    def restore(self) -> dict[str, Tensor | None]:
        """Put everything back; the buffers that had been assigned anew, by name."""
        now = self.module.__dict__
        for name in [name for name, value in now.items() if self.attributes.get(name, _NOTHING) is not value]:
            if _holds_tensor(now[name]) or _holds_tensor(self.attributes.get(name)):
                if name in self.attributes:
                    now[name] = self.attributes[name]
                else:
                    del now[name]
        for name, content in self.contents.items():
            if now.get(name) is self.attributes[name] and _holds_tensor(now[name]):
                _refill(now[name], content)
        others = {n: value for n, value in self.module._buffers.items() if self.buffers.get(n, _NOTHING) is not value}
        if others:
            self.module._buffers.clear()
            self.module._buffers.update(self.buffers)
        return others


_NOTHING = object()


def _is_another(value: Tensor | None, before: Tensor | None) -> bool:
    """Whether a buffer has another value, and not only another shape, as caches have that grow."""
    if value is None or before is None or value.shape != before.shape:
        return False
    return is_batchedtensor(value) or not torch.equal(value, before)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Tensor):
        return True
    if isinstance(value, (set, deque)):
        value = list(value)
    if isinstance(value, (list, tuple, dict)):
        return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))
    return False


def _refill(container: Any, content: Any) -> None:
    """Give a container its former content, where that has changed."""
    same = len(container) == len(content) and all(
        a is b for a, b in zip(_items(container), _items(content), strict=True)
    )
    if not same:
        container.clear()
        (container.update if isinstance(container, (dict, set)) else container.extend)(content)


def _items(container: Any) -> list[Any]:
    return list(container.values()) if isinstance(container, dict) else list(container)


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """States of PyTorch's global generators on the CPU and on `device`."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Put states that `random_state` gave back in place."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
