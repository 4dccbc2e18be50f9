"""Plain networks in training: one by itself, as a user would train it, or several of one architecture as a stack."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hypertune_mip.errors import NetworkError, OptionError
from hypertune_mip.evaluation import gradients
from hypertune_mip.execution import Kernel, Setting
from hypertune_mip.functional import ActiveConfig
from hypertune_mip.hypernetwork.primary import always_evaluating, keeps_statistics, precision_of, set_training
from hypertune_mip.nn import resolve
from hypertune_mip.space import SearchSpace, Value
from hypertune_mip.training import Loss
from hypertune_mip.training.schedule import Schedule
from hypertune_mip.training.step import autocast, checked_loss
from hypertune_mip.trainings.descent import Descent
from hypertune_mip.trainings.recipe import Recipe
from hypertune_mip.trainings.statistics import taken_from_the_batch, untouched

_WATCHED = 20  # steps of a stack in which it is seen whether the network assigns its state anew
Configs = Sequence[Mapping[str, Value]]
RunFunction = Callable[[Callable[[nn.Module, Any], Any], Any], Any]
"""Runs `function(network, batch)` of each network, in evaluation mode: a tree of tensors with the axis S in front."""


class State(NamedTuple):
    """Of a network: all that training may have changed.

    Args:
        tensors: Parameters, buffers and other tensors that its modules hold, by name.
        numbers: Numbers that its modules have counted, and buffers that have become None, by name.
        trained: Names of the tensors that an optimiser moves.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, float | None]
    trained: tuple[str, ...]


class Networks(Protocol):
    """S plain networks, each at a config of its own, from their first step to their metrics."""

    def step(self, loss: Loss, batches: Sequence[Any]) -> None:
        """One step of the optimiser of each, in training mode, by the mean over batches, each as a whole."""

    def run(self, function: Callable[[nn.Module, Any], Any], batch: Any) -> Any:
        """See `RunFunction`."""

    def state(self, index: int) -> State:
        """Of one network."""


class Alone:
    """One plain network, S = 1: its layers that are bound to hyperparameters have become plain ones.

    Args:
        start: The network to start from; it is copied.
        config: Native values.
        space: Of the config.
        recipe: How it is trained.
        device: Where.
        total: Steps of the training, if they are known.
        held: What the network holds that another one of its kind will be restored from.
        without_statistics: Names of modules whose running statistics are not of these weights: they become those of the
            first batch, since a short training would not get rid of the ones that layers are made with.
    """

    def __init__(
        self,
        start: nn.Module,
        config: Mapping[str, Value],
        space: SearchSpace,
        recipe: Recipe,
        device: torch.device,
        total: int | None,
        *,
        held: Held,
        without_statistics: Sequence[str] = (),
    ) -> None:
        """See the class."""
        self.network = resolve(start, config).to(device)
        self._device = device
        self._config = ActiveConfig({n: v[0] for n, v in decoded(space, [config], self.network, device).items()})
        self._held = held
        self._staying = always_evaluating(self.network)
        self._without_statistics = tuple(without_statistics)
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self._recipe, self._trained = recipe, trained
        self._optimizer = recipe.made(trained, config)
        self._schedule = Schedule(recipe.schedule, self._optimizer, total)
        self._scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")

    def step(self, loss: Loss, batches: Sequence[Any]) -> None:
        """See `Networks`."""
        set_training(self.network, True, self._staying)
        self._optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            new = untouched(self.network, self._without_statistics)
            with autocast(self._device, self._recipe.precision), taken_from_the_batch(new):
                value = loss(self.network, batch, self._config)
            self._without_statistics = self._without_statistics if new else ()
            self._scaler.scale(checked_loss(value) / len(batches)).backward()
        if self._recipe.gradient_clip is not None:
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._trained, self._recipe.gradient_clip)
        scale = self._scaler.get_scale()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._scaler.get_scale() >= scale:  # otherwise float16 overflowed, and the step was skipped
            self._schedule.step()

    def run(self, function: Callable[[nn.Module, Any], Any], batch: Any) -> Any:
        """See `Networks`."""
        return in_front(self.network)(function, batch)

    def state(self, index: int) -> State:
        """See `Networks`."""
        return _state(self.network, self._held)


class Stack:
    """S networks that differ in their trainable weights and configs alone, trained at once by `torch.func.vmap`.

    Args:
        starts: The networks to start from.
        configs: Native values.
        space: Of the configs.
        recipe: How each is trained.
        device: Where.
        total: Steps of the training, if they are known.
        held: As in `Alone`.

    Raises:
        NetworkError: From `step` and `run`, if vmap cannot serve the network or the function, or networks would need
            buffers of their own.
    """

    def __init__(
        self,
        starts: Sequence[nn.Module],
        configs: Configs,
        space: SearchSpace,
        recipe: Recipe,
        device: torch.device,
        total: int | None,
        *,
        held: Held,
    ) -> None:
        """See the class."""
        self.network = copy.deepcopy(starts[0]).to(device)
        names = [name for name, parameter in self.network.named_parameters() if parameter.requires_grad]
        self._weights = {
            name: torch.stack([start.get_parameter(name).detach() for start in starts]).to(device).requires_grad_()
            for name in names
        }
        self._configs = decoded(space, configs, self.network, device)
        self._staying = always_evaluating(self.network)
        self._kernel = Kernel(self.network, names, _given, mapping="vmap")
        self._held = held
        self._device, self._precision = device, recipe.precision
        self._steps = 0
        self._descent = Descent(recipe, list(self._weights.values()), configs, total)

    def step(self, loss: Loss, batches: Sequence[Any]) -> None:
        """See `Networks`."""
        set_training(self.network, True, self._staying)

        def scalar(model: nn.Module, batch: Any, config: Any) -> Tensor:
            with autocast(self._device, self._precision):
                value = loss(model, batch, config)
            return checked_loss(value) / len(batches)

        def watched(model: nn.Module, batch: Any, config: Any) -> Tensor:
            before = assigned(model)
            value = scalar(model, batch, config)
            now = assigned(model)
            if others := [name for name, tensor in before.items() if now.get(name) is not tensor]:
                raise NetworkError(f"{others} are assigned anew in training, which each network needs for itself.")
            return value

        own = Setting(self._weights, self._configs)
        function = watched if self._steps < _WATCHED else scalar
        for batch in batches:
            total, _ = self._kernel.weighted(function, own, batch, split=False, weigh=_one_for_each)
            try:
                total.backward()
            except RuntimeError as error:
                raise NetworkError(f"The backward pass cannot be mapped over networks: {error}") from error
        self._descent.step()
        self._steps += 1

    def run(self, function: Callable[[nn.Module, Any], Any], batch: Any) -> Any:
        """See `Networks`."""
        self.network.eval()
        with gradients(False):
            own = Setting({name: stack.detach() for name, stack in self._weights.items()}, self._configs)
            return self._kernel.run(lambda model, data, config: function(model, data), own, batch, split=False)

    def state(self, index: int) -> State:
        """See `Networks`."""
        shared = _state(self.network, self._held)
        own = {name: stack.detach()[index] for name, stack in self._weights.items()}
        return shared._replace(tensors=shared.tensors | own, trained=tuple(own))


def in_front(network: nn.Module) -> RunFunction:
    """Runs functions of one finished network, S = 1."""

    def run(function: Callable[[nn.Module, Any], Any], batch: Any) -> Any:
        with gradients(False):
            return tree_map(lambda result: result.unsqueeze(0), function(network.eval(), batch))

    return run


def decoded(space: SearchSpace, configs: Configs, network: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Native values (S,) by name, floats in the network's type."""
    dtype = precision_of(network)
    columns = space.decode(space.to_unit(configs))
    return {n: v.to(device, dtype) if v.is_floating_point() else v.to(device) for n, v in columns.items()}


def can_be_stacked(network: nn.Module, recipe: Recipe) -> bool:
    """Whether networks like this one could be trained as a stack.

    Layers with running statistics would mix them, and in float16 each needs a scale of its own.
    """
    return recipe.precision != "float16" and not keeps_statistics(network, always_evaluating(network))


def differ_in_weights_alone(networks: Sequence[nn.Module]) -> bool:
    """Whether all that is not trained, frozen parameters and buffers, is the same in all networks."""
    first, *others = ({n: t for n, t in named_tensors(network) if not t.requires_grad} for network in networks)
    return all(
        other.keys() == first.keys() and all(torch.equal(tensor, first[name]) for name, tensor in other.items())
        for other in others
        if other is not first
    )


def assigned(network: nn.Module) -> dict[str, Tensor | None]:
    """Buffers, and other tensors that modules hold in attributes, by name: what a forward pass may assign anew."""
    found: dict[str, Tensor | None] = {}
    for path, module in network.named_modules():
        values = module._buffers | {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
        found |= {f"{path}.{name}".lstrip("."): value for name, value in values.items()}
    return found


def restore(network: nn.Module, tensors: Mapping[str, Tensor], numbers: Mapping[str, float | None]) -> None:
    """Give a network of the same architecture the state of another one."""
    own = dict(named_tensors(network))
    with torch.no_grad():
        for name, value in [*tensors.items(), *numbers.items()]:
            path, _, attribute = name.rpartition(".")
            module = network.get_submodule(path)
            if isinstance(value, Tensor) and name in own and own[name].shape == value.shape:
                own[name].copy_(value)
            elif attribute in module._buffers:  # None before or after, or of another size
                device = next(network.parameters()).device
                module._buffers[attribute] = value.to(device, copy=True) if isinstance(value, Tensor) else None
            else:
                setattr(module, attribute, value)


def like(primary: nn.Module, network: nn.Module) -> nn.Module:
    """A copy of the primary network, layers that are bound to hyperparameters included, in the state of another one.

    Args:
        primary: The primary network.
        network: Of the same architecture; its layers may be bound or plain.

    Raises:
        OptionError: If the parameters of the two differ.
    """
    found, expected = _parts(network), _parts(primary)
    if found != expected:
        name = next(n for n in {**expected, **found} if found.get(n) != expected.get(n))
        raise OptionError(
            "A training starts from a network with the parameters, buffers and modules of the primary network, but"
            f" {name!r} is {found.get(name)} instead of {expected.get(name)}."
        )
    made = copy.deepcopy(primary)
    state = _state(network, Held.by(primary))
    restore(made, {name: tensor.cpu().clone() for name, tensor in state.tensors.items()}, state.numbers)
    return made


def state_of(network: nn.Module) -> dict[str, Tensor | float | None]:
    """All that makes a network what it is, beside its code: tensors and numbers, by name."""
    return {**dict(named_tensors(network)), **assigned(network), **_numbers(network)}


def _parts(network: nn.Module) -> dict[str, Any]:
    """What networks of one architecture have in common, by name: shapes of parameters, and other parts."""
    parts: dict[str, Any] = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    parts |= dict.fromkeys((name for name, _ in network.named_buffers()), "a buffer")
    return parts | dict.fromkeys((name for name, _ in network.named_modules() if name), "a module")


def _state(network: nn.Module, held: Held) -> State:
    """Of a network, given what its modules held at the start: what they have made since is a cache, and left out."""
    tensors = {name: tensor.detach() for name, tensor in named_tensors(network)}
    others = {name: tensor for name, tensor in assigned(network).items() if name in held.tensors}
    tensors |= {name: tensor.detach() for name, tensor in others.items() if tensor is not None}
    numbers: dict[str, float | None] = {
        name: value for name, value in _numbers(network).items() if held.numbers.get(name, value) != value
    }
    numbers |= dict.fromkeys(name for name, tensor in others.items() if tensor is None)
    return State(tensors, numbers, tuple(n for n, p in network.named_parameters() if p.requires_grad))


class Held(NamedTuple):
    """What the modules of a network hold beside their parameters: names of tensors, and numbers by name."""

    tensors: frozenset[str]
    numbers: dict[str, float]

    @classmethod
    def by(cls, network: nn.Module) -> Held:
        """What those of a network hold."""
        return cls(frozenset(assigned(network)), _numbers(network))


def _numbers(network: nn.Module) -> dict[str, float]:
    """Numbers that modules hold in attributes, by name."""
    return {
        f"{path}.{name}".lstrip("."): value
        for path, module in network.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, (int, float)) and name != "training"
    }


def named_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, each once."""
    yield from network.named_parameters()
    yield from network.named_buffers()


def _given(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor], form: Set[str]) -> Mapping[str, Tensor]:
    """A network's own tensors are its setting's values."""
    return values


def _one_for_each(losses: Tensor, rows: slice) -> Tensor:
    return torch.ones_like(losses)
