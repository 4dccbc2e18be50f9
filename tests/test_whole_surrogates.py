"""A surrogate is made once and whole, stays as it is, and comes back from a folder as it was."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_problem as problem
import torch
from small_problem import SPACE, fit, hypernet, validation

import hypertune_mip as ht


def report(slope: float = 1.5, *, settings: int = 5) -> ht.TrustReport:
    """As if real training had given other numbers than any surrogate, which it ranks a little differently."""
    units = SPACE.sample(settings, seed=3)
    predicted = {"error": units[:, 0].numpy()}
    noise = np.random.default_rng(0).normal(0.0, 0.05, settings)
    return ht.TrustReport(
        metric="error",
        space=SPACE,
        configs=tuple(SPACE.from_unit(units)),
        chosen=("spread",) * settings,
        predicted=predicted,
        true={name: (2.0 + slope * value + noise)[:, None] for name, value in predicted.items()},
        responses={name: 1.0 for name in SPACE},
        trainings=float(settings),
        seconds=1.0,
        low={},
        high={},
    )


@pytest.fixture(scope="module")
def plain() -> ht.Surrogate:
    return fit(epochs=4, **validation())


@pytest.fixture(scope="module")
def calibrated(plain: ht.Surrogate) -> ht.Surrogate:
    return plain.calibrated(report())


def answers(surrogate: ht.Surrogate) -> dict[str, np.ndarray]:
    """All that it says of some settings, with intervals where it knows them."""
    units = SPACE.sample(6, seed=5)
    said = surrogate.evaluate_units(units)
    if surrogate._calibrated is not None:
        for name, one in surrogate.intervals(units).items():
            said |= {f"{name}, low": one.low.numpy(), f"{name}, high": one.high.numpy()}
    return said


def assert_same(first: ht.Surrogate, second: ht.Surrogate) -> None:
    one, other = answers(first), answers(second)
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert first.history == second.history
    assert first.execution == second.execution
    assert [each.to_dict() for each in first.reports] == [each.to_dict() for each in second.reports]
    assert first.early is not None and second.early is not None
    torch.testing.assert_close(dict(second.early), dict(first.early), rtol=0.0, atol=0.0)
    for metric in first.metrics:
        assert first.doubts(metric) == second.doubts(metric)


# A new one


def test_a_calibrated_surrogate_is_a_new_one(plain: ht.Surrogate) -> None:
    before = answers(plain)
    new = plain.calibrated(report())
    assert new is not plain
    assert plain.reports == () and len(new.reports) == 1
    np.testing.assert_equal(answers(plain), before)
    with pytest.raises(ht.DataError, match="intervals only after calibration"):
        plain.evaluate(problem.CONFIG, interval=True)
    assert new.evaluate(problem.CONFIG) != plain.evaluate(problem.CONFIG)
    assert new.evaluate(problem.CONFIG, interval=True)["error"].low < math.inf
    assert new._evaluate is plain._evaluate  # the data is read once


def test_it_may_be_calibrated_anew_from_what_the_hypernetwork_says(plain: ht.Surrogate) -> None:
    twice = plain.calibrated(report(-1.0)).calibrated(report(0.5))
    assert_same(twice, plain.calibrated(report(0.5)))


def test_all_reports_so_far_calibrate_and_later_ones_judge(plain: ht.Surrogate) -> None:
    known = ht.Surrogate(plain.hypernet, evaluator=plain._evaluate, early=plain.early, reports=[report(), report(-1.0)])
    assert known.doubts("error") != ()
    new = known.calibrated()
    assert new.reports == known.reports
    assert new.doubts("error") == ()
    assert_same(new, known.calibrated(*known.reports))


def test_a_metric_that_was_not_measured_in_all_trainings_stays_as_it_is(
    plain: ht.Surrogate, calibrated: ht.Surrogate
) -> None:
    """As one is that came later: in the reports here there is no "size"."""
    assert list(calibrated.intervals(SPACE.sample(2))) == ["error"]
    np.testing.assert_array_equal(answers(calibrated)["size"], answers(plain)["size"])


def test_a_copy_whose_real_trainings_are_others(calibrated: ht.Surrogate) -> None:
    loader, recipe = problem.loader(batch_size=4), ht.Recipe(epochs=7)
    other = calibrated.replace(train_loader=loader, recipe=recipe)
    assert (other.train_loader, other.recipe, other.loss) == (loader, recipe, calibrated.loss)
    assert calibrated.train_loader is not loader and calibrated.recipe is not recipe
    assert_same(calibrated, other)


def test_a_copy_on_another_device_is_whole(calibrated: ht.Surrogate) -> None:
    moved = calibrated.to("cpu")
    assert moved.hypernet is not calibrated.hypernet
    assert moved.train_loader is calibrated.train_loader
    assert_same(calibrated, moved)
    assert_same(calibrated, pickle.loads(pickle.dumps(calibrated)))


# There and back


@pytest.mark.parametrize("options", [{}, {"method": "monotone"}, {"residual": False}, None])
def test_what_is_loaded_answers_as_what_was_saved(
    plain: ht.Surrogate, tmp_path: Path, options: dict[str, Any] | None
) -> None:
    """`load(save(s))` is `s`, and so it is when it has been loaded without its metric and saved again."""
    made = plain if options is None else plain.calibrated(report(), **options)
    made.save(tmp_path / "first")
    assert_same(made, ht.Surrogate.load(tmp_path / "first", problem.network(), **validation()))
    bare = ht.Surrogate.load(tmp_path / "first", problem.network())
    bare.save(tmp_path / "second")
    assert_same(made, ht.Surrogate.load(tmp_path / "second", problem.network(), **validation()))
    assert (tmp_path / "first" / "surrogate.json").read_bytes() == (tmp_path / "second" / "surrogate.json").read_bytes()


def test_two_surrogates_come_back_as_two(plain: ht.Surrogate, calibrated: ht.Surrogate, tmp_path: Path) -> None:
    for name, each in {"plain": plain, "calibrated": calibrated}.items():
        each.save(tmp_path / name)
    plain_again, again = (
        ht.Surrogate.load(tmp_path / name, problem.network(), **validation()) for name in ("plain", "calibrated")
    )
    assert_same(plain, plain_again)
    assert_same(calibrated, again)


def test_without_its_metric_it_says_so_but_knows_its_reports(calibrated: ht.Surrogate, tmp_path: Path) -> None:
    calibrated.save(tmp_path)
    bare = ht.Surrogate.load(tmp_path, problem.network())
    assert len(bare.reports) == 1
    assert bare.doubts("error") == ()
    for ask in (bare.evaluate, lambda config: bare.calibrated(), lambda config: bare.evaluate(config, interval=True)):
        with pytest.raises(ht.DataError):
            ask(problem.CONFIG)


# Made once


class Counted:
    """Batches that count how often they are read."""

    def __init__(self) -> None:
        self.reads = 0

    def __iter__(self) -> Iterator[Any]:
        self.reads += 1
        return iter(problem.loader(shuffle=False))


def test_validation_data_is_read_once_from_fit_to_calibration() -> None:
    data = Counted()
    surrogate = fit(metric=problem.metric, val_loader=data)
    surrogate.calibrated(report()).evaluate(problem.CONFIG)
    surrogate.replace(recipe=ht.Recipe(epochs=1)).evaluate(problem.CONFIG)
    assert data.reads == 1


def test_what_belongs_together_is_asked_for_before_training() -> None:
    def never(model: Any, batch: Any, config: Any) -> torch.Tensor:
        raise AssertionError

    for options in ({"metric": problem.metric}, {"val_loader": problem.loader()}):
        with pytest.raises(ht.DataError, match="`metric` and `val_loader` belong together"):
            fit(loss=never, **options)


def test_an_evaluator_is_of_this_hypernetwork_and_stands_alone(plain: ht.Surrogate) -> None:
    for net, options in ((hypernet(), {}), (plain.hypernet, validation())):
        with pytest.raises(ht.DataError, match="`evaluator` must be one of `hypernet`, and take the place of"):
            ht.Surrogate(net, evaluator=plain._evaluate, **options)
