"""Weights of settings: what they may depend on, and what they add up to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hypertune_mip.training.weighting import SettingWeights

STEPS = 60


def observed(weights: SettingWeights, *, noise: float = 0.0, progress: float = 1.0, settings: int = 10) -> None:
    """Show `weights` steps of losses exp(1 + 2 x) with multiplicative noise."""
    generator = np.random.default_rng(0)
    for _ in range(STEPS):
        x = generator.random((settings, 1))
        error = noise * generator.standard_normal(settings)
        weights.observe(np.exp(1 + 2 * x[:, 0] + error), x, progress=progress)


def of(weights: SettingWeights, losses: np.ndarray | None, x: np.ndarray, **options: Any) -> np.ndarray:
    """What the settings of a whole step weigh in the end."""
    got, leads = weights(losses, x, **options)
    return got / leads.mean()


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def test_at_the_end_every_setting_weighs_one_over_its_loss() -> None:
    weights, x = SettingWeights(1), column(0.0, 0.5, 1.0)
    observed(weights)
    got = of(weights, None, x, progress=1.0, settings=3) * np.exp(1 + 2 * x[:, 0])
    np.testing.assert_allclose(got, 1 / 3, rtol=0.05)


def test_weights_do_not_depend_on_the_losses_of_the_step_itself() -> None:
    weights, x = SettingWeights(1), column(0.2, 0.8)
    observed(weights, noise=0.3)
    assert weights.settled
    usual = of(weights, np.array([2.0, 9.0]), x, progress=1.0, settings=2)
    np.testing.assert_array_equal(usual, of(weights, np.array([4.0, 5.0]), x, progress=1.0, settings=2))


@pytest.mark.parametrize("steps", [0, 3, STEPS])
@pytest.mark.parametrize("progress", [0.0, 0.1, 1.0])
def test_settings_weigh_the_same_looked_at_one_by_one(steps: int, progress: float) -> None:
    weights, x, losses = SettingWeights(1), column(0.2, 0.5, 0.8), np.array([3.0, 0.1, 40.0])
    for _ in range(steps):
        weights.observe(losses, x, progress=progress)
    together = weights(losses, x, progress=progress, settings=3)
    alone = [weights(losses[i : i + 1], x[i : i + 1], progress=progress, settings=3) for i in range(3)]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(whole, np.concatenate(parts))


LEADS = [(0.0, 4.0), (0.075, 2.0), (0.15, 0.0), (1.0, 0.0)]


@pytest.mark.parametrize(("progress", "power"), LEADS)
def test_small_losses_lead_at_first_and_no_longer_after_the_lead(progress: float, power: float) -> None:
    weights, x = SettingWeights(1), column(0.0, 1.0)
    observed(weights)
    share = of(weights, None, x, progress=progress, settings=2) * np.exp(1 + 2 * x[:, 0])
    assert share.sum() == pytest.approx(1.0, rel=0.1)
    assert share[0] / share[1] == pytest.approx(math.exp(2.0 * power), rel=0.2)


@pytest.mark.parametrize(("progress", "power"), LEADS)
def test_a_setting_alone_leads_by_what_is_usual(progress: float, power: float) -> None:
    """The ratio of weights is that of the losses to a power; the mean over the space stays where it is."""
    weights = SettingWeights(1)
    observed(weights, progress=progress, settings=1)
    grid = (np.arange(100)[:, None] + 0.5) / 100
    shares = np.concatenate(
        [of(weights, None, x[None], progress=progress, settings=1) * np.exp(1 + 2 * x) for x in grid]
    )
    assert shares[40] / shares[60] == pytest.approx(math.exp(0.4 * power), rel=0.1)
    assert 0.5 < shares.mean() < 2.0


@pytest.mark.parametrize("loss", [0.01, 1.0, 100.0])
def test_the_first_setting_alone_has_no_lead(loss: float) -> None:
    """Whatever the unit of the loss."""
    weights, x = SettingWeights(1), column(0.5)
    for _ in range(2):
        assert of(weights, np.array([loss]), x, progress=0.0, settings=1) * loss == pytest.approx(1.0)
        weights.observe(np.array([loss]), x, progress=0.0)


def test_a_sudden_fall_of_the_loss_does_not_outweigh_all_before() -> None:
    weights, x = SettingWeights(1), column(0.5)
    for _ in range(5):
        weights.observe(np.array([100.0]), x, progress=0.0)
    share = of(weights, np.array([1e-3]), x, progress=0.0, settings=1) * 1e-3
    assert share[0] == pytest.approx(10.0)


def test_after_a_negative_loss_all_settings_share_one_scale() -> None:
    weights, x = SettingWeights(1), column(0.0, 0.0)
    weights.observe(np.array([-1.0, 3.0]), x, progress=0.0)
    got = of(weights, np.array([1.0, 3.0]), x, progress=0.0, settings=2)
    assert got[0] == got[1]
    assert got.sum() == pytest.approx(1 / 2, rel=0.05)  # the running mean of |loss| is 2


def test_without_normalisation_all_count_the_same() -> None:
    weights = SettingWeights(1, normalize=False)
    assert of(weights, np.array([1.0, 5.0]), column(0.0, 0.0), progress=0.0, settings=2).tolist() == [0.5, 0.5]


def test_a_restored_state_goes_on_as_the_original() -> None:
    original, restored = SettingWeights(1), SettingWeights(1)
    observed(original)
    restored.load_state_dict(original.state_dict())
    x, losses = column(0.1, 0.9), np.array([3.0, 8.0])
    for _ in range(7):  # past the next solution of the regression
        left, right = (of(one, None, x, progress=0.1, settings=2) for one in (original, restored))
        assert np.array_equal(left, right)
        for one in (original, restored):
            one.observe(losses, x, progress=0.1)


@pytest.mark.parametrize("losses", [(0.0, 0.0), (0.0, 1.0)])
def test_a_loss_of_zero_has_a_finite_weight(losses: tuple[float, float]) -> None:
    weights, x = SettingWeights(1), column(0.0, 0.0)
    for _ in range(2):
        assert np.isfinite(of(weights, np.array(losses), x, progress=0.0, settings=2)).all()
        weights.observe(np.array(losses), x, progress=0.0)


def test_the_regression_stays_well_posed_however_long_it_forgets() -> None:
    """A categorical's columns sum to 1, as does the constant: without a ridge that is kept up they end as nothing."""
    weights = SettingWeights(2)
    for step in range(3000):
        kind = np.eye(2)[[step % 2, (step // 3) % 2]]
        weights.observe(np.exp(kind @ [1.0, 2.0]), kind, progress=1.0)
    smallest = np.linalg.eigvalsh(weights.state_dict()["gram"].numpy())[0]
    assert smallest > 0.9e-2
    got = of(weights, None, np.eye(2), progress=1.0, settings=2)
    np.testing.assert_allclose(got * np.exp([1.0, 2.0]), 0.5, rtol=0.01)


def test_no_setting_weighs_as_if_its_loss_were_outside_of_what_was_seen() -> None:
    weights = SettingWeights(1)
    generator = np.random.default_rng(0)
    for _ in range(STEPS):  # on the left half only, where losses go from 1 to e^5
        x = 0.5 * generator.random((4, 1))
        weights.observe(np.exp(10 * x[:, 0]), x, progress=1.0)
    low, high = of(weights, None, column(-1.0, 1.5), progress=1.0, settings=2)
    assert 0.5 * np.exp(-5) < high < 0.6 * np.exp(-4.5)
    assert 0.5 * np.exp(-0.5) < low <= 0.5


@pytest.mark.parametrize("progress", [0.0, 0.1, 1.0])
def test_the_unit_of_the_loss_does_not_matter(progress: float) -> None:
    """Losses a trillion times as large weigh a trillionth, also where small ones lead."""
    x, got = column(0.0, 0.5, 1.0), []
    for scale in (1.0, 1e12):
        weights = SettingWeights(1)
        for _ in range(STEPS):
            weights.observe(scale * np.exp(1 + 2 * x[:, 0]), x, progress=progress)
        got.append(scale * of(weights, None, x, progress=progress, settings=3))
    np.testing.assert_allclose(got[1], got[0], rtol=0.05)  # a ridge looks at the size of logs
