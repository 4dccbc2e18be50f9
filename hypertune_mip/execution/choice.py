"""How settings are run, and the choice among the ways by measuring them on the user's own network and batch.

Which way is faster follows from sizes, the processor and the libraries below PyTorch, and no count of parameters or
multiplications has foreseen it: a convolution of few weights does much work, and a small network's step is all
overhead. So a few steps of each candidate are timed at the start of training. All give the same numbers up to rounding,
and draw noise from the same distributions, so nothing that matters but time depends on the outcome; still, who needs a
run to be repeated bit for bit gives the way by hand.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hypertune_mip.errors import NetworkError
from hypertune_mip.execution.swap import random_state, set_random_state

_ROUNDS = 3  # timed steps of each candidate, after one that is not
_HOPELESS = 3.0  # times as long as the best so far: not timed again


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How settings are run; all ways give the same numbers up to rounding, but for the noise that layers draw.

    Args:
        mapping: "vmap", all settings at once, or "loop", one after another.
        formed: Patterns (as in `fnmatch`) of names of generated parameters: of these the tensor of a setting is made;
            layers of the others run by its factors where they can.

    Example:
        >>> Execution(mapping="loop", formed=("*",)).forms("0.weight")
        True
    """

    mapping: Literal["vmap", "loop"]
    formed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate."""
        if self.mapping not in ("vmap", "loop"):
            raise NetworkError(f'`mapping` must be "vmap" or "loop", but got {self.mapping!r}.')
        if isinstance(self.formed, str) or not all(isinstance(pattern, str) for pattern in self.formed):
            raise NetworkError(f"`formed` must be a sequence of names or patterns, but got {self.formed!r}.")
        object.__setattr__(self, "formed", tuple(self.formed))

    def forms(self, name: str) -> bool:
        """Whether the tensor of a parameter is made."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.formed)

    def to_json(self) -> dict[str, Any]:
        """Plain values: `Execution.from_json(e.to_json()) == e`."""
        return {"mapping": self.mapping, "formed": list(self.formed)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Execution:
        """See `to_json`."""
        return cls(mapping=values["mapping"], formed=tuple(values["formed"]))


FACTORED = Execution(mapping="vmap")
"""All settings at once, no tensor made that a layer can do without."""
FORMED = Execution(mapping="loop", formed=("*",))
"""One setting after another, all tensors made: as a plain network runs."""


def candidates(mapping: Literal["auto", "vmap", "loop"], small: Sequence[str], structured: int) -> list[Execution]:
    """Ways worth measuring.

    Args:
        mapping: "vmap" or "loop" leaves only those.
        small: Names of parameters that are small beside the activations of their layers.
        structured: How many parameters there is a choice for.
    """
    ways: list[tuple[str, ...]] = [("*",)] if structured == 0 else [("*",), tuple(small), ()]
    found = [Execution(mapping="loop", formed=formed) for formed in ways if mapping != "vmap"]
    if mapping != "loop":
        found += [Execution(mapping="vmap", formed=formed) for formed in (ways[1:] or ways)]
    return list(dict.fromkeys(found))


def small_parameters(network: nn.Module, names: Sequence[str], call: Callable[[], Any]) -> list[str]:
    """Those of the named parameters that have no more elements than what goes into and comes out of their layers.

    Args:
        network: Whose layers are watched while `call` runs.
        names: Of parameters.
        call: Runs the network once on a batch.
    """
    activations: dict[int, int] = {}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        parts = [*inputs, output]
        activations[id(module)] = sum(part.numel() for part in parts if isinstance(part, Tensor))

    handles = [module.register_forward_hook(note) for module in network.modules()]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    owners = dict(network.named_modules(remove_duplicate=False))
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    return [name for name in names if sizes[name] <= activations.get(id(owners[name.rpartition(".")[0]]), 0)]


def measured(
    step: Callable[[Execution], None], ways: Sequence[Execution], device: torch.device
) -> dict[Execution, float]:
    """Median seconds of a step by each way; ways that cannot run are left out.

    Args:
        step: One step, with its backward pass, by one of the ways.
        ways: In rounds, so that a machine that is busy for a while is so for all of them.
        device: Waited for.
    """
    times: dict[Execution, list[float]] = {way: [] for way in ways}
    for index in range(_ROUNDS + 1):
        best = min((min(taken) for taken in times.values() if taken), default=float("inf"))
        for way, taken in list(times.items()):
            if taken and min(taken) > _HOPELESS * best:
                continue
            try:
                seconds = _seconds(lambda way=way: step(way), device)  # type: ignore[misc]
            except NetworkError:
                del times[way]
                continue
            if index or not taken:
                taken.append(seconds)
            if index == 1:
                taken.pop(0)  # the first step has paid for what is made once
    return {way: median(taken) for way, taken in times.items()}


@contextmanager
def without_trace(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Random state, gradients and buffers are afterwards as they were."""
    state, buffers = random_state(device), [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        set_random_state(state, device)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        network.zero_grad(set_to_none=True)


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
