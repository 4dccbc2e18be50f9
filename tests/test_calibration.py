"""Calibration against maps that are known, and the surrogate that verifies and calibrates itself."""

from __future__ import annotations

import dataclasses
import functools
import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

import hypertune_mip as ht
from hypertune_mip.verification import statistics
from hypertune_mip.verification.calibration import Calibration, Chain, Shift
from hypertune_mip.verification.unused import unused_hyperparameters
from hypertune_mip_optuna import SurrogateObjective
from tests import small_problem as problem

SPACE = ht.SearchSpace({"a": problem.SPACE["dropout"], "b": problem.SPACE["dropout"]})


def settings(count: int, seed: int = 0) -> torch.Tensor:
    return SPACE.sample(count, seed=seed)


def surface(units: torch.Tensor) -> torch.Tensor:
    """Of both signs, so that calibration stays on the scale as it is."""
    return (units[:, 0] - 0.3).square() + 0.5 * units[:, 1] - 0.4


def positive(units: torch.Tensor) -> torch.Tensor:
    return surface(units) + 0.6


def test_a_line_is_found_exactly_but_for_the_belief_in_slope_one() -> None:
    units = settings(200)
    calibration = Calibration(units, surface(units), 3.0 * surface(units) + 2.0, residual=False)
    fresh = settings(50, seed=1)
    assert float((calibration(fresh, surface(fresh)).mean - 3.0 * surface(fresh) - 2.0).abs().max()) < 0.02


def test_a_factor_is_found_where_values_are_positive() -> None:
    units, fresh = settings(200), settings(50, seed=1)
    calibration = Calibration(units, positive(units), 1.5 * positive(units), residual=False)
    calibrated = calibration(fresh, positive(fresh))
    torch.testing.assert_close(calibrated.mean, 1.5 * positive(fresh), rtol=0.02, atol=0.0)
    assert bool((calibrated.low >= 0).all())


@pytest.mark.parametrize("values", [surface, positive])
def test_predictions_that_are_right_stay_as_they_are(values: Callable[[torch.Tensor], torch.Tensor]) -> None:
    units, fresh = settings(8), settings(50, seed=1)
    calibrated = Calibration(units, values(units), values(units))(fresh, values(fresh))
    torch.testing.assert_close(calibrated.mean, values(fresh))
    assert float(calibrated.deviation.max()) < 1e-6


def test_equal_predictions_get_the_mean() -> None:
    units = settings(4)
    calibration = Calibration(units, torch.ones(4), torch.tensor([-1.0, 2.0, 3.0, 4.0]), residual=False)
    assert float(calibration(units[:1], torch.ones(1)).mean) == pytest.approx(2.0)


def test_a_monotone_curve_is_followed() -> None:
    units, fresh = settings(60), settings(20, seed=1)
    calibration = Calibration(units, surface(units), surface(units) ** 3, method="monotone", residual=False)
    assert float((calibration(fresh, surface(fresh)).mean - surface(fresh) ** 3).abs().max()) < 0.05


def test_the_process_corrects_what_depends_on_the_setting() -> None:
    units, fresh = settings(16), settings(100, seed=1)

    def error(residual: bool) -> float:
        bias = lambda u: 0.3 * torch.sin(3 * u[:, 0])  # noqa: E731
        calibration = Calibration(units, surface(units), surface(units) + bias(units), residual=residual)
        return float((calibration(fresh, surface(fresh)).mean - surface(fresh) - bias(fresh)).square().mean().sqrt())

    assert error(residual=True) < 0.3 * error(residual=False)


def test_noise_does_little_harm_to_a_surrogate_that_is_right() -> None:
    generator = torch.Generator().manual_seed(0)
    units, fresh = settings(16), settings(100, seed=1)
    true = surface(units) + 0.1 * torch.randn(16, generator=generator, dtype=torch.float64)
    calibrated = Calibration(units, surface(units), true)(fresh, surface(fresh)).mean
    assert float((calibrated - surface(fresh)).square().mean().sqrt()) < 0.08  # of noise 0.1
    assert statistics.kendall(calibrated.numpy(), surface(fresh).numpy()) > 0.85


def test_a_ranking_that_is_right_is_kept() -> None:
    """Although a process would come closer to the values."""
    units, fresh = settings(8), settings(100, seed=1)
    calibrated = Calibration(units, surface(units), surface(units) ** 3)(fresh, surface(fresh)).mean
    assert statistics.kendall(calibrated.numpy(), surface(fresh).numpy()) == pytest.approx(1.0)


@pytest.mark.parametrize("count", [8, 16])
def test_a_surrogate_that_is_wrong_does_not_spoil_what_trainings_say(count: int) -> None:
    """It counts for half, but its correction leaves little of it."""
    generator = torch.Generator().manual_seed(0)
    units, fresh = settings(count), settings(100, seed=1)
    wrong, wrong_fresh = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (count, 100))
    calibrated = Calibration(units, wrong, surface(units))(fresh, wrong_fresh)
    assert statistics.kendall(calibrated.mean.numpy(), surface(fresh).numpy()) > 0.6
    assert statistics.kendall(wrong_fresh.numpy(), surface(fresh).numpy()) < 0.1


def test_intervals_cover_nine_in_ten() -> None:
    """Of fresh noisy trainings at random settings, over 200 calibrations: what conformal prediction promises."""
    generator = torch.Generator().manual_seed(0)
    noisy = lambda u: 2 * surface(u) + 0.1 * torch.randn(len(u), generator=generator, dtype=u.dtype)  # noqa: E731
    inside = []
    for seed in range(200):
        units, fresh = (SPACE.sample(n, seed=2 * seed + n % 2, method="random") for n in (12, 21))
        calibrated = Calibration(units, surface(units), noisy(units), residual=False)(fresh, surface(fresh))
        true = noisy(fresh)
        inside.append((calibrated.low <= true) & (true <= calibrated.high))
    assert 0.87 <= float(torch.cat(inside).double().mean()) <= 0.96


@pytest.mark.parametrize("seeds", [2, 4])
def test_intervals_are_those_of_one_training_whatever_the_seeds(seeds: int) -> None:
    """A last column stands for a further seed that none of them was trained with."""
    generator = torch.Generator().manual_seed(0)
    noise = lambda *shape: 0.1 * torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    inside = []
    for seed in range(200):
        units, fresh = (SPACE.sample(n, seed=2 * seed + n % 2, method="random") for n in (12, 21))
        runs = 2 * surface(units).unsqueeze(1) + noise(12, seeds + 1)
        runs[:, -1] = math.nan
        calibrated = Calibration(units, surface(units), runs, residual=False)(fresh, surface(fresh))
        true = 2 * surface(fresh) + noise(21)
        inside.append((calibrated.low <= true) & (true <= calibrated.high))
    assert 0.87 <= float(torch.cat(inside).double().mean()) <= 0.97


def test_an_expert_counts_for_what_it_is_right_about() -> None:
    """A surrogate that says nothing leaves the word to the trainings; one that is nearly right keeps it."""
    generator = torch.Generator().manual_seed(0)
    units, fresh = settings(16), settings(100, seed=1)
    noise = lambda n, size: size * torch.randn(n, generator=generator, dtype=torch.float64)  # noqa: E731
    useless = Calibration(units, noise(16, 1.0), surface(units))._mixture
    wavy = lambda u: torch.sin(40 * u[:, 0]) + torch.sin(40 * u[:, 1])  # noqa: E731
    right = Calibration(units, wavy(units) + noise(16, 0.3), wavy(units))._mixture
    few = Calibration(units[:12], noise(12, 1.0), surface(units[:12]))._mixture
    assert useless is not None and right is not None and few is not None
    assert float(useless.weights[1]) > 0.55
    assert float(right.weights[0]) > 0.6
    assert few.weights.tolist() == [0.5, 0.5]
    assert float(useless.weights.sum()) == float(right.weights.sum()) == pytest.approx(1.0)
    mean, _ = right(fresh, wavy(fresh))
    assert float((mean - wavy(fresh)).square().mean().sqrt()) < 0.5  # the trainings alone: 1


@pytest.mark.parametrize("values", [surface, positive])
def test_one_training_shifts_what_branches_say(values: Callable[[torch.Tensor], torch.Tensor]) -> None:
    units, fresh = settings(8), settings(50, seed=1)
    branched = lambda u: 0.5 * values(u)  # noqa: E731
    branches = Calibration(units, values(units), branched(units), residual=False)
    shift = Shift(branches(units[:1], values(units[:1])).mean, values(units[:1]))
    chained = Chain([branches, shift])(fresh, values(fresh))
    assert float(chained.mean[0]) != pytest.approx(float(branches(fresh, values(fresh)).mean[0]))
    at_it = Chain([branches, shift])(units[:1], values(units[:1]))
    torch.testing.assert_close(at_it.mean, values(units[:1]))
    alone = branches(fresh, values(fresh))
    assert bool((chained.high - chained.low > alone.high - alone.low).all())  # who knows what it is elsewhere
    assert bool((chained.low <= chained.mean).all()) and bool((chained.mean <= chained.high).all())


def test_margins_of_links_add_up_in_squares() -> None:
    class Fixed:
        def __init__(self, step: float, margin: float) -> None:
            self.step, self.margin = step, margin

        def __call__(self, units: torch.Tensor, predicted: torch.Tensor) -> Any:
            mean = predicted + self.step
            return mean, mean - self.margin, mean + 2 * self.margin

    chain = Chain([Fixed(1.0, 3.0), Fixed(10.0, 4.0)])  # type: ignore[list-item]
    found = chain(settings(2), torch.zeros(2))
    assert found.mean.tolist() == [11.0, 11.0]
    assert found.low.tolist() == [6.0, 6.0]
    assert found.high.tolist() == [21.0, 21.0]


@pytest.mark.parametrize("raises", [True, False])
def test_a_process_that_cannot_be_fitted_is_told_of(raises: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from botorch.exceptions.errors import ModelFittingError
    from botorch.exceptions.warnings import OptimizationWarning

    def failing(mll: Any) -> None:
        if raises:
            raise ModelFittingError("all attempts failed")
        warnings.warn("all attempts failed", OptimizationWarning, stacklevel=1)

    monkeypatch.setattr("botorch.fit.fit_gpytorch_mll", failing)
    units = settings(8)
    with pytest.warns(ht.HypertuneWarning, match="not fitted to the end .all attempts failed."):
        calibration = Calibration(units, surface(units).flip(0), surface(units))
    assert bool(torch.isfinite(calibration(units, surface(units)).mean).all())


def test_a_monotone_curve_has_a_gradient() -> None:
    units, fresh = settings(30), settings(5, seed=1)
    calibration = Calibration(units, surface(units), surface(units) ** 3, method="monotone")
    predicted = surface(fresh).requires_grad_()
    (slope,) = torch.autograd.grad(calibration(fresh, predicted).mean.sum(), predicted)
    step = 1e-6
    high, low = (calibration(fresh, predicted.detach() + side * step).mean for side in (1, -1))
    torch.testing.assert_close(slope, (high - low) / (2 * step), rtol=1e-3, atol=1e-4)


def test_settings_with_nan_are_left_out() -> None:
    units = settings(6)
    true = surface(units) + 1.0
    true[2] = math.nan
    calibration = Calibration(units, surface(units), true, residual=False)
    assert float(calibration(units[:1], surface(units[:1])).mean) == pytest.approx(float(surface(units[:1])) + 1.0)
    with pytest.raises(ht.DataError, match="at least 3 settings with finite values, but got 2 of 3"):
        Calibration(units[:3], surface(units[:3]), true[:3])


# The surrogate


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
@pytest.mark.parametrize("seeds", [0, 1.5, "two"])
@pytest.mark.parametrize("share", [None, 0.25])
def test_seeds_of_a_report_are_a_number(seeds: Any, share: float | None) -> None:
    with pytest.raises(ht.OptionError, match="seeds"):
        fresh_surrogate().verify("error", settings=3, seeds=seeds, share=share, progress=False)


@pytest.mark.filterwarnings("ignore:The surrogate is not to be trusted")
def test_a_report_on_one_setting_does_not_replace_doubts() -> None:
    untrained = ht.Surrogate(
        problem.hypernet(head=ht.RankOne(initialization="fan_out")),
        loss=problem.loss,
        train_loader=problem.loader(),
        recipe=ht.Recipe(epochs=20),
        **problem.validation(),
    )
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
    untrained = ht.Surrogate(
        problem.hypernet(head=ht.RankOne(initialization="fan_out")),
        loss=problem.loss,
        train_loader=problem.loader(),
        recipe=ht.Recipe(epochs=20),
        **problem.validation(),
    )
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
