"""The random state of the process: what a seed gives does not depend on what other threads do."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import hypertune_mip as ht
from hypertune_mip.randomness import forked_random_state
from tests import small_problem as problem


def test_the_random_state_is_restored() -> None:
    before = torch.get_rng_state()
    with forked_random_state(seed=3):
        drawn = torch.rand(2)
    assert torch.equal(before, torch.get_rng_state())
    with forked_random_state(seed=3):
        assert torch.equal(drawn, torch.rand(2))
    with forked_random_state():
        first = torch.rand(2)
    assert torch.equal(first, torch.rand(2))  # without a seed it goes on from where it was


def test_other_threads_wait() -> None:
    entered, left = threading.Event(), threading.Event()

    def other() -> bool:
        entered.wait()
        with forked_random_state(seed=1):
            return left.is_set()

    with ThreadPoolExecutor(1) as pool:
        with forked_random_state(seed=0):
            answer = pool.submit(other)
            entered.set()
            drawn = torch.rand(100_000)
            left.set()
        assert answer.result()
    with forked_random_state(seed=0):
        assert torch.equal(drawn, torch.rand(100_000))


def fitted(network: torch.nn.Module, seed: int) -> torch.Tensor:
    execution = ht.Execution(mapping="loop", formed=("*",))  # else by time, and each way draws dropout's noise anew
    hypernet = ht.HyperNetwork(network, problem.SPACE, trunk=(6,), seed=seed)
    surrogate = problem.fit(hypernet, epochs=4, seed=seed, execution=execution)
    return torch.cat([value.flatten().double() for value in surrogate.hypernet.state_dict().values()])


def trained(network: torch.nn.Module, seed: int) -> torch.Tensor:
    trainer = ht.Trainer(
        network,
        problem.SPACE,
        problem.loss,
        problem.loader(),
        recipe=ht.Recipe(epochs=4),
        metric=problem.metric,
        val_loader=[problem.data().tensors],
    )
    made = trainer.network(problem.CONFIG, seed=seed)
    return torch.cat([value.flatten().double() for value in made.state_dict().values()])


@pytest.mark.parametrize("make", [fitted, trained])
def test_what_threads_make_is_what_one_makes_alone(make: Callable[[torch.nn.Module, int], torch.Tensor]) -> None:
    """To rounding."""
    networks = [problem.network() for _ in range(3)]
    alone = [make(copy.deepcopy(network), seed) for seed, network in enumerate(networks)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(make, [copy.deepcopy(network) for network in networks], range(3)))
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_process_that_is_fitted_leaves_the_random_state_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is seeded only to try again a fit that has failed."""
    pytest.importorskip("botorch")
    from hypertune_mip.verification.calibration import Calibration

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the random state was taken")

    monkeypatch.setattr("hypertune_mip.verification.experts.forked_random_state", refuse)
    units = problem.SPACE.sample(8)
    predicted = units.sum(1)
    before = torch.get_rng_state()
    Calibration(units, predicted, predicted.flip(0))
    assert torch.equal(before, torch.get_rng_state())
