"""Expected improvement of the next real training, by BoTorch, as a measure that searches take like any other.

BoTorch computes its logarithm, which has a slope also where hardly any improvement is expected (Ament et al., 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from botorch.acquisition.analytic import LogExpectedImprovement
from botorch.models.model import Model
from botorch.posteriors.gpytorch import GPyTorchPosterior
from gpytorch.distributions import MultivariateNormal
from jaxtyping import Float
from linear_operator.operators import DiagLinearOperator  # type: ignore[import-untyped]
from torch import Tensor

from hypertune_mip.directions import Direction, sign
from hypertune_mip.evaluation import Measure
from hypertune_mip.space import SearchSpace
from hypertune_mip.surrogate.composed import value_and_gradient_through
from hypertune_mip.surrogate.search import distance_to
from hypertune_mip.verification.experts import Line, Mixture, Scale

NAME = "improvement"
"""Of the one metric here: the logarithm of the expected improvement, its sign turned, so that small is better."""


class Improvement:
    """By how much a training is expected to beat the best result so far.

    Args:
        measure: The surrogate's metrics.
        metric: What the results are of.
        tried: Settings with a result and a prediction, (N, d).
        predicted: What the surrogate says there, (N,).
        values: The results, (N,).
        direction: Whether small or large results are the better ones.
        pending: Settings whose results are not there yet, (P, d): they are believed to be what is foreseen.
        foreseen: What the surrogate says there, (P,), all finite.
        known: Settings, (K, d), to whose neighbourhood no improvement is ascribed.
        apart: How large that is, in units: by the column that differs most.

    Attributes:
        apart: May be set anew.
        weight: How much a difference that the surrogate predicts between two settings counts for: 1 as predicted (where
            results say that real ones are larger, more), 0 not at all.
    """

    def __init__(
        self,
        measure: Measure,
        metric: str,
        tried: Float[Tensor, "N d"],
        predicted: Float[Tensor, "N"],
        values: Float[Tensor, "N"],
        *,
        direction: Direction,
        pending: Float[Tensor, "P d"],
        foreseen: Float[Tensor, "P"],
        known: Float[Tensor, "K d"],
        apart: float,
    ) -> None:
        """See the class."""
        self._measure, self._metric = measure, metric
        self._scale, self._sign = Scale.of(predicted, values), sign(direction)
        self._known, self.apart = known, apart
        x, y = self._turned(predicted), self._turned(values)
        mixture = Mixture.fit(Line.fit, tried, x, y, weighed=True)
        self.weight = float(mixture.weights[0] * Line.fit(x, y).slope)
        best = y.min()
        if len(pending):
            best = torch.minimum(best, mixture(pending, self._turned(foreseen), noise=False).mean.min())
            mixture = mixture.believing(pending)
        self._logarithm = LogExpectedImprovement(_Model(mixture), best_f=best, maximize=False)

    @property
    def space(self) -> SearchSpace:
        """Of the settings."""
        return self._measure.space

    @property
    def directions(self) -> Mapping[str, Direction]:
        """Of the one metric."""
        return {NAME: "minimize"}

    def __call__(self, units: Float[Tensor, "S d"]) -> dict[str, Float[Tensor, "S"]]:
        """Minus the logarithm of the expected improvement, by name; infinite near settings that are known."""
        return self.where_foreseen(units, self._measure(units)[self._metric])

    def where_foreseen(self, units: Float[Tensor, "S d"], predicted: Float[Tensor, "S"]) -> dict[str, Tensor]:
        """The same where it is known what the surrogate says."""
        return {NAME: self._of(units.double().cpu(), predicted.double().cpu())}

    def value_and_gradient(
        self, units: Float[Tensor, "S d"], metric: str = NAME
    ) -> tuple[Float[Tensor, "S"], Float[Tensor, "S d"]]:
        """The same, and its derivative."""
        return value_and_gradient_through(self._measure, units, self._metric, self._of)

    def _of(self, units: Tensor, predicted: Tensor) -> Tensor:
        columns = torch.cat([units, self._turned(predicted).unsqueeze(-1)], -1)
        score = -self._logarithm(columns.unsqueeze(1))
        return torch.where(distance_to(units.detach(), self._known) >= self.apart, score, torch.inf)

    def _turned(self, values: Tensor) -> Tensor:
        """On the scale of the experts, where small values are the better ones."""
        return self._sign * self._scale(values)


class _Model(Model):
    """A mixture as BoTorch sees a model; the last column of a setting is what the surrogate says there."""

    num_outputs = 1

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self._mixture = mixture

    def posterior(self, X: Float[Tensor, "S 1 c"], *_: Any, **__: Any) -> GPyTorchPosterior:
        mean, deviation = self._mixture(X[:, 0, :-1], X[:, 0, -1], noise=False)
        variance = DiagLinearOperator(deviation.square().unsqueeze(-1))  # never factored, so it may be NaN somewhere
        return GPyTorchPosterior(MultivariateNormal(mean.unsqueeze(-1), variance))
