"""Laws of the surrogate: derivatives, known optima, batches of settings, threads."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from cases import HEADS, SPACES, hypernet, space
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hypertune_mip as ht
from hypertune_mip.evaluation import Evaluator
from hypertune_mip.evaluation import data as evaluation_data
from hypertune_mip.surrogate.screen import non_dominated


def regression_metric(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    x, y = batch
    error = (model(x) - y).square().mean()
    return {"loss": error, "size": ht.losses.l2(model)}


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, 3, generator=generator), torch.randn(12, 2, generator=generator)


@pytest.fixture(params=HEADS)
def surrogate(request: pytest.FixtureRequest, data: tuple[Tensor, Tensor]) -> ht.Surrogate:
    """Untrained, in float64, with batches of unequal size."""
    network = hypernet("float64", request.param)
    x, y = (t.double() for t in data)
    return ht.Surrogate(network, metric=regression_metric, val_loader=[(x[:8], y[:8]), (x[8:], y[8:])])


def test_metrics_are_means_over_all_examples(surrogate: ht.Surrogate, data: tuple[Tensor, Tensor]) -> None:
    config = space().from_unit(space().sample(1))[0]
    x, y = (t.double() for t in data)
    plain = surrogate.materialize(config)
    assert surrogate.evaluate(config)["loss"] == pytest.approx(float((plain(x) - y).detach().square().mean()))


def test_a_batch_of_settings_is_each_setting(surrogate: ht.Surrogate) -> None:
    configs = space().from_unit(space().sample(7))
    batch = surrogate.evaluate_batch(configs)
    for index, config in enumerate(configs):
        for name, value in surrogate.evaluate(config).items():
            assert batch[name][index] == pytest.approx(value)
    assert {name: value.shape for name, value in surrogate.evaluate_batch([]).items()} == {"loss": (0,), "size": (0,)}


def test_chunks_do_not_change_the_result(surrogate: ht.Surrogate) -> None:
    units = space().sample(9)
    whole = surrogate.evaluate_units(units)
    small = ht.Surrogate(
        surrogate.hypernet, metric=regression_metric, val_loader=surrogate._evaluator.data.loader, memory_budget=1
    )
    assert small._evaluator.chunk_size() == 1
    for name, value in small.evaluate_units(units).items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-12)


def test_validation_data_too_large_to_keep_gives_the_same_and_leaves_random_numbers_alone(
    surrogate: ht.Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_data, "_CACHE_LIMIT", 0)
    x, y = surrogate._evaluator.data.loader[0]
    loader = DataLoader(TensorDataset(x, y), batch_size=2, shuffle=True)
    before = torch.get_rng_state()
    large = ht.Surrogate(surrogate.hypernet, metric=regression_metric, val_loader=loader)
    kept = ht.Surrogate(surrogate.hypernet, metric=regression_metric, val_loader=[(x, y)])
    assert large._evaluator.data._cache is None
    for name, value in kept.evaluate_units(space().sample(3)).items():
        np.testing.assert_allclose(large.evaluate_units(space().sample(3))[name], value, rtol=1e-6)
    assert torch.equal(torch.get_rng_state(), before)


class Loss(torch.autograd.Function):
    """The metric "loss" at units, with the gradient that the evaluator states."""

    @staticmethod
    def forward(ctx: Any, evaluator: Evaluator, units: Tensor) -> Tensor:
        value, slope = evaluator.value_and_gradient(units, "loss")
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[None, Tensor]:
        return None, incoming[0].unsqueeze(-1) * ctx.saved_tensors[0]


def test_gradcheck_in_the_unit_cube(surrogate: ht.Surrogate) -> None:
    free = [dim.cells is None for dim in space().dimensions]
    fixed = space().sample(2)

    def metrics(columns: Tensor) -> Tensor:
        units = fixed.clone()
        units[:, free] = columns
        return Loss.apply(surrogate._evaluate, units)

    start = (0.2 + 0.6 * fixed[:, free]).requires_grad_()  # away from the kinks of LeakyReLU at no particular place
    assert torch.autograd.gradcheck(metrics, start, eps=1e-7, atol=1e-5)


def test_the_value_beside_a_gradient_is_the_metric(surrogate: ht.Surrogate) -> None:
    units = space().sample(5)
    for name, value in surrogate._evaluate(units).items():
        torch.testing.assert_close(surrogate._evaluate.value_and_gradient(units, name)[0], value)


def test_gradient_is_the_finite_difference_on_the_native_scale(surrogate: ht.Surrogate) -> None:
    config = {"decay": 3e-3, "kind": "q", "count": 4, "rate": 0.2}
    gradient = surrogate.gradient(config, "loss")
    assert list(gradient) == ["decay", "rate"]
    for name, value in gradient.items():
        step = 1e-5 * config[name]
        ends = [surrogate.evaluate({**config, name: config[name] + sign * step})["loss"] for sign in (1, -1)]
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(value, rel=1e-4)


def test_threads_see_their_own_settings(surrogate: ht.Surrogate) -> None:
    configs = space().from_unit(space().sample(24))
    expected = [surrogate.evaluate(config) for config in configs]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(surrogate.evaluate, configs)) == expected


class Bowl(nn.Module):
    """A network whose only weight is what the metric looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.point


def bowl(distributions: dict) -> ht.Surrogate:
    """A surrogate trained until the metric's minimum over settings is known: `point` follows (a, b)."""
    this = ht.SearchSpace(distributions)
    generator = torch.Generator().manual_seed(0)
    net = ht.HyperNetwork(Bowl(), this, head=ht.Dense())
    units = this.sample(256)
    target = torch.stack(list(this.decode(units).values()), -1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(400):
        optimizer.zero_grad()
        chosen = torch.randperm(256, generator=generator)[:64]
        (net.effective(units[chosen])["point"] - target[chosen]).square().mean().backward()
        optimizer.step()

    def metric(model: Bowl, batch: Tensor) -> dict[str, Tensor]:
        point = model(batch)
        return {"distance": (point - 0.3).square().sum(), "size": point.square().sum()}

    return ht.Surrogate(net, metric=metric, val_loader=[torch.zeros(1, 1)])


def test_optimize_finds_a_known_optimum_and_its_gradient_vanishes() -> None:
    surrogate = bowl({"a": FloatDistribution(0.0, 1.0), "b": FloatDistribution(-1.0, 1.0)})
    optimum = surrogate.optimize("distance", candidates=32, starts=4, steps=100)
    assert optimum.config["a"] == pytest.approx(0.3, abs=0.05)
    assert optimum.config["b"] == pytest.approx(0.3, abs=0.08)
    assert optimum.value == pytest.approx(surrogate.evaluate(optimum.config)["distance"])
    assert all(abs(value) < 0.02 for value in surrogate.gradient(optimum.config, "distance").values())
    assert optimum.value <= surrogate.optimize("distance", candidates=32, starts=4, steps=0).value


def test_optimize_keeps_discrete_hyperparameters_on_their_values() -> None:
    surrogate = bowl({"a": CategoricalDistribution([0.0, 0.25, 1.0]), "b": IntDistribution(-1, 1)})
    assert surrogate.optimize("distance", candidates=64).config == {"a": 0.25, "b": 0}


def with_nan(surrogate: ht.Surrogate) -> ht.Surrogate:
    """The distance is NaN in the best part of the space."""
    known = surrogate._evaluator.metric

    def metric(model: Bowl, batch: Tensor) -> dict[str, Tensor]:
        values = known(model, batch)
        return {**values, "distance": torch.where(values["distance"] < 0.1, math.nan, values["distance"])}

    return ht.Surrogate(surrogate.hypernet, metric=metric, val_loader=[torch.zeros(1, 1)])


def test_a_search_takes_nan_for_the_worst() -> None:
    surrogate = with_nan(bowl({"a": FloatDistribution(0.0, 1.0), "b": CategoricalDistribution([-1, 0, 1])}))
    for steps in (0, 60):
        optimum = surrogate.optimize("distance", candidates=32, starts=32, steps=steps)
        assert 0.1 <= optimum.value < 0.2
        assert optimum.value == pytest.approx(surrogate.evaluate(optimum.config)["distance"])
    front = surrogate.pareto_front(["distance", "size"], candidates=64)
    assert front and not any(math.isnan(point.values["distance"]) for point in front)


def test_a_metric_of_what_is_shared_leaves_the_best_candidate() -> None:
    surrogate = ht.Surrogate(
        hypernet("mlp", "rank one", generate=["0"]),
        metric=lambda model, batch: {"size": ht.losses.l2(model[2])},
        val_loader=[torch.zeros(1, 3)],
    )
    assert surrogate.optimize("size", candidates=4, starts=2).value == pytest.approx(
        float(ht.losses.l2(surrogate.hypernet.network[2]).detach())
    )


def test_pareto_front_holds_what_no_other_candidate_beats() -> None:
    surrogate = bowl({"a": FloatDistribution(0.0, 1.0), "b": FloatDistribution(-1.0, 1.0)})
    front = surrogate.pareto_front(["distance", "size"], candidates=128)
    values = [tuple(point.values.values()) for point in front]
    assert values == sorted(values)
    everything = np.stack(list(surrogate.evaluate_units(surrogate.space.sample(128)).values()), 1)
    for value in values:
        assert not (everything < np.array(value) - 1e-9).all(1).any()
    assert 2 <= len(front) < 128


def test_non_dominated_is_the_definition() -> None:
    table = np.random.default_rng(0).integers(0, 4, size=(40, 3)).astype(float)
    by_definition = [
        i
        for i in range(len(table))
        if not any((table[j] <= table[i]).all() and (table[j] < table[i]).any() for j in range(len(table)))
    ]
    assert sorted(non_dominated(table)) == by_definition


def test_ridge_regression_recovers_the_closed_form() -> None:
    """w*(lambda) = (X'X / n + lambda I)^-1 X'y / n, over three decades of lambda, by one training."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, generator=generator)
    y = x @ torch.tensor([1.0, -2.0, 0.5, 3.0]) + 0.3 * torch.randn(64, generator=generator)
    this = ht.SearchSpace({"penalty": FloatDistribution(1e-3, 1.0, log=True)})
    net = ht.HyperNetwork(nn.Linear(4, 1, bias=False), this, head=ht.Dense(), trunk=(64, 64))

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor], config: dict) -> Tensor:
        fit = (model(batch[0]).squeeze(-1) - batch[1]).square().mean()
        return fit + config["penalty"] * ht.losses.l2(model)

    ht.fit(net, loss, [(x, y)] * 50, epochs=24, batching="full", settings_per_step=8, progress=False, device="cpu")
    units = this.sample(32, seed=9)
    with torch.no_grad():
        learned = net.effective(units)["weight"].squeeze(1)
    penalties = this.decode(units)["penalty"].float()
    gram = x.T @ x / 64 + penalties[:, None, None] * torch.eye(4)
    exact = torch.linalg.solve(gram, (x.T @ y / 64).expand(32, 4).unsqueeze(-1)).squeeze(-1)
    error = (learned - exact).norm(dim=1) / exact.norm(dim=1)
    assert error.median() < 0.01
    assert error.max() < 0.05


@pytest.mark.parametrize("name", SPACES)
def test_every_space_trains_and_searches(name: str, data: tuple[Tensor, Tensor]) -> None:
    """No kind of hyperparameter breaks the way from fit to optimize."""
    this = space(name)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor], config: dict) -> Tensor:
        penalty = sum(value.float() for value in config.values())
        return (model(batch[0]) - batch[1]).square().mean() + (0.01 * penalty).exp() * ht.losses.l2(model)

    net = ht.HyperNetwork(nn.Linear(3, 2), this, trunk=(8,))
    surrogate = ht.fit(
        net, loss, [data], metric=regression_metric, val_loader=[data], epochs=2, progress=False, device="cpu"
    )
    optimum = surrogate.optimize("loss", candidates=8, starts=2, steps=2)
    assert surrogate.evaluate(optimum.config)["loss"] == pytest.approx(optimum.value, rel=1e-5)
