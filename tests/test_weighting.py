"""Weights of settings: what they may depend on, and what they add up to."""

from __future__ import annotations

import math

import pytest
import torch

from hypertune_mip.training.weighting import SettingWeights

STEPS = 60


def observed(weights: SettingWeights, *, noise: float = 0.0, progress: float = 1.0) -> None:
    """Show `weights` steps of losses exp(1 + 2 x) with multiplicative noise."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        x = torch.rand(10, 1, generator=generator, dtype=torch.float64)
        error = noise * torch.randn(10, generator=generator, dtype=torch.float64)
        weights(torch.exp(1 + 2 * x[:, 0] + error), x, progress=progress)


def test_at_the_end_every_setting_weighs_one_over_its_loss() -> None:
    weights = SettingWeights(1)
    observed(weights)
    x = torch.tensor([[0.0], [0.5], [1.0]], dtype=torch.float64)
    losses = torch.exp(1 + 2 * x[:, 0])
    got = weights(losses, x, progress=1.0) * losses
    torch.testing.assert_close(got, torch.full_like(got, 1 / 3), rtol=0.05, atol=0)


def test_weights_do_not_depend_on_the_losses_of_the_step_itself() -> None:
    first, second = SettingWeights(1), SettingWeights(1)
    observed(first, noise=0.3)
    observed(second, noise=0.3)
    x = torch.tensor([[0.2], [0.8]], dtype=torch.float64)
    usual = first(torch.tensor([2.0, 9.0], dtype=torch.float64), x, progress=1.0)
    lucky = second(torch.tensor([4.0, 5.0], dtype=torch.float64), x, progress=1.0)
    torch.testing.assert_close(usual, lucky)


@pytest.mark.parametrize(("progress", "power"), [(0.0, 4.0), (0.075, 2.0), (0.15, 0.0), (1.0, 0.0)])
def test_small_losses_lead_at_first_and_no_longer_after_the_lead(progress: float, power: float) -> None:
    weights = SettingWeights(1)
    observed(weights)
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    losses = torch.exp(1 + 2 * x[:, 0])
    share = weights(losses, x, progress=progress) * losses
    assert share.sum().item() == pytest.approx(1.0, rel=0.1)
    assert (share[0] / share[1]).item() == pytest.approx(math.exp(2.0 * power), rel=0.2)


def test_after_a_negative_loss_all_settings_share_one_scale() -> None:
    weights = SettingWeights(1)
    x = torch.tensor([[0.0], [1.0]])
    weights(torch.tensor([-1.0, 3.0]), x, progress=0.0)
    got = weights(torch.tensor([1.0, 3.0]), x, progress=0.0)
    assert got[0] == got[1]
    assert got.sum().item() == pytest.approx(1 / 2, rel=0.05)  # the running mean of |loss| is 2


def test_without_normalisation_all_count_the_same() -> None:
    got = SettingWeights(1, normalize=False)(torch.tensor([1.0, 5.0]), torch.zeros(2, 1), progress=0.0)
    assert got.tolist() == [0.5, 0.5]


def test_a_restored_state_goes_on_as_the_original() -> None:
    original, restored = SettingWeights(1), SettingWeights(1)
    observed(original)
    restored.load_state_dict(original.state_dict())
    x, losses = torch.tensor([[0.1], [0.9]], dtype=torch.float64), torch.tensor([3.0, 8.0], dtype=torch.float64)
    for _ in range(7):  # past the next solution of the regression
        left = original(losses, x, progress=0.1)
        assert torch.equal(left, restored(losses, x, progress=0.1))


@pytest.mark.parametrize("losses", [(0.0, 0.0), (0.0, 1.0)])
def test_a_loss_of_zero_has_a_finite_weight(losses: tuple[float, float]) -> None:
    got = SettingWeights(1)(torch.tensor(losses), torch.zeros(2, 1), progress=0.0)
    assert torch.isfinite(got).all()
