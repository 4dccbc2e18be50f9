"""Expected improvement of the next real training, against its closed form and its finite differences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from optuna.distributions import FloatDistribution
from torch.distributions import Normal

import hypertune_mip as ht
from hypertune_mip.directions import Direction
from hypertune_mip.surrogate.improvement import NAME, Improvement
from hypertune_mip.surrogate.search import distance_to
from hypertune_mip.verification.experts import Line, Mixture, Scale

pytest.importorskip("botorch")

SPACE = ht.SearchSpace({name: FloatDistribution(0.0, 1.0) for name in ("a", "b")})
APART = 0.02


class Surface:
    """A surrogate with one metric of both signs, whose derivative is known; NaN where b is below `hole`."""

    space = SPACE
    directions: dict[str, Direction] = {"loss": "minimize"}  # noqa: RUF012

    def __init__(self, hole: float = -1.0) -> None:
        self.hole = hole

    def __call__(self, units: torch.Tensor) -> dict[str, torch.Tensor]:
        values = (units[:, 0] - 0.3).square() + 0.5 * units[:, 1] - 0.4
        return {"loss": torch.where(units[:, 1] < self.hole, torch.nan, values)}

    def value_and_gradient(self, units: torch.Tensor, metric: str) -> tuple[torch.Tensor, torch.Tensor]:
        units = units.detach()
        slopes = torch.stack([2 * (units[:, 0] - 0.3), torch.full((len(units),), 0.5, dtype=units.dtype)], 1)
        return self(units)[metric], slopes


def results(count: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Settings, predictions, and noisy results."""
    generator = torch.Generator().manual_seed(0)
    tried = SPACE.sample(count)
    predicted = Surface()(tried)["loss"]
    return tried, predicted, predicted + 0.1 * torch.randn(count, generator=generator, dtype=torch.float64)


def improvement(direction: Direction = "minimize", pending: int = 0, **options: Any) -> Improvement:
    tried, predicted, values = results()
    waiting = SPACE.sample(pending, seed=3) if pending else tried[:0]
    return Improvement(
        options.get("measure", Surface()),
        "loss",
        tried,
        predicted,
        values,
        direction=direction,
        pending=waiting,
        foreseen=Surface()(waiting)["loss"],
        known=torch.cat([tried, waiting]),
        apart=APART,
    )


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_it_is_the_logarithm_of_the_expected_improvement(direction: Direction) -> None:
    tried, predicted, values = results()
    side = 1.0 if direction == "minimize" else -1.0
    scale = Scale.of(predicted, values)
    mixture = Mixture.fit(Line.fit, tried, side * scale(predicted), side * scale(values), weighed=True)
    fresh = SPACE.sample(50, seed=1)
    fresh = fresh[distance_to(fresh, tried) >= APART]
    mean, deviation = mixture(fresh, side * scale(Surface()(fresh)["loss"]), noise=False)
    normal, score = Normal(0.0, 1.0), ((side * scale(values)).min() - mean) / deviation
    expected = deviation * (score * normal.cdf(score) + normal.log_prob(score).exp())
    found = improvement(direction)(fresh)[NAME]
    likely = expected > 1e-8  # below, the closed form loses its digits
    assert int(likely.sum()) >= 5
    torch.testing.assert_close(found[likely], -expected[likely].log(), rtol=1e-4, atol=1e-4)
    assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize("pending", [0, 3])
def test_its_slope_goes_through_the_surrogate(pending: int) -> None:
    measure, fresh, step = improvement(pending=pending), SPACE.sample(6, seed=1), 1e-5
    values, slopes = measure.value_and_gradient(fresh)
    torch.testing.assert_close(values, measure(fresh)[NAME])
    for column in range(2):
        move = step * torch.eye(2, dtype=torch.float64)[column]
        difference = (measure(fresh + move)[NAME] - measure(fresh - move)[NAME]) / (2 * step)
        torch.testing.assert_close(slopes[:, column], difference, rtol=1e-3, atol=1e-4)


def test_nothing_is_expected_next_to_what_is_known() -> None:
    tried, *_ = results()
    near = (tried + 0.5 * APART).clamp(0, 1)
    assert bool(torch.isinf(improvement()(near)[NAME]).all())
    values, _ = improvement().value_and_gradient(near)
    assert bool(torch.isinf(values).all())


def test_less_is_expected_around_what_is_pending() -> None:
    around = (SPACE.sample(3, seed=3) + 2 * APART).clamp(0, 1)
    without, with_them = improvement()(around)[NAME], improvement(pending=3)(around)[NAME]
    free = torch.isfinite(with_them)
    assert int(free.sum()) == 2
    assert bool((with_them > without)[free].all())


def test_a_surrogate_that_is_nan_somewhere_is_no_error() -> None:
    units = torch.tensor([[0.9, 0.05], [0.9, 0.95]], dtype=torch.float64)
    found = improvement(measure=Surface(hole=0.5))(units)[NAME]
    assert math.isnan(found[0])
    assert math.isfinite(found[1])


@pytest.mark.parametrize(("factor", "low", "high"), [(1.0, 0.3, 1.1), (-1.0, 0.0, 0.0), (2.0, 0.6, 2.1)])
def test_the_weight_is_what_a_predicted_difference_counts_for(factor: float, low: float, high: float) -> None:
    tried, predicted, values = results(16)
    nothing = {"pending": tried[:0], "foreseen": predicted[:0], "known": tried, "apart": APART}
    found = Improvement(
        Surface(), "loss", tried, factor * predicted, factor**2 * values, direction="minimize", **nothing
    )
    assert low <= found.weight <= high
