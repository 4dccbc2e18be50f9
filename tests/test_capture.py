"""Laws of captured steps, with recordings that stand for CUDA graphs; `gpu` tests have real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hypertune_mip.execution.capture import Captured, Recording, Step, _shapes

CPU = torch.device("cpu")


class Problem:
    """A step with noise, on two parameters of which one gets no gradient."""

    def __init__(self) -> None:
        self.weight, self.unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
        self.factor = 1.0
        self.calls = 0

    def step(self, x: Tensor) -> Tensor:
        self.calls += 1
        loss = self.factor * (self.weight * (x + torch.rand(3))).square().sum()
        loss.backward()
        return loss.detach()

    def captured(self, record: Any) -> Captured:
        return Captured(self.step, [self.weight, self.unused], CPU, record=record)


class Faithful:
    """Does what the step did, with what Python held then."""

    made = 0

    def __init__(self, step: Step, inputs: Sequence[Any], device: torch.device) -> None:
        problem: Problem = step.__self__  # type: ignore[attr-defined]
        self.problem, self.factor = problem, problem.factor
        type(self).made += 1

    def __call__(self, *inputs: Any) -> Tensor:
        before, self.problem.factor = self.problem.factor, self.factor
        try:
            return self.problem.step(*inputs)
        finally:
            self.problem.factor = before


def record(kind: type) -> Any:
    def make(step: Step, inputs: Sequence[Any], device: torch.device) -> Recording:
        made: Recording = kind(step, inputs, device)
        return made

    return make


def gradients(problem: Problem, run: Any, batches: Sequence[Tensor]) -> list[Tensor]:
    torch.manual_seed(0)
    results = []
    for x in batches:
        problem.weight.grad = None
        run(x)
        run(x)  # a step of two batches adds up
        assert problem.unused.grad is None  # an optimiser leaves alone what has no gradient
        results.append(problem.weight.grad.clone())
    return results


def test_replayed_gradients_are_those_of_the_step() -> None:
    batches = [torch.full((3,), float(i)) for i in range(4)]
    plain, problem = Problem(), Problem()
    expected = gradients(plain, plain.step, batches)
    torch.testing.assert_close(gradients(problem, problem.captured(record(Faithful)), batches), expected)


@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_a_step_that_changes_between_epochs_is_found_out(size: float) -> None:
    """However small its gradients are: what counts is the share by which they differ."""
    problem = Problem()
    with torch.no_grad():
        problem.weight.mul_(size)
    captured = problem.captured(record(Faithful))
    captured(torch.ones(3))
    assert captured.refused is None
    problem.factor = 2.0
    problem.weight.grad = None
    captured.start_epoch()
    torch.manual_seed(0)
    found = captured(torch.ones(3))
    assert "differs from the step itself" in str(captured.refused)
    problem.weight.grad = None
    torch.manual_seed(0)
    torch.testing.assert_close(found, problem.step(torch.ones(3)))


@pytest.mark.parametrize("error", [RuntimeError("operation not permitted when stream is capturing"), TypeError("x")])
def test_what_cannot_be_recorded_runs_as_it_is(error: Exception) -> None:
    def fails(step: Step, inputs: Sequence[Any], device: torch.device) -> Recording:
        torch.rand(5)
        raise error

    plain, problem = Problem(), Problem()
    captured = problem.captured(fails)
    batches = [torch.ones(3)] * 2
    torch.testing.assert_close(gradients(problem, captured, batches), gradients(plain, plain.step, batches))
    assert captured.refused == f"{type(error).__name__}: {error}"


def test_buffers_are_those_of_as_many_steps() -> None:
    """Warming up, recording and comparing leave them as they were."""
    problem, buffer = Problem(), torch.zeros(())
    plain = problem.step

    def step(x: Tensor) -> Tensor:
        buffer.add_(1)
        return plain(x)

    def warmed(step: Step, inputs: Sequence[Any], device: torch.device) -> Recording:
        for _ in range(3):
            step(*inputs)
        return step

    captured = Captured(step, [problem.weight, problem.unused], CPU, buffers=[buffer], record=warmed)
    for count in (1, 2, 3):
        problem.weight.grad = None
        captured.start_epoch()
        captured(torch.ones(3))
        assert int(buffer) == count
    assert captured.refused is None


def test_an_overflow_says_nothing_about_a_recording() -> None:
    """As of float16, whose scale an optimiser then lowers; the next step is compared."""
    problem = Problem()
    captured = problem.captured(record(Faithful))
    captured(torch.full((3,), torch.inf))
    assert captured.refused is None
    for _ in range(2):
        problem.weight.grad = None
        problem.calls = 0
        captured(torch.ones(3))
    assert captured.refused is None and problem.calls == 1  # no longer compared


def test_a_smaller_batch_runs_outside() -> None:
    problem = Problem()
    captured = problem.captured(record(Faithful))
    before = Faithful.made
    captured(torch.ones(3))
    problem.calls = 0
    captured(torch.ones(1))
    assert problem.calls == 1 and Faithful.made == before + 1 and captured.refused is None


def test_a_batch_with_other_objects_is_never_replayed() -> None:
    """What is in them may change unseen; and they may not be comparable at all."""
    problem = Problem()
    step = lambda batch: problem.step(batch["x"])  # noqa: E731
    captured = Captured(step, [problem.weight, problem.unused], CPU, record=lambda step, inputs, device: step)
    for extra in (np.zeros(3), object()):
        before = problem.calls
        batch = {"x": torch.ones(3), "extra": extra}
        captured(batch)
        captured(batch)
        assert problem.calls > before
    assert _shapes([{"x": torch.ones(3), "name": "a"}]) == _shapes([{"x": torch.zeros(3), "name": "a"}])
    assert _shapes([np.zeros(3)]) != _shapes([np.zeros(3)])
