"""Averages of networks: what their numbers are, and which networks join."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypertune_mip.trainings import greedy_average
from hypertune_mip.trainings.average import with_another


class Counted(nn.Module):
    """With numbers of all kinds: weights, tied ones, statistics, a counter, a mask, and a half-precision tensor."""

    def __init__(self, seed: int, size: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(4, size, generator=generator))
        self.tied = self.weight
        self.scale = nn.Parameter(torch.tensor(float(seed)))
        self.register_buffer("mean", torch.randn(size, generator=generator))
        self.register_buffer("count", torch.tensor(seed))
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))
        self.register_buffer("short", torch.tensor([1.0 + seed / 128], dtype=torch.bfloat16))


def of_members(members: list[nn.Module]) -> dict[str, Tensor]:
    states = [member.state_dict() for member in members]
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in states[0].items()
    }


def test_an_average_is_the_mean_of_all_that_is_a_floating_point_number() -> None:
    networks: list[nn.Module] = [Counted(seed) for seed in range(5)]
    found = greedy_average([lambda n=n: n for n in networks], range(5), lambda network: 0.0)  # type: ignore[misc]
    assert found.members == (0, 1, 2, 3, 4)
    for name, tensor in of_members(networks).items():
        tolerance = {"rtol": 2**-7, "atol": 0.0} if tensor.dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(found.network.state_dict()[name], tensor, **tolerance)
    assert found.network.tied is found.network.weight
    assert not found.network.training and found.network is not networks[0]
    torch.testing.assert_close(networks[0].state_dict(), Counted(0).state_dict(), rtol=0.0, atol=0.0)


def test_what_has_other_shapes_does_not_join() -> None:
    assert with_another(Counted(0), Counted(1, size=2), 1) is None
    makers: Any = [lambda: Counted(0), lambda: Counted(1, size=2), lambda: Counted(2)]
    assert greedy_average(makers, [0, 1, 2], lambda network: 0.0).members == (0, 2)


SCORES = {
    "all": ([3.0, 2.0, 1.0], (2, 0, 1)),
    "a tie": ([3.0, 3.0, 3.0], (2, 0, 1)),
    "none": ([1.0, 2.0, 3.0], (2,)),
    "the last": ([2.0, 3.0, 1.0], (2, 1)),
    "one that is a little worse": ([2.0, 2.001, 1.0], (2, 1)),
    "no number": ([1.0, math.nan, 0.5], (2, 1)),
}


@pytest.mark.parametrize("name", SCORES)
def test_a_network_joins_if_the_average_is_no_worse_with_it(name: str) -> None:
    scores, members = SCORES[name]
    left = iter(scores)
    found = greedy_average([lambda i=i: Counted(i) for i in range(3)], [2, 0, 1], lambda network: next(left))  # type: ignore[misc]
    assert found.members == members
    assert found.score == min(score for score in scores if not math.isnan(score))
    expected = of_members([Counted(index) for index in members])
    torch.testing.assert_close(found.network.state_dict()["weight"], expected["weight"])
