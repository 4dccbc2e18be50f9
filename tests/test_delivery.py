"""Deliveries: what is chosen and averaged, and that one that was stopped ends as the others."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.distributions import CategoricalDistribution, IntDistribution
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hypertune_mip as ht
from hypertune_mip.evaluation import ValidationData, standard_error, without_each_group
from hypertune_mip.surrogate.candidates import Plan, Rung, cost_of_fit
from hypertune_mip.surrogate.delivery import delivered as delivered_by
from tests import small_problem as problem
from tests.small_branches import Uncounted, measured, restless, still, surrogate


def delivered(**options: Any) -> ht.Delivered:
    return surrogate().deliver("error", progress=False, **options)


def test_what_is_delivered_is_an_average_of_branches_that_is_no_worse_than_any_of_them() -> None:
    several = 0
    for seed in range(6):
        found = delivered(recipe=restless(), trainings=3.0, seed=seed)
        best = min(found.candidates, key=lambda each: each.values["error"])
        assert found.candidates[found.chosen] is best and found.config == best.config
        assert found.value.value <= best.values["error"] * (1 + 1e-5)
        for name, value in measured(found.network).items():
            assert found.values[name].value == pytest.approx(value, rel=1e-5)
        assert not found.network.training
        assert not any(isinstance(module, ht.nn.Dropout) for module in found.network.modules())
        several += len(found.averaged) > 1
    assert several  # otherwise there was nothing to see


def test_the_last_rung_starts_from_the_average_of_the_one_before() -> None:
    trainer = surrogate().trainer(still())
    found = delivered(trainer=trainer, trainings=3.0)
    first, last = ([each for each in found.candidates if each.rung == number] for number in (1, 2))
    assert {each.start for each in first} == {"end"} and {each.start for each in last} == {"average"}
    at_first = delivered(trainer=trainer, trainings=3.0)
    values = [each.values["error"] for each in last]  # of networks that stayed as they were
    assert values == pytest.approx([at_first.value.value] * len(last), rel=1e-5)


def test_rungs_go_on_with_the_best_of_the_one_before() -> None:
    found = delivered(trainings=4.0)
    rungs = [[each for each in found.candidates if each.rung == number] for number in (1, 2)]
    for rung, following in itertools.pairwise(rungs):
        ordered = sorted(rung, key=lambda each: each.values["error"])
        assert [each.config for each in following] == [each.config for each in ordered[: len(following)]]
        assert rung[0].share < following[0].share
    assert {"best", "spread"} == {each.chosen for each in rungs[0]}
    spent = sum(each.share for each in found.candidates)
    assert spent <= 4.0 + 1e-9
    assert found.cost - found.cost_of_fit == pytest.approx(spent, abs=0.15 * len(found.candidates))  # to whole steps
    assert found.cost_of_fit > 0.0


@pytest.mark.parametrize("trainings", [0.2, 0.5, 0.65, 1.0, 2.0, 3.7])
def test_no_more_is_spent_than_is_allowed(trainings: float) -> None:
    found = delivered(trainings=trainings, recipe=ht.Recipe(epochs=40))
    assert 0.5 * trainings <= found.cost - found.cost_of_fit <= trainings * 1.02


def test_large_values_are_chosen_where_they_are_better() -> None:
    def negative(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {"score": -problem.metric(model, batch)["error"]}

    own = ht.Surrogate(
        surrogate().hypernet,
        loss=problem.loss,
        metric=negative,
        val_loader=problem.loader(shuffle=False),
        train_loader=problem.loader(),
        history=surrogate().history,
        early=surrogate().early,
        recipe=surrogate().recipe,
        directions={"score": "maximize"},
    )
    found, expected = own.deliver("score", progress=False), delivered()
    assert found.direction == "maximize"
    assert found.config == expected.config
    assert found.value.value == pytest.approx(-expected.value.value, rel=1e-5)
    assert (found.value.low, found.value.high) == pytest.approx((-expected.value.high, -expected.value.low), rel=1e-4)


def test_a_network_is_delivered_by_a_metric_of_the_whole_set() -> None:
    def rmse(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"rmse": (outputs - targets).square().mean().sqrt()}

    metric = [problem.metric, ht.metrics.whole_set(lambda model, batch: model(batch[0]), rmse)]
    own = problem.fit(epochs=8, metric=metric, val_loader=problem.loader(shuffle=False))
    found = own.deliver("rmse", progress=False)
    assert found.value.value == pytest.approx(math.sqrt(measured(found.network)["error"]), rel=1e-5)
    assert found.value.low < found.value.value < found.value.high


def test_choices_and_few_values() -> None:
    space = ht.SearchSpace({"decay": CategoricalDistribution([1e-3, 0.1]), "dropout": IntDistribution(0, 0)})
    own = problem.fit(problem.hypernet(space=space), epochs=4, **problem.validation())
    found = own.deliver("error", trainings=3.0, progress=False)
    first = [tuple(each.config.items()) for each in found.candidates if each.rung == 1]
    assert len(first) == len(set(first)) <= 2


@pytest.mark.filterwarnings("ignore:Real training diverged")
def test_where_all_branches_diverge_there_is_no_network() -> None:
    recipe = ht.Recipe(epochs=8, optimizer=lambda p, config: torch.optim.SGD(p, lr=1e30), schedule=None)
    with pytest.raises(ht.TrainingError, match=r"All \d+ branches diverged"):
        delivered(recipe=recipe)


def test_what_is_infinite_is_not_delivered() -> None:
    def metric(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {"error": problem.metric(model, batch)["error"] + math.inf}

    own = problem.fit(epochs=8, metric=metric, val_loader=problem.loader(shuffle=False))
    with pytest.raises(ht.TrainingError, match=r"All \d+ branches diverged"):
        own.deliver("error", progress=False)


def test_a_metric_that_fails_on_a_part_of_the_data_loses_no_network() -> None:
    def score(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        if len(targets) < problem.EXAMPLES:
            raise ValueError("too few")
        return {"score": (outputs - targets).abs().max()}

    metric = ht.metrics.whole_set(lambda model, batch: model(batch[0]), score)
    own = problem.fit(epochs=8, metric=metric, val_loader=problem.loader(shuffle=False))
    with pytest.warns(ht.HypertuneWarning, match="no intervals.*too few"):
        found = own.deliver("score", progress=False)
    assert math.isnan(found.value.low) and found.value.value > 0.0


def test_a_loader_without_length_is_counted_in_epochs() -> None:
    own = problem.fit(epochs=8, schedule=None, train_loader=Uncounted(), **problem.validation())
    found = own.deliver("error", progress=False)
    spent = sum(each.share for each in found.candidates)
    assert found.cost - found.cost_of_fit == pytest.approx(spent) and 1.0 <= spent <= 2.0 + 1e-9
    assert all((8 * each.share) % 1 == 0 for each in found.candidates)
    short = own.replace(recipe=ht.Recipe(epochs=2, schedule=None))
    assert sum(each.share for each in short.deliver("error", progress=False).candidates) <= 2.0 + 1e-9
    with pytest.raises(ht.OptionError, match=r"enough for a step of a branch, 0\.5 of a training"):
        short.deliver("error", trainings=0.3)


class Told:
    """A trainer whose branches are told, by share: each has a bias, and is as bad as that is away from 1."""

    steps: int | None = 100
    recipe = ht.Recipe(epochs=10)

    def __init__(self, biases: dict[float, list[float]]) -> None:
        self.biases = biases
        self.starts: list[Any] = []
        self.collected: list[Any] = []

    def branch(self, configs: Any, *, share: float, start: Any, seed: int, progress: bool) -> ht.Branches:
        self.starts.append(start)
        biases = np.array(self.biases[share])[: len(configs)]
        return ht.Branches(
            configs=tuple(configs),
            metrics={"error": np.abs(biases - 1.0)},
            cost=share * len(configs),
            share=share,
            start="network" if isinstance(start, nn.Module) else start,
            make=lambda index: nn.Linear(1, 1).requires_grad_(False).apply(lambda m: m.bias.fill_(biases[index])),
        )

    def measure(self, network: Any) -> dict[str, float]:
        return {"error": abs(float(network.bias) - 1.0)}

    def collect_statistics(self, network: Any, config: Any) -> float:
        self.collected.append(config)
        return 0.01

    def standard_errors(self, network: Any) -> dict[str, float]:
        return {"error": 0.1}

    def seconds_of_training(self, config: Any, *, steps: int | None = None) -> float:
        return 2.0 if steps is None else 0.5 * steps


AVERAGES: dict[str, tuple[list[float], list[float], tuple[int, ...], float, float]] = {
    # biases of the first rung and of the last, what is averaged at the end, its bias, and that of the last rung's start
    "one branch": ([0.7, 0.6, 0.4], [0.9, 0.8], (3,), 0.9, 0.7),
    "both sides": ([0.7, 1.5, 0.4], [0.45, 1.6], (0, 1), 1.1, 1.1),
    "of both rungs": ([0.7, 0.6, 0.4], [1.2, 1.4], (3, 0), 0.95, 0.7),
    "one that comes after one that does not help": ([0.7, 0.6, 1.45], [0.1, 0.2], (0, 2), 1.075, 1.075),
    "diverged": ([math.nan, 0.6, math.inf], [math.nan, 0.5], (1,), 0.6, 0.6),
    "an early one is the best": ([0.95, 0.6, 0.4], [0.1, 0.2], (0,), 0.95, 0.95),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_each_branch_that_makes_the_average_no_worse_joins_it(name: str) -> None:
    first, last, members, bias, start = AVERAGES[name]
    told: Any = Told({0.25: first, 0.5: last})
    plan = Plan([{"decay": d} for d in (0.1, 0.2, 0.3)], ["best", "best", "spread"], 1.0)
    found = delivered_by(told, plan, [Rung(3, 0.25), Rung(2, 0.5)], "error", "minimize", seed=0, progress=False)
    assert found.averaged == members
    assert float(found.network.bias) == pytest.approx(bias)
    assert found.value.value == pytest.approx(abs(bias - 1.0), abs=1e-6)
    assert found.config == found.candidates[members[0]].config
    assert found.cost == pytest.approx(1.0 + 0.75 + 0.5 * len(found.candidates[3:]) + 0.01 * len(told.collected))
    finite = [math.isfinite(each.values["error"]) for each in found.candidates]
    assert len(told.collected) == sum(finite[:3]) - 1 + sum(finite) - 1  # for each average that was tried
    assert told.starts[0] == "end" and float(told.starts[1].bias) == pytest.approx(start)


def test_the_cost_of_fit_is_that_of_its_time_however_batches_are_accumulated() -> None:
    told: Any = Told({})
    for steps in (5, 1):  # optimiser steps of an epoch
        history = [{"seconds": 4.0, "step": steps * epoch} for epoch in (1, 2)]
        assert cost_of_fit(history, told, {}) == 8.0 / 2.0
    told.steps = None
    assert cost_of_fit([{"seconds": 4.0, "step": 3}], told, {}) == 4.0 / (0.5 * 3 * 10)
    told.recipe = ht.Recipe(epochs=10, accumulate=2)
    assert cost_of_fit([{"seconds": 4.0, "step": 3}], told, {}, accumulate=4) == 4.0 / (0.5 * 6 * 10)
    assert math.isnan(cost_of_fit([], told, {}))


@pytest.mark.parametrize("trainings", [0.0, -1.0, math.nan, "two"])
def test_trainings_are_a_positive_number(trainings: Any) -> None:
    with pytest.raises(ht.OptionError, match="`trainings`"):
        delivered(trainings=trainings)


def test_bad_arguments() -> None:
    with pytest.raises(ht.SpaceError, match="'accuracy' is unknown"):
        surrogate().deliver("accuracy")
    with pytest.raises(ht.OptionError, match="`trainer` stands for"):
        delivered(trainer=surrogate().trainer(), folder="there")
    alone = ht.Surrogate(surrogate().hypernet, **problem.validation())
    with pytest.raises(ht.DataError, match="training data"):
        alone.deliver("error")


def test_what_a_delivery_says() -> None:
    found = delivered()
    text = str(found)
    assert text.splitlines()[0].startswith(f"Delivered: error {found.value.value:.4g} (")
    one = len(found.averaged) == 1
    assert text.count("<- this network" if one else "<- averaged") == len(found.averaged)
    assert len(text.splitlines()) == 3 + len(found.candidates)
    assert "cost=" in repr(found)


# Fronts


def test_a_front_of_networks() -> None:
    found = surrogate().deliver_front(["error", "size"], points=3, progress=False)
    assert 1 <= len(found) <= 3
    values = [[one.values[name].value for name in ("error", "size")] for one in found]
    assert values == sorted(values)
    everything = [[each.values[name] for name in ("error", "size")] for each in found[0].candidates]
    assert len(everything) <= 6
    for one, own in zip(found, values, strict=True):
        assert list(measured(one.network).values()) == pytest.approx(own, rel=1e-5)
        assert one.config == one.candidates[one.chosen].config
        assert not any(other[0] <= own[0] and other[1] <= own[1] and other != own for other in everything)
    assert found[0].cost - found[0].cost_of_fit == pytest.approx(3.0, abs=0.3)


def test_a_front_in_the_metrics_directions() -> None:
    def both(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        found = problem.metric(model, batch)
        return {"score": -found["error"], "size": found["size"]}

    own = problem.fit(
        epochs=8, metric=both, val_loader=problem.validation()["val_loader"], directions={"score": "maximize"}
    )
    found = own.deliver_front(["score", "size"], points=2, progress=False)
    expected = problem.fit(epochs=8, **problem.validation()).deliver_front(["error", "size"], points=2, progress=False)
    assert [one.config for one in found] == [one.config for one in expected]


@pytest.mark.parametrize("metrics", ["error", ["error"], [], ["error", "error"], ["error", "depth"]])
def test_a_front_is_of_several_metrics(metrics: Any) -> None:
    with pytest.raises(ht.SpaceError, match=r"at least two metric names|'depth' is unknown"):
        surrogate().deliver_front(metrics)


# Going on


def test_a_delivery_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """By an error after some steps: no finished branch is trained again, and the network is the same, bit for bit."""
    calls, limit = 0, 10**9

    def loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == limit:
            raise problem.InterruptedByTest
        return problem.loss(model, batch, config)

    own = surrogate().replace(loss=loss)

    def deliver(folder: Path | None) -> ht.Delivered:
        trainer = own.trainer(folder=folder, parallel=1)
        return own.deliver("error", trainer=trainer, progress=False)

    expected = deliver(None)
    timed, total = 24, calls - 24  # to know what `fit` cost
    for at in random.Random(0).sample(range(timed + 1, total + timed), 8):
        calls, limit, folder = 0, at, tmp_path / str(at)
        with pytest.raises(problem.InterruptedByTest):
            deliver(folder)
        finished = len(list(folder.glob("training-*.json")))
        calls, limit = 0, 10**9
        found = deliver(folder)
        problem.assert_same_state(found.network, expected.network)
        assert [each.values for each in found.candidates] == [each.values for each in expected.candidates]
        assert calls <= total - finished  # each has a step at least
        assert not math.isnan(found.cost)


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_delivery_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    expected = delivered(folder=tmp_path / "whole")
    generator, folder = random.Random(1), tmp_path / "killed"
    kept: set[str] = set()
    context = multiprocessing.get_context("fork")
    for _ in range(20):
        process = context.Process(target=delivered, kwargs={"folder": folder})
        process.start()
        time.sleep(generator.uniform(0.0, 0.4))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found = {path.name for path in folder.glob("training-*.json")}
        assert kept <= found  # nothing that was finished is lost
        kept = found
    last = delivered(folder=folder)
    problem.assert_same_state(last.network, expected.network)
    assert [each.config for each in last.candidates] == [each.config for each in expected.candidates]


def test_another_delivery_in_the_same_folder_has_candidates_of_its_own(tmp_path: Path) -> None:
    first, other = (delivered(folder=tmp_path, seed=seed) for seed in (0, 1))
    assert len(list(tmp_path.glob("delivery-*.json"))) == 2
    assert [each.config for each in first.candidates] != [each.config for each in other.candidates]
    (path, _) = sorted(tmp_path.glob("delivery-*.json"))
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ht.StorageError, match=path.name):
        for seed in (0, 1):
            delivered(folder=tmp_path, seed=seed)


def test_a_surrogate_that_was_loaded_delivers_the_same(tmp_path: Path) -> None:
    surrogate().save(tmp_path)
    data = problem.validation() | {"loss": problem.loss, "train_loader": problem.loader()}
    again = ht.Surrogate.load(tmp_path, problem.network(), recipe=surrogate().recipe, **data)
    problem.assert_same_state(again.deliver("error", progress=False).network, delivered().network)


# Intervals


def spread_data(examples: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(examples, 3, generator=generator), torch.randn(examples, 1, generator=generator)


@pytest.mark.parametrize("batch_size", [4000, 130, 37])
def test_the_standard_error_of_a_mean_is_the_textbooks(batch_size: int) -> None:
    x, y = spread_data(4000)
    network = problem.plain_network()
    data = ValidationData(DataLoader(TensorDataset(x, y), batch_size=batch_size), torch.device("cpu"))

    def run(function: Any, batch: Any) -> Any:
        with torch.no_grad():
            return tuple({n: v.unsqueeze(0) for n, v in part.items()} for part in function(network, batch))

    found = without_each_group(problem.metric, run, data)
    with torch.no_grad():
        each = (network(x) - y).square()
    assert standard_error(found["error"]) == pytest.approx(
        float(each.std()) / math.sqrt(4000), rel=0.6
    )  # of ten groups
    assert standard_error(found["size"]) == pytest.approx(0.0, abs=1e-6)  # the same whatever the data
    groups = torch.stack([each[index::10].mean() for index in range(10)])
    assert standard_error(found["error"]) == pytest.approx(float(groups.std()) / math.sqrt(10), rel=1e-4)


def test_where_examples_cannot_be_told_apart_there_is_no_standard_error() -> None:
    class Graphs:
        num_graphs = 3

        def to(self, *arguments: Any, **options: Any) -> Any:
            return self

    def run(function: Any, batch: Any) -> Any:
        return ({"value": torch.ones(1)},)

    for batch in (Graphs(), (torch.ones(4), torch.ones(4))):
        data = ValidationData([batch], torch.device("cpu"))
        found = without_each_group(lambda model, batch: {"value": torch.ones(())}, run, data)
        assert math.isnan(standard_error(found["value"]))
