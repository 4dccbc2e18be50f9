"""A regression of a few units that the tests of training, resuming, storage and bad input share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from optuna.distributions import FloatDistribution
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import hypertune_mip as ht

SPACE = ht.SearchSpace({"decay": FloatDistribution(1e-4, 1.0, log=True), "dropout": FloatDistribution(0.0, 0.5)})
CONFIG = {"decay": 0.01, "dropout": 0.25}
EXAMPLES = 20


def data(examples: int = EXAMPLES) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(examples, 3, generator=generator)
    noise = 0.1 * torch.randn(examples, 1, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True).sin() + noise)


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(data(), **({"batch_size": 8, "shuffle": True} | options))


def own_generator(**options: Any) -> DataLoader[Any]:
    return loader(generator=torch.Generator().manual_seed(5), **options)


def sampler_with_generator() -> DataLoader[Any]:
    return loader(shuffle=False, sampler=RandomSampler(data(), generator=torch.Generator().manual_seed(5)))


def plain_network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))


def network() -> nn.Sequential:
    first, middle, last = plain_network()
    return nn.Sequential(first, middle, ht.nn.Dropout("dropout"), last)


def hypernet(**options: Any) -> ht.HyperNetwork:
    return ht.HyperNetwork(options.pop("network", network()), options.pop("space", SPACE), trunk=(6,), **options)


def loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
    x, y = batch
    return ht.losses.mean_squared_error(model(x), y) + config["decay"] * ht.losses.l2(model)


def metric(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    x, y = batch
    return {"error": ht.losses.mean_squared_error(model(x), y), "size": ht.losses.l2(model)}


def fit(net: ht.HyperNetwork | None = None, **options: Any) -> ht.Surrogate:
    """`ht.fit` on the problem, for 3 epochs on the CPU; `options` override."""
    net = hypernet() if net is None else net
    chosen = {"epochs": 3, "device": "cpu", "progress": False} | options
    return ht.fit(net, chosen.pop("loss", loss), chosen.pop("train_loader", loader()), **chosen)


def validation() -> dict[str, Any]:
    return {"metric": metric, "val_loader": loader(shuffle=False)}


class InterruptedByTest(Exception):
    """Stands for whatever ends a run early."""


def interrupt_at(epoch: int) -> Callable[[dict[str, Any]], None]:
    """A callback that ends a run in an epoch, before its checkpoint."""

    def callback(record: dict[str, Any]) -> None:
        if record["epoch"] == epoch:
            raise InterruptedByTest

    return callback


def assert_same_state(left: nn.Module, right: nn.Module) -> None:
    expected, got = left.state_dict(), right.state_dict()
    assert list(expected) == list(got)
    different = [name for name in expected if not torch.equal(expected[name], got[name])]
    assert not different
