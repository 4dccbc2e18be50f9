"""Plots: the data behind them against single evaluations, and what the figures show."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import nn

import hypertune_mip as ht
from hypertune_mip.plots import (
    agreement,
    agreement_data,
    delivery,
    delivery_data,
    response_curve,
    response_curve_data,
    response_surface,
    response_surface_data,
)
from tests import small_problem as problem

SPACE = ht.SearchSpace(
    {
        "weight_decay": FloatDistribution(1e-4, 1e-1, log=True),
        "dropout": FloatDistribution(0.0, 0.5),
        "smoothing": FloatDistribution(0.0, 0.3, step=0.1),
        "order": IntDistribution(1, 9, step=4),
        "scale": IntDistribution(1, 5, log=True),
        "penalty": CategoricalDistribution(["l1", "l2", None]),
        "fixed": FloatDistribution(2.0, 2.0),
    }
)
CONFIG = {"weight_decay": 1e-2, "dropout": 0.1, "smoothing": 0.2, "order": 5, "scale": 2, "penalty": "l2", "fixed": 2.0}


@pytest.fixture(scope="module")
def surrogate() -> ht.Surrogate:
    """Untrained, but its hypernetwork's weights are so large that the metric differs much between settings."""
    hypernet = ht.HyperNetwork(nn.Linear(4, 3), SPACE, trunk=(8,))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in hypernet.parameters():
            parameter.normal_(generator=generator)
    metric = lambda model, x: {"loss": model(x).square().mean(), "mean": model(x).mean()}  # noqa: E731
    return ht.Surrogate(hypernet, metric=metric, val_loader=[torch.linspace(-1, 1, 24).reshape(6, 4)])


@pytest.fixture
def ax():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    yield pyplot.subplots()[1]
    pyplot.close("all")


# Data


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("weight_decay", (1e-4, 1e-3, 1e-2, 1e-1)),
        ("dropout", (0.0, 0.5 / 3, 1.0 / 3, 0.5)),
        ("smoothing", (0.0, 0.1, 0.2, 0.3)),
        ("order", (1, 5, 9)),
        ("penalty", ("l1", "l2", None)),
        ("fixed", (2.0,)),
    ],
)
def test_an_axis_is_even_on_its_own_scale_and_takes_discrete_values_as_they_are(surrogate, name, values):
    axis = response_curve_data(surrogate, "loss", name, config=CONFIG, resolution=4).x
    assert axis.name == name
    assert axis.values == (values if name == "penalty" else pytest.approx(values))
    assert [type(value) for value in axis.values] == [type(value) for value in values]


def test_a_logarithmic_integer_shows_all_its_values_where_they_fit_and_ends_where_they_do_not(surrogate):
    assert response_curve_data(surrogate, "loss", "scale", config=CONFIG, resolution=5).x.values == (1, 2, 3, 4, 5)
    thinned = response_curve_data(surrogate, "loss", "scale", config=CONFIG, resolution=3).x.values
    assert (thinned[0], thinned[-1], len(thinned)) == (1, 5, 3)


@pytest.mark.parametrize(("name", "scale"), [("weight_decay", "log"), ("scale", "log"), ("order", "linear")])
def test_an_axis_has_the_scale_of_its_distribution(surrogate, name, scale):
    assert response_curve_data(surrogate, "loss", name, config=CONFIG).x.scale == scale


@pytest.mark.parametrize("name", SPACE)
def test_a_curve_holds_single_evaluations(surrogate, name):
    curve = response_curve_data(surrogate, "mean", name, config=CONFIG, resolution=4)
    truth = [surrogate.evaluate({**CONFIG, name: value})["mean"] for value in curve.x.values]
    np.testing.assert_allclose(curve.values, truth, rtol=1e-5)


@pytest.mark.parametrize(("x", "y"), [("weight_decay", "order"), ("penalty", "dropout"), ("scale", "smoothing")])
def test_a_surface_holds_single_evaluations_with_rows_along_y(surrogate, x, y):
    surface = response_surface_data(surrogate, "loss", x, y, config=CONFIG, resolution=5)
    assert (surface.x.name, surface.y.name) == (x, y)
    truth = [
        [surrogate.evaluate({**CONFIG, x: along, y: up})["loss"] for along in surface.x.values]
        for up in surface.y.values
    ]
    np.testing.assert_allclose(surface.values, truth, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "accuracy"}, r"'accuracy' is unknown.*'loss', 'mean'"),
        ({"x": "momentum"}, "'momentum' is unknown.*'weight_decay'"),
        ({"y": "momentum"}, "'momentum' is unknown"),
        ({"y": "dropout"}, "both are 'dropout'"),
        ({"resolution": 1}, "at least 2, but got 1"),
        ({"config": {"dropout": 0.1}}, "missing"),
        ({"config": {**CONFIG, "order": 2}}, "'order' must be 1 plus a multiple of 4"),
    ],
)
def test_what_does_not_fit_the_space_is_refused(surrogate, arguments, message):
    good = {"metric": "loss", "x": "dropout", "y": "order", "config": CONFIG}
    with pytest.raises(ht.SpaceError, match=message):
        response_surface_data(surrogate, **{**good, **arguments})


# Figures


def stars(ax) -> list[tuple[float, float]]:
    return [tuple(line.get_xydata()[0]) for line in ax.lines if line.get_marker() == "*"]


@pytest.mark.parametrize("x", SPACE)
def test_every_type_of_curve_is_drawn(surrogate, ax, x):
    curve = response_curve_data(surrogate, "loss", x, config=CONFIG)
    assert response_curve(surrogate, "loss", x, config=CONFIG, ax=ax) is ax
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), curve.values)
    ax.figure.canvas.draw()
    assert ax.get_xlabel() == x.replace("_", " ")
    assert ax.get_ylabel() == "loss"


@pytest.mark.parametrize(("x", "y"), list(itertools.combinations(SPACE, 2)))
def test_every_pair_of_types_is_drawn(surrogate, ax, x, y):
    response_surface(surrogate, "loss", x, y, config=CONFIG, resolution=3, points=[CONFIG], ax=ax)
    ax.figure.canvas.draw()
    assert len(stars(ax)) == 1


def test_logarithmic_hyperparameters_have_logarithmic_axes_and_choices_are_named(surrogate, ax):
    response_surface(surrogate, "loss", "weight_decay", "penalty", config=CONFIG, resolution=3, ax=ax)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["l1", "l2", "None"]


@pytest.mark.parametrize(("best", "find"), [("minimize", np.argmin), ("maximize", np.argmax)])
def test_the_star_stands_at_the_best_setting_of_the_grid(surrogate, ax, best, find):
    surface = response_surface_data(surrogate, "loss", "dropout", "order", config=CONFIG, resolution=4)
    row, column = np.unravel_index(find(surface.values), surface.values.shape)
    response_surface(surrogate, "loss", "dropout", "order", config=CONFIG, resolution=4, best=best, ax=ax)
    assert stars(ax) == [(surface.x.values[column], surface.y.values[row])]


@pytest.mark.parametrize(("stated", "find"), [({}, np.argmin), ({"loss": "maximize"}, np.argmax)])
def test_the_star_follows_the_metric_s_direction(surrogate, ax, stated, find):
    own = surrogate._evaluate
    turned = ht.Surrogate(surrogate.hypernet, metric=own.metric, val_loader=own.data.loader, directions=stated)
    surface = response_surface_data(turned, "loss", "dropout", "order", config=CONFIG, resolution=4)
    row, column = np.unravel_index(find(surface.values), surface.values.shape)
    response_surface(turned, "loss", "dropout", "order", config=CONFIG, resolution=4, ax=ax)
    assert stars(ax) == [(surface.x.values[column], surface.y.values[row])]


def test_the_star_of_a_curve_stands_at_its_best_value(surrogate, ax):
    curve = response_curve_data(surrogate, "loss", "penalty", config=CONFIG)
    response_curve(surrogate, "loss", "penalty", config=CONFIG, best="maximize", ax=ax)
    assert stars(ax) == [(float(curve.values.argmax()), curve.values.max())]


def test_no_star_where_none_is_asked_for(surrogate, ax):
    response_curve(surrogate, "loss", "dropout", config=CONFIG, best=None, ax=ax)
    assert stars(ax) == []
    with pytest.raises(ht.SpaceError, match="but got 'low'"):
        response_curve(surrogate, "loss", "dropout", config=CONFIG, best="low", ax=ax)


def test_points_are_drawn_at_their_settings_and_must_fit_the_space(surrogate, ax):
    points = [CONFIG, {**CONFIG, "dropout": 0.3, "penalty": None}]
    response_surface(surrogate, "loss", "dropout", "penalty", config=CONFIG, points=points, best=None, ax=ax)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0.1, 1.0], [0.3, 2.0]])
    with pytest.raises(ht.SpaceError, match="'dropout' must lie in"):
        response_surface(surrogate, "loss", "dropout", "order", config=CONFIG, points=[{**CONFIG, "dropout": 0.6}])


def test_a_figure_is_made_where_no_axes_are_given(surrogate, ax):
    assert response_curve(surrogate, "loss", "dropout", config=CONFIG).figure is not ax.figure


def test_without_matplotlib_the_extra_is_named_and_data_still_work(surrogate, monkeypatch):
    for name in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, name, None)
    response_curve_data(surrogate, "loss", "dropout", config=CONFIG)
    for draw, names in ((response_curve, ["dropout"]), (response_surface, ["dropout", "order"])):
        with pytest.raises(ht.MissingExtraError, match=r"hypertune-mip\[plots\]"):
            draw(surrogate, "loss", *names, config=CONFIG)


def report(**options: object) -> ht.TrustReport:
    space = ht.SearchSpace({"dropout": FloatDistribution(0.0, 0.5)})
    chosen = {
        "metric": "loss",
        "space": space,
        "configs": tuple({"dropout": value} for value in (0.0, 0.2, 0.4)),
        "chosen": ("spread", "best", "best"),
        "predicted": {"loss": np.array([1.0, 2.0, 3.0])},
        "true": {"loss": np.array([[1.0, 2.0], [np.nan, 2.0], [4.0, 4.0]])},
        "responses": {"dropout": 1.0},
        "trainings": 6.0,
        "seconds": 1.0,
        "low": {},
        "high": {},
    }
    return ht.TrustReport(**(chosen | options))


def test_agreement_leaves_out_what_diverged() -> None:
    data = agreement_data(report(low={"loss": np.zeros(3)}, high={"loss": np.array([1.0, 2.0, 3.0])}))
    assert data.predicted.tolist() == [1.0, 3.0]
    assert data.true.tolist() == [1.5, 4.0]
    assert data.spread.tolist() == [0.5, 0.0]
    assert data.margin.tolist() == [0.5, 1.5]
    assert data.best.tolist() == [False, True]
    assert agreement_data(report()).margin.tolist() == [0.0, 0.0]
    with pytest.raises(ht.SpaceError, match="'accuracy' is unknown"):
        agreement_data(report(), "accuracy")


def test_agreement_shows_both_kinds_of_settings() -> None:
    axes = agreement(report())
    points = [container.lines[0].get_xydata().tolist() for container in axes.containers]
    assert points == [[[1.5, 1.0]], [[4.0, 3.0]]]
    assert axes.get_ylabel() == "loss, surrogate"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "spread over the space",
        "the surrogate's best",
    ]


def test_a_delivery_is_drawn_config_by_config() -> None:
    delivered = problem.fit(epochs=8, **problem.validation()).deliver("error", progress=False)
    data = delivery_data(delivered)
    first = [each for each in delivered.candidates if each.rung == 1]
    assert len(data.lines) == len(first)
    assert [line[1][0] for line in data.lines] == [each.values["error"] for each in first]
    assert data.spread == tuple(each.chosen == "spread" for each in first)
    assert sum(len(shares) for shares, _ in data.lines) == len(delivered.candidates)
    assert all(list(shares) == sorted(shares) for shares, _ in data.lines)
    assert data.chosen == (delivered.candidates[delivered.chosen].share, delivered.value.value)
    assert data.interval == (delivered.value.low, delivered.value.high)
    ax = delivery(delivered)
    assert len(ax.lines) == len(first) + 2  # the interval, and the star
    labels = {text.get_text() for text in ax.get_legend().get_texts()}
    assert labels == {"the surrogate's best", "spread over the space", "90 % interval", "delivered"}
