"""Optimisers and schedules: the defaults, and what is required of those that users make."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from hypertune_mip.errors import OptionError

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
ScheduleFactory = Callable[[Optimizer, int], LRScheduler]


def adam(parameters: Iterable[Any]) -> Optimizer:
    """The default optimiser: Adam at learning rate 6e-3, in one fused kernel."""
    return torch.optim.Adam(parameters, lr=6e-3, fused=True)


def cosine(optimizer: Optimizer, steps: int) -> LRScheduler:
    """The default schedule: from the optimiser's learning rate to zero along half a cosine over all steps."""
    return CosineAnnealingLR(optimizer, steps)


def check_factory(factory: Any, *arguments: str, whose: str, example: str) -> None:
    """Raise OptionError unless a function makes an optimiser from these arguments.

    Args:
        factory: What is checked.
        *arguments: Their names.
        whose: For the message: "the `optimizer` of ...".
        example: For the message: code of one that does.
    """
    if not _takes(factory, len(arguments)):
        shown = f"the class {factory.__name__}" if isinstance(factory, type) else repr(factory)
        raise OptionError(
            f"{whose} must be a function of ({', '.join(arguments)}), but got {shown}. Write for example {example}."
        )


def checked(optimizer: Any, parameters: Iterable[Tensor], *, whose: str, example: str) -> Optimizer:
    """What a function for an optimiser has made.

    Args:
        optimizer: It.
        parameters: That it was given.
        whose: For messages: "the `optimizer` of ...".
        example: For messages: code of a function that makes one.

    Raises:
        OptionError: If it is no optimiser, holds other parameters than these, or needs a closure.
    """
    if not isinstance(optimizer, Optimizer):
        raise OptionError(f"{whose} must return a torch optimiser, but gave {optimizer!r}.")
    own = {id(parameter) for parameter in parameters}
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if held != own:
        others = "those would be trained in place of the network" if held - own else "the rest would stay as it is"
        advice = "" if held - own else ", and freeze what is not to be trained by `requires_grad_(False)`"
        raise OptionError(
            f"{whose} must hold the {len(own)} parameters that it is given and no others, but its"
            f" {type(optimizer).__name__} holds {len(held & own)} of them and {len(held - own)} others: {others}. Pass"
            f" one of its own, for example {example}{advice}."
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise OptionError(
            f"{whose} is {type(optimizer).__name__}, which evaluates the loss several times a step, by a closure, which"
            " there is not. Take an optimiser whose `step()` needs none."
        )
    return optimizer


def _takes(function: Any, count: int) -> bool:
    """Whether a function can be called with so many arguments, each of which is what it would take it for."""
    if not callable(function):
        return False
    made = function.func if isinstance(function, functools.partial) else function
    if isinstance(made, type) and issubclass(made, Optimizer):
        return count == 1  # the second argument is a learning rate
    try:
        signature = inspect.signature(function)
        signature.bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # of a function written in C nothing is known
        return True
    further = list(signature.parameters.values())[1:count]
    return all(each.default is each.empty or each.name == "config" for each in further)  # others are for other things
