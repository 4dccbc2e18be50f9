"""Laws of evaluation: memory that is bounded, counted in bytes, and answers that do not depend on PyTorch's modes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import hypernet, space
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

import hypertune_mip as ht
from hypertune_mip.evaluation import Evaluator
from hypertune_mip.evaluation.memory import PeakBytes
from hypertune_mip.surrogate.calibrated import CalibratedEvaluator
from hypertune_mip.surrogate.search import diverse_best
from hypertune_mip.verification.calibration import Calibration
from tests.networks import layers

SPACE = ht.SearchSpace({"decay": FloatDistribution(1e-4, 1e-1, log=True)})
BUDGET = 2**20


class Functional(nn.Module):
    """A convolutional network without a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(8, 3, 3, 3) / 5)
        self.out = nn.Parameter(torch.randn(3, 8) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(F.conv2d(x, self.first)).mean((2, 3)), self.out)


def mean_square(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    return {"loss": model(batch).square().mean(), "size": ht.losses.l2(model)}


def surrogate(network: nn.Module, *batches: Tensor, budget: int | None = BUDGET, **options: Any) -> ht.Surrogate:
    made = ht.HyperNetwork(network, SPACE, **options)
    with torch.no_grad():
        made.heads.weight.add_(0.1 * torch.randn(made.heads.weight.shape, generator=torch.Generator().manual_seed(0)))
    return ht.Surrogate(made, metric=mean_square, val_loader=list(batches), memory_budget=budget)


def peak(function: Callable[[], Any]) -> int:
    with PeakBytes() as memory:
        function()
    return memory.peak


def test_peak_bytes_counts_new_storages_while_they_live() -> None:
    x = torch.zeros(1000)

    def work() -> None:
        view = x.view(10, 100).t()  # nothing new
        first = view + 1  # 4,000 bytes
        first.add_(1)
        del first
        second = view * 2  # and again 4,000
        second[3:]

    assert peak(work) == 4000


def _networks() -> dict[str, tuple[nn.Module, Tensor]]:
    return {
        "functions instead of layers": (Functional(), torch.randn(16, 3, 12, 12)),
        "attention": (layers.Position(), torch.randn(32, 5, 8)),
        "layers": (nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 2)), torch.randn(100, 16)),
    }


@pytest.mark.parametrize("mapping", ["vmap", "loop"])
@pytest.mark.parametrize("name", _networks())
def test_a_chunk_stays_within_the_memory_budget(name: str, mapping: Any) -> None:
    network, batch = _networks()[name]
    asked = surrogate(network, batch, mapping=mapping)
    evaluator = asked._evaluator
    units = SPACE.sample(48)
    assert 1 < evaluator.chunk_size() < 48 or mapping == "loop"
    results = len(asked.metrics) * len(units) * 8
    assert peak(lambda: evaluator(units)) <= 1.1 * BUDGET + 8 * results
    evaluator.chunk_size("loss")
    assert peak(lambda: evaluator.value_and_gradient(units, "loss")) <= 1.1 * BUDGET + 8 * results


def test_memory_is_that_of_the_largest_batch() -> None:
    network, batch = _networks()["layers"]
    assert surrogate(network, batch[:3], batch)._evaluator.chunk_size() == (
        surrogate(network, batch)._evaluator.chunk_size()
    )


def test_memory_does_not_grow_with_the_number_of_settings() -> None:
    network, batch = _networks()["layers"]
    evaluator = surrogate(network, batch)._evaluator
    evaluator.names()
    units = SPACE.sample(1024)
    few, many = (peak(lambda n=n: evaluator(units[:n])) for n in (64, 1024))
    assert many - few <= 1024 * 3 * 8  # two metrics, and the settings in some type


SEARCHES: dict[str, Callable[[ht.Surrogate], Any]] = {
    "optimize": lambda one: one.optimize("loss", candidates=4, starts=2, steps=2),
    "gradient": lambda one: one.gradient({"decay": 1e-3}, "loss"),
    "front": lambda one: one.pareto_front(["loss", "size"], candidates=4),
    "verify": lambda one: diverse_best(one._measure, "loss", 2, candidates=4, seed=0),
}


@pytest.mark.parametrize(
    ("name", "mapping"), [*((name, "vmap") for name in SEARCHES), ("optimize", "loop"), ("gradient", "loop")]
)
def test_memory_does_not_grow_with_the_number_of_batches(name: str, mapping: Any) -> None:
    search = SEARCHES[name]
    network, batch = _networks()["layers"]
    few, many = (surrogate(network, *[batch] * n, budget=None, mapping=mapping) for n in (1, 4))
    for one in (few, many):
        search(one)  # chunks are measured once
    assert peak(lambda: search(many)) <= 1.1 * peak(lambda: search(few))


class Forward(torch.autograd.Function):
    """The identity, without a way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> Tensor:
        raise AssertionError("this metric was not asked for")


def test_only_the_metric_that_is_asked_for_goes_backward() -> None:
    def metric(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        loss = model(batch).square().mean()
        return {"other": Forward.apply(loss), "loss": loss}

    network, batch = _networks()["layers"]
    made = ht.HyperNetwork(network, SPACE, mapping="loop")
    asked = ht.Surrogate(made, metric=metric, val_loader=[batch])
    assert asked.optimize("loss", candidates=4, starts=2, steps=2).value > 0
    with pytest.raises(AssertionError, match="not asked for"):
        asked.gradient({"decay": 1e-3}, "other")


def _answers(asked: ht.Surrogate) -> list[float]:
    optimum = asked.optimize("loss", candidates=4, starts=2, steps=5)
    front = asked.pareto_front(["loss", "size"], candidates=8)
    slope = asked.gradient({"decay": 1e-3}, "loss")["decay"]
    assert slope != 0
    return [optimum.config["decay"], optimum.value, slope, *(point.values["loss"] for point in front)]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_answers_do_not_depend_on_whether_gradients_are_on(mode: Any) -> None:
    network, batch = _networks()["layers"]
    asked = surrogate(network, batch)
    expected = _answers(asked)
    with mode():
        state = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        assert _answers(asked) == expected
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == state
        anew = ht.Surrogate(asked.hypernet, metric=mean_square, val_loader=[batch.clone()], memory_budget=BUDGET)
        assert _answers(anew) == expected
    assert torch.is_grad_enabled()
    assert _answers(anew) == expected


def test_the_gradient_of_a_calibrated_metric_is_the_finite_difference() -> None:
    pytest.importorskip("botorch")
    made = hypernet("float64", "rank one")
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    evaluator = Evaluator(made, mean_square, [x[:8], x[8:]])
    units = space().sample(8, seed=1)
    predicted = evaluator(units)["loss"]
    generator = torch.Generator().manual_seed(2)
    true = predicted * (1 + 0.3 * units[:, 0] + 0.05 * torch.randn(8, generator=generator, dtype=torch.float64))
    measure = CalibratedEvaluator(evaluator, {"loss": Calibration(units, predicted, true.flip(0))})
    here = space().sample(3, seed=4)
    value, slope = measure.value_and_gradient(here, "loss")
    torch.testing.assert_close(value, measure(here)["loss"])
    for column, dim in enumerate(space().dimensions):
        if dim.cells is None:
            step = torch.zeros(len(space()), dtype=torch.float64)
            step[column] = 1e-6
            change = (measure(here + step)["loss"] - measure(here - step)["loss"]) / 2e-6
            torch.testing.assert_close(slope[:, column], change, rtol=1e-4, atol=1e-6)
