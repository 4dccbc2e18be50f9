"""A small problem's surrogate, and recipes, that the tests of branches and of deliveries share."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

import hypertune_mip as ht
from tests import small_problem as problem

CONFIGS = [{"decay": d, "dropout": 0.1} for d in (1e-4, 1e-2, 0.3)]


@functools.cache
def surrogate() -> ht.Surrogate:
    return problem.fit(epochs=8, **problem.validation())


def still(**options: Any) -> ht.Recipe:
    """A recipe by which nothing moves."""
    return ht.Recipe(epochs=8, optimizer=lambda p, config: torch.optim.SGD(p, lr=0.0), schedule=None, **options)


def restless() -> ht.Recipe:
    """A recipe whose last steps still jump about, so that averages help."""
    return ht.Recipe(epochs=8, optimizer=lambda p, config: torch.optim.SGD(p, lr=0.3, momentum=0.9), schedule=None)


def measured(network: nn.Module) -> dict[str, float]:
    with torch.no_grad():
        return {n: float(v) for n, v in problem.metric(network, problem.data().tensors).items()}


class Normed(nn.Sequential):
    """With a batch norm whose inputs have a variance far from 1, which new layers assume."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 1))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            for parameter in self.parameters():
                parameter.normal_()
            self[0].weight.mul_(0.01)


WHOLE = [problem.data().tensors]


@functools.cache
def normed() -> ht.Surrogate:
    """All data in a batch."""
    hypernet = ht.HyperNetwork(Normed(), ht.SearchSpace({"decay": problem.SPACE["decay"]}), trunk=(6,))
    return problem.fit(hypernet, epochs=40, train_loader=WHOLE, metric=problem.metric, val_loader=WHOLE)


class Uncounted:
    """A loader without a length."""

    def __iter__(self) -> Any:
        return iter(problem.loader(shuffle=False))
