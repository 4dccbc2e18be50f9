"""The kernel: a function of (network, batch, config) at many settings, whatever the settings' tensors are made from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence, Set
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from hypertune_mip.errors import NetworkError
from hypertune_mip.execution import sequential, vectorised
from hypertune_mip.execution.choice import FACTORED, FORMED, Execution
from hypertune_mip.execution.sequential import Setting, Tensors, Weigh, Work
from hypertune_mip.execution.swap import Places, Swap, random_state, set_random_state
from hypertune_mip.functional import ActiveConfig, StructuredWeight
from hypertune_mip.functional import formed as to_place

Function = Callable[[nn.Module, Any, ActiveConfig], Any]
"""Of (network at one setting, data of that setting, config): a loss, or a metric behind an adapter."""
Mode = Literal["auto", "vmap", "loop"]


class MakeTensors(Protocol):
    """One setting's tensors, by the names of the parameters in whose places they stand."""

    def __call__(self, parameters: Tensors, values: Tensors, form: Set[str]) -> Tensors:
        """From the network's own parameters and the setting's values; those named in `form` are plain."""


class Kernel:
    """Runs functions of a network at many settings.

    Args:
        network: Whose parameters are replaced while a function runs.
        names: Of the parameters that depend on the setting.
        make: Makes their tensors at a setting.
        made_from: A module whose parameters `make` reads beside its arguments, if there is one.
        mapping: "vmap" or "loop" for all that runs; "auto" leaves it to each call, and falls back to "loop" where vmap
            cannot serve the network or the function.
    """

    def __init__(
        self,
        network: nn.Module,
        names: Sequence[str],
        make: MakeTensors,
        *,
        made_from: nn.Module | None = None,
        mapping: Mode,
    ) -> None:
        """See the class."""
        self.network = network
        self.names = tuple(names)
        self.mapping = mapping
        self._make = make
        self._swap = Swap(network)
        self._made_from = None if made_from is None else Places(made_from, "read by make: ")
        if self._made_from is not None and not self._made_from.parameters():
            self._made_from = None
        recurrent = {id(p) for m in network.modules() if isinstance(m, nn.RNNBase) for p in m.parameters()}
        self._recurrent = frozenset(n for n, p in network.named_parameters() if id(p) in recurrent)
        self._formed: dict[Execution, set[str]] = {}
        self._create_transient()

    def _create_transient(self) -> None:
        self.lock = threading.RLock()  # held while settings' tensors stand in the network
        self._unmapped: set[Hashable] = set()  # functions that vmap cannot serve

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the lock, so that copies and worker processes have one of their own."""
        return {name: value for name, value in self.__dict__.items() if name not in ("lock", "_unmapped")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """See `__getstate__`."""
        self.__dict__.update(state)
        self._create_transient()

    def __repr__(self) -> str:
        """How many parameters depend on the setting, and how settings are run."""
        return f"Kernel({type(self.network).__name__}, {len(self.names)} tensors, mapping={self.mapping!r})"

    def run(
        self,
        function: Function,
        own: Setting,
        data: Any,
        *,
        split: bool,
        execution: Execution | None = None,
        reads: set[str] | None = None,
    ) -> Any:
        """`function(network, data, config)` at every setting: its result with the axis S in front, differentiable.

        Args:
            function: Written for one setting; returns a tensor or a tree of tensors.
            own: The settings.
            data: A tree of tensors; with `split` each has the axis S in front and every setting gets its own part,
                otherwise every setting gets all of it.
            split: See `data`.
            execution: How; None is what `mapping` says, "auto" being as "vmap".
            reads: Collects the names that the function, or a layer that it ran, looked up in its config.

        Raises:
            NetworkError: If vmap was asked for and cannot serve the network or function, naming the layer.
        """

        def at_once(work: Work, parameters: Tensors) -> Any:
            def one(own: Setting, data: Any) -> Any:
                return work.result(parameters, own, data)

            return vectorised.run(one, own, data, split=split)

        def in_turn(work: Work, parameters: Tensors) -> Any:
            return sequential.run(work, parameters, own, data, split=split)

        return self._either(function, execution, reads, at_once, in_turn)

    def weighted(
        self,
        function: Function,
        own: Setting,
        data: Any,
        *,
        split: bool,
        weigh: Weigh,
        execution: Execution | None = None,
        reads: set[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sum over settings of weights x losses, 0-d, to call `backward` on once, and the losses (S,) as numbers.

        Args:
            function: A loss; otherwise as in `run`, as are the arguments that are not listed.
            own: See `run`.
            data: See `run`.
            split: See `run`.
            weigh: From losses (n,) of some of the settings, and the slice that these are, to their weights (n,).
            execution: See `run`.
            reads: See `run`.

        Raises:
            NetworkError: As in `run`.
        """

        def at_once(work: Work, parameters: Tensors) -> tuple[Tensor, Tensor]:
            def one(own: Setting, data: Any) -> Any:
                return work.result(parameters, own, data)

            losses = vectorised.run(one, own, data, split=split)
            numbers = losses.detach()
            weights = weigh(numbers, slice(0, len(numbers)))
            return (losses * weights.to(losses.dtype)).sum(), numbers

        def in_turn(work: Work, parameters: Tensors) -> tuple[Tensor, Tensor]:
            return sequential.weighted(work, parameters, own, data, split=split, weigh=weigh)

        result: tuple[Tensor, Tensor] = self._either(function, execution, reads, at_once, in_turn)
        return result

    @property
    def reassigned(self) -> frozenset[str]:
        """Names of the network's buffers to which functions have assigned other values, which was undone each time."""
        return frozenset(name for name, changed in self._swap.reassigned.items() if changed)

    def structured(self, own: Setting) -> frozenset[str]:
        """Names of the parameters whose layers have a choice: their tensors of a setting are structured."""
        with self.lock, torch.no_grad():
            tensors = self._make(self._swap.parameters(), own.at(0).values, self._recurrent)
            return frozenset(name for name, tensor in tensors.items() if isinstance(tensor, StructuredWeight))

    def _either(
        self,
        function: Function,
        execution: Execution | None,
        reads: set[str] | None,
        at_once: Callable[[Work, Tensors], Any],
        in_turn: Callable[[Work, Tensors], Any],
    ) -> Any:
        """The work done in the way that is asked for, or that is left."""
        if execution is None:
            execution = FORMED if self.mapping == "loop" else FACTORED
        key = _identity(function)
        with self.lock:
            parameters: dict[str, nn.Parameter] = self._swap.parameters()
            if self._made_from is not None:
                parameters |= self._made_from.parameters()
            work = self._work(function, execution, reads)
            if execution.mapping == "loop":
                return in_turn(work, parameters)
            looped = self._work(function, FORMED, reads)
            if key in self._unmapped:
                return in_turn(looped, parameters)
            device = next(iter(parameters.values())).device
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                return at_once(work, parameters)  # what ran before is recorded; random state cannot be read meanwhile
            state = random_state(device)
            try:
                return at_once(work, parameters)
            except torch.OutOfMemoryError:
                raise
            # RuntimeError is vmap's own; TypeError is Python's, of a tensor in a number's place
            except (RuntimeError, TypeError, vectorised.RecomputesError) as error:
                message = (
                    f"{self._culprit(error)} cannot run for many settings at once: {error} Avoid that operation, or"
                    ' pass HyperNetwork(..., mapping="loop").'
                )
                failure = error.with_traceback(None)  # which holds all that the attempt has made
            # whether it is vmap that failed is seen by doing without
            set_random_state(state, device)
            result = in_turn(looped, parameters)
            if self.mapping == "vmap":
                raise NetworkError(message) from failure
            self._unmapped.add(key)
            return result

    def _work(self, function: Function, execution: Execution, reads: set[str] | None) -> Work:
        formed = self._formed.get(execution)
        if formed is None:
            formed = {name for name in self.names if name in self._recurrent or execution.forms(name)}
            self._formed[execution] = formed

        def make(parameters: Tensors, values: Tensors) -> Tensors:
            kind = next(iter(values.values())).device.type
            read = nullcontext() if self._made_from is None else self._made_from.holding(parameters)
            # a setting's weights keep the precision of theta_0
            with self.lock, read, torch.autocast(kind, enabled=False):
                if execution.mapping == "loop":
                    return self._make(parameters, values, formed)
                tensors = self._make(parameters, values, frozenset())
                made = {name: to_place(tensor) if name in formed else tensor for name, tensor in tensors.items()}
                return {name: vectorised.placed(tensor) for name, tensor in made.items()}

        @contextmanager
        def place(tensors: Tensors, configs: Tensors) -> Iterator[ActiveConfig]:
            config = ActiveConfig(configs, reads)
            with self.lock, self._swap(tensors, config):  # a backward pass that runs settings anew comes in here, too
                yield config

        return Work(make, place, lambda config, data: function(self.network, data, config))

    def _culprit(self, error: Exception) -> str:
        """The layer in whose forward pass an error was raised, for a message."""
        names = {id(module): name for name, module in self.network.named_modules()}
        found, trace, called = "The network, loss or metric", error.__traceback__, ""
        while trace is not None:
            module = trace.tb_frame.f_locals.get("self")
            if isinstance(module, nn.Module) and id(module) in names:
                name, kind = names[id(module)], type(module).__name__
                found, called = f"Layer '{name}' ({kind})" if name else f"The network ({kind})", ""
            elif trace.tb_frame.f_globals.get("__name__") == "torch.utils.checkpoint":
                called = " under torch.utils.checkpoint"
            trace = trace.tb_next
        return found + called


def _identity(function: Function) -> Hashable:
    """A name for a function that outlives it: methods of all objects of a class are one."""
    function = getattr(function, "__func__", function)
    return getattr(function, "__code__", None) or (type(function).__module__, type(function).__qualname__)
