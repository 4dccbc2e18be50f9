"""What a run keeps of its beginning: the hypernetwork as it was after a quarter of the epochs."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from small_problem import InterruptedByTest, assert_same_state, fit, hypernet, interrupt_at, network, validation
from torch import Tensor, nn

import hypertune_mip as ht
from hypertune_mip.training.checkpoint import load_result


def normed() -> nn.Sequential:
    """With buffers beside the parameters."""
    first, *rest = network()
    return nn.Sequential(first, nn.BatchNorm1d(5), *rest)


KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "frozen theta_0": {"freeze_theta_0": True, "head": ht.LowRank(rank=2)},
    "shared parameters": {"generate": ["0"]},
    "buffers": {"network": normed()},
    "no residual": {"head": ht.Dense(), "residual": False},
}


def same_tensors(left: Any, right: Any) -> bool:
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("kind", KINDS)
def test_the_early_state_is_the_hypernetwork_of_that_epoch(kind: str) -> None:
    net = hypernet(**KINDS[kind])
    then: list[dict[str, Tensor]] = []
    surrogate = fit(
        net, epochs=8, callbacks=[lambda r: then.append({n: t.clone() for n, t in net.state_dict().items()})]
    )
    assert surrogate.early is not None
    assert same_tensors(surrogate.early, then[1])
    early = copy.deepcopy(surrogate.hypernet)
    early.load_state_dict(surrogate.early)
    shorter = hypernet(**KINDS[kind])
    with pytest.raises(InterruptedByTest):
        fit(shorter, epochs=8, callbacks=[interrupt_at(2)])
    assert_same_state(early, shorter)


@pytest.mark.parametrize(("epochs", "epoch"), [(1, None), (2, 1), (3, 1), (6, 2), (8, 2), (11, 3)])
def test_it_is_taken_after_a_quarter_of_the_epochs(epochs: int, epoch: int | None) -> None:
    net = hypernet()
    then: list[dict[str, Tensor]] = []
    keep = lambda r: then.append({n: t.clone() for n, t in net.state_dict().items()})  # noqa: E731
    early = fit(net, epochs=epochs, callbacks=[keep]).early
    assert (early is None) if epoch is None else same_tensors(early, then[epoch - 1])


def test_a_run_that_ends_before_has_none(tmp_path: Path) -> None:
    before = fit(epochs=8, callbacks=[lambda record: True], checkpoint=tmp_path)
    assert before.early is None
    resumed = fit(epochs=8, checkpoint=tmp_path, resume=True)
    assert same_tensors(resumed.early, fit(epochs=8).early)


def test_a_run_that_is_resumed_later_keeps_it(tmp_path: Path) -> None:
    with pytest.raises(InterruptedByTest):
        fit(epochs=8, checkpoint=tmp_path, callbacks=[interrupt_at(6)])
    net = hypernet()
    unfinished = load_result(tmp_path, net)
    assert len(unfinished.history) == 5
    resumed = fit(net, epochs=8, checkpoint=tmp_path, resume=True)
    assert same_tensors(unfinished.snapshot, resumed.early)
    assert same_tensors(resumed.early, fit(epochs=8).early)


def test_training_goes_on_without_changing_it() -> None:
    surrogate = fit(epochs=4)
    assert surrogate.early is not None
    assert not same_tensors(surrogate.early, surrogate.hypernet.state_dict())
    assert all(not tensor.requires_grad for tensor in surrogate.early.values())


def test_copies_and_files_of_a_surrogate_have_it(tmp_path: Path) -> None:
    surrogate = fit(epochs=4, **validation())
    surrogate.save(tmp_path)
    copies = [ht.Surrogate.load(tmp_path, network()), surrogate.to("cpu"), pickle.loads(pickle.dumps(surrogate))]
    assert all(same_tensors(each.early, surrogate.early) for each in copies)
    assert ht.Surrogate(hypernet()).early is None
