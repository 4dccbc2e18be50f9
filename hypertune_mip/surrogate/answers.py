"""What a surrogate answers for any setting, without training: metrics, their gradients, and searches over them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, overload

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hypertune_mip.arguments import seed_number, whole_number
from hypertune_mip.errors import DataError, SpaceError
from hypertune_mip.evaluation import Emulator, Evaluator
from hypertune_mip.space import Config, SearchSpace
from hypertune_mip.surrogate import search
from hypertune_mip.surrogate.calibrated import CalibratedEvaluator
from hypertune_mip.verification.calibration import Calibrated
from hypertune_mip.verification.response import responses
from hypertune_mip.verification.statistics import Estimate


class Answers(ABC):
    """Answers for any setting by a measure, which may be calibrated."""

    @property
    @abstractmethod
    def space(self) -> SearchSpace:
        """Of the settings."""

    @property
    @abstractmethod
    def _measure(self) -> Evaluator | CalibratedEvaluator:
        """Metrics at settings."""

    @abstractmethod
    def warn_of_doubts(self, *metrics: str, stacklevel: int = 2) -> None:
        """Warn of what is known against the answers about metrics."""

    @overload
    def evaluate(self, config: Config, *, interval: Literal[False] = False) -> dict[str, float]: ...

    @overload
    def evaluate(self, config: Config, *, interval: Literal[True]) -> dict[str, Estimate]: ...

    def evaluate(self, config: Config, *, interval: bool = False) -> dict[str, float] | dict[str, Estimate]:
        """Metrics at one config, by name; of a calibrated surrogate the calibrated ones.

        Args:
            config: Native values.
            interval: Whether to give an `Estimate` with the ends of a 90 % interval for what one real training would
                give, instead of a number.

        Raises:
            SpaceError: If the config has an unknown or missing name or a value outside the space, or there are several.
            DataError: If the surrogate has no validation data, or an interval is asked for before calibration.
        """
        units = self.space.unit_of(config)
        if not interval:
            return {name: float(value[0]) for name, value in self.evaluate_units(units).items()}
        return {
            name: Estimate(float(one.mean[0]), float(one.low[0]), float(one.high[0]))
            for name, one in self.intervals(units).items()
        }

    def evaluate_batch(self, configs: Sequence[Config], *, progress: bool = False) -> dict[str, Float[np.ndarray, "S"]]:
        """Metrics at many configs, by name, in their order; thousands are cut to what the memory budget allows.

        Raises:
            SpaceError: As in `evaluate`.
        """
        return self.evaluate_units(self.space.to_unit(configs), progress=progress)

    def evaluate_units(
        self, units: Float[Tensor, "S d"], *, progress: bool = False
    ) -> dict[str, Float[np.ndarray, "S"]]:
        """`evaluate_batch` at units, for code that samples in the unit cube; discrete columns are snapped."""
        units = self.space.check_units(units)
        values = self._measure(self.space.snap(units), progress=progress)
        return {name: value.numpy() for name, value in values.items()}

    def intervals(self, units: Float[Tensor, "S d"]) -> dict[str, Calibrated]:
        """Calibrated metrics at units with their 90 % intervals, by name, for code that samples in the unit cube.

        Raises:
            SpaceError: As in `evaluate_units`.
            DataError: If the surrogate has not been calibrated.
        """
        units = self.space.check_units(units)
        measure = self._measure
        if not isinstance(measure, CalibratedEvaluator):
            raise DataError(
                "A surrogate knows intervals only after calibration: surrogate.calibrated(surrogate.verify(metric))."
            )
        return measure.intervals(self.space.snap(units))

    def gradient(self, config: Config, metric: str) -> dict[str, float]:
        """Derivative of a metric with respect to each continuous hyperparameter, native scale, by name.

        Integers, stepped floats and categoricals have no derivative and are left out.

        Raises:
            SpaceError: As in `evaluate`, or if the metric is unknown.
        """
        return search.gradient(self._measure, self.space.unit_of(config), metric)

    def optimize(
        self, metric: str, *, candidates: int = 512, starts: int = 8, steps: int = 30, seed: int = 0
    ) -> search.Optimum:
        """The setting with the best metric, in its direction: Sobol candidates, then batched descent from the best.

        Args:
            metric: Name.
            candidates: Sobol settings to look at first.
            starts: How many of the best descend.
            steps: Of the descent; 0 for candidates alone.
            seed: Of the candidates.

        Raises:
            SpaceError: If the metric is unknown, or there is not at least one candidate and start.

        Warns:
            HypertuneWarning: Of `doubts`.
        """
        candidates = whole_number("candidates", candidates, low=1, error=SpaceError)
        starts = whole_number("starts", starts, low=1, error=SpaceError)
        steps = whole_number("steps", steps, low=0, error=SpaceError)
        seed = seed_number(seed, error=SpaceError)
        self.warn_of_doubts(metric, stacklevel=3)
        return search.optimize(self._measure, metric, candidates=candidates, starts=starts, steps=steps, seed=seed)

    def pareto_front(
        self, metrics: Sequence[str], *, candidates: int = 1024, seed: int = 0, emulator: Emulator | None = None
    ) -> list[search.ParetoPoint]:
        """Settings among `candidates` that no other one beats in every metric, each in its direction.

        The best in the first metric comes first.

        Args:
            metrics: Names.
            candidates: Sobol settings to look at.
            seed: Of the candidates.
            emulator: Of this surrogate. It screens the candidates, which may then be a million: only those near the
                front, 4,096 at most, are evaluated. The values are the surrogate's own in any case.

        Raises:
            SpaceError: If a metric is unknown or none is given, there is no candidate, or the emulator is of another
                space.

        Warns:
            HypertuneWarning: Of `doubts`.
        """
        if not metrics or isinstance(metrics, str):
            raise SpaceError(f"`metrics` must be a list of metric names, but got {metrics!r}.")
        candidates = whole_number("candidates", candidates, low=1, error=SpaceError)
        if emulator is not None:
            emulator.check_space(self.space)
        self.warn_of_doubts(*metrics, stacklevel=3)
        return search.pareto_front(self._measure, metrics, candidates=candidates, seed=seed, emulator=emulator)

    def emulator(self, *, points: int = 2048, seed: int = 0, progress: bool = True) -> Emulator:
        """A fast response surface of the surrogate as it is now: 100,000 settings a second, within stated errors.

        For sliders, and to screen very many settings; what matters in the end should be evaluated exactly.

        Args:
            points: Settings to evaluate exactly. An eighth of them are not fitted but tell the error.
            seed: Of the settings.
            progress: Whether to show a bar.

        Raises:
            SpaceError: If the space holds but one setting, or there are fewer than 16 points.
            DataError: If the metrics are finite at less than half of the points.

        Warns:
            HypertuneWarning: If the error of a metric is not small (see `EmulatorAccuracy`).

        Example:
            >>> import torch
            >>> from optuna.distributions import FloatDistribution
            >>> from hypertune_mip import HyperNetwork, Surrogate
            >>> space = SearchSpace({"dropout": FloatDistribution(0.0, 0.5)})
            >>> surrogate = Surrogate(
            ...     HyperNetwork(torch.nn.Linear(3, 1), space),
            ...     metric=lambda model, x: {"loss": model(x).square().mean()},
            ...     val_loader=[torch.ones(4, 3)],
            ... )
            >>> emulator = surrogate.emulator(points=64, progress=False)
            >>> emulator(space.sample(10_000))["loss"].shape
            (10000,)
            >>> emulator.errors["loss"].small
            True
        """
        points, seed = whole_number("points", points, error=SpaceError), seed_number(seed, error=SpaceError)
        return Emulator(self.space, lambda units: self._measure(units, progress=progress), points=points, seed=seed)

    def responses(self, *, bases: int = 8) -> dict[str, dict[str, float]]:
        """How far each hyperparameter alone moves each metric, as a share of its size, by hyperparameter and metric.

        Args:
            bases: Settings at which the other hyperparameters stay while one goes through its range.
        """
        return responses(self._measure, bases=whole_number("bases", bases, low=1, error=SpaceError))
