"""Real trainings of odd networks, optimisers and loaders: in a stack as alone, and kept as they were measured."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

import hypertune_mip as ht
from hypertune_mip.trainings import Finished, Run, Together, Workshop
from tests import small_problem as problem

CONFIGS = [{"decay": d, "dropout": 0.0} for d in (1e-4, 1e-2, 1.0)]
X, Y = problem.data().tensors


def sgd(parameters: Iterable[Any], config: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def trainer(network: nn.Module | None = None, **options: Any) -> ht.Trainer:
    recipe = {name: options.pop(name) for name in ("epochs", "optimizer", "schedule") if name in options}
    chosen = {"recipe": ht.Recipe(**{"epochs": 3, "optimizer": sgd} | recipe)} | problem.validation() | options
    loader, loss = chosen.pop("train_loader", problem.loader()), chosen.pop("loss", problem.loss)
    return ht.Trainer(problem.network() if network is None else network, problem.SPACE, loss, loader, **chosen)


def error(network: nn.Module) -> float:
    with torch.no_grad():
        return float(problem.metric(network, (X, Y))["error"])


# Networks that hold more than parameters


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(3, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.changed(self.inner(x).tanh()))


class Masked(Odd):
    """With a causal mask, whose numbers are infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.triu(torch.full((6, 6), -math.inf), 1))

    def changed(self, hidden: Tensor) -> Tensor:
        return hidden @ self.mask.softmax(-1).T


class Attribute(Odd):
    """Keeps a running mean in a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(6)

    def changed(self, hidden: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.5 * self.mean + hidden.detach().mean(0)
        return hidden - self.mean


class Growing(Odd):
    """Has a buffer that is None at first, and grows."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", None)

    def changed(self, hidden: Tensor) -> Tensor:
        if self.training:
            mean = hidden.detach().mean(0, keepdim=True)
            self.seen = mean if self.seen is None else torch.cat([self.seen, mean])
        return hidden if self.seen is None else hidden - self.seen.mean(0)


class Vanishing(Odd):
    """Has a buffer that training sets to None."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.full((6,), 3.0))

    def changed(self, hidden: Tensor) -> Tensor:
        if self.training:
            self.offset = None
        return hidden if self.offset is None else hidden + self.offset


class Counting(Odd):
    """Warms up by a number that it counts."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def changed(self, hidden: Tensor) -> Tensor:
        self.steps += self.training
        return hidden * (self.steps / 9)


ODD = {kind.__name__: kind for kind in (Masked, Attribute, Growing, Vanishing, Counting)}


@pytest.mark.parametrize("name", ODD)
def test_odd_networks_are_trained_in_a_stack_as_alone_and_kept_as_they_are(name: str, tmp_path: Path) -> None:
    stacked, alone = trainer(ODD[name](), folder=tmp_path), trainer(ODD[name](), parallel=1)
    found, expected = (each.train(CONFIGS, progress=False)["error"][:, 0] for each in (stacked, alone))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.isfinite(found).all()
    kept = [error(trainer(ODD[name](), folder=tmp_path, loss=never).network(config)) for config in CONFIGS]
    np.testing.assert_allclose(kept, found, rtol=1e-5)


def never(model: nn.Module, batch: Any, config: Any) -> Tensor:
    raise AssertionError("trained again")


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(4, 3, sparse=True), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.embedding((x[:, 0] > 0).long()))


def test_what_goes_wrong_in_a_stacks_backward_pass_is_trained_alone() -> None:
    def optimizer(parameters: Iterable[Any], config: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1)  # without momentum, which sparse gradients have not

    def loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
        return (model(batch[0]) - batch[1]).square().mean() + 0 * config["decay"]

    stacked, alone = (trainer(Sparse(), optimizer=optimizer, loss=loss, parallel=parallel) for parallel in (16, 1))
    found, expected = (each.train(CONFIGS, progress=False)["error"] for each in (stacked, alone))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert "one after another" in repr(stacked)


def test_a_metric_that_cannot_be_mapped_costs_no_training() -> None:
    calls = 0

    def loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return problem.loss(model, batch, config)

    def metric(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        value = problem.metric(model, batch)["error"]
        return {"error": torch.tensor(value.item())}  # no number under vmap

    stacked = trainer(loss=loss, metric=metric)
    found = stacked.train(CONFIGS, progress=False)
    assert calls == 3 * len(problem.loader()) and "stacked" in repr(stacked)
    np.testing.assert_allclose(found["error"], trainer(parallel=1).train(CONFIGS, progress=False)["error"], rtol=1e-4)


# Optimisers


def clipping(parameters: Iterable[Any], config: Any) -> torch.optim.Optimizer:
    own = list(parameters)
    optimizer = torch.optim.SGD(own, lr=0.5)
    optimizer.register_step_pre_hook(lambda *args: (nn.utils.clip_grad_norm_(own, 0.01), None)[1])
    return optimizer


def clamping(parameters: Iterable[Any], config: Any) -> torch.optim.Optimizer:
    own = list(parameters)
    for parameter in own:
        parameter.register_hook(lambda gradient: gradient.clamp(-1e-3, 1e-3))
    return torch.optim.SGD(own, lr=0.5)


class Assigning(torch.optim.Optimizer):
    """Puts other tensors in the parameters' places."""

    def __init__(self, parameters: Iterable[Any]) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data = parameter.data - group["lr"] * parameter.grad


OPTIMIZERS: dict[str, Any] = {"step hook": clipping, "hooks": clamping, "assigns": lambda p, config: Assigning(p)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_odd_optimisers_move_a_stack_as_each_network(name: str) -> None:
    stacked, alone = (
        trainer(optimizer=OPTIMIZERS[name], parallel=parallel).train(CONFIGS, progress=False) for parallel in (16, 1)
    )
    np.testing.assert_allclose(stacked["error"], alone["error"], rtol=1e-4)


# What is kept counts for nothing else


def late(at: int) -> Any:
    return lambda optimizer, steps: LambdaLR(optimizer, lambda step: 1.0 if step < at else 0.0)


def one_cycle(momentum: float) -> Any:
    return lambda optimizer, steps: OneCycleLR(optimizer, 0.1, total_steps=steps + 1, max_momentum=momentum)


def layers(*inner: nn.Module) -> nn.Module:
    first, _, last = problem.plain_network()
    return nn.Sequential(first, *inner, last)


class Small(nn.Linear):
    """Draws smaller weights, of the same shapes."""

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.weight, -0.01, 0.01)
        nn.init.zeros_(self.bias)


def small() -> nn.Module:
    return nn.Sequential(Small(3, 5), nn.Tanh(), Small(5, 1))


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a schedule's late steps": ({"schedule": late(5)}, {"schedule": late(7)}),
    "a schedule's momentum": ({"schedule": one_cycle(0.95)}, {"schedule": one_cycle(0.5)}),
    "a fixed rate": ({"network": layers(nn.Tanh(), nn.Dropout(0.5))}, {"network": layers(nn.Tanh(), nn.Dropout(0.1))}),
    "a binding": (
        {"network": layers(nn.Tanh(), nn.Dropout(0.5))},
        {"network": layers(nn.Tanh(), ht.nn.Dropout("dropout"))},
    ),
    "an activation": ({"network": layers(nn.Tanh())}, {"network": layers(nn.ReLU())}),
    "what is trained": (
        {"network": layers(nn.Tanh())},
        {"network": nn.Sequential(problem.plain_network()[0].requires_grad_(False), *problem.plain_network()[1:])},
    ),
    "what reset draws": (
        {"network": problem.plain_network(), "initialize": "reset"},
        {"network": small(), "initialize": "reset"},
    ),
    "more validation data": ({"val_loader": [(X[:8], Y[:8])]}, {"val_loader": [(X[:8], Y[:8]), (X[8:14], Y[8:14])]}),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_training_is_told_from_others_by(name: str, tmp_path: Path) -> None:
    first, other = ({"initialize": "given", **options} for options in KINDS[name])
    before = trainer(folder=tmp_path, **first).train(CONFIGS[1:], progress=False)["error"]
    found, expected = (
        trainer(**other, **where).train(CONFIGS[1:], progress=False)["error"] for where in ({"folder": tmp_path}, {})
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not np.allclose(before, found)


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 9), nn.Tanh(), ht.nn.Dropout("dropout"), nn.Linear(9, 1))


def unbound() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 1))


@pytest.mark.parametrize(("make", "what"), [(wide, r"0\.weight"), (unbound, "the binding of 2")])
def test_a_start_of_another_architecture_is_refused(make: Any, what: str) -> None:
    with pytest.raises(ht.OptionError, match=rf"built like the primary network.*{what}.*`initialize`"):
        trainer(initialize=make).train(CONFIGS, progress=False)


# Going on, and going wrong


def test_a_part_of_a_stack_that_was_finished_does_not_change_the_others(tmp_path: Path) -> None:
    configs = [dict(config, dropout=0.3) for config in CONFIGS]
    expected = trainer().train(configs, progress=False)["error"]
    trainer(folder=tmp_path).train(configs, progress=False)
    (lost, *_) = sorted(tmp_path.glob("training-*.json"))
    lost.unlink()
    assert trainer(folder=tmp_path).train(configs, progress=False)["error"].tolist() == expected.tolist()


class Forgetful:
    """An executor that leaves out what it is given last."""

    parts = 3

    def __call__(self, workshop: Workshop, work: Iterable[Together]) -> Iterator[tuple[Run, Finished]]:
        for together in list(work)[:-1]:
            yield from workshop.carry_out(together)


def test_an_executor_that_loses_trainings_is_named() -> None:
    with pytest.raises(ht.DataError, match=r"Forgetful.*has not carried out the trainings at \[\{'decay': 1\.0"):
        trainer(executor=Forgetful()).train(CONFIGS, progress=False)


def test_configs_are_trained_at_as_they_were_given(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    configs = [{"decay": float(10 ** generator.uniform(-4, 0)), "dropout": 0.1} for _ in range(20)]
    surrogate = problem.fit(**problem.validation())
    found = surrogate.trainer(folder=tmp_path).branch(configs, share=0.3, progress=False)
    assert list(found.configs) == configs
    again = surrogate.replace(loss=never).trainer(folder=tmp_path).branch(found.configs, share=0.3, progress=False)
    assert again.metrics["error"].tolist() == found.metrics["error"].tolist()


def test_one_config_and_whole_numbers_are_the_same_as_a_list_and_floats() -> None:
    real = trainer(parallel=1)
    expected = real.train([{"decay": 1.0, "dropout": 0.0}], progress=False)["error"]
    for configs in ({"decay": 1, "dropout": 0}, [{"decay": np.float64(1.0), "dropout": np.int64(0)}]):
        assert real.train(configs, progress=False)["error"].tolist() == expected.tolist()  # type: ignore[arg-type]
    assert "finished=1" in repr(real)


def test_a_batch_sampler_with_a_generator_of_its_own_is_seeded() -> None:
    sampler = RandomSampler(problem.data(), generator=torch.Generator().manual_seed(9))
    loader = DataLoader(problem.data(), batch_sampler=BatchSampler(sampler, 4, drop_last=False))
    first, again = (trainer(train_loader=loader).train(CONFIGS, progress=False)["error"] for _ in range(2))
    assert first.tolist() == again.tolist()


def test_threads_that_train_at_once_do_not_disturb_each_other() -> None:
    configs = [dict(problem.CONFIG, decay=d) for d in (1e-4, 1e-3, 1e-2, 1e-1)]
    real = trainer(parallel=1)
    expected = [trainer(parallel=1).train([config], progress=False)["error"].item() for config in configs]
    found: dict[int, float] = {}

    def work(index: int) -> None:
        found[index] = real.train([configs[index]], progress=False)["error"].item()

    torch.manual_seed(3)
    state = torch.get_rng_state()
    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(4)] == expected
    assert torch.equal(torch.get_rng_state(), state)
