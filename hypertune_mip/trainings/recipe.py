"""A recipe: how one plain network is trained; and the optimisers that follow it for one network or for several."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from hypertune_mip.errors import OptionError
from hypertune_mip.space import Value
from hypertune_mip.training.fingerprint import description_of
from hypertune_mip.training.optimizers import OptimizerFactory, ScheduleFactory, adam, check_factory, checked, cosine
from hypertune_mip.training.options import (
    Precision,
    at_least,
    check_precision,
    checked_clip,
)
from hypertune_mip.training.schedule import Schedule

_WHOSE = "The `optimizer` of a recipe"
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


@dataclass(frozen=True)
class _With:
    """A recipe's optimizer that is told some more values.

    Args:
        optimizer: Of a recipe.
        values: By name.
    """

    optimizer: Callable[[Iterable[Any], Mapping[str, Value]], Optimizer]
    values: Mapping[str, Value]

    def __call__(self, parameters: Iterable[Any], config: Mapping[str, Value]) -> Optimizer:
        """What the other makes of both."""
        return self.optimizer(parameters, {**config, **self.values})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one plain network is trained at one config.

    Args:
        epochs: Passes over the training data.
        optimizer: From (parameters, config) to a torch optimiser that holds all of these parameters and no others;
            `config` maps a name to a native value, so that a weight decay or a learning rate may come from it. The
            default is Adam at learning rate 6e-3.
        schedule: From (optimiser, steps) to a torch schedule that is advanced every step; None keeps the rate.
        gradient_clip: Largest norm of the network's gradient; None does not clip.
        accumulate: Batches whose gradients are averaged before each optimiser step.
        precision: "bfloat16" or "float16" for mixed precision.

    Raises:
        OptionError: If one of them is invalid, such as an `optimizer` that takes no config.

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
    gradient_clip: float | None = None
    accumulate: int = 1
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        """Validate."""
        for name in ("epochs", "accumulate"):
            object.__setattr__(self, name, *at_least(1, **{name: getattr(self, name)}))
        object.__setattr__(self, "gradient_clip", checked_clip(self.gradient_clip))
        check_precision(self.precision)
        check_factory(self.optimizer, "parameters", "config", whose=_WHOSE, example=_EXAMPLE)
        if self.schedule is not None and not callable(self.schedule):
            raise OptionError(
                f"A recipe's `schedule` must be a function of (optimizer, steps) or None, but got {self.schedule!r}."
            )

    def given(self, values: Mapping[str, Value]) -> Recipe:
        """The same recipe, whose optimizer finds some more values in every config, such as a learning rate.

        Args:
            values: By name.

        Example:
            >>> import torch
            >>> recipe = Recipe(epochs=1, optimizer=lambda p, config: torch.optim.SGD(p, lr=config["rate"]))
            >>> recipe.given({"rate": 0.5}).made([torch.zeros(1)], {}).param_groups[0]["lr"]
            0.5
        """
        return dataclasses.replace(self, optimizer=_With(self.optimizer, dict(values)))

    def made(self, parameters: Iterable[Tensor], config: Mapping[str, Value]) -> Optimizer:
        """The optimiser of one network.

        Args:
            parameters: Of the network, each of its own shape.
            config: Native values.

        Raises:
            OptionError: If it is no optimiser, holds other parameters than these, or needs a closure.
        """
        given = list(parameters)
        return checked(self.optimizer(given, dict(config)), given, whose=_WHOSE, example=_EXAMPLE)

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
        own = {name: getattr(self, name) for name in ("epochs", "gradient_clip", "accumulate", "precision")}
        return {**own, "optimizer": made, "schedule": known[name]}
