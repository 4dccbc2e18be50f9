"""Calibration against maps that are known."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

import hypertune_mip as ht
from hypertune_mip.verification import statistics
from hypertune_mip.verification.calibration import Calibration, Chain, Gap
from hypertune_mip.verification.experts import Line, Mixture
from tests import small_problem as problem

SPACE = ht.SearchSpace({"a": problem.SPACE["dropout"], "b": problem.SPACE["dropout"]})


def settings(count: int, seed: int = 0) -> torch.Tensor:
    return SPACE.sample(count, seed=seed)


def surface(units: torch.Tensor) -> torch.Tensor:
    """Of both signs, so that calibration stays on the scale as it is."""
    return (units[:, 0] - 0.3).square() + 0.5 * units[:, 1] - 0.4


def positive(units: torch.Tensor) -> torch.Tensor:
    return surface(units) + 0.6


def test_a_line_is_found_exactly_but_for_the_belief_in_slope_one() -> None:
    units = settings(200)
    calibration = Calibration(units, surface(units), 3.0 * surface(units) + 2.0, residual=False)
    fresh = settings(50, seed=1)
    assert float((calibration(fresh, surface(fresh)).mean - 3.0 * surface(fresh) - 2.0).abs().max()) < 0.02


def test_a_factor_is_found_where_values_are_positive() -> None:
    units, fresh = settings(200), settings(50, seed=1)
    calibration = Calibration(units, positive(units), 1.5 * positive(units), residual=False)
    calibrated = calibration(fresh, positive(fresh))
    torch.testing.assert_close(calibrated.mean, 1.5 * positive(fresh), rtol=0.02, atol=0.0)
    assert bool((calibrated.low >= 0).all())


@pytest.mark.parametrize("values", [surface, positive])
def test_predictions_that_are_right_stay_as_they_are(values: Callable[[torch.Tensor], torch.Tensor]) -> None:
    units, fresh = settings(8), settings(50, seed=1)
    calibrated = Calibration(units, values(units), values(units))(fresh, values(fresh))
    torch.testing.assert_close(calibrated.mean, values(fresh))
    assert float(calibrated.deviation.max()) < 1e-6


def test_equal_predictions_get_the_mean() -> None:
    units = settings(4)
    calibration = Calibration(units, torch.ones(4), torch.tensor([-1.0, 2.0, 3.0, 4.0]), residual=False)
    assert float(calibration(units[:1], torch.ones(1)).mean) == pytest.approx(2.0)


def test_a_monotone_curve_is_followed() -> None:
    units, fresh = settings(60), settings(20, seed=1)
    calibration = Calibration(units, surface(units), surface(units) ** 3, method="monotone", residual=False)
    assert float((calibration(fresh, surface(fresh)).mean - surface(fresh) ** 3).abs().max()) < 0.05


def test_the_process_corrects_what_depends_on_the_setting() -> None:
    units, fresh = settings(16), settings(100, seed=1)

    def error(residual: bool) -> float:
        bias = lambda u: 0.3 * torch.sin(3 * u[:, 0])  # noqa: E731
        calibration = Calibration(units, surface(units), surface(units) + bias(units), residual=residual)
        return float((calibration(fresh, surface(fresh)).mean - surface(fresh) - bias(fresh)).square().mean().sqrt())

    assert error(residual=True) < 0.3 * error(residual=False)


def test_noise_does_little_harm_to_a_surrogate_that_is_right() -> None:
    generator = torch.Generator().manual_seed(0)
    units, fresh = settings(16), settings(100, seed=1)
    true = surface(units) + 0.1 * torch.randn(16, generator=generator, dtype=torch.float64)
    calibrated = Calibration(units, surface(units), true)(fresh, surface(fresh)).mean
    assert float((calibrated - surface(fresh)).square().mean().sqrt()) < 0.08  # of noise 0.1
    assert statistics.kendall(calibrated.numpy(), surface(fresh).numpy()) > 0.85


def test_a_ranking_that_is_right_is_kept() -> None:
    """Although a process would come closer to the values."""
    units, fresh = settings(8), settings(100, seed=1)
    calibrated = Calibration(units, surface(units), surface(units) ** 3)(fresh, surface(fresh)).mean
    assert statistics.kendall(calibrated.numpy(), surface(fresh).numpy()) == pytest.approx(1.0)


@pytest.mark.parametrize("count", [8, 16])
def test_a_surrogate_that_is_wrong_does_not_spoil_what_trainings_say(count: int) -> None:
    """It counts for half, but its correction leaves little of it."""
    generator = torch.Generator().manual_seed(0)
    units, fresh = settings(count), settings(100, seed=1)
    wrong, wrong_fresh = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (count, 100))
    calibrated = Calibration(units, wrong, surface(units))(fresh, wrong_fresh)
    assert statistics.kendall(calibrated.mean.numpy(), surface(fresh).numpy()) > 0.6
    assert statistics.kendall(wrong_fresh.numpy(), surface(fresh).numpy()) < 0.1


def test_intervals_cover_nine_in_ten() -> None:
    """Of fresh noisy trainings at random settings, over 200 calibrations: what conformal prediction promises."""
    generator = torch.Generator().manual_seed(0)
    noisy = lambda u: 2 * surface(u) + 0.1 * torch.randn(len(u), generator=generator, dtype=u.dtype)  # noqa: E731
    inside = []
    for seed in range(200):
        units, fresh = (SPACE.sample(n, seed=2 * seed + n % 2, method="random") for n in (12, 21))
        calibrated = Calibration(units, surface(units), noisy(units), residual=False)(fresh, surface(fresh))
        true = noisy(fresh)
        inside.append((calibrated.low <= true) & (true <= calibrated.high))
    assert 0.87 <= float(torch.cat(inside).double().mean()) <= 0.96


@pytest.mark.parametrize("seeds", [2, 4])
def test_intervals_are_those_of_one_training_whatever_the_seeds(seeds: int) -> None:
    """A last column stands for a further seed that none of them was trained with."""
    generator = torch.Generator().manual_seed(0)
    noise = lambda *shape: 0.1 * torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    inside = []
    for seed in range(200):
        units, fresh = (SPACE.sample(n, seed=2 * seed + n % 2, method="random") for n in (12, 21))
        runs = 2 * surface(units).unsqueeze(1) + noise(12, seeds + 1)
        runs[:, -1] = math.nan
        calibrated = Calibration(units, surface(units), runs, residual=False)(fresh, surface(fresh))
        true = 2 * surface(fresh) + noise(21)
        inside.append((calibrated.low <= true) & (true <= calibrated.high))
    assert 0.87 <= float(torch.cat(inside).double().mean()) <= 0.97


def test_an_expert_counts_for_what_it_is_right_about() -> None:
    """A surrogate that says nothing leaves the word to the trainings; one that is nearly right keeps it."""
    generator = torch.Generator().manual_seed(0)
    units, fresh = settings(16), settings(100, seed=1)
    noise = lambda n, size: size * torch.randn(n, generator=generator, dtype=torch.float64)  # noqa: E731
    useless = Calibration(units, noise(16, 1.0), surface(units))._mixture
    wavy = lambda u: torch.sin(40 * u[:, 0]) + torch.sin(40 * u[:, 1])  # noqa: E731
    right = Calibration(units, wavy(units) + noise(16, 0.3), wavy(units))._mixture
    few = Calibration(units[:12], noise(12, 1.0), surface(units[:12]))._mixture
    assert useless is not None and right is not None and few is not None
    assert float(useless.weights[1]) > 0.55
    assert float(right.weights[0]) > 0.6
    assert few.weights.tolist() == [0.5, 0.5]
    assert float(useless.weights.sum()) == float(right.weights.sum()) == pytest.approx(1.0)
    mean, _ = right(fresh, wavy(fresh))
    assert float((mean - wavy(fresh)).square().mean().sqrt()) < 0.5  # the trainings alone: 1


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_gap_to_branches_is_half_of_what_these_have_moved(count: int) -> None:
    """In closed form: a normal distribution of what is common to all settings, and one of what each has on its own."""
    surrogate = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    branches = torch.stack([surrogate + 0.2, surrogate - 0.2, torch.full((3,), math.nan)], 1) + 0.8  # two of three runs
    true = torch.tensor([1.3, 1.7], dtype=torch.float64)[:count]
    gap = Gap(surrogate, branches, torch.ones(count, dtype=torch.float64), true)
    found = gap(settings(2), torch.tensor([0.0, 5.0]))
    common = {0: 0.0, 1: 0.3 / 2, 2: (0.3 + 0.7) / 3}[count]
    assert found.mean.tolist() == pytest.approx([common, 5.0 + common])
    spread = 0.4 * math.sqrt(1 + 1 / (count + 1))  # of one training; they have moved by 0.8
    for end, side in ((found.low, -1.0), (found.high, 1.0)):
        assert (end - found.mean).tolist() == pytest.approx([side * 1.6449 * spread] * 2, rel=1e-4)


def test_a_gap_is_a_share_where_values_are_positive() -> None:
    surrogate = positive(settings(8))
    gap = Gap(surrogate, 1.2 * surrogate, torch.empty(0), torch.empty(0))
    low, middle = (gap(settings(1), torch.tensor([value], dtype=torch.float64)) for value in (1.0, 10.0))
    assert float(middle.high - middle.low) > 5 * float(low.high - low.low)
    assert bool((gap(settings(1), torch.zeros(1)).low >= 0).all())


def test_branches_that_confirm_the_surrogate_leave_no_gap() -> None:
    units = settings(8)
    found = Gap(surface(units), surface(units), torch.empty(0), torch.empty(0))(units, surface(units))
    torch.testing.assert_close(found.low, found.high)


def test_settings_without_a_finite_value_tell_nothing_of_a_gap() -> None:
    before, after = torch.tensor([-1.0, 1.0, math.nan]), torch.tensor([0.0, math.nan, 5.0])
    gap = Gap(before, after, torch.tensor([0.0, math.nan]), torch.tensor([math.nan, 3.0]))
    found = gap(settings(1), torch.zeros(1))
    assert float(found.mean) == 0.0
    assert float(found.high) == pytest.approx(0.5 * 1.6449 * math.sqrt(2), rel=1e-4)


def test_intervals_cover_trainings_that_go_on_as_expected() -> None:
    """Branches move from the surrogate; real training goes on by half of that, at all settings and at each."""
    generator = torch.Generator().manual_seed(0)
    noise = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    inside = []
    for seed in range(200):
        count = seed % 3
        units, fresh = SPACE.sample(16, seed=seed), SPACE.sample(21, seed=seed, method="random")
        slopes = noise(2)
        branched, branched_fresh = (surface(u) + u @ slopes for u in (units, fresh))
        size = 0.5 * (units @ slopes).square().mean().sqrt()
        common = size * noise(1)
        whole, true = (values + common + size * noise(len(values)) for values in (branched, branched_fresh))
        branches = Calibration(units, surface(units), branched)
        foreseen = branches(units, surface(units)).mean[:count]
        gap = Gap(surface(units), branched, foreseen, whole[:count])
        found = Chain([branches, gap])(fresh, surface(fresh))
        inside.append((found.low <= true) & (true <= found.high))
    assert 0.86 <= float(torch.cat(inside).double().mean()) <= 0.95


def test_margins_of_links_add_up_in_squares() -> None:
    class Fixed:
        positive = False

        def __init__(self, step: float, margin: float) -> None:
            self.step, self.margin = step, margin

        def __call__(self, units: torch.Tensor, predicted: torch.Tensor) -> Any:
            mean = predicted + self.step
            return mean, mean - self.margin, mean + 2 * self.margin

    chain = Chain([Fixed(1.0, 3.0), Fixed(10.0, 4.0)])  # type: ignore[list-item]
    found = chain(settings(2), torch.zeros(2))
    assert found.mean.tolist() == [11.0, 11.0]
    assert found.low.tolist() == [6.0, 6.0]
    assert found.high.tolist() == [21.0, 21.0]


def test_what_experts_are_believed_in_changes_their_certainty_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    units, fresh = settings(10), settings(6, seed=1)
    true = surface(units) + 0.1 * torch.randn(10, generator=generator, dtype=torch.float64)
    mixture = Mixture.fit(Line.fit, units, surface(units), true, weighed=True)
    before, after = (m(fresh, surface(fresh), noise=False) for m in (mixture, mixture.believing(fresh[:2])))
    torch.testing.assert_close(after.mean, before.mean, rtol=1e-5, atol=1e-6)
    assert bool((after.deviation[:2] < 0.95 * before.deviation[:2]).all())
    noisy = mixture(fresh, surface(fresh))
    assert bool((noisy.deviation > before.deviation).all())


def test_intervals_of_a_chain_are_not_negative_where_values_cannot_be() -> None:
    units = settings(8)
    chain = Chain(
        [
            Calibration(units, positive(units), 0.1 * positive(units).flip(0)),
            *[Gap(positive(units), 0.1 * positive(units), torch.empty(0), torch.empty(0))] * 2,
        ]
    )
    assert float(chain(units, positive(units)).low.min()) == 0.0


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [1, 0, 2, 3], [3, 1, 2, 0]])
def test_equal_trainings_are_no_wrong_ranking(order: list[int]) -> None:
    """The order of settings makes no difference: the line alone corrects."""
    predicted, true = torch.tensor([0.12, 0.11, 0.2, 0.3])[order], torch.tensor([0.1, 0.1, 0.2, 0.25])[order]
    assert Calibration(settings(4)[order], predicted, true)._mixture is None
    alike = predicted.clamp_min(0.12)  # also foreseen as equal
    assert Calibration(settings(4)[order], alike, true)._mixture is None


@pytest.mark.parametrize("factor", [1e-9, 1.0, 1e6])
def test_the_unit_of_a_metric_makes_no_difference(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    units, fresh = settings(10), settings(6, seed=1)
    true = surface(units) + 0.1 * torch.randn(10, generator=generator, dtype=torch.float64)
    expected = Calibration(units, surface(units), true)(fresh, surface(fresh))
    found = Calibration(units, factor * surface(units), factor * true)(fresh, factor * surface(fresh))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one / factor, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("raises", [True, False])
def test_a_process_that_cannot_be_fitted_is_told_of(raises: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from botorch.exceptions.errors import ModelFittingError
    from botorch.exceptions.warnings import OptimizationWarning

    def failing(mll: Any, **_: Any) -> None:
        if raises:
            raise ModelFittingError("all attempts failed")
        warnings.warn("all attempts failed", OptimizationWarning, stacklevel=1)

    monkeypatch.setattr("botorch.fit.fit_gpytorch_mll", failing)
    units = settings(8)
    with pytest.warns(ht.HypertuneWarning, match="not fitted to the end .all attempts failed."):
        calibration = Calibration(units, surface(units).flip(0), surface(units))
    assert bool(torch.isfinite(calibration(units, surface(units)).mean).all())


def test_a_monotone_curve_has_a_gradient() -> None:
    units, fresh = settings(30), settings(5, seed=1)
    calibration = Calibration(units, surface(units), surface(units) ** 3, method="monotone")
    predicted = surface(fresh).requires_grad_()
    (slope,) = torch.autograd.grad(calibration(fresh, predicted).mean.sum(), predicted)
    step = 1e-6
    high, low = (calibration(fresh, predicted.detach() + side * step).mean for side in (1, -1))
    torch.testing.assert_close(slope, (high - low) / (2 * step), rtol=1e-3, atol=1e-4)


def test_settings_with_nan_are_left_out() -> None:
    units = settings(6)
    true = surface(units) + 1.0
    true[2] = math.nan
    calibration = Calibration(units, surface(units), true, residual=False)
    assert float(calibration(units[:1], surface(units[:1])).mean) == pytest.approx(float(surface(units[:1])) + 1.0)
    with pytest.raises(ht.DataError, match="at least 3 settings with finite values, but got 2 of 3"):
        Calibration(units[:3], surface(units[:3]), true[:3])
