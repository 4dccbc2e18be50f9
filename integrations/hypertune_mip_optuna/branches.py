"""An Optuna objective whose every trial is a branch: a short real training from the hypernetwork's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import BaseTrial

from hypertune_mip import OptionError, Recipe, SpaceError, Surrogate, Trainer
from hypertune_mip_optuna.agreement import check_study, suggest, suggest_config


class BranchObjective:
    """An objective for `study.optimize`: trains a branch at each config that is suggested, and reports its epochs.

    A branch is a real network: it costs a share of a training, and orders settings as whole trainings do. After each
    epoch the trial gets the metric, so that any pruner may end it; the other metrics become user attributes of trials
    that are not pruned. Finished branches are kept, so that a config which is suggested once more costs nothing.

    Args:
        surrogate: With loss, training data and validation data, as `fit` makes it.
        metric: Name of the metric to optimise.
        share: Of the recipe that each branch takes, in (0, 1].
        recipe: How one network is trained; None is as `fit` was told.
        recipe_space: Hyperparameters of the recipe to search along, such as a learning rate, by name: the recipe's
            optimizer finds them in its config.
        folder: Where finished branches are kept with their networks; None keeps them in memory.
        seed: Of the order of data and of noise.

    Raises:
        SpaceError: If the metric is unknown, or a name is in both spaces. When called: as `SurrogateObjective`.
        OptionError: If the share is not in (0, 1], or there is a `recipe_space` and no recipe.
        DataError: If the surrogate lacks the loss or data.

    Example:
        objective = BranchObjective(
            surrogate,
            "loss",
            recipe=ht.Recipe(epochs=40, optimizer=lambda p, config: torch.optim.Adam(p, lr=config["learning_rate"])),
            recipe_space={"learning_rate": FloatDistribution(1e-4, 1e-2, log=True)},
        )
        study = optuna.create_study(pruner=optuna.pruners.MedianPruner())
        study.optimize(objective, n_trials=16)
        network = objective.network(study.best_trial)
    """

    def __init__(
        self,
        surrogate: Surrogate,
        metric: str,
        *,
        share: float = 0.25,
        recipe: Recipe | None = None,
        recipe_space: Mapping[str, BaseDistribution] | None = None,
        folder: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        """See the class."""
        if metric not in surrogate.metrics:
            raise SpaceError(f"The metric {metric!r} is unknown; `metric` returns {list(surrogate.metrics)}.")
        self.recipe_space = dict(recipe_space or {})
        if self.recipe_space and recipe is None:
            raise OptionError(
                f"`recipe_space` holds {list(self.recipe_space)}, which a recipe is to read: pass `recipe`, whose"
                ' optimizer takes them from its config: `lambda p, config: Adam(p, lr=config["learning_rate"])`.'
            )
        if both := [name for name in self.recipe_space if name in surrogate.space]:
            raise SpaceError(f"{both} are in the surrogate's space already: take other names in `recipe_space`.")
        self.surrogate = surrogate
        self.metric = metric
        self.share = share
        self.seed = seed
        self._trainer = surrogate.trainer(recipe, folder)
        (some,) = surrogate.space.from_unit(surrogate.space.sample(1))
        self._trainer.branch_epochs(some, share=share, seed=seed)  # which refuses what it cannot take, and waits

    def __call__(self, trial: BaseTrial) -> float:
        """The metric of the branch at the config that the trial suggests.

        Raises:
            TrialPruned: If the study's pruner ends the trial.
        """
        if isinstance(trial, optuna.Trial):
            check_study(trial.study, self.surrogate, [self.metric])
        config = suggest_config(trial, self.surrogate.space)
        for name, distribution in self.recipe_space.items():
            suggest(trial, name, distribution)
        values: dict[str, float] = {}
        for epoch, values in self._by(trial.params).branch_epochs(config, share=self.share, seed=self.seed):
            trial.report(values[self.metric], epoch)
            if trial.should_prune():
                raise optuna.TrialPruned(f"after epoch {epoch}, with {self.metric} {values[self.metric]:.4g}")
        for name, value in values.items():
            if name != self.metric:
                trial.set_user_attr(name, value)
        return values[self.metric]

    def network(self, trial: BaseTrial | optuna.trial.FrozenTrial) -> Any:
        """The network of a finished trial's branch, plain and in evaluation mode; it is trained if it is not kept."""
        config = {name: trial.params[name] for name in self.surrogate.space}
        trainer = self._by(trial.params)
        for _ in trainer.branch_epochs(config, share=self.share, seed=self.seed):
            pass
        return trainer.branch([config], share=self.share, seed=self.seed, progress=False).networks[0]

    def _by(self, params: Mapping[str, Any]) -> Trainer:
        """The trainer whose recipe knows the trial's own hyperparameters."""
        if not self.recipe_space:
            return self._trainer
        own = {name: params[name] for name in self.recipe_space}
        return self._trainer.following(self._trainer.recipe.given(own))
