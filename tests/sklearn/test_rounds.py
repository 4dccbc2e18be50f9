"""The rounds in which an estimator's network is trained further: their mean, their end, and how many there are."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from optuna.distributions import FloatDistribution
from sklearn.datasets import load_iris, make_classification
from sklearn.metrics import roc_auc_score
from torch import nn

import hypertune_mip as ht
from hypertune_mip_sklearn import HyperTuneClassifier
from hypertune_mip_sklearn.base import _ROUNDS
from hypertune_mip_sklearn.rounds import trained_in_rounds

CONFIG = {"decay": 0.01}


def trainer(network: nn.Module, *, rate: float = 0.05) -> ht.Trainer:
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
        recipe=ht.Recipe(epochs=2, optimizer=lambda parameters, config: torch.optim.SGD(parameters, lr=rate)),
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
    by_hand, mean, networks = trainer(network), network, []
    for number in range(3):
        networks += by_hand.branch([CONFIG], share=1.0, start=mean, seed=7 + number, progress=False).networks
        mean = copy.deepcopy(networks[0])
        with torch.no_grad():
            mean.weight.copy_(torch.stack([each.weight for each in networks]).mean(0))
            mean.bias.copy_(torch.stack([each.bias for each in networks]).mean(0))
    made, rounds = trained_in_rounds(trainer(network), network, CONFIG, 3, seed=7)
    assert rounds == 3
    torch.testing.assert_close(made.weight, mean.weight)
    assert torch.dist(networks[2].weight, mean.weight) > 1e-3
    assert not made.training
    assert not network.weight.any()  # the start is left alone


def test_running_statistics_are_those_of_the_mean() -> None:
    start = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    by = trainer(start, rate=0.3)
    made, rounds = trained_in_rounds(by, start, CONFIG, 3, seed=0)
    assert rounds == 3
    found = made[1].running_mean.clone()
    by.collect_statistics(made, CONFIG)
    torch.testing.assert_close(made[1].running_mean, found)
    assert float(found.abs().max()) > 1e-3


class Growing(nn.Module):
    """Has a buffer that grows with every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen = torch.cat([self.seen, x[:1, 0]])
        return self.linear(x)


def test_networks_that_cannot_be_averaged_end_the_rounds() -> None:
    start = Growing()
    made, rounds = trained_in_rounds(trainer(start), start, CONFIG, 3, seed=0)
    assert rounds == 1
    assert len(made.seen) == 5  # two epochs of two batches


@pytest.mark.filterwarnings("ignore:Real training diverged:hypertune_mip.HypertuneWarning")
def test_a_first_round_that_diverges_is_an_error(network: nn.Module) -> None:
    with pytest.raises(ht.TrainingError, match=r"The training at .* diverged. Try a smaller learning rate"):
        trained_in_rounds(trainer(network, rate=1e30), network, CONFIG, 3, seed=0)


@pytest.mark.parametrize(
    ("scores", "rounds"),
    [
        ((1.0, 0.9, 0.8, 0.7), 4),
        ((1.0, 0.9, 0.9), 2),
        ((1.0, 0.995), 1),  # by less than a hundredth
        ((-0.9, -0.901, -0.9), 2),  # as of an AUC, which has no zero to take a hundredth of
        ((1.0, math.nan), 1),
        ((math.nan, 1.0), 1),
    ],
)
def test_rounds_end_with_the_last_one_that_is_better(
    scores: tuple[float, ...], rounds: int, network: nn.Module
) -> None:
    found, count = trained_in_rounds(trainer(network), network, CONFIG, 4, seed=0, score=scripted(*scores))
    assert count == rounds
    expected, _ = trained_in_rounds(trainer(network), network, CONFIG, rounds, seed=0)
    torch.testing.assert_close(found.weight, expected.weight)


def fitted(x: np.ndarray, y: np.ndarray, **options: Any) -> HyperTuneClassifier:
    defaults: dict[str, Any] = {"hidden_layer_sizes": (16,), "epochs": 10, "random_state": 0}
    return HyperTuneClassifier(**{**defaults, **options}).fit(x, y)


def test_as_many_rounds_as_rows_that_were_held_back_ask_for() -> None:
    """What is not learned yet takes several; where there is nothing to learn there is one."""
    x, y = make_classification(1000, 8, n_informative=6, random_state=2)
    assert 1 < fitted(x, y, learning_rate=2e-2, epochs=5).n_rounds_ <= _ROUNDS
    assert fitted(x[:400], y[:400], learning_rate=2e-2, epochs=5).n_rounds_ == 1  # 80 rows cannot tell
    noise = np.random.default_rng(0).integers(0, 2, len(y))
    assert fitted(x, noise, epochs=60).n_rounds_ == 1


def test_without_rows_to_judge_by_there_is_one_round() -> None:
    x, y = load_iris(return_X_y=True)
    tuned = fitted(x, y)
    assert fitted(x, y, config=tuned.best_config_).n_rounds_ == 1
    assert fitted(x, y, refit="materialize").n_rounds_ == 0
    assert fitted(x, y, refit="retrain").n_rounds_ == 0


def test_a_score_that_is_maximised_takes_no_fewer_rounds() -> None:
    """An AUC can never grow by a hundredth of itself where it is near 1."""
    x, y = make_classification(1000, 8, n_informative=6, random_state=2)
    rounds = {}
    for name, way in (("auc", 1.0), ("loss of auc", -1.0)):

        def score(outputs: torch.Tensor, targets: torch.Tensor, name: str = name, way: float = way) -> dict[str, float]:
            auc = roc_auc_score(targets, outputs[:, 1] - outputs[:, 0])
            return {name: auc if way > 0 else 1.0 - auc}

        rounds[name] = fitted(
            x,
            y,
            learning_rate=2e-2,
            epochs=5,
            metric=ht.metrics.whole_set(lambda model, batch: model(batch["x"]), score),
            objective=name,
            directions={"auc": "maximize"} if way > 0 else None,
        ).n_rounds_
    assert rounds["auc"] >= rounds["loss of auc"] > 1


def test_few_rows_get_few_steps() -> None:
    """750 steps from 600 rows to train on, in proportion for fewer, but at least 150; of any training."""
    for rows, steps in ((1200, 750), (450, 562), (60, 150)):
        x, y = make_classification(int(rows / 0.8), 5, random_state=0)
        model = fitted(x, y, epochs="auto", refit="materialize")
        history, single = model.history_, model.surrogate_
        assert abs(history[-1]["step"] - steps) <= history[0]["step"]
        assert abs(single.recipe.epochs * len(single.train_loader) - steps) <= len(single.train_loader)
