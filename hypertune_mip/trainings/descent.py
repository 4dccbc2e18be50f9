"""What moves the weights of plain networks that are trained together: one optimiser for all, or one for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from hypertune_mip.errors import NetworkError
from hypertune_mip.space import Value
from hypertune_mip.training.fingerprint import description_of
from hypertune_mip.training.schedule import Schedule
from hypertune_mip.trainings.recipe import Recipe

_ROUNDING = 1e-6  # torch's own, which keeps it from dividing by 0
_ELEMENTWISE = {
    getattr(torch.optim, name)
    for name in ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adadelta", "RMSprop", "Rprop", "ASGD")
}
"""Optimisers that treat every number on its own, so that one of them moves a stack of networks as it would each."""


class Descent:
    """Moves the weights of S networks, by a recipe at the config of each.

    Where all would have the same optimiser, and it treats every number on its own, one moves all of them. Otherwise
    each network has one, which sees its own part of the stacked weights in the network's own shapes.

    Raises:
        NetworkError: If the recipe's optimiser cannot move stacked weights.

    Args:
        recipe: How each network is trained.
        weights: Stacked leaves, (S, ...) each.
        configs: Of the networks, native values.
        total: Steps of the training, if they are known.
    """

    def __init__(
        self, recipe: Recipe, weights: Sequence[Tensor], configs: Sequence[Mapping[str, Value]], total: int | None
    ) -> None:
        """See the class."""
        self._weights = list(weights)
        self._clip = recipe.gradient_clip
        self._parts = [[torch.nn.Parameter(stack.detach()[i]) for stack in weights] for i in range(len(configs))]
        made = [recipe.made(parts, config) for parts, config in zip(self._parts, configs, strict=True)]
        if any(_has_hooks(part) for parts in self._parts for part in parts):
            raise NetworkError(
                "The recipe's optimiser puts hooks on parameters, which a stack of networks has none of."
            )
        if _are_one(made):
            self._optimizers = [_around(made[0], dict(zip(map(id, self._parts[0]), self._weights, strict=True)))]
            self._parts = []
        else:
            self._optimizers = made
        self._schedules = [Schedule(recipe.schedule, optimizer, total) for optimizer in self._optimizers]

    def step(self) -> None:
        """One step from the gradients that the stacked weights hold; they are gone afterwards."""
        if self._clip is not None:
            self._clip_each(self._clip)
        for index, parts in enumerate(self._parts):
            for part, stack in zip(parts, self._weights, strict=True):
                part.grad = None if stack.grad is None else stack.grad[index]
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            optimizer.step()
            schedule.step()
        for index, parts in enumerate(self._parts):
            for part, stack in zip(parts, self._weights, strict=True):
                own = stack.detach()[index]
                if part.data_ptr() != own.data_ptr():  # the optimiser has put another tensor in its place
                    part.data = own.copy_(part.data)
        for stack in self._weights:
            stack.grad = None

    def _clip_each(self, largest: float) -> None:
        """What `torch.nn.utils.clip_grad_norm_` does, to the gradient of each network."""
        given = [stack.grad for stack in self._weights if stack.grad is not None]
        norms = torch.stack([gradient.reshape(len(gradient), -1).norm(dim=1) for gradient in given]).norm(dim=0)
        factors = (largest / (norms + _ROUNDING)).clamp(max=1.0)
        for gradient in given:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))


def _are_one(optimizers: Sequence[Optimizer]) -> bool:
    """Whether one optimiser around stacked weights does what these do."""
    first = optimizers[0]
    own = first._optimizer_step_pre_hooks or first._optimizer_step_post_hooks or "step" in vars(first)
    if type(first) not in _ELEMENTWISE or first.state or own:  # which it keeps for parts, or does to them
        return False
    description = description_of(first)
    return all(description_of(other) == description for other in optimizers[1:])


def _has_hooks(parameter: Tensor) -> bool:
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))


def _around(optimizer: Optimizer, stacks: Mapping[int, Tensor]) -> Optimizer:
    """The optimiser, with each parameter in its groups replaced by the stack in whose place it stood."""
    for group in optimizer.param_groups:
        group["params"] = [stacks[id(parameter)] for parameter in group["params"]]
    return optimizer
