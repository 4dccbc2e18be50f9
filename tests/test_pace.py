"""The heads' learning rate beside that of theta_0."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hypertune_mip.training.pace import LEAD, START, Pace

RATE = 0.5


class Recorder(torch.optim.SGD):
    """Notes the rate of each parameter at every step."""

    seen: dict[int, float]

    def step(self, closure=None):  # type: ignore[no-untyped-def]
        self.seen = {id(p): group["lr"] for group in self.param_groups for p in group["params"]}
        return super().step(closure)


@pytest.fixture
def theta_0() -> nn.Module:
    return nn.Linear(2, 2)


@pytest.fixture
def omega() -> nn.Module:
    return nn.Linear(3, 4)


def rates(optimizer: Recorder, pace: Pace, progress: float) -> dict[int, float]:
    with pace.at(progress):
        optimizer.step()
    return optimizer.seen


@pytest.mark.parametrize(
    ("progress", "share"), [(0.0, START), (LEAD / 2, START**0.5), (LEAD, 1.0), (0.7, 1.0)], ids=str
)
def test_heads_hold_back_while_the_lead_lasts(theta_0, omega, progress: float, share: float) -> None:
    optimizer = Recorder([*omega.parameters(), *theta_0.parameters()], lr=RATE)
    seen = rates(optimizer, Pace(optimizer, theta_0), progress)
    assert {seen[id(p)] for p in theta_0.parameters()} == {RATE}
    assert [seen[id(p)] for p in omega.parameters()] == pytest.approx([RATE * share] * 2)
    assert {group["lr"] for group in optimizer.param_groups} == {RATE}


def test_an_optimisers_own_groups_keep_their_options(theta_0, omega) -> None:
    groups = [{"params": [theta_0.weight, omega.weight], "weight_decay": 0.1}, {"params": [theta_0.bias, omega.bias]}]
    optimizer = Recorder(groups, lr=RATE)
    seen = rates(optimizer, Pace(optimizer, theta_0), 0.0)
    assert len(seen) == 4
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert [decays[id(p)] for p in (theta_0.weight, omega.weight, theta_0.bias, omega.bias)] == [0.1, 0.1, 0, 0]


def test_nothing_waits_for_a_frozen_theta_0_or_where_it_is_switched_off(theta_0, omega) -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    first = Recorder(omega.parameters(), lr=RATE)
    assert set(rates(first, Pace(first, frozen), 0.0).values()) == {RATE}
    second = Recorder([*omega.parameters(), *theta_0.parameters()], lr=RATE)
    assert set(rates(second, Pace(second, theta_0, active=False), 0.0).values()) == {RATE}


def test_rates_return_after_an_error(theta_0, omega) -> None:
    optimizer = Recorder([*omega.parameters(), *theta_0.parameters()], lr=RATE)
    pace = Pace(optimizer, theta_0)
    with pytest.raises(RuntimeError), pace.at(0.0):
        raise RuntimeError
    assert {group["lr"] for group in optimizer.param_groups} == {RATE}
