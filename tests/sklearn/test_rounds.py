"""The rounds in which an estimator's network is trained further: their mean, their end, and how many there are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from optuna.distributions import FloatDistribution
from sklearn.datasets import load_iris, make_classification
from torch import nn

import hypertune_mip as ht
from hypertune_mip_sklearn import HyperTuneClassifier
from hypertune_mip_sklearn.base import _ROUNDS
from hypertune_mip_sklearn.rounds import trained_in_rounds

CONFIG = {"decay": 0.01}


def trainer(network: nn.Module) -> ht.Trainer:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 3, generator=generator)
    y = x.sum(1, keepdim=True) + torch.randn(32, 1, generator=generator)
    space = ht.SearchSpace({"decay": FloatDistribution(0.0, 1.0)})
    return ht.Trainer(
        network,
        space,
        lambda model, batch, config: (
            (model(batch[0]) - batch[1]).square().mean() + config["decay"] * ht.losses.l2(model)
        ),
        [(x[:16], y[:16]), (x[16:], y[16:])],
        metric=lambda model, batch: {"loss": (model(batch[0]) - batch[1]).square().mean()},
        val_loader=[(x, y)],
        recipe=ht.Recipe(epochs=2, optimizer=lambda parameters, config: torch.optim.SGD(parameters, lr=0.05)),
        initialize="given",
    )


@pytest.fixture
def network() -> nn.Module:
    made = nn.Linear(3, 1)
    for parameter in made.parameters():
        nn.init.zeros_(parameter)
    return made


def scripted(*scores: float) -> Any:
    """Scores in the order of calls, whatever the network."""
    left: Iterator[float] = iter(scores)
    return lambda network: next(left)


def test_each_round_starts_from_the_mean_of_those_before(network: nn.Module) -> None:
    by_hand = trainer(network)
    first = by_hand.branch([CONFIG], share=1.0, start=network, seed=7, progress=False).networks[0]
    second = by_hand.branch([CONFIG], share=1.0, start=first, seed=8, progress=False).networks[0]
    found = trained_in_rounds(trainer(network), network, CONFIG, 2, seed=7)
    assert found.rounds == 2
    torch.testing.assert_close(found.network.weight, (first.weight + second.weight) / 2)
    assert not found.network.training
    assert not network.weight.any()  # the start is left alone


@pytest.mark.parametrize(
    ("scores", "rounds"),
    [
        ((1.0, 0.9, 0.8, 0.7), 4),
        ((1.0, 0.9, 0.9), 2),
        ((1.0, 0.995), 1),  # by less than a hundredth
        ((-1.0, -1.005), 1),
        ((-1.0, -1.02, -1.0), 2),
        ((1.0, math.nan), 1),
        ((math.nan, 1.0), 1),
    ],
)
def test_rounds_end_with_the_last_one_that_is_better(
    scores: tuple[float, ...], rounds: int, network: nn.Module
) -> None:
    found = trained_in_rounds(trainer(network), network, CONFIG, 4, seed=0, score=scripted(*scores))
    assert found.rounds == rounds
    expected = trained_in_rounds(trainer(network), network, CONFIG, rounds, seed=0)
    torch.testing.assert_close(found.network.weight, expected.network.weight)


def fitted(x: np.ndarray, y: np.ndarray, **options: Any) -> HyperTuneClassifier:
    defaults: dict[str, Any] = {"hidden_layer_sizes": (16,), "epochs": 10, "random_state": 0}
    return HyperTuneClassifier(**{**defaults, **options}).fit(x, y)


def test_as_many_rounds_as_rows_that_were_held_back_ask_for() -> None:
    """What is not learned yet takes several; where there is nothing to learn there is one."""
    x, y = make_classification(1000, 8, n_informative=6, random_state=2)
    assert 1 < fitted(x, y, learning_rate=2e-2, epochs=5).n_rounds_ <= _ROUNDS
    noise = np.random.default_rng(0).integers(0, 2, len(y))
    assert fitted(x, noise, epochs=60).n_rounds_ == 1


def test_without_rows_to_judge_by_there_is_one_round() -> None:
    x, y = load_iris(return_X_y=True)
    tuned = fitted(x, y)
    assert fitted(x, y, config=tuned.best_config_).n_rounds_ == 1
    assert fitted(x, y, refit="materialize").n_rounds_ == 0
    assert fitted(x, y, refit="retrain").n_rounds_ == 0


def test_an_objective_that_is_maximised_takes_the_same_rounds() -> None:
    x, y = make_classification(1000, 8, n_informative=6, random_state=2)
    options: dict[str, Any] = {"learning_rate": 2e-2, "epochs": 5}

    def likelihood(model: nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        return {"likelihood": -nn.functional.cross_entropy(model(batch["x"]), batch["y"])}

    down = fitted(x, y, **options)
    up = fitted(x, y, metric=likelihood, objective="likelihood", directions={"likelihood": "maximize"}, **options)
    assert up.n_rounds_ == down.n_rounds_ > 1
    np.testing.assert_allclose(up.predict_proba(x), down.predict_proba(x), atol=1e-4)


def test_few_rows_get_few_steps() -> None:
    """750 steps of a single training from 600 rows on, in proportion for fewer, but at least 150."""
    for rows, steps in ((1200, 750), (450, 562), (60, 150)):
        x, y = make_classification(int(rows / 0.8), 5, random_state=0)
        surrogate = fitted(x, y, epochs="auto", refit="materialize").surrogate_
        trained = surrogate.recipe.epochs * len(surrogate.train_loader)
        assert abs(trained - steps) <= len(surrogate.train_loader)
