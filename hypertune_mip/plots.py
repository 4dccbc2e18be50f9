"""Curves and surfaces: how a surrogate's metric responds to hyperparameters; predictions beside truth; deliveries.

Each figure has a function `*_data` that computes it and needs no matplotlib.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hypertune_mip.arguments import whole_number
from hypertune_mip.directions import Direction, sign
from hypertune_mip.errors import MissingExtraError, SpaceError
from hypertune_mip.space import Config, SearchSpace, Value
from hypertune_mip.surrogate import Candidate, Delivered, Surrogate
from hypertune_mip.verification import TrustReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

Best = Direction | Literal["as stated"]

_COLORS: dict[Direction, str] = {"minimize": "viridis_r", "maximize": "viridis"}
_STAR: dict[str, Any] = {
    "marker": "*", "color": "white", "markeredgecolor": "black", "markersize": 14, "clip_on": False, "zorder": 3
}  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """One hyperparameter's values in a figure.

    Args:
        name: Of the hyperparameter.
        values: Native, ascending, or a categorical's choices in declaration order.
        scale: Of the distribution; choices have places but no distances.
    """

    name: str
    values: tuple[Value, ...]
    scale: Literal["linear", "log", "categorical"]

    @property
    def places(self) -> list[float]:
        """Where the values are drawn: at themselves, choices at 0, 1, ..."""
        return [self.place(value) for value in self.values]

    def place(self, value: Value) -> float:
        """Where one value is drawn."""
        return float(self.values.index(value) if self.scale == "categorical" else value)


@dataclass(frozen=True, eq=False)
class Curve:
    """A metric along one hyperparameter, `values[i]` at `x.values[i]`."""

    metric: str
    x: Axis
    values: Float[np.ndarray, "x"]


@dataclass(frozen=True, eq=False)
class Surface:
    """A metric over two hyperparameters, `values[j, i]` at `x.values[i]` and `y.values[j]`."""

    metric: str
    x: Axis
    y: Axis
    values: Float[np.ndarray, "y x"]


@dataclass(frozen=True, eq=False)
class Agreement:
    """Predictions of a metric beside real training, one row a setting.

    Args:
        metric: Its name.
        predicted: By the surrogate, (S,).
        true: By real training, the mean over seeds, (S,); settings where every training diverged are left out.
        spread: Largest distance of a seed from that mean, (S,).
        margin: Half the width of the surrogate's 90 % interval, (S,); 0 where it gives none.
        best: Which settings were chosen because the surrogate likes them, (S,).
    """

    metric: str
    predicted: Float[np.ndarray, "S"]
    true: Float[np.ndarray, "S"]
    spread: Float[np.ndarray, "S"]
    margin: Float[np.ndarray, "S"]
    best: Bool[np.ndarray, "S"]


def agreement_data(report: TrustReport, metric: str | None = None) -> Agreement:
    """What `agreement` draws.

    Args:
        report: From `Surrogate.verify`.
        metric: Name; None is the report's own.

    Raises:
        SpaceError: If the report does not hold the metric.
    """
    name = report.metric if metric is None else metric
    if name not in report.true:
        raise SpaceError(f"The metric {name!r} is unknown; the report holds {list(report.true)}.")
    runs = report.true[name]
    kept = np.isfinite(runs).all(1)
    margin = (report.high[name] - report.low[name]) / 2 if name in report.low else np.zeros(len(runs))
    mean = runs[kept].mean(1)
    return Agreement(
        metric=name,
        predicted=report.predicted[name][kept],
        true=mean,
        spread=np.abs(runs[kept] - mean[:, None]).max(1, initial=0.0),
        margin=margin[kept],
        best=np.array(report.chosen)[kept] == "best",
    )


def agreement(report: TrustReport, metric: str | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw predictions against real training, with the diagonal on which they agree, and return the axes.

    Args:
        report: As in `agreement_data`.
        metric: As in `agreement_data`.
        ax: Where to draw; None makes a figure.

    Raises:
        SpaceError: As in `agreement_data`.
        MissingExtraError: If matplotlib is not installed.
    """
    data = agreement_data(report, metric)
    ax = _new_axes() if ax is None else ax
    for rows, label in ((~data.best, "spread over the space"), (data.best, "the surrogate's best")):
        x, y, up, across = (column[rows] for column in (data.true, data.predicted, data.margin, data.spread))
        ax.errorbar(x, y, yerr=up, xerr=across, fmt="o", label=label)
    ax.axline((float(data.true.min()), float(data.true.min())), slope=1.0, color="gray", zorder=0)
    ax.set(xlabel=f"{data.metric}, real training", ylabel=f"{data.metric}, surrogate")
    ax.legend()
    return ax


@dataclass(frozen=True, eq=False)
class Ladder:
    """Branches of a delivery: for each config its shares and values, in the order of the rungs.

    Args:
        metric: By which the network was chosen.
        lines: For each config of the first rung, (shares, values) of its branches; NaN where one diverged.
        spread: For each whether it was spread over the space, in place of the surrogate's choice.
        chosen: Share of the best branch of the delivered network, and the network's own value.
        interval: Ends of its 90 % interval; NaN where there is none.
    """

    metric: str
    lines: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]
    spread: tuple[bool, ...]
    chosen: tuple[float, float]
    interval: tuple[float, float]


def delivery_data(delivered: Delivered) -> Ladder:
    """What `delivery` draws.

    Args:
        delivered: From `Surrogate.deliver`.
    """
    by_config: dict[str, list[Candidate]] = {}
    for candidate in delivered.candidates:
        by_config.setdefault(str(candidate.config), []).append(candidate)
    own = delivered.candidates[delivered.chosen]
    return Ladder(
        metric=delivered.metric,
        lines=tuple(
            (tuple(each.share for each in line), tuple(each.values[delivered.metric] for each in line))
            for line in by_config.values()
        ),
        spread=tuple(line[0].chosen == "spread" for line in by_config.values()),
        chosen=(own.share, delivered.value.value),
        interval=(delivered.value.low, delivered.value.high),
    )


def delivery(delivered: Delivered, *, ax: Axes | None = None) -> Axes:
    """Draw all branches of a delivery, those of one config joined, with the delivered network, and return the axes.

    Args:
        delivered: As in `delivery_data`.
        ax: Where to draw; None makes a figure.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    data = delivery_data(delivered)
    ax = _new_axes() if ax is None else ax
    labels = {False: "the surrogate's best", True: "spread over the space"}
    for (shares, values), is_spread in zip(data.lines, data.spread, strict=True):
        color = "tab:orange" if is_spread else "tab:blue"
        ax.plot(shares, values, "o-", color=color, alpha=0.7, label=labels.pop(is_spread, None))
    share, value = data.chosen
    if not np.isnan(data.interval).any():
        ax.plot([share, share], data.interval, color="gray", zorder=0, label="90 % interval")
    ax.plot(share, value, **_STAR, linestyle="none", label="delivered")
    ax.set(xlabel="share of a training", ylabel=f"{data.metric} on validation data")
    ax.legend()
    return ax


def response_curve_data(surrogate: Surrogate, metric: str, x: str, *, config: Config, resolution: int = 50) -> Curve:
    """A metric along one hyperparameter, the others as in `config`.

    Args:
        surrogate: With validation data.
        metric: Name.
        x: The hyperparameter.
        config: Native values of all hyperparameters; that of `x` does not matter.
        resolution: Number of values along the axis, evenly spread on the distribution's own scale. Fewer where a
            discrete hyperparameter has fewer; all choices of a categorical.

    Raises:
        SpaceError: If a name is unknown, the config does not fit the space, or `resolution` is less than 2.

    Example:
        >>> from hypertune_mip import HyperNetwork
        >>> space = SearchSpace({"dropout": FloatDistribution(0.0, 0.5)})
        >>> surrogate = Surrogate(
        ...     HyperNetwork(torch.nn.Linear(4, 1), space),
        ...     metric=lambda model, x: {"loss": model(x).square().mean()},
        ...     val_loader=[torch.ones(8, 4)],
        ... )
        >>> response_curve_data(surrogate, "loss", "dropout", config={"dropout": 0.0}, resolution=3).x.values
        (0.0, 0.25, 0.5)
    """
    axis = _axis(surrogate.space, x, resolution)
    return Curve(metric, axis, _measure(surrogate, metric, [axis], config))


def response_surface_data(
    surrogate: Surrogate, metric: str, x: str, y: str, *, config: Config, resolution: int = 25
) -> Surface:
    """A metric over a grid of two hyperparameters, the others as in `config`.

    Args:
        surrogate: With validation data.
        metric: Name.
        x: The hyperparameter along the horizontal axis.
        y: The one along the vertical axis.
        config: Native values of all hyperparameters; those of `x` and `y` do not matter.
        resolution: Number of values along each axis, as in `response_curve_data`.

    Raises:
        SpaceError: As in `response_curve_data`, or if `x` and `y` are the same.
    """
    if x == y:
        raise SpaceError(f"`x` and `y` must be two hyperparameters, but both are {x!r}. See `response_curve` for one.")
    axes = [_axis(surrogate.space, y, resolution), _axis(surrogate.space, x, resolution)]
    values = _measure(surrogate, metric, axes, config)
    return Surface(metric, axes[1], axes[0], values)


def response_curve(
    surrogate: Surrogate,
    metric: str,
    x: str,
    *,
    config: Config,
    resolution: int = 50,
    best: Best | None = "as stated",
    ax: Axes | None = None,
) -> Axes:
    """Draw a metric along one hyperparameter, with a star at its best value, and return the axes.

    Args:
        surrogate: As in `response_curve_data`.
        metric: As in `response_curve_data`.
        x: As in `response_curve_data`.
        config: As in `response_curve_data`.
        resolution: As in `response_curve_data`.
        best: Which value is the best: "minimize" and "maximize" say it, "as stated" takes the metric's own direction;
            None marks none.
        ax: Where to draw; None makes a figure.

    Raises:
        SpaceError: As in `response_curve_data`.
        MissingExtraError: If matplotlib is not installed.
    """
    data = response_curve_data(surrogate, metric, x, config=config, resolution=resolution)
    ax = _new_axes() if ax is None else ax
    ax.plot(data.x.places, data.values, "o" if data.x.scale == "categorical" else ".-")
    ax.set(**_properties(data.x, "x"), ylabel=metric)
    for (column,) in _best_index(data.values, _direction(surrogate, metric, best)):
        ax.plot(data.x.places[column], data.values[column], **_STAR)
    return ax


def response_surface(
    surrogate: Surrogate,
    metric: str,
    x: str,
    y: str,
    *,
    config: Config,
    resolution: int = 25,
    best: Best | None = "as stated",
    points: Sequence[Config] = (),
    ax: Axes | None = None,
) -> Axes:
    """Draw a metric over two hyperparameters, with a star at the grid's best setting, and return the axes.

    Filled contours; with a categorical, one cell a grid point, since there is nothing between two choices.

    Args:
        surrogate: As in `response_surface_data`.
        metric: As in `response_surface_data`.
        x: As in `response_surface_data`.
        y: As in `response_surface_data`.
        config: As in `response_surface_data`.
        resolution: As in `response_surface_data`.
        best: Which value is the best: "minimize" and "maximize" say it, "as stated" takes the metric's own direction;
            None marks none.
        points: Configs to mark with a dot, for example those of trials; their other hyperparameters do not matter.
        ax: Where to draw; None makes a figure.

    Raises:
        SpaceError: As in `response_surface_data`.
        MissingExtraError: If matplotlib is not installed.
    """
    data = response_surface_data(surrogate, metric, x, y, config=config, resolution=resolution)
    points = [points] if isinstance(points, Mapping) else list(points)
    surrogate.space.to_unit(points)  # checks them
    direction = _direction(surrogate, metric, best)
    colors = _COLORS[direction or surrogate.directions[metric]]
    ax = _new_axes() if ax is None else ax
    if min(data.values.shape) > 1 and "categorical" not in (data.x.scale, data.y.scale):
        filled: ScalarMappable = ax.contourf(data.x.places, data.y.places, data.values, levels=20, cmap=colors)
    else:
        filled = ax.pcolormesh(data.x.places, data.y.places, data.values, shading="nearest", cmap=colors)
    ax.figure.colorbar(filled, ax=ax, label=metric)
    ax.set(**_properties(data.x, "x"), **_properties(data.y, "y"))
    where = [data.x.place(point[x]) for point in points], [data.y.place(point[y]) for point in points]
    ax.plot(*where, "k.", clip_on=False)
    for row, column in _best_index(data.values, direction):
        ax.plot(data.x.places[column], data.y.places[row], **_STAR)
    return ax


def _axis(space: SearchSpace, name: str, resolution: int) -> Axis:
    if name not in space:
        raise SpaceError(f"The hyperparameter {name!r} is unknown; the space holds {list(space.names)}.")
    resolution = whole_number("resolution", resolution, low=2, error=SpaceError)
    distribution = space[name]
    if isinstance(distribution, CategoricalDistribution):
        return Axis(name, tuple(distribution.choices), "categorical")
    assert isinstance(distribution, (FloatDistribution, IntDistribution))  # a SearchSpace holds no other
    dimension = space.dimensions[space.names.index(name)]
    count = min(dimension.cells or resolution, resolution)
    if isinstance(distribution, IntDistribution) and count == dimension.cells:
        values: Sequence[Value] = range(distribution.low, distribution.high + 1, distribution.step)
    else:
        values = [dimension.from_unit(i / max(count - 1, 1)) for i in range(count)]
    return Axis(name, tuple(dict.fromkeys(values)), "log" if distribution.log else "linear")


def _measure(surrogate: Surrogate, metric: str, axes: Sequence[Axis], config: Config) -> np.ndarray:
    """The metric over the product of the axes, one array dimension each."""
    space = surrogate.space
    columns = [space.names.index(axis.name) for axis in axes]
    ticks = [
        torch.tensor([space.dimensions[column].to_unit(value) for value in axis.values], dtype=torch.float64)
        for column, axis in zip(columns, axes, strict=True)
    ]
    grid = torch.stack(torch.meshgrid(*ticks, indexing="ij"), dim=-1)
    units = space.unit_of(config).repeat(grid[..., 0].numel(), 1)
    units[:, columns] = grid.flatten(0, -2)
    values = surrogate.evaluate_units(units)
    if metric not in values:
        raise SpaceError(f"The metric {metric!r} is unknown; `metric` returns {list(values)}.")
    return values[metric].reshape(grid.shape[:-1])


def _direction(surrogate: Surrogate, metric: str, best: Best | None) -> Direction | None:
    """In which a value is the best; None where none is to be marked."""
    if best not in ("minimize", "maximize", "as stated", None):
        raise SpaceError(f'`best` must be "minimize", "maximize", "as stated" or None, but got {best!r}.')
    return surrogate.directions[metric] if best == "as stated" else best


def _best_index(values: np.ndarray, direction: Direction | None) -> list[tuple[int, ...]]:
    """Index of the best value, or nothing where there is none to mark."""
    if direction is None or np.isnan(values).all():
        return []
    flat = np.nanargmin(sign(direction) * values)
    return [tuple(int(i) for i in np.unravel_index(flat, values.shape))]


def _properties(axis: Axis, side: Literal["x", "y"]) -> dict[str, Any]:
    """What `Axes.set` takes for one side."""
    label = {f"{side}label": axis.name.replace("_", " ")}
    if axis.scale == "categorical":
        return label | {f"{side}ticks": axis.places, f"{side}ticklabels": [str(value) for value in axis.values]}
    return label | {f"{side}scale": axis.scale}


def _new_axes() -> Axes:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingExtraError("Drawing a figure", "plots") from error
    return pyplot.subplots(layout="constrained")[1]
