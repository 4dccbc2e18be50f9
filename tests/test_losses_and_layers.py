"""Losses, penalties and layers that take a hyperparameter: against torch's own, against definitions, and under vmap."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor, nn
from torch.func import vmap

import hypertune_mip as ht


@pytest.fixture
def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(16, 5, generator=generator), torch.randint(5, (16,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_cross_entropy_is_torchs(batch: tuple[Tensor, Tensor], smoothing: float) -> None:
    logits, target = batch
    expected = F.cross_entropy(logits, target, label_smoothing=smoothing)
    torch.testing.assert_close(ht.losses.cross_entropy(logits, target, label_smoothing=smoothing), expected)
    soft = F.one_hot(target, 5).float()
    torch.testing.assert_close(ht.losses.cross_entropy(logits, soft, label_smoothing=torch.tensor(smoothing)), expected)


def test_cross_entropy_of_images(generator: torch.Generator) -> None:
    logits, target = torch.randn(2, 5, 4, 3, generator=generator), torch.randint(5, (2, 4, 3), generator=generator)
    torch.testing.assert_close(
        ht.losses.cross_entropy(logits, target, label_smoothing=0.2),
        F.cross_entropy(logits, target, label_smoothing=0.2),
    )


def test_smoothing_by_setting_under_vmap(batch: tuple[Tensor, Tensor]) -> None:
    smoothings = torch.tensor([0.0, 0.3, 0.6])
    mapped = vmap(lambda s: ht.losses.cross_entropy(*batch, label_smoothing=s))(smoothings)
    torch.testing.assert_close(
        mapped, torch.stack([F.cross_entropy(*batch, label_smoothing=float(s)) for s in smoothings])
    )


def test_focal_loss_is_its_definition(batch: tuple[Tensor, Tensor]) -> None:
    logits, target = batch
    p = logits.softmax(1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(ht.losses.focal(logits, target, gamma=2.0), (-((1 - p) ** 2) * p.log()).mean())
    torch.testing.assert_close(ht.losses.focal(logits, target, gamma=0.0), F.cross_entropy(logits, target))


def test_focal_loss_has_a_finite_gradient_at_certainty() -> None:
    gamma = torch.tensor(0.5, requires_grad=True)
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    ht.losses.focal(logits, torch.tensor([0]), gamma=gamma).backward()
    assert torch.isfinite(gamma.grad) and torch.isfinite(logits.grad).all()


def test_mean_squared_error_refuses_to_broadcast() -> None:
    assert ht.losses.mean_squared_error(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])) == 2.5
    with pytest.raises(ht.LossError, match=r"\(4, 1\) and \(4,\)"):
        ht.losses.mean_squared_error(torch.zeros(4, 1), torch.zeros(4))


def test_penalties_of_a_plain_network() -> None:
    """The same loss trains a plain network from scratch."""
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    everything = torch.cat([p.flatten() for p in network.parameters()])
    torch.testing.assert_close(ht.losses.l2(network), everything.square().sum())
    torch.testing.assert_close(ht.losses.l1(network), everything.abs().sum())
    torch.testing.assert_close(
        ht.losses.l2(network, where="*.weight"), sum(network[i].weight.square().sum() for i in (0, 2))
    )
    torch.testing.assert_close(
        ht.losses.elastic(network, l1_ratio=0.3), 0.3 * everything.abs().sum() + 0.35 * everything.square().sum()
    )
    with pytest.raises(ht.LossError, match="matches none"):
        ht.losses.l2(network, where="*.weights")
    with pytest.raises(ht.LossError, match="Tensor"):
        ht.losses.l2(torch.zeros(3))


def test_weighted_sum_by_name() -> None:
    losses = {"fit": torch.tensor(2.0), "smooth": torch.tensor(3.0)}
    assert ht.losses.weighted_sum(losses, {"fit": 1.0, "smooth": torch.tensor(0.5), "other": 9.0}) == 3.5
    with pytest.raises(ht.LossError, match="smooth"):
        ht.losses.weighted_sum(losses, {"fit": 1.0})
    with pytest.raises(ht.LossError):
        ht.losses.weighted_sum({}, {})


def test_mixup_mixes_examples_and_targets_alike(batch: tuple[Tensor, Tensor]) -> None:
    x = torch.arange(16.0)[:, None].expand(16, 2)
    mixed, target = ht.losses.mixup(x, torch.arange(16.0), strength=1.0)
    torch.testing.assert_close(mixed[:, 0], target)
    share = (mixed[1:, 0] - x[1:, 0]).abs()  # the neighbour is one away
    assert 0.0 <= share.min() and share.max() <= 0.5
    assert share.mean() == pytest.approx(0.25, abs=0.1)


def test_mixup_of_classes_gives_probabilities(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    mixed, target = ht.losses.mixup(x, y, strength=0.0, classes=5)
    torch.testing.assert_close(mixed, x)
    torch.testing.assert_close(target, F.one_hot(y, 5).float())
    _, target = ht.losses.mixup(x, y, strength=0.8, classes=5)
    torch.testing.assert_close(target.sum(1), torch.ones(16))
    with pytest.raises(ht.LossError, match="classes"):
        ht.losses.mixup(x, y, strength=0.5)


def conditioned(network: nn.Module, high: float = 0.9) -> ht.HyperNetwork:
    names = {m.hyperparameter for m in network.modules() if hasattr(m, "hyperparameter")}
    return ht.HyperNetwork(network, ht.SearchSpace({name: FloatDistribution(0.0, high) for name in names}))


def test_dropout_drops_at_each_settings_rate() -> None:
    this = conditioned(nn.Sequential(ht.nn.Dropout("rate"), nn.Linear(1, 1))).train()
    units = torch.tensor([[0.0], [0.5], [1.0]], dtype=torch.float64)
    x = torch.ones(40_000, 1)
    dropped = this(lambda m, b, c: m[0](b), units, x, split=False)[..., 0]
    for row, rate in zip(dropped, (0.0, 0.45, 0.9), strict=True):
        assert (row == 0).float().mean().item() == pytest.approx(rate, abs=0.01)
        assert row.mean().item() == pytest.approx(1.0, abs=0.05)
        torch.testing.assert_close(row.max().item(), 1 / (1 - rate), rtol=1e-5, atol=0)
    assert torch.equal(this.eval()(lambda m, b, c: m[0](b), units, x, split=False), x.expand(3, -1, 1))


def test_noise_has_each_settings_standard_deviation() -> None:
    this = conditioned(nn.Sequential(ht.nn.GaussianNoise("sigma"), nn.Linear(1, 1)), high=2.0).train()
    units = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    noisy = this(lambda m, b, c: m[0](b), units, torch.zeros(20_000, 1), split=False)
    assert noisy[0].abs().max() == 0
    assert noisy[1].std().item() == pytest.approx(2.0, rel=0.03)
    assert this.eval()(lambda m, b, c: m[0](b), units, torch.zeros(9, 1), split=False).abs().max() == 0


def test_settings_get_noise_of_their_own() -> None:
    this = conditioned(nn.Sequential(ht.nn.Dropout("rate"), nn.Linear(1, 1))).train()
    same = torch.full((2, 1), 0.5, dtype=torch.float64)
    left, right = this(lambda m, b, c: m[0](b), same, torch.ones(100, 1), split=False)
    assert not torch.equal(left, right)


def test_resolve_gives_plain_layers_at_the_values_of_a_config() -> None:
    network = nn.Sequential(
        ht.nn.Dropout("rate"), nn.Sequential(ht.nn.GaussianNoise("sigma")), ht.nn.Dropout(0.2)
    ).eval()
    plain = ht.nn.resolve(network, {"rate": 0.4, "sigma": torch.tensor(0.7), "unused": 1.0})
    assert type(plain[0]) is nn.Dropout and plain[0].p == 0.4
    assert plain[1][0].hyperparameter == pytest.approx(0.7)
    assert not plain[0].training
    assert isinstance(network[0], ht.nn.Dropout)
    with pytest.raises(ht.SpaceError, match="'sigma'"):
        ht.nn.resolve(network, {"rate": 0.4})


def test_a_layer_with_a_fixed_number_needs_no_config() -> None:
    layer = ht.nn.Dropout(0.25).train()
    kept = (layer(torch.ones(20_000)) > 0).float().mean().item()
    assert math.isclose(kept, 0.75, abs_tol=0.02)
    for wrong in (-0.1, 1.0, math.nan):
        with pytest.raises(ht.SpaceError, match="dropout rate"):
            ht.nn.Dropout(wrong)
    with pytest.raises(ht.SpaceError, match="negative"):
        ht.nn.GaussianNoise(-1.0)


def test_a_class_that_cannot_be_does_not_spoil_the_loss() -> None:
    logits, target = torch.tensor([[1.0, 2.0, -torch.inf]]), torch.tensor([0], dtype=torch.uint8)
    expected = nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(ht.losses.cross_entropy(logits, target), expected)
    torch.testing.assert_close(ht.losses.focal(logits, target, gamma=0.0), expected)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_of_smoothing_outside_of_its_range_is_refused(share: float) -> None:
    with pytest.raises(ht.LossError, match=rf"in \[0, 1\], but got {share}"):
        ht.losses.cross_entropy(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), label_smoothing=share)
