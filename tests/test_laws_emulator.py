"""Laws of the emulator: known responses, honest errors, and searches that it screens."""

from __future__ import annotations

import math
import pickle

import numpy as np
import optuna
import pytest
import torch
from cases import SPACES, space
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from small_problem import SPACE, hypernet, validation
from torch import Tensor

import hypertune_mip as ht
from hypertune_mip.evaluation import Emulator
from hypertune_mip.surrogate.screen import domination, screened
from hypertune_mip_optuna import prefill

TWO = ht.SearchSpace({"a": FloatDistribution(0.0, 1.0), "b": FloatDistribution(0.0, 1.0)})


def smooth(units: Tensor) -> dict[str, Tensor]:
    a, b = units.unbind(1)
    return {"loss": torch.exp(2 * (a - 0.3) ** 2 + b), "signed": torch.sin(3 * a) - b}


def test_a_smooth_response_is_met_within_the_stated_errors() -> None:
    emulator = Emulator(TWO, smooth, points=512, seed=0)
    units = TWO.sample(2000, seed=5, method="random")
    exact = smooth(units)
    assert list(emulator(units)) == ["loss", "signed"]
    for name, value in emulator(units).items():
        off, error = np.abs(value - exact[name].numpy()), emulator.errors[name]
        assert error.small and error.tau > 0.99
        assert error.rmse < 1e-3 * error.range
        assert off.max() <= 20 * error.largest
        assert np.sqrt((off**2).mean()) <= 3 * error.rmse
        assert f"{name!r}: {error}" in repr(emulator)


def test_a_line_is_met_exactly() -> None:
    emulator = Emulator(TWO, lambda units: {"line": units @ torch.tensor([1.0, -2.0]).double()}, points=64, seed=0)
    units = TWO.sample(100, seed=3)
    np.testing.assert_allclose(emulator(units)["line"], units[:, 0] - 2 * units[:, 1], atol=1e-9)


def test_choices_and_steps_are_told_apart() -> None:
    """A table over a categorical and an integer, with a continuous column beside it."""
    this = ht.SearchSpace(
        {"kind": CategoricalDistribution(["p", "q", "r"]), "n": IntDistribution(1, 4), "a": FloatDistribution(0.0, 1.0)}
    )
    offsets = torch.tensor([5.0, -3.0, 1.0], dtype=torch.float64)

    def exact(units: Tensor) -> dict[str, Tensor]:
        decoded = this.decode(units)
        return {"value": offsets[decoded["kind"]] + decoded["n"].sqrt() + decoded["a"] ** 2}

    emulator = Emulator(this, exact, points=512, seed=0)
    units = this.sample(200, seed=4)
    np.testing.assert_allclose(emulator(units)["value"], exact(units)["value"], atol=0.02)
    within = units.clone()
    within[:, 1] = units[:, 1] + 0.1  # the same integer
    np.testing.assert_array_equal(emulator(within)["value"], emulator(units)["value"])
    configs = this.from_unit(units)
    np.testing.assert_allclose(emulator.evaluate_batch(configs)["value"], emulator(units)["value"], atol=1e-9)


@pytest.mark.parametrize("name", [name for name in SPACES if name != "one value"])
def test_every_space_is_emulated(name: str) -> None:
    this = space(name)
    emulator = Emulator(this, lambda units: {"sum": (1 + units).prod(1).log()}, points=256, seed=0)
    units = this.sample(50, seed=9)
    np.testing.assert_allclose(emulator(units)["sum"], (1 + units).prod(1).log(), atol=0.03)
    assert emulator(units[:0])["sum"].shape == (0,)


def test_a_space_with_one_setting_is_refused() -> None:
    with pytest.raises(ht.SpaceError, match="more than one setting"):
        Emulator(space("one value"), smooth, points=64, seed=0)
    with pytest.raises(ht.SpaceError, match="at least 16"):
        Emulator(TWO, smooth, points=4, seed=0)


def test_a_response_that_cannot_be_interpolated_is_warned_of() -> None:
    def noise(units: Tensor) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return {"noise": torch.randn(len(units), generator=generator), "line": units[:, 0]}

    with pytest.warns(ht.HypertuneWarning, match="not to be relied on for 'noise'") as caught:
        emulator = Emulator(TWO, noise, points=256, seed=0)
    assert len(caught) == 1
    assert emulator.errors["line"].small and not emulator.errors["noise"].small


def test_a_constant_metric_has_no_rank_and_no_warning() -> None:
    emulator = Emulator(TWO, lambda units: {"same": torch.full((len(units),), 0.5)}, points=64, seed=0)
    assert math.isnan(emulator.errors["same"].tau) and emulator.errors["same"].small


def test_settings_without_a_finite_metric_are_left_out_and_warned_of() -> None:
    def exact(units: Tensor) -> dict[str, Tensor]:
        return {"line": torch.where(units[:, 0] < 0.1, math.nan, units[:, 1])}

    with pytest.warns(ht.HypertuneWarning, match="not finite"):
        emulator = Emulator(TWO, exact, points=256, seed=0)
    assert emulator.errors["line"].rmse < 0.01
    with pytest.raises(ht.DataError, match="finite"):
        Emulator(TWO, lambda units: {"bad": torch.full((len(units),), math.nan)}, points=64, seed=0)


@pytest.fixture(scope="module")
def surrogate() -> ht.Surrogate:
    net = hypernet()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        net.heads.weight.add_(0.3 * torch.randn(net.heads.weight.shape, generator=generator))
    return ht.Surrogate(net, **validation())


def test_a_surrogate_is_emulated_as_it_is(surrogate: ht.Surrogate) -> None:
    emulator = surrogate.emulator(points=400, progress=False)
    units = SPACE.sample(3000, seed=8)
    exact = surrogate.evaluate_units(units)
    for name, value in emulator(units).items():
        assert np.sqrt(np.mean((value - exact[name]) ** 2)) <= 3 * emulator.errors[name].rmse + 1e-9
    again = pickle.loads(pickle.dumps(emulator))
    np.testing.assert_array_equal(again(units)["error"], emulator(units)["error"])
    assert emulator.errors == surrogate.emulator(points=400, progress=False).errors


def test_a_screened_front_is_the_front(surrogate: ht.Surrogate) -> None:
    emulator = surrogate.emulator(points=400, progress=False)
    front = surrogate.pareto_front(["error", "size"], candidates=2000)
    seen = surrogate.pareto_front(["error", "size"], candidates=2000, emulator=emulator)
    for point in seen:
        assert surrogate.evaluate(point.config)["error"] == pytest.approx(point.values["error"], rel=1e-5)
    found = {tuple(point.config.items()) for point in seen}
    assert len([point for point in front if tuple(point.config.items()) in found]) >= 0.95 * len(front)


def test_domination_is_none_on_the_front_and_counts_errors_behind_it() -> None:
    table = np.array([[0.0, 2.0], [2.0, 0.0], [3.0, 3.0], [1.0, 1.5], [np.nan, 0.0]])
    far = domination(table, np.array([0.5, 1.0]))
    assert (far[[0, 1, 3]] <= 0).all() and far[2] == 2.0 and far[4] == np.inf


def test_screening_takes_the_best_and_feasible_ones_first() -> None:
    emulator = Emulator(TWO, smooth, points=256, seed=0)
    units = screened(emulator, ["loss"], 10, candidates=500, seed=1, directions=["minimize"])
    every = emulator(TWO.sample(500, seed=1))["loss"]
    assert sorted(emulator(units)["loss"]) == sorted(every)[:10]
    largest = screened(emulator, ["loss"], 10, candidates=500, seed=1, directions=["maximize"])
    assert sorted(emulator(largest)["loss"]) == sorted(every)[-10:]
    options = {"seed": 1, "directions": ["minimize"]}
    wanted = screened(emulator, ["loss"], 10, candidates=500, feasible=lambda values: values["signed"] > 0, **options)
    assert (emulator(wanted)["signed"] > 0).all()
    with pytest.raises(ht.SpaceError, match="candidates"):
        screened(emulator, ["loss"], 10, candidates=5, seed=1, directions=["minimize"])


def test_prefill_adds_what_the_emulator_ranks_best_with_exact_values(surrogate: ht.Surrogate) -> None:
    emulator = surrogate.emulator(points=400, progress=False)
    study = optuna.create_study()
    prefill(study, surrogate, "error", 20, emulator=emulator, candidates=1000, progress=False)
    exact = [surrogate.evaluate(trial.params)["error"] for trial in study.trials]
    assert [trial.value for trial in study.trials] == pytest.approx(exact, rel=1e-5)
    every = np.sort(surrogate.evaluate_units(SPACE.sample(1000))["error"])
    assert max(exact) <= every[25]
    with pytest.raises(ht.SpaceError, match="another space"):
        prefill(study, surrogate, "error", 5, emulator=Emulator(TWO, smooth, points=64, seed=0), progress=False)
    with pytest.raises(ht.SpaceError, match="without one"):
        prefill(study, surrogate, "error", 5, candidates=100, progress=False)
