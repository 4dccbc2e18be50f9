"""One setting after another, each with its backward pass inside.

While a setting's gradients are computed its tensors stay in the network, and they are leaves there: whatever PyTorch
can train runs here (checkpointed blocks, changes in place, recurrent modules), and only one setting's activations live
at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from hypertune_mip.errors import NetworkError
from hypertune_mip.execution.swap import random_state, set_random_state
from hypertune_mip.functional import ActiveConfig, StructuredWeight
from hypertune_mip.trees import mapped, tensors_of

_LARGE = 2**15  # elements of a tensor whose backward pass is worth a call of its own
Tensors = Mapping[str, Tensor]
Weigh = Callable[[Tensor, slice], Tensor]
"""From losses without history, (n,), of the settings in a slice to their weights (n,)."""


class Setting(NamedTuple):
    """What one setting has of its own; with the axis S in front it stands for all of them.

    Args:
        values: What its tensors are made from, by name.
        configs: Native values of its hyperparameters, by name.
    """

    values: Tensors
    configs: Tensors

    def at(self, index: int) -> Setting:
        """One of all settings."""
        return Setting(*(({name: t[index] for name, t in part.items()}) for part in self))

    @property
    def size(self) -> int:
        """Number of settings, S."""
        return len(next(iter(self.configs.values())))


class Work(NamedTuple):
    """What is done at each setting.

    Args:
        make: From the network's own parameters and a setting's values to the tensors that stand in the network.
        place: A block in which tensors stand in the network and a config, which it gives, is in force.
        function: Of that config and the setting's data.
    """

    make: Callable[[Tensors, Tensors], Tensors]
    place: Callable[[Tensors, Tensors], AbstractContextManager[ActiveConfig]]
    function: Callable[[ActiveConfig, Any], Any]

    def result(self, parameters: Tensors, own: Setting, data: Any) -> Any:
        """Of one setting, when no backward pass needs its tensors in the network."""
        with self.place(self.make(parameters, own.values), own.configs) as config:
            return self.function(config, data)


def run(work: Work, parameters: Tensors, own: Setting, data: Any, *, split: bool) -> Any:
    """The work at every setting: its result with the axis S in front, differentiable in parameters and settings.

    A backward pass runs each setting once more, with the random numbers that it has had, since by then another one's
    tensors stand in the network. Training has no need of that: see `weighted`.

    Raises:
        NetworkError: If the data require gradients, which would be lost.
    """
    if not torch.is_grad_enabled():
        results = []
        for index in range(own.size):
            with _Pass(work, parameters, own.at(index), _part(data, index, split)) as one:
                results.append(one.result)
        return tree_map(lambda *parts: torch.stack(parts), *results)
    _refuse_gradients(data)
    call = _Call(work, (tuple(parameters), tuple(own.values), tuple(own.configs)), data, split)
    results = _Replayed.apply(call, *parameters.values(), *own.values.values(), *own.configs.values())  # type: ignore[no-untyped-call]
    return tree_unflatten(list(results), call.tree)


def weighted(
    work: Work, parameters: Tensors, own: Setting, data: Any, *, split: bool, weigh: Weigh
) -> tuple[Tensor, Tensor]:
    """The sum of weights x losses, 0-d, whose gradients are known already, and the losses (S,) without history.

    Args:
        work: Gives a loss, 0-d.
        parameters: Of the network, by name.
        own: The settings.
        data: A tree of tensors, with the axis S in front if `split`.
        split: See `data`.
        weigh: Gives the weights; it sees one setting at a time.
    """
    _refuse_gradients(data, *own.configs.values())
    leaves = {name: _leaf(parameter) for name, parameter in parameters.items()}
    terms, losses, rows = [], [], []
    for index in range(own.size):
        with torch.enable_grad(), _Pass(work, leaves, own.at(index), _part(data, index, split)) as one:
            losses.append(one.result.detach())
            weight = weigh(losses[-1].reshape(1), slice(index, index + 1)).reshape(())
            terms.append(weight * losses[-1])
            one.backward([one.result], [weight.to(one.result.dtype)])
        rows.append([value.grad for value in one.own.values.values()])
    known = [*_gradients(leaves), *_by_input(rows, list(own.values.values()))]
    total = terms[0] if len(terms) == 1 else torch.stack(terms).sum()
    result: Tensor = _Known.apply(total, known, *parameters.values(), *own.values.values())  # type: ignore[no-untyped-call]
    return result, torch.stack(losses)


class _Pass:
    """One setting's forward pass; inside the block its tensors stand in the network, for a backward pass.

    They are leaves there, cut off from what they are made from: a part of the network that is computed anew can then be
    differentiated by itself, several times.
    """

    def __init__(self, work: Work, parameters: Tensors, own: Setting, data: Any) -> None:
        self.own = Setting(*({name: _leaf(t) for name, t in part.items()} for part in own))
        self._made = dict(work.make(parameters, self.own.values))
        self._placed = {n: t if isinstance(t, StructuredWeight) else _parameter(t) for n, t in self._made.items()}
        self._block = work.place({**parameters, **self._placed}, self.own.configs)
        self._function, self._data = work.function, data
        self._went_back = False
        self.result: Any

    def __enter__(self) -> _Pass:
        config = self._block.__enter__()
        try:
            self.result = self._function(config, self._data)
        except BaseException as error:
            self._block.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        self._block.__exit__(kind, *error)
        if self._went_back and kind is None:
            self._pass_on()

    def backward(self, results: Sequence[Tensor], upstream: Sequence[Tensor]) -> None:
        """Add to the gradients of all leaves, by the end of the block."""
        torch.autograd.backward(list(results), list(upstream))
        self._went_back = True

    def _pass_on(self) -> None:
        """From tensors that stood in the network to what they are made from; a large one is dropped before the next."""
        small: list[tuple[Tensor, Tensor]] = []
        for name in list(self._made):
            made, placed = self._made.pop(name), self._placed.pop(name)
            structured = isinstance(made, StructuredWeight)  # whose factors are leaves themselves
            gradient = placed.grad if made.requires_grad and not structured else None
            del placed
            if gradient is not None and made.numel() >= _LARGE:
                torch.autograd.backward(made, gradient)
            elif gradient is not None:
                small.append((made, gradient))
            del made, gradient
        if small:
            torch.autograd.backward([made for made, _ in small], [gradient for _, gradient in small])


class _Known(torch.autograd.Function):
    """A sum whose gradients with respect to inputs have been computed together with it."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, known: list[Tensor | None], *inputs: Tensor) -> Tensor:
        ctx.known = known
        return total.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        known, ctx.known = ctx.known, None  # they are scaled in place, so once
        if known is None:
            raise NetworkError("The gradients of a step are handed out once; run it again instead of going back twice.")
        if upstream.device.type != "cpu" or float(upstream) != 1.0:
            torch._foreach_mul_([gradient for gradient in known if gradient is not None], upstream)
        return None, None, *known


class _Call:
    """What `_Replayed` runs, the names of its flat inputs, and what its backward pass has to know."""

    def __init__(self, work: Work, names: tuple[tuple[str, ...], ...], data: Any, split: bool) -> None:
        self.work, self.names, self.data, self.split = work, names, data, split
        self.tree: TreeSpec
        self.autocast: AbstractContextManager[Any] = nullcontext()
        self.randomness: list[Any] = []

    def named(self, inputs: Sequence[Tensor]) -> tuple[dict[str, Tensor], Setting]:
        """Parameters and settings from flat inputs."""
        rest = iter(inputs)
        parameters, values, configs = ({name: next(rest) for name in names} for names in self.names)
        return parameters, Setting(values, configs)

    def one(self, parameters: Tensors, own: Setting, index: int) -> _Pass:
        """One setting's pass."""
        return _Pass(self.work, parameters, own.at(index), _part(self.data, index, self.split))

    def flat(self, result: Any) -> list[Tensor]:
        """The tensors of a result."""
        tensors, self.tree = tree_flatten(result)
        return tensors


class _Replayed(torch.autograd.Function):
    """Results at all settings; the backward pass runs each setting anew."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.save_for_backward(*inputs)
        kind = inputs[0].device.type
        if torch.is_autocast_enabled(kind):
            call.autocast = torch.autocast(kind, torch.get_autocast_dtype(kind))
        parameters, own = call.named(inputs)
        rows = []
        for index in range(own.size):
            call.randomness.append(random_state(inputs[0].device))
            with torch.enable_grad(), call.one(parameters, own, index) as one:  # the function may use gradients itself
                rows.append([part.detach() for part in call.flat(one.result)])
        results = [torch.stack(parts) for parts in zip(*rows, strict=True)]
        ctx.mark_non_differentiable(*(result for result in results if not result.is_floating_point()))
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        inputs: tuple[Tensor, ...] = ctx.saved_tensors
        parameters, own = call.named(inputs)
        leaves = {name: _leaf(parameter) for name, parameter in parameters.items()}
        rows, device = [], inputs[0].device
        with torch.enable_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for index, state in enumerate(call.randomness):
                set_random_state(state, device)
                with ExitStack() as block:
                    with call.autocast:
                        one = block.enter_context(call.one(leaves, own, index))
                    results = zip(call.flat(one.result), upstream, strict=True)
                    pairs = [(result, gradient[index]) for result, gradient in results if result.requires_grad]
                    one.backward([result for result, _ in pairs], [gradient for _, gradient in pairs])
                rows.append([t.grad for part in one.own for t in part.values()])
        settings = _by_input(rows, [t for part in own for t in part.values()])
        return None, *_gradients(leaves), *settings


def _by_input(rows: list[list[Tensor | None]], inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients (S, ...) of inputs (S, ...), from a row of gradients for each setting."""
    if len(rows) == 1:
        return [None if gradient is None else gradient.unsqueeze(0) for gradient in rows[0]]
    columns = list(zip(*rows, strict=True))
    return [
        None
        if all(gradient is None for gradient in column)
        else torch.stack([torch.zeros_like(like[0]) if gradient is None else gradient for gradient in column])
        for column, like in zip(columns, inputs, strict=True)
    ]


def _gradients(leaves: Tensors) -> list[Tensor | None]:
    """Of those that are trained; a frozen parameter is the real one, whose gradient is somebody else's."""
    return [leaf.grad if leaf.requires_grad else None for leaf in leaves.values()]


def _refuse_gradients(*data: Any) -> None:
    """Raise NetworkError for data that require gradients, which would be lost."""
    if any(tensor.requires_grad for tensor in tensors_of(data)):
        raise NetworkError('Gradients with respect to data or configs need HyperNetwork(..., mapping="vmap").')


def _part(data: Any, index: int, split: bool) -> Any:
    return mapped(lambda t: t[index] if isinstance(t, Tensor) else t, data) if split else data


def _leaf(tensor: Tensor) -> Tensor:
    """The tensor, apart from its history where it has one or will be part of one."""
    if not tensor.requires_grad:
        return tensor
    return nn.Parameter(tensor.detach()) if isinstance(tensor, nn.Parameter) else tensor.detach().requires_grad_()


def _parameter(tensor: Tensor) -> nn.Parameter:
    """A tensor as a module's own parameter, which training could change."""
    return nn.Parameter(tensor.detach(), requires_grad=tensor.is_floating_point())
