"""A recipe: how one plain network is trained; and the optimisers that follow it for one network or for several."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from hypertune_mip.space import Value
from hypertune_mip.training import OptionError, adam, cosine
from hypertune_mip.training.fingerprint import description_of, name_of
from hypertune_mip.training.options import OptimizerFactory, ScheduleFactory, at_least
from hypertune_mip.training.schedule import Schedule

_EXAMPLE = "optimizer=lambda parameters, config: torch.optim.AdamW(parameters, lr=1e-3)"


@dataclass(frozen=True)
class AnyConfig:
    """An optimiser that is the same at all configs, as a recipe takes it.

    Args:
        factory: From parameters to a torch optimiser.
    """

    factory: OptimizerFactory

    def __call__(self, parameters: Iterable[Any], config: Mapping[str, Value]) -> Optimizer:
        """The factory's, whatever the config."""
        return self.factory(parameters)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one plain network is trained at one config.

    Args:
        epochs: Passes over the training data.
        optimizer: From (parameters, config) to a torch optimiser that holds all of these parameters and no others;
            `config` maps a name to a native value, so that a weight decay or a learning rate may come from it. The
            default is Adam at learning rate 6e-3.
        schedule: From (optimiser, steps) to a torch schedule that is advanced every step; None keeps the rate.

    Raises:
        OptionError: If `epochs` is no whole number of at least 1, or `optimizer` or `schedule` is no such function.

    Example:
        >>> import torch
        >>> Recipe(
        ...     epochs=20, optimizer=lambda p, config: torch.optim.AdamW(p, lr=1e-3, weight_decay=config["decay"])
        ... ).epochs
        20
    """

    epochs: int
    optimizer: Callable[[Iterable[Any], Mapping[str, Value]], Optimizer] = AnyConfig(adam)
    schedule: ScheduleFactory | None = cosine

    def __post_init__(self) -> None:
        """Validate."""
        object.__setattr__(self, "epochs", *at_least(1, epochs=self.epochs))
        if not _takes_two(self.optimizer):
            raise OptionError(
                "A recipe's `optimizer` must be a function of (parameters, config), but got"
                f" {_shown(self.optimizer)}. Write for example {_EXAMPLE}."
            )
        if self.schedule is not None and not callable(self.schedule):
            raise OptionError(
                f"A recipe's `schedule` must be a function of (optimizer, steps) or None, but got {self.schedule!r}."
            )

    def made(self, parameters: Iterable[Tensor], config: Mapping[str, Value]) -> Optimizer:
        """The optimiser of one network.

        Args:
            parameters: Of the network, each of its own shape.
            config: Native values.

        Raises:
            OptionError: If it is no optimiser, holds other parameters than these, or needs a closure.
        """
        given = list(parameters)
        optimizer = self.optimizer(given, dict(config))
        if not isinstance(optimizer, Optimizer):
            raise OptionError(f"A recipe's `optimizer` must return a torch optimiser, but gave {optimizer!r}.")
        own = {id(parameter) for parameter in given}
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if held != own:
            raise OptionError(
                f"The `optimizer` of a recipe must hold the {len(own)} parameters that it is given and no others, but"
                f" its {type(optimizer).__name__} holds {len(held & own)} of them and {len(held - own)} others: those"
                f" would be trained in place of the network. Pass a recipe of its own, for example {_EXAMPLE}."
            )
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise OptionError(
                f"{type(optimizer).__name__} evaluates the loss several times a step, by a closure, which there is not."
                " Take an optimiser whose `step()` needs none."
            )
        return optimizer

    def description(
        self,
        parameters: Sequence[Tensor],
        config: Mapping[str, Value],
        steps: int | None,
        *,
        known: dict[str, Any],
    ) -> dict[str, Any]:
        """What the recipe makes at a config, in plain values: two recipes that differ there differ here.

        Functions do not say what they do, so the optimiser is described by its class and the options of its groups, the
        schedule by its class, its numbers, and what it makes of the groups at every step.

        Args:
            parameters: Of a network; they are left alone.
            config: Native values.
            steps: Of the training, if they are known.
            known: Collects descriptions of schedules, which take a while, for later calls with alike optimisers.
        """
        optimizer = self.made(parameters, config)
        made = description_of(optimizer)
        name = json.dumps([made, steps])
        if name not in known:
            known[name] = Schedule(self.schedule, optimizer, steps).description(steps)
        return {"epochs": self.epochs, "optimizer": made, "schedule": known[name]}


def _takes_two(function: Any) -> bool:
    made = function.func if isinstance(function, functools.partial) else function
    if not callable(function) or (isinstance(made, type) and issubclass(made, Optimizer)):
        return False  # whose second argument is a learning rate
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # of a function written in C nothing is known
        return True
    return True


def _shown(function: Any) -> str:
    return f"the class {name_of(function)}" if isinstance(function, type) else repr(function)
