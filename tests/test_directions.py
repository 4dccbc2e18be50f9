"""Directions of metrics: to maximise one is to minimise its negative, in all that searches and reports."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from cases import hypernet, space
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

import hypertune_mip as ht
from hypertune_mip.evaluation import Emulator
from hypertune_mip.surrogate.proposal import Proposer
from hypertune_mip.surrogate.trust import settings_to_verify
from hypertune_mip.surrogate.turned import Turned
from hypertune_mip.verification import TrustReport
from hypertune_mip_optuna import SurrogateObjective, SurrogateSampler, prefill

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def figures(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    outputs = model(batch)
    return {"score": 0.3 - (outputs - 0.1).square().mean(), "loss": outputs[:, 0].square().mean()}


def negated(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    values = figures(model, batch)
    return {**values, "score": -values["score"]}


def surrogate(metric: Any, **options: Any) -> ht.Surrogate:
    return ht.Surrogate(hypernet("float64", "rank one"), metric=metric, val_loader=[X], **options)


UP = surrogate(figures, directions={"score": "maximize"})
DOWN = surrogate(negated)


def test_directions_are_minimize_unless_said() -> None:
    assert UP.directions == {"score": "maximize", "loss": "minimize"}
    assert UP.stated_directions == {"score": "maximize"}
    assert DOWN.directions == {"score": "minimize", "loss": "minimize"} and DOWN.stated_directions == {}
    assert UP.to("cpu").directions == UP.directions


def test_a_turned_measure_is_that_of_the_negated_metric() -> None:
    turned, units = Turned(UP._measure), space().sample(4)
    assert set(turned.directions.values()) == {"minimize"}
    for name, value in DOWN._measure(units).items():
        assert torch.equal(turned(units)[name], value)
        for mine, theirs in zip(
            turned.value_and_gradient(units, name), DOWN._measure.value_and_gradient(units, name), strict=True
        ):
            torch.testing.assert_close(mine, theirs)


def test_the_optimum_is_the_minimum_of_the_negated_metric() -> None:
    options = {"candidates": 64, "starts": 4, "steps": 10}
    up, down = UP.optimize("score", **options), DOWN.optimize("score", **options)
    assert up.config == pytest.approx(down.config)
    assert up.value == pytest.approx(-down.value)
    assert up.value == pytest.approx(UP.evaluate(up.config)["score"])
    assert up.value >= UP.evaluate_units(space().sample(64))["score"].max() - 1e-12
    assert UP.optimize("score", candidates=64, steps=0).value <= up.value


@pytest.mark.parametrize("emulated", [False, True])
def test_the_front_is_that_of_the_negated_metric(emulated: bool) -> None:
    def front(one: ht.Surrogate) -> list[ht.ParetoPoint]:
        emulator = Emulator(one.space, one._measure, points=400, seed=0) if emulated else None
        return one.pareto_front(["score", "loss"], candidates=128, emulator=emulator)

    up, down = front(UP), front(DOWN)
    assert [point.config for point in up] == [point.config for point in down] and len(up) > 1
    assert [point.values["score"] for point in up] == [-point.values["score"] for point in down]
    assert up[0].values["score"] == max(point.values["score"] for point in up)  # the best comes first


def test_the_settings_to_verify_are_those_of_the_negated_metric() -> None:
    up, down = (settings_to_verify(one._measure, "score", 6, best=3, seed=0) for one in (UP, DOWN))
    assert up[1] == down[1]
    for mine, theirs in zip(up[0], down[0], strict=True):
        assert mine == pytest.approx(theirs)


def test_first_proposals_are_the_best_in_the_study_s_direction() -> None:
    pytest.importorskip("botorch")
    none = space().sample(1)[:0]
    up = Proposer(UP, "score", candidates=64).propose(none, none[:, 0], none, direction="maximize")
    down = Proposer(DOWN, "score", candidates=64).propose(none, none[:, 0], none, direction="minimize")
    torch.testing.assert_close(up, down, atol=1e-3, rtol=0.0)


CONFIGS = tuple(space().from_unit(space().sample(8)))
PREDICTED = np.array([0.4, 0.1, 0.5, 0.9, 0.2, 0.7, 0.3, 0.8])
TRUE = np.array([[0.5, 0.4], [0.2, 0.1], [0.4, 0.5], [0.8, 0.9], [0.1, 0.3], [math.nan, 0.7], [0.3, 0.3], [1.0, 1.1]])


def report(sign: float, **options: Any) -> TrustReport:
    chosen: dict[str, Any] = {
        "metric": "auc",
        "space": space(),
        "configs": CONFIGS,
        "chosen": ("spread",) * 8,
        "predicted": {"auc": sign * PREDICTED},
        "true": {"auc": sign * TRUE},
        "responses": dict.fromkeys(space(), 0.5),
        "trainings": 16.0,
        "seconds": 1.0,
        "low": {},
        "high": {},
    }
    return TrustReport(**(chosen | options))


def test_a_report_is_that_of_the_negated_metric() -> None:
    up, down = report(1.0, direction="maximize"), report(-1.0)
    for figure in ("tau", "sparse_tau", "spearman", "tau_better_half"):
        for side in ("value", "low", "high"):
            assert getattr(getattr(up, figure), side) == pytest.approx(
                getattr(getattr(down, figure), side), nan_ok=True
            )
    for figure in ("tau_ceiling", "spearman_ceiling", "regret", "recall", "error"):
        assert getattr(up, figure) == pytest.approx(getattr(down, figure))
    assert up.bias == pytest.approx(-down.bias)
    for name, effect in up.effects.items():
        assert (effect.surrogate, effect.truth) == pytest.approx(
            (-down.effects[name].surrogate, -down.effects[name].truth)
        )
    assert up.doubts() == down.doubts()


def test_a_report_counted_by_hand() -> None:
    """Of its favourites 0.9 and 0.8 the second is truly the best; the run that diverged is the worst."""
    kept = report(1.0, direction="maximize")
    assert kept.regret == pytest.approx((1.05 - 0.85) / (1.05 - 0.15))
    assert (kept.k, kept.recall) == (2, 1.0)
    assert "auc (maximized) at 8 settings" in str(kept) and "above zero: optimistic" in str(kept)
    assert "auc at 8 settings" in str(report(-1.0)) and "below zero: optimistic" in str(report(-1.0))


def test_a_report_keeps_its_direction() -> None:
    kept = report(1.0, direction="maximize")
    assert TrustReport.from_dict(kept.to_dict()).direction == "maximize"
    with pytest.raises(ht.SpaceError, match=r"report's direction must be .* but got 'up'"):
        report(1.0, direction="up")


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        ({"accuracy": "maximize"}, r"'accuracy' in `directions` is unknown; `metric` returns \['score', 'loss'\]"),
        ({"score": "max"}, "direction of 'score' must be \"minimize\" or \"maximize\", but got 'max'"),
        (["maximize"], r"must give a direction by metric.*but got \['maximize'\]"),
    ],
)
def test_directions_that_are_none_are_refused(directions: Any, message: str) -> None:
    with pytest.raises(ht.SpaceError, match=message):
        surrogate(figures, directions=directions)


def test_fit_refuses_a_direction_of_an_unknown_metric_before_it_trains() -> None:
    def loss(model: nn.Module, batch: Tensor, config: Any) -> Tensor:
        raise AssertionError("it trains")

    with pytest.raises(ht.SpaceError, match="'accuracy' in `directions` is unknown"):
        ht.fit(
            nn.Linear(3, 2),
            loss,
            [X.float()],
            space=ht.SearchSpace({"a": FloatDistribution(0.0, 1.0)}),
            metric=figures,
            val_loader=[X.float()],
            directions={"accuracy": "maximize"},
            progress=False,
        )


def test_directions_are_saved(tmp_path: Any) -> None:
    network = UP.hypernet.given
    UP.save(tmp_path / "first")
    ht.Surrogate.load(tmp_path / "first", network).save(tmp_path / "second")  # without a metric they are kept
    loaded = ht.Surrogate.load(tmp_path / "second", network, metric=figures, val_loader=[X])
    assert loaded.directions == UP.directions
    assert loaded.optimize("score", candidates=16, steps=0) == UP.optimize("score", candidates=16, steps=0)
    data = {"metric": lambda m, x: {"other": m(x).mean(), "score": m(x).mean()}, "val_loader": [X]}
    other = ht.Surrogate.load(tmp_path / "second", network, directions={"other": "maximize"}, **data)
    assert other.directions == {"other": "maximize", "score": "maximize"}
    few = {"metric": lambda m, x: {"other": m(x).mean()}, "val_loader": [X]}
    assert ht.Surrogate.load(tmp_path / "second", network, **few).directions == {"other": "minimize"}


def suggest(trial: optuna.Trial, names: ht.SearchSpace) -> float:
    """Of the first hyperparameter, from the space's own distribution."""
    name, distribution = next(iter(names.items()))
    return float(trial._suggest(name, distribution))


@pytest.mark.parametrize("stated", ["minimize", "maximize"])
def test_a_study_may_not_contradict_what_was_stated(stated: Any) -> None:
    opposite = {"minimize": "maximize", "maximize": "minimize"}[stated]
    one = surrogate(figures, directions={"score": stated})
    study = optuna.create_study(direction=opposite)
    message = f"wants to {opposite} 'score', but the surrogate was told to {stated} it"
    with pytest.raises(ht.SpaceError, match=message):
        study.optimize(SurrogateObjective(one, "score"), n_trials=1)
    with pytest.raises(ht.SpaceError, match=message):
        prefill(study, one, "score", n=4, progress=False)
    pytest.importorskip("botorch")
    sampled = optuna.create_study(direction=opposite, sampler=SurrogateSampler(one, "score"))
    with pytest.raises(ht.SpaceError, match=message):
        sampled.optimize(lambda trial: suggest(trial, one.space), n_trials=1)
    agreeing = optuna.create_study(directions=[stated, "maximize"])  # of the loss nothing was stated
    prefill(agreeing, one, ["score", "loss"], n=4, progress=False)
    assert len(agreeing.trials) == 4
