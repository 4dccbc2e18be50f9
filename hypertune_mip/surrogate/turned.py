"""A measure that all searches can take as it is: small values are the better ones, whatever the metrics' directions."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from hypertune_mip.directions import Direction, sign
from hypertune_mip.evaluation import Measure, check_metric
from hypertune_mip.space import SearchSpace


class Turned:
    """A measure with the sign of those metrics turned round of which large values are the better ones.

    Args:
        measure: Of the metrics.
        directions: By name, where they are others than the measure's own.
    """

    def __init__(self, measure: Measure, directions: Mapping[str, Direction] | None = None) -> None:
        """See the class."""
        self._measure = measure
        self._directions = {**measure.directions, **(directions or {})}

    @property
    def space(self) -> SearchSpace:
        """Of the settings."""
        return self._measure.space

    @property
    def directions(self) -> dict[str, Direction]:
        """Small values of all metrics are the better ones."""
        return dict.fromkeys(self._directions, "minimize")

    def sign(self, metric: str) -> float:
        """What this measure's values have to be multiplied by to be the metric's own: 1 or -1.

        Raises:
            SpaceError: If the metric is unknown.
        """
        check_metric(metric, self._directions)
        return sign(self._directions[metric])

    def __call__(self, units: Float[Tensor, "S d"]) -> dict[str, Float[Tensor, "S"]]:
        """Metrics by name, turned."""
        return {name: self.sign(name) * value for name, value in self._measure(units).items()}

    def value_and_gradient(
        self, units: Float[Tensor, "S d"], metric: str
    ) -> tuple[Float[Tensor, "S"], Float[Tensor, "S d"]]:
        """One metric and its derivative, both turned."""
        own = self.sign(metric)
        value, slope = self._measure.value_and_gradient(units, metric)
        return own * value, own * slope
