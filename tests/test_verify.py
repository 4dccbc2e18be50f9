"""The surrogate that verifies and calibrates itself by real trainings and branches."""

from __future__ import annotations

import dataclasses
import functools
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

import hypertune_mip as ht
from hypertune_mip.verification.unused import unused_hyperparameters
from hypertune_mip_optuna import SurrogateObjective
from tests import small_problem as problem


@functools.cache
def surrogate() -> ht.Surrogate:
    return problem.fit(epochs=20, batching="split", **problem.validation())


def fresh_surrogate() -> ht.Surrogate:
    """The same hypernetwork in a surrogate that nothing has been verified with."""
    old = surrogate()
    return ht.Surrogate(
        old.hypernet,
        loss=problem.loss,
        history=old.history,
        train_loader=problem.loader(),
        recipe=ht.Recipe(epochs=20),
        **problem.validation(),
    )


def wrong_surrogate() -> ht.Surrogate:
    """One whose hypernetwork was never trained."""
    return ht.Surrogate(
        problem.hypernet(head=ht.RankOne(initialization="fan_out")),
        loss=problem.loss,
        train_loader=problem.loader(),
        recipe=ht.Recipe(epochs=20),
        **problem.validation(),
    )


@pytest.fixture(scope="module")
def verified() -> tuple[ht.Surrogate, ht.TrustReport]:
    chosen = fresh_surrogate()
    return chosen, chosen.verify("error", settings=6, seeds=2, progress=False)


def test_a_report_is_about_real_training(verified: tuple[ht.Surrogate, ht.TrustReport]) -> None:
    chosen, report = verified
    assert report.true["error"].shape == (6, 2)
    assert report.chosen == ("spread",) * 3 + ("best",) * 3
    assert report.trainings == 12
    assert report.seconds > 0
    expected = chosen.trainer().train(report.configs, seeds=2, progress=False)
    np.testing.assert_array_equal(report.true["error"], expected["error"])
    np.testing.assert_allclose(report.predicted["error"], chosen.evaluate_batch(report.configs)["error"])
    minimum = chosen.evaluate_batch([report.configs[3]])["error"][0]
    assert minimum == report.predicted["error"].min()  # the best comes first
    assert minimum <= chosen.evaluate_units(problem.SPACE.sample(64))["error"].min() + 1e-6
    assert chosen.reports == (report,)


@pytest.mark.filterwarnings("ignore:The surrogate is not to be trusted")
def test_a_report_on_branches(tmp_path: Path) -> None:
    chosen = fresh_surrogate()
    report = chosen.verify("error", settings=4, best=1, seeds=2, share=0.25, progress=False)
    assert report.share == 0.25
    assert report.true["error"].shape == (4, 2)
    assert report.trainings == pytest.approx(8 * 0.25)
    for seed in (0, 1):
        expected = chosen.trainer().branch(report.configs, share=0.25, seed=seed, progress=False)
        np.testing.assert_array_equal(report.true["error"][:, seed], expected.metrics["error"])
    assert "Truth: branches of 0.25 of the recipe" in str(report)
    assert "share=0.25" in repr(report)
    report.save(tmp_path / "report.json")
    again = ht.TrustReport.load(tmp_path / "report.json")
    assert str(again) == str(report)
    with pytest.raises(ht.OptionError, match="`share` must lie in"):
        chosen.verify("error", settings=4, share=1.5, progress=False)


@pytest.mark.filterwarnings("ignore:The surrogate is not to be trusted")
@pytest.mark.parametrize("truths", [0, 1, 4])
def test_calibration_learns_from_branches_and_from_trainings(truths: int, tmp_path: Path) -> None:
    chosen = fresh_surrogate()
    chosen.verify("error", settings=6, best=1, share=0.25, progress=False)
    if truths:
        report = chosen.verify("error", settings=truths, best=0, progress=False)
    calibrated = chosen.calibrated()
    after = calibrated.evaluate_batch(chosen.reports[-1].configs)["error"]
    by_branches = chosen.calibrated(chosen.reports[0]).evaluate_batch(chosen.reports[-1].configs)["error"]
    if not truths:
        np.testing.assert_array_equal(after, by_branches)
    else:
        true = report.true["error"][:, 0]
        assert np.abs(after - true).mean() < np.abs(by_branches - true).mean()
    estimate = calibrated.evaluate(problem.CONFIG, interval=True)["error"]
    assert estimate.low < estimate.value < estimate.high
    calibrated.save(tmp_path)
    loaded = ht.Surrogate.load(tmp_path, problem.network(), loss=problem.loss, **problem.validation())
    assert loaded.evaluate(problem.CONFIG, interval=True)["error"].high == pytest.approx(estimate.high, rel=1e-6)
    gradient = calibrated.gradient(problem.CONFIG, "error")
    assert all(np.isfinite(value) for value in gradient.values())


@pytest.mark.filterwarnings("ignore:The surrogate is not to be trusted")
def test_two_branches_are_passed_over_where_there_are_trainings(verified: tuple[ht.Surrogate, ht.TrustReport]) -> None:
    chosen = fresh_surrogate()
    two = chosen.verify("error", settings=2, share=0.25, progress=False)
    with pytest.raises(ht.DataError, match="at least 3 settings with finite values, but got 2"):
        chosen.calibrated(two)
    for reports in ((two, verified[1]), (verified[1], two)):
        found, expected = (
            chosen.calibrated(*each).evaluate(problem.CONFIG)["error"] for each in (reports, verified[1:])
        )
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.filterwarnings("ignore:The surrogate is not to be trusted")
def test_branches_of_two_kinds_correct_one_after_the_other() -> None:
    chosen = fresh_surrogate()
    short, long = (chosen.verify("error", settings=5, best=0, share=share, progress=False) for share in (0.1, 0.5))
    two = chosen.verify("error", settings=2, share=0.5, progress=False)
    after = lambda *reports: chosen.calibrated(*reports).evaluate(problem.CONFIG)["error"]  # noqa: E731
    assert after(short, long) == pytest.approx(after(long, short), rel=1e-9)
    assert after(short, long) not in (pytest.approx(after(short), rel=1e-3), pytest.approx(after(long), rel=1e-3))
    corrected, gaps = chosen.calibrated(long, short).evaluate_batch(short.configs)["error"], []
    for report in (short, long):  # of the same settings
        gaps.append(np.abs(corrected - report.true["error"][:, 0]).mean())
    assert gaps[1] < 0.7 * gaps[0]  # longer branches have the last word
    assert after(short, two) == pytest.approx(after(short), rel=1e-9)  # too few to correct by
    with pytest.raises(ht.DataError, match="at least 3 settings with finite values"):
        chosen.calibrated(two, dataclasses.replace(two, share=0.25))


@pytest.mark.filterwarnings("ignore:The surrogate is not to be trusted")
def test_intervals_of_whole_trainings_are_not_judged_by_branches() -> None:
    chosen = fresh_surrogate()
    chosen.verify("error", settings=5, share=0.25, progress=False)
    calibrated = chosen.calibrated()
    options: dict[str, Any] = {"settings": 3, "best": 0, "seed": 7, "progress": False}
    assert math.isnan(calibrated.verify("error", share=0.25, **options).coverage)
    assert 0.0 <= calibrated.verify("error", **options).coverage <= 1.0


@pytest.mark.filterwarnings("ignore:The surrogate is not to be trusted")
@pytest.mark.parametrize("seeds", [0, 1.5, "two"])
@pytest.mark.parametrize("share", [None, 0.25])
def test_seeds_of_a_report_are_a_number(seeds: Any, share: float | None) -> None:
    with pytest.raises(ht.OptionError, match="seeds"):
        fresh_surrogate().verify("error", settings=3, seeds=seeds, share=share, progress=False)


@pytest.mark.filterwarnings("ignore:The surrogate is not to be trusted")
def test_a_report_on_one_setting_does_not_replace_doubts() -> None:
    untrained = wrong_surrogate()
    doubtful = untrained.verify("error", settings=8, progress=False)
    assert doubtful.doubts()
    untrained.verify("error", settings=1, progress=False)
    assert untrained.doubts("error") == doubtful.doubts()


@pytest.mark.filterwarnings("ignore:The surrogate is not to be trusted")
def test_a_setting_does_not_count_if_one_of_its_seeds_diverged(verified: tuple[ht.Surrogate, ht.TrustReport]) -> None:
    report = verified[1]
    chosen = fresh_surrogate()
    true = report.true["error"].copy()
    true[1, 1] = math.nan
    broken = dataclasses.replace(report, true={**report.true, "error": true})
    rows = [0, 2, 3, 4, 5]
    without = dataclasses.replace(
        report,
        configs=tuple(report.configs[row] for row in rows),
        chosen=tuple(report.chosen[row] for row in rows),
        **{name: {k: v[rows] for k, v in getattr(report, name).items()} for name in ("predicted", "true")},
    )
    found, expected = (chosen.calibrated(each).evaluate(problem.CONFIG)["error"] for each in (broken, without))
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.filterwarnings("ignore:The surrogate is not to be trusted")  # of one epoch
@pytest.mark.parametrize("best", [0, 1, 3])
def test_how_many_settings_are_the_best_is_asked_for(best: int) -> None:
    short = fresh_surrogate().trainer(ht.Recipe(epochs=1))
    report = fresh_surrogate().verify("error", settings=3, best=best, trainer=short, progress=False)
    assert report.chosen == ("spread",) * (3 - best) + ("best",) * best
    expected = problem.SPACE.from_unit(problem.SPACE.sample(3 - best))
    assert list(report.configs[: 3 - best]) == expected


def test_calibration_brings_the_surrogate_closer_to_truth(verified: tuple[ht.Surrogate, ht.TrustReport]) -> None:
    _, report = verified
    chosen = fresh_surrogate()
    true = report.true["error"].mean(1)
    raw = chosen.evaluate_batch(report.configs)["error"]
    chosen, plain = chosen.calibrated(report), chosen
    np.testing.assert_array_equal(plain.evaluate_batch(report.configs)["error"], raw)
    after = chosen.evaluate_batch(report.configs)["error"]
    assert np.abs(after - true).mean() < np.abs(report.predicted["error"] - true).mean()
    estimate = chosen.evaluate(report.configs[0], interval=True)["error"]
    assert estimate.low < estimate.value < estimate.high
    assert estimate.value == pytest.approx(chosen.evaluate(report.configs[0])["error"])
    assert chosen.verify("error", settings=8, best=2, seed=5, progress=False).coverage >= 0.5


@pytest.mark.filterwarnings("ignore:The surrogate is not to be trusted")
def test_a_calibrated_surrogate_is_not_verified_at_what_it_was_calibrated_by(
    verified: tuple[ht.Surrogate, ht.TrustReport],
) -> None:
    """A line leaves the best settings where they were."""
    _, report = verified
    chosen = fresh_surrogate().calibrated(report, residual=False)
    short = chosen.trainer(ht.Recipe(epochs=1))
    again = chosen.verify("error", settings=2, best=2, seed=5, trainer=short, progress=False)
    tried, fresh = (problem.SPACE.to_unit(each.configs) for each in (report, again))
    assert float((fresh.unsqueeze(1) - tried).abs().amax(-1).min()) >= 0.02


@pytest.mark.filterwarnings("ignore:The surrogate is not to be trusted")
def test_a_space_of_few_values_is_verified_at_those_there_are() -> None:
    space = ht.SearchSpace({"decay": CategoricalDistribution([0.001, 0.1]), "dropout": FloatDistribution(0.1, 0.1)})
    chosen = problem.fit(problem.hypernet(space=space), epochs=2, **problem.validation())
    report = chosen.verify("error", settings=8, progress=False)
    assert len(report.configs) == len(report.chosen) == len(report.true["error"])
    assert {config["decay"] for config in report.configs} == {0.001, 0.1}


def test_what_builds_on_evaluation_is_calibrated_too(verified: tuple[ht.Surrogate, ht.TrustReport]) -> None:
    chosen = fresh_surrogate().calibrated(verified[1])
    optimum = chosen.optimize("error", candidates=32, steps=5)
    assert optimum.value == pytest.approx(chosen.evaluate(optimum.config)["error"], rel=1e-5)
    point = chosen.pareto_front(["error", "size"], candidates=16)[0]
    assert point.values["error"] == pytest.approx(chosen.evaluate(point.config)["error"], rel=1e-5)
    step = 1e-3
    around = [dict(problem.CONFIG, dropout=problem.CONFIG["dropout"] + side * step) for side in (-1, 1)]
    low, high = chosen.evaluate_batch(around)["error"]
    assert chosen.gradient(problem.CONFIG, "error")["dropout"] == pytest.approx((high - low) / (2 * step), rel=0.05)


def test_reports_and_calibration_are_saved(verified: tuple[ht.Surrogate, ht.TrustReport], tmp_path: Path) -> None:
    chosen = fresh_surrogate().calibrated(verified[1])
    chosen.verify("error", settings=2, progress=False)  # later than the calibration, and no part of it
    chosen.save(tmp_path)
    loaded = ht.Surrogate.load(tmp_path, problem.network(), loss=problem.loss, **problem.validation())
    assert [str(report) for report in loaded.reports] == [str(report) for report in chosen.reports]
    before, after = (s.evaluate(problem.CONFIG, interval=True)["error"] for s in (chosen, loaded))
    assert after.value == pytest.approx(before.value, rel=1e-6)
    assert after.high == pytest.approx(before.high, rel=1e-6)


def test_a_surrogate_that_is_wrong_says_so() -> None:
    untrained = wrong_surrogate()
    assert untrained.doubts("error") == ()  # nothing is known yet
    with pytest.warns(ht.HypertuneWarning, match="not to be trusted for 'error'"):
        report = untrained.verify("error", settings=8, progress=False)
    assert not report.trusted()
    assert untrained.doubts("error") == report.doubts()
    assert untrained.doubts("size") == ()
    searches: list[Callable[[], object]] = [
        lambda: untrained.optimize("error", candidates=8, steps=0),
        lambda: untrained.pareto_front(["size", "error"], candidates=8),
        lambda: SurrogateObjective(untrained, ["size", "error"]),
    ]
    for search in searches:
        with pytest.warns(ht.HypertuneWarning, match="not to be trusted for 'error'"):
            search()
    corrected = untrained.calibrated()
    assert corrected.doubts("error") == ()  # what calibration has learned from is no verdict on it
    assert untrained.doubts("error") == report.doubts()


def test_verification_can_be_resumed(tmp_path: Path) -> None:
    chosen = fresh_surrogate()
    first = chosen.verify("error", settings=4, trainer=chosen.trainer(folder=tmp_path), progress=False)
    again = chosen.verify("error", settings=4, trainer=chosen.trainer(folder=tmp_path), progress=False)
    assert again.seconds == 0.0
    np.testing.assert_array_equal(first.true["error"], again.true["error"])


def test_truth_starts_where_the_network_was_given() -> None:
    """Not from the trained theta_0; and where theta_0 is frozen, not from new weights either."""
    given = problem.network()
    expected = float(problem.metric(problem.plain_network(), problem.data().tensors)["size"].detach())
    frozen = problem.fit(problem.hypernet(network=given, freeze_theta_0=True), **problem.validation())
    still = ht.Recipe(epochs=1, optimizer=lambda p, config: torch.optim.SGD(p, lr=1e-12), schedule=None)
    size = frozen.trainer(still).train([problem.CONFIG], progress=False)["size"]
    assert size[0, 0] == pytest.approx(expected, rel=1e-5)
    given_again = surrogate().trainer(still, initialize="given").train([problem.CONFIG], progress=False)["size"]
    assert given_again[0, 0] == pytest.approx(expected, rel=1e-5)
    drawn = surrogate().trainer(still).train([problem.CONFIG], progress=False)["size"]
    assert abs(drawn[0, 0] - expected) > 1e-3


def test_a_hyperparameter_that_changes_nothing_is_named() -> None:
    space = ht.SearchSpace({**problem.SPACE, "idle": FloatDistribution(0.0, 1.0)})

    def loss(model: torch.nn.Module, batch: Any, config: Any) -> torch.Tensor:
        return problem.loss(model, batch, config) + 0.0 * config["idle"]

    chosen = problem.fit(problem.hypernet(space=space), loss=loss, epochs=20, **problem.validation())
    report = chosen.verify("error", settings=4, progress=False)
    assert report.unused == report.ignored == ("idle",)
    line = next(line for line in str(report).splitlines() if line.startswith("idle"))
    assert line.endswith("no effect on the loss")
    assert ht.TrustReport.from_dict(report.to_dict()).unused == ("idle",)


def test_what_steers_a_random_choice_or_a_threshold_has_an_effect() -> None:
    space = ht.SearchSpace({**problem.SPACE, "flip": FloatDistribution(0.0, 1.0), "level": IntDistribution(0, 3)})

    def loss(model: torch.nn.Module, batch: Any, config: Any) -> torch.Tensor:
        x, y = batch
        sign = torch.where(torch.rand(len(x)) < config["flip"], -1.0, 1.0).unsqueeze(1)
        return problem.loss(model, (sign * x, y), config) + torch.where(config["level"] > 1, 0.1, 0.0)

    assert unused_hyperparameters(problem.hypernet(space=space), loss, problem.loader()) == ()
    assert unused_hyperparameters(problem.hypernet(space=space), problem.loss, problem.loader()) == ("flip", "level")


def test_a_calibrated_surrogate_goes_to_another_process(verified: tuple[ht.Surrogate, ht.TrustReport]) -> None:
    unpicklable = ht.Recipe(epochs=20, optimizer=lambda p, config: torch.optim.SGD(p, lr=0.1))
    chosen = fresh_surrogate().calibrated(verified[1]).replace(recipe=unpicklable)
    sent = pickle.loads(pickle.dumps(chosen))
    assert sent.evaluate(problem.CONFIG) == chosen.evaluate(problem.CONFIG)
    with pytest.raises(ht.DataError, match="training data"):
        sent.verify("error")


def test_errors() -> None:
    chosen = fresh_surrogate()
    with pytest.raises(ht.SpaceError, match="'accuracy' is unknown"):
        chosen.verify("accuracy")
    with pytest.raises(ht.SpaceError, match="`settings`"):
        chosen.verify("error", settings=0)
    with pytest.raises(ht.SpaceError, match="`best` must be a whole number between 0 and 4, but got 5"):
        chosen.verify("error", settings=4, best=5)
    with pytest.raises(ht.DataError, match="call `verify` first"):
        chosen.calibrated()
    with pytest.raises(ht.DataError, match="intervals only after calibration"):
        chosen.evaluate(problem.CONFIG, interval=True)
    bare = ht.Surrogate(chosen.hypernet, **problem.validation())
    with pytest.raises(ht.DataError, match="the loss and the training data"):
        bare.verify("error")
