"""The learning rate over a run: a torch schedule, or none, as a part of a run's state."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from hypertune_mip.errors import OptionError
from hypertune_mip.training.fingerprint import described, name_of
from hypertune_mip.training.optimizers import ScheduleFactory

_LOOKED_AT = 20_000  # steps at most, to tell one schedule from another: half a second


class Schedule:
    """Advances an optimiser's learning rate, step by step.

    Args:
        factory: As in `fit`; None keeps the rate.
        optimizer: Whose groups stay as they are from now on.
        total: Steps of the run, which a factory asks for; None is for a run without one.

    Raises:
        OptionError: If what the factory makes waits for a metric.
    """

    def __init__(self, factory: ScheduleFactory | None, optimizer: Optimizer, total: int | None) -> None:
        """See the class."""
        self._factory = factory
        self._optimizer = optimizer
        self._total = total
        self._steps = 0
        self._groups = _without_parameters(optimizer)
        self._schedule = None if factory is None or total is None else self._made(optimizer, total)

    def step(self) -> None:
        """The rate of the next step."""
        self._steps += 1
        if self._schedule is not None:
            self._schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """Total and passed steps, and the torch schedule's own state."""
        own = None if self._schedule is None else self._schedule.state_dict()
        return {"total": self._total, "steps": self._steps, "schedule": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from an earlier part of the run, after the optimiser's state is back.

        With another number of workers a run has another number of steps: it goes on from the same share of them.
        """
        self._steps = state["steps"]
        if self._schedule is None or self._total is None:
            return
        if state["total"] == self._total:
            self._schedule.load_state_dict(state["schedule"])
            return
        self._steps = round(state["steps"] * self._total / state["total"])
        for group in self._optimizer.param_groups:
            group["lr"] = group.pop("initial_lr", group["lr"])
        self._schedule = self._made(self._optimizer, self._total)
        with _without_warnings():
            for _ in range(self._steps):
                self._schedule.step()

    def description(self, total: int | None) -> dict[str, Any] | None:
        """What the factory makes for a run of `total` steps: its class, its numbers, and rates that it gives.

        A function does not say what it does, so two are told apart by what they make of an optimiser's groups at every
        step, for a digest, and by the rates after 1, 2, 4, 8, ... steps, for a reader. Those are of a copy, around an
        optimiser that does nothing. To be asked before the first step.
        """
        if self._schedule is None or total is None:
            return None
        if total == self._total:
            optimizer = _Stand(_without_parameters(self._optimizer), self._optimizer.defaults)
            schedule = copy.deepcopy(self._schedule, {id(self._optimizer): optimizer})
        else:
            optimizer = _Stand(self._groups, self._optimizer.defaults)
            schedule = self._made(optimizer, total)
        numbers, groups, at_steps = described(schedule.state_dict()), {}, hashlib.sha256()
        with _without_warnings():
            for step in range(1, min(total, _LOOKED_AT) + 1):
                schedule.step()
                now = [described({k: v for k, v in g.items() if k != "params"}) for g in optimizer.param_groups]
                at_steps.update(json.dumps(now).encode())
                if step & (step - 1) == 0:
                    groups[str(step)] = [group.get("lr") for group in now]
        return {
            "class": name_of(type(schedule)),
            "numbers": numbers,
            "rates": groups,
            "at_all_steps": at_steps.hexdigest()[:16],
        }

    def _made(self, optimizer: Optimizer, total: int) -> LRScheduler:
        assert self._factory is not None
        schedule = self._factory(optimizer, total)
        if isinstance(schedule, ReduceLROnPlateau):
            raise OptionError(
                "The schedule must be one that is advanced every step, but a ReduceLROnPlateau waits for a metric. Take"
                " one that depends on the step alone, or None."
            )
        return schedule


class _Stand(Optimizer):
    """An optimiser with the groups of another one, around one number each, that does nothing."""

    def __init__(self, groups: list[dict[str, Any]], defaults: dict[str, Any]) -> None:
        super().__init__([{**group, "params": [nn.Parameter(torch.zeros(()))]} for group in groups], dict(defaults))


def _without_parameters(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Of torch, that no optimiser step came before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
