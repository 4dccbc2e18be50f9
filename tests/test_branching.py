"""Branches: from where they start, what they take along, and that they are short trainings from there."""

from __future__ import annotations

import copy
import functools
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hypertune_mip as ht
from hypertune_mip.trainings import greedy_average
from hypertune_mip.trainings.statistics import collect_statistics
from tests import small_problem as problem
from tests.small_branches import CONFIGS, WHOLE, Normed, Uncounted, measured, normed, restless, still, surrogate


@pytest.mark.parametrize("start", ["end", "early"])
def test_a_branch_starts_from_what_the_hypernetwork_makes(start: Any) -> None:
    hypernet = copy.deepcopy(surrogate().hypernet)
    if start == "early":
        assert surrogate().early is not None
        hypernet.load_state_dict(surrogate().early)  # type: ignore[arg-type]
    made = hypernet.effective(problem.SPACE.to_unit(CONFIGS))
    found = surrogate().trainer(still()).branch(CONFIGS, start=start, progress=False)
    for index, network in enumerate(found.networks):
        for name, parameter in zip(made, network.parameters(), strict=True):
            torch.testing.assert_close(parameter, made[name][index])
    if start == "end":
        np.testing.assert_allclose(found.metrics["error"], surrogate().evaluate_batch(CONFIGS)["error"], rtol=1e-5)


def test_a_branch_is_a_short_training_from_there() -> None:
    """As a loop written by hand gives it: a part of an epoch, the schedule running through."""
    loader = problem.loader(shuffle=False)
    recipe = ht.Recipe(epochs=4, optimizer=lambda p, config: torch.optim.SGD(p, lr=0.1 + config["decay"]))
    config = dict(problem.CONFIG, dropout=0.0)
    found = surrogate().trainer(recipe, train_loader=loader).branch([config], share=0.6, start="end", progress=False)
    model = surrogate().materialize(config).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.11)
    steps = round(0.6 * 4 * len(loader))
    assert steps % len(loader) != 0
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for batch in [batch for _ in range(4) for batch in loader][:steps]:
        optimizer.zero_grad()
        problem.loss(model, batch, config).backward()
        optimizer.step()
        schedule.step()
    assert found.metrics["error"][0] == pytest.approx(measured(model.eval())["error"], rel=1e-5)
    assert measured(found.networks[0])["error"] == pytest.approx(found.metrics["error"][0], rel=1e-5)
    assert found.cost == pytest.approx(steps / (4 * len(loader)))


def test_branches_of_a_network_with_statistics_and_a_frozen_part() -> None:
    given = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), ht.nn.Dropout("dropout"), nn.Linear(6, 1))
    given[0].requires_grad_(False)
    own = problem.fit(problem.hypernet(network=given), epochs=4, **problem.validation())
    found = own.branch(CONFIGS, share=0.5, progress=False)
    for network, value in zip(found.networks, found.metrics["error"], strict=True):
        assert torch.equal(network[0].weight, given[0].weight)
        assert int(network[1].num_batches_tracked) == 2 * 3
        assert measured(network)["error"] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("share", [0.0, 1.1, -0.5, math.nan, "half"])
def test_a_share_is_a_part_of_the_recipe(share: Any) -> None:
    with pytest.raises(ht.OptionError, match="`share`"):
        surrogate().branch(CONFIGS, share=share)


def test_a_branch_begins_with_the_running_statistics_of_its_first_batch() -> None:
    trainer = normed().trainer(still())
    for steps in (1, 8):
        (network,) = trainer.branch([{"decay": 0.1}], share=steps / 8, start="end", progress=False).networks
        inner = network[0](WHOLE[0][0]).detach()
        torch.testing.assert_close(network[1].running_mean, inner.mean(0))
        torch.testing.assert_close(network[1].running_var, inner.var(0))
        assert float(network[1].running_var.max()) < 0.1 and network[1].num_batches_tracked == steps
        assert network[1].momentum == 0.1
    with torch.no_grad():
        network[1].running_mean.fill_(100.0)
    network[1].num_batches_tracked.zero_()  # as old checkpoints have it
    again = trainer.branch([{"decay": 0.1}], share=0.125, start=network, progress=False).networks[0]
    torch.testing.assert_close(again[1].running_mean, 90.0 + 0.1 * inner.mean(0))  # which had statistics of its own


def test_a_training_from_scratch_begins_with_those_of_the_layer() -> None:
    network = normed().trainer(still()).network({"decay": 0.1})
    inner = network[0](WHOLE[0][0]).detach()
    torch.testing.assert_close(network[1].running_var, 0.9**8 + (1 - 0.9**8) * inner.var(0))


def test_an_average_has_running_statistics_of_its_own() -> None:
    trainer = normed().trainer()
    configs = [{"decay": decay} for decay in (0.01, 0.1, 1.0)]
    branches = trainer.branch(configs, share=0.25, start="end", progress=False)
    finish = functools.partial(trainer.collect_statistics, config=configs[0])
    makers = [functools.partial(branches.make, index) for index in range(3)]
    found = greedy_average(makers, range(3), lambda network: 0.0, finish=finish)
    assert found.members == (0, 1, 2)
    inner = found.network[0](WHOLE[0][0]).detach()
    torch.testing.assert_close(found.network[1].running_mean, inner.mean(0))
    torch.testing.assert_close(found.network[1].running_var, inner.var(0))


def test_statistics_are_collected_with_all_else_in_evaluation_mode() -> None:
    trainer, network = normed().trainer(), Normed()
    torch.manual_seed(3)
    before, weights = torch.get_rng_state(), copy.deepcopy(dict(network.named_parameters()))
    trainer.collect_statistics(network, {"decay": 0.1})
    torch.testing.assert_close(torch.get_rng_state(), before)
    torch.testing.assert_close(dict(network.named_parameters()), weights)
    assert not network.training and not network[1].training and network[1].momentum == 0.1
    inner = network[0](WHOLE[0][0]).detach()
    torch.testing.assert_close(network[1].running_var, inner.var(0))
    instances = nn.Sequential(nn.Unflatten(1, (3, 1)), nn.InstanceNorm1d(3, track_running_stats=True), nn.Flatten())
    x = torch.arange(12.0).reshape(2, 3, 2)
    collect_statistics(instances, ["1"], [x[:1], x[1:]], lambda batch: instances[1](batch))
    torch.testing.assert_close(instances[1].running_mean, x.mean(2).mean(0))
    torch.testing.assert_close(instances[1].running_var, x.var(2).mean(0))
    plain = problem.plain_network()
    expected = copy.deepcopy(plain.state_dict())
    surrogate().trainer().collect_statistics(plain, CONFIGS[0])
    torch.testing.assert_close(plain.state_dict(), expected)


@pytest.mark.parametrize(("share", "epochs"), [(0.25, 2), (0.3, 3), (1.0, 8), (0.01, 1)])
def test_a_branch_epoch_by_epoch_is_the_branch(share: float, epochs: int, tmp_path: Path) -> None:
    expected = surrogate().trainer(parallel=1).branch(CONFIGS[:1], share=share, seed=2, progress=False)
    trainer = surrogate().trainer(folder=tmp_path)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    seen = list(trainer.branch_epochs(CONFIGS[0], share=share, seed=2))
    torch.testing.assert_close(torch.get_rng_state(), before)
    assert [epoch for epoch, _ in seen] == list(range(1, epochs + 1))
    assert seen[-1][1] == {name: column[0] for name, column in expected.metrics.items()}
    assert len({values["error"] for _, values in seen}) == epochs
    found = trainer.branch(CONFIGS[:1], share=share, seed=2, progress=False)  # which is there already
    problem.assert_same_state(found.networks[0], expected.networks[0])
    assert list(trainer.branch_epochs(CONFIGS[0], share=share, seed=2)) == seen[-1:]
    assert len(list(tmp_path.glob("training-*.json"))) == 1


def test_nothing_is_kept_of_a_branch_that_is_not_gone_through(tmp_path: Path) -> None:
    trainer = surrogate().trainer(folder=tmp_path)
    for epoch, _ in trainer.branch_epochs(CONFIGS[0], share=0.5):
        if epoch == 2:
            break
    assert not list(tmp_path.glob("training-*.json"))
    assert [epoch for epoch, _ in trainer.branch_epochs(CONFIGS[0], share=0.5)] == [1, 2, 3, 4]


def test_epochs_of_a_loader_without_length() -> None:
    own = problem.fit(epochs=8, schedule=None, train_loader=Uncounted(), **problem.validation())
    trainer = own.trainer()
    assert [epoch for epoch, _ in trainer.branch_epochs(CONFIGS[0], share=0.25)] == [1, 2]
    assert [epoch for epoch, _ in trainer.branch_epochs(CONFIGS[0], share=0.25)] == [2]


def test_a_branch_epoch_by_epoch_refuses_at_once_what_a_branch_does() -> None:
    trainer = surrogate().trainer()
    with pytest.raises(ht.SpaceError):
        trainer.branch_epochs({"decay": 0.1})
    with pytest.raises(ht.OptionError, match="`share` must lie in"):
        trainer.branch_epochs(CONFIGS[0], share=2.0)


def test_a_trainer_by_another_recipe_shares_what_is_finished(tmp_path: Path) -> None:
    trainer = surrogate().trainer(still(), tmp_path)
    start = trainer.branch(CONFIGS, start="end", progress=False)
    other = trainer.following(restless())
    moved = other.branch(CONFIGS, start="end", progress=False)
    assert (moved.metrics["error"] != start.metrics["error"]).all() and other.recipe is not trainer.recipe
    again = other.following(still()).branch(CONFIGS, start="end", progress=False)
    np.testing.assert_array_equal(again.metrics["error"], start.metrics["error"])
    assert len(list(tmp_path.glob("training-*.json"))) == 2 * len(CONFIGS)
    with pytest.raises(ht.OptionError, match="must be a Recipe, but got 3"):
        trainer.following(3)  # type: ignore[arg-type]


def test_branches_can_be_sent_to_another_process() -> None:
    found = surrogate().trainer().branch(CONFIGS, progress=False)
    again = pickle.loads(pickle.dumps(found))
    assert again.configs == found.configs and again.cost == found.cost
    for one, other in zip(again.networks, found.networks, strict=True):
        problem.assert_same_state(one, other)
    problem.assert_same_state(again.make(1), found.networks[1])


def test_a_branch_goes_on_from_a_network_that_was_trained(tmp_path: Path) -> None:
    trainer = surrogate().trainer(folder=tmp_path)
    network = trainer.branch(CONFIGS[:1], start="end", progress=False).networks[0]
    still_there = surrogate().trainer(still()).branch(CONFIGS, start=network, progress=False)
    assert still_there.start == "network"
    for each in still_there.networks:
        problem.assert_same_state(each, network)
    before = [each.detach().clone() for each in network.parameters()]
    found = trainer.branch(CONFIGS, start=network, progress=False)
    assert len({*found.metrics["error"]}) == len(CONFIGS)
    torch.testing.assert_close(list(network.parameters()), before, rtol=0.0, atol=0.0)
    files = len(list(tmp_path.glob("training-*.json")))
    again = surrogate().trainer(folder=tmp_path).branch(CONFIGS, start=copy.deepcopy(network), progress=False)
    assert len(list(tmp_path.glob("training-*.json"))) == files  # known by the weights of the network
    np.testing.assert_array_equal(again.metrics["error"], found.metrics["error"])
    with torch.no_grad():
        network[0].bias += 1e-3
    trainer.branch(CONFIGS, start=network, progress=False)
    assert len(list(tmp_path.glob("training-*.json"))) == files + len(CONFIGS)


def test_a_network_of_another_architecture_is_no_start() -> None:
    with pytest.raises(ht.OptionError, match=r"'0.weight' is \(2, 3\) instead of \(5, 3\)"):
        surrogate().trainer().branch(CONFIGS, start=nn.Sequential(nn.Linear(3, 2)))
    with_buffer = problem.network()
    with_buffer.register_buffer("mask", torch.ones(2))
    with pytest.raises(ht.OptionError, match="'mask' is a buffer instead of None"):
        surrogate().trainer().branch(CONFIGS, start=with_buffer)


class Scaled(nn.Sequential):
    """With numbers that no state dict holds."""

    def __init__(self, number: float, tensor: float) -> None:
        super().__init__(*problem.plain_network())
        self.number, self.tensor = number, torch.tensor(tensor)

    def forward(self, x: Tensor) -> Tensor:
        return self.number * self.tensor * super().forward(x)


def test_networks_that_differ_in_numbers_alone_are_different_starts(tmp_path: Path) -> None:
    own = problem.fit(
        ht.HyperNetwork(Scaled(1.0, 1.0), ht.SearchSpace({"decay": problem.SPACE["decay"]}), trunk=(6,)),
        epochs=20,
        **problem.validation(),
    )
    trainer = own.trainer(still(), tmp_path)
    starts = [Scaled(1.0, 1.0), Scaled(3.0, 1.0), Scaled(1.0, 5.0)]
    for start in starts:
        found = trainer.branch([{"decay": 0.1}], start=start, progress=False)
        assert found.metrics["error"][0] == pytest.approx(measured(start)["error"], rel=1e-5)
        kept = found.networks[0]
        starts[2].tensor.fill_(5.0)
        assert (kept.number, float(kept.tensor)) == (start.number, float(start.tensor))
    assert len(list(tmp_path.glob("training-*.json"))) == 3
    assert not [name for name in trainer._workshop.starts if name.startswith("network")]


def test_a_start_that_there_is_not_is_refused() -> None:
    short = problem.fit(epochs=1, **problem.validation())
    assert short.branch(CONFIGS, share=1.0, progress=False).start == "end"
    with pytest.raises(ht.OptionError, match=r"`start` must be a network or one of \['end'\].*'early'"):
        short.trainer().branch(CONFIGS, start="early")
    trainer = ht.Trainer(
        problem.network(), problem.SPACE, problem.loss, problem.loader(), recipe=still(), **problem.validation()
    )
    with pytest.raises(ht.OptionError, match="knows no hypernetwork"):
        trainer.branch(CONFIGS)
