"""What a surrogate ends in: branches, and the networks that a delivery chooses among them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hypertune_mip.arguments import positive_number, seed_number, whole_number
from hypertune_mip.directions import Direction, sign
from hypertune_mip.errors import OptionError, SpaceError
from hypertune_mip.evaluation import check_metric
from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.space import Config
from hypertune_mip.surrogate.answers import Answers
from hypertune_mip.surrogate.candidates import Plan, along_front, candidates, cost_of_fit, kept, rungs_of
from hypertune_mip.surrogate.delivery import Delivered, delivered, delivered_front
from hypertune_mip.training import Record
from hypertune_mip.trainings import Branches, Executor, Recipe, Trainer
from hypertune_mip.trainings.starts import digest
from hypertune_mip.verification.report import TrustReport


class Deliveries(Answers):
    """Answers for any setting, and delivers networks by real trainings that start from the hypernetwork's weights.

    Attributes:
        hypernet: Trained.
        history: One record an epoch, from training.
        reports: On real trainings.
    """

    hypernet: HyperNetwork
    history: list[Record]
    reports: tuple[TrustReport, ...]

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics."""

    @property
    @abstractmethod
    def directions(self) -> dict[str, Direction]:
        """Of all metrics, by name."""

    @property
    @abstractmethod
    def _known(self) -> int:
        """How many of the reports the answers are calibrated by: they come first."""

    @property
    @abstractmethod
    def _own_recipe(self) -> Recipe:
        """How a single network is trained where nothing else is said."""

    @abstractmethod
    def trainer(
        self, recipe: Recipe | None = None, folder: str | Path | None = None, executor: Executor | None = None
    ) -> Trainer:
        """What trains the plain primary network for real."""

    def branch(self, configs: Sequence[Config], *, share: float = 0.25, progress: bool = True) -> Branches:
        """Short real trainings at each config, by the default recipe, from the weights that the hypernetwork makes.

        They order configs as whole trainings would, for a part of the cost. `trainer().branch` has more choices.

        Args:
            configs: Native values.
            share: Of the recipe that each takes, in (0, 1].
            progress: Whether to show a bar.

        Raises:
            SpaceError: If a config does not fit the space.
            OptionError: If `share` is not in (0, 1].
            DataError: As in `trainer`.

        Warns:
            HypertuneWarning: Of branches that diverge.
        """
        return self.trainer().branch(configs, share=share, progress=progress)

    def deliver(
        self,
        metric: str,
        trainings: float = 2.0,
        *,
        recipe: Recipe | None = None,
        folder: str | Path | None = None,
        executor: Executor | None = None,
        trainer: Trainer | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> Delivered:
        """A finished network: the best, on validation data, of short trainings at settings that look good.

        Settings that the surrogate likes, and some that are spread, are trained for a short while from the weights that
        the hypernetwork makes there; the better ones again for longer.

        Args:
            metric: To choose by, in its direction.
            trainings: To spend beside that of `fit`, in trainings with the whole recipe; a little less may be spent.
            recipe: How one network is trained; None is as `fit` was told.
            folder: Where finished branches are kept with their networks: a call that was stopped goes on there, and
                ends with the same network.
            executor: Who carries trainings out; None is this process.
            trainer: In place of recipe, folder and executor: one that `trainer` made.
            seed: Of the spread settings, of the order of data and of noise.
            progress: Whether to show bars.

        Raises:
            SpaceError: If the metric is unknown.
            OptionError: If `trainings` is too little for one branch, or `trainer` comes with what it stands for.
            DataError: As in `trainer`.
            TrainingError: If all branches diverge.
            StorageError: If the folder cannot be read or written.

        Warns:
            HypertuneWarning: Of `doubts`, and of branches that diverge.
        """
        check_metric(metric, self.metrics)
        seed = seed_number(seed, error=OptionError)
        trainer = self._one_trainer(trainer, recipe, folder, executor)
        rungs = rungs_of(trainings, trainer.share_of)
        self.warn_of_doubts(metric, stacklevel=3)

        def plan() -> Plan:
            configs, chosen = candidates(self._measure, metric, rungs[0].candidates, seed=seed)
            return Plan(configs, chosen, self._cost_of_fit(trainer, configs[0]))

        about = {"metric": metric, "rungs": [list(rung) for rung in rungs], "seed": seed}
        first = self._kept_plan(trainer, about, plan)
        direction = self.directions[metric]
        return delivered(trainer, first, rungs, metric, direction, seed=seed, progress=progress)

    def deliver_front(
        self,
        metrics: Sequence[str],
        trainings: float = 3.0,
        *,
        points: int = 3,
        recipe: Recipe | None = None,
        folder: str | Path | None = None,
        executor: Executor | None = None,
        trainer: Trainer | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> tuple[Delivered, ...]:
        """Finished networks that no other one beats in every metric, on validation data, sorted by the first metric.

        Twice as many settings along the surrogate's front as networks are wanted are trained for the same share of the
        recipe, half of it at most, from the weights that the hypernetwork makes there.

        Args:
            metrics: Names, in their directions.
            trainings: As in `deliver`.
            points: How many networks, at most.
            recipe: As in `deliver`.
            folder: As in `deliver`.
            executor: As in `deliver`.
            trainer: As in `deliver`.
            seed: As in `deliver`.
            progress: Whether to show bars.

        Raises:
            SpaceError: If a metric is unknown, or fewer than two are given.
            OptionError: If a number is none, or `trainer` comes with what it stands for.
            DataError: As in `trainer`.
            TrainingError: If all branches diverge.
            StorageError: If the folder cannot be read or written.

        Warns:
            HypertuneWarning: Of `doubts`, and of branches that diverge.
        """
        if isinstance(metrics, str) or len(set(metrics)) < 2:
            raise SpaceError(f"`metrics` must be a list of at least two metric names, but got {metrics!r}.")
        for name in metrics:
            check_metric(name, self.metrics)
        spent = positive_number("trainings", trainings, error=OptionError)
        points = whole_number("points", points, low=1, error=OptionError)
        seed = seed_number(seed, error=OptionError)
        trainer = self._one_trainer(trainer, recipe, folder, executor)
        directions = {name: self.directions[name] for name in metrics}
        share = min(0.5, spent / (2 * points))

        def plan() -> Plan:
            front = self.pareto_front(metrics, seed=seed)
            table = np.array([[sign(directions[name]) * point.values[name] for name in metrics] for point in front])
            configs = [dict(front[row].config) for row in along_front(table, 2 * points)]
            return Plan(configs, ["best"] * len(configs), self._cost_of_fit(trainer, configs[0]))

        first = self._kept_plan(trainer, {"metrics": list(metrics), "points": points, "seed": seed}, plan)
        return delivered_front(trainer, first, directions, share, points, seed=seed, progress=progress)

    def _cost_of_fit(self, trainer: Trainer, config: Config) -> float:
        return cost_of_fit(self.history, trainer, config, accumulate=self._own_recipe.accumulate)

    def _kept_plan(self, trainer: Trainer, about: dict[str, Any], make: Callable[[], Plan]) -> Plan:
        """The candidates that an earlier call has kept in the trainer's folder, or those that this one keeps."""
        mine = {
            "weights": digest(self.hypernet.state_dict().items()),
            "reports": [report.to_dict() for report in self.reports[: self._known]],
            "directions": self.directions,
            "trainings": trainer.about(self.space.from_unit(self.space.sample(1))[0]),
        }
        return kept(trainer.folder, about | mine, make)

    def _one_trainer(
        self, trainer: Trainer | None, recipe: Recipe | None, folder: str | Path | None, executor: Executor | None
    ) -> Trainer:
        if trainer is None:
            return self.trainer(recipe, folder, executor)
        if (recipe, folder, executor) != (None, None, None):
            raise OptionError("`trainer` stands for `recipe`, `folder` and `executor`: pass it, or those.")
        return trainer
