"""The trainer: plain networks trained for real at given configs, from scratch or as branches of a hypernetwork."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from tqdm.auto import tqdm

from hypertune_mip.arguments import real_number, seed_number
from hypertune_mip.errors import DataError, OptionError
from hypertune_mip.evaluation import Metric, standard_error
from hypertune_mip.execution import Mode
from hypertune_mip.space import Config, SearchSpace
from hypertune_mip.training import Loss
from hypertune_mip.training.options import at_least
from hypertune_mip.trainings.branches import Branches, BranchPoint
from hypertune_mip.trainings.decay import warn_of_two_decays
from hypertune_mip.trainings.executor import Executor, InThisProcess
from hypertune_mip.trainings.networks import like
from hypertune_mip.trainings.recipe import Recipe
from hypertune_mip.trainings.starts import FromNetwork, FromScratch, Initialize, Starts
from hypertune_mip.trainings.store import SCRATCH, Finished, Run, Store, Together, name_of
from hypertune_mip.trainings.workshop import Workshop

_COUNTER = itertools.count()  # of networks that branches start from


class Trainer:
    """Trains the plain primary network at any configs, from scratch or as branches, and remembers what came out.

    Args:
        network: The primary network as a user would train it, layers bound to hyperparameters included; it is copied.
        space: Whose configs it is trained at.
        loss: As in `fit`: the very function that the hypernetwork was trained on.
        train_loader: As in `fit`.
        metric: As in `fit`.
        val_loader: As in `fit`.
        recipe: How one network is trained.
        branch_points: Where branches may start, by name.
        initialize: Where trainings from scratch start. "given" is `network` as it is, whatever the seed, for pretrained
            ones; "reset" draws trainable weights anew by each module's own `reset_parameters`, while what is frozen
            stays; "auto" does that if all weights look as if drawn so, and is "given" otherwise; or a function that
            makes a network, called with the seed set.
        mapping: As in `HyperNetwork`: with "loop" networks are trained one after another.
        parallel: Networks that are trained at once, where `torch.func.vmap` can serve the network and the loss; others
            are trained one after another. 1 always does.
        device: Where to train.
        folder: Where finished trainings are kept with their networks; they are not trained again, by this object or a
            later one, and processes may share it. One counts where config, seed, recipe, start and shapes are the same;
            it is measured anew where validation data or names of metrics are others. Loss and training data cannot be
            compared, so take another folder for others.
        executor: Who carries trainings out; None is this process.

    Raises:
        OptionError: If an option is invalid.
        DataError: If a loader is empty, or the network has nothing to train.

    Example:
        >>> from optuna.distributions import FloatDistribution
        >>> from hypertune_mip import losses
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> trainer = Trainer(
        ...     nn.Linear(1, 1),
        ...     SearchSpace({"decay": FloatDistribution(0.0, 1.0)}),
        ...     lambda model, x, config: (model(x) - x).square().mean() + config["decay"] * losses.l2(model),
        ...     [x],
        ...     metric=lambda model, x: {"error": (model(x) - x).square().mean()},
        ...     val_loader=[x],
        ...     recipe=Recipe(epochs=10),
        ... )
        >>> trainer.train([{"decay": 0.0}, {"decay": 1.0}], seeds=3, progress=False)["error"].shape
        (2, 3)
    """

    def __init__(
        self,
        network: nn.Module,
        space: SearchSpace,
        loss: Loss,
        train_loader: Iterable[Any],
        *,
        metric: Metric,
        val_loader: Iterable[Any],
        recipe: Recipe,
        branch_points: Mapping[str, Starts] | None = None,
        initialize: Initialize = "auto",
        mapping: Mode = "auto",
        parallel: int = 16,
        device: str | torch.device = "cpu",
        folder: str | Path | None = None,
        executor: Executor | None = None,
    ) -> None:
        """See the class."""
        (parallel,) = at_least(1, parallel=parallel)
        if mapping not in ("auto", "vmap", "loop"):
            raise OptionError(f'`mapping` must be "auto", "vmap" or "loop", but got {mapping!r}.')
        recipe = checked_recipe(recipe)
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise DataError("The primary network has no trainable parameter, so there is nothing to train.")
        own = copy.deepcopy(network).cpu()
        self._scratch = FromScratch(own, initialize)
        self._workshop = Workshop(
            own,
            space,
            loss,
            train_loader,
            metric,
            val_loader,
            recipe,
            {SCRATCH: self._scratch, **(branch_points or {})},
            parallel=1 if mapping == "loop" else parallel,
            device=torch.device(device),
        )
        self.space = space
        self.recipe = recipe
        self.executor: Executor = InThisProcess() if executor is None else executor
        self._branch_points = tuple(branch_points or ())
        self._store = Store(folder)
        self._checked: set[str] = set()
        self._told_of_decay = False

    def __repr__(self) -> str:
        """The recipe, and how many trainings are done."""
        return (
            f"Trainer(epochs={self.recipe.epochs}, finished={len(self._store)},"
            f" {'stacked' if self._workshop.stacked else 'one after another'})"
        )

    @property
    def loss(self) -> Loss:
        """What is minimised."""
        return self._workshop.loss

    @property
    def train_loader(self) -> Iterable[Any]:
        """Training data."""
        return self._workshop.train_loader

    @property
    def steps(self) -> int | None:
        """Of the whole recipe; None where the training loader has no length."""
        return self._workshop.steps

    @property
    def folder(self) -> Path | None:
        """Where finished trainings are kept."""
        return self._store.folder

    @property
    def seconds(self) -> float:
        """That training has taken so far, on the device or devices."""
        return self._workshop.seconds

    def train(
        self, configs: Sequence[Config], *, seeds: int | Sequence[int] = 1, common: bool = True, progress: bool = True
    ) -> dict[str, Float[np.ndarray, "S R"]]:
        """Metrics of the network trained from scratch at each config with each seed, by name.

        A training whose loss stops being finite has NaN for every metric. What is finished already is not repeated.

        Args:
            configs: Native values.
            seeds: Of initialisation, order of the data and noise; a number R stands for 0, ..., R - 1. The noise of
                dropout and augmentation also depends on which networks are trained together.
            common: Whether a seed means the same initialisation at all configs, which makes differences between them
                less noisy. Otherwise each config draws its own from the seed.
            progress: Whether to show a bar.

        Raises:
            SpaceError: If a config does not fit the space.
            OptionError: If there is no seed, one is no whole number, or the recipe's optimiser cannot train.
            LossError: If the loss or metric returns something else than agreed.
            StorageError: If finished trainings cannot be stored or read.

        Warns:
            HypertuneWarning: If several seeds start from the same weights, since those are the network's own; and of
                trainings that diverge.
        """
        numbers = _numbers(seeds)
        if len(numbers) > 1 or not common:
            self._scratch.warn_of_same(stacklevel=2)
        own = self.space.plain(configs)
        runs = [Run(config, seed, common, SCRATCH, 1.0) for seed in numbers for config in own]
        finished = self._finished(runs, keep=False, progress=progress)
        return {
            name: np.array([one.metrics[name] for one in finished]).reshape(len(numbers), len(own)).T
            for name in (finished[0].metrics if finished else ())
        }

    def branch(
        self,
        configs: Sequence[Config],
        *,
        share: float = 0.25,
        start: BranchPoint | nn.Module | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> Branches:
        """Short trainings at each config that start from the weights that the hypernetwork makes there, or from others.

        What is finished already is not repeated.

        Args:
            configs: Native values.
            share: Of the recipe, in (0, 1]: the steps of one branch. The schedule runs through in as many.
            start: "early" starts from the hypernetwork as it was after a quarter of its training, from where branches
                order configs best; "end" from its end, from where they make the best networks. None is "early" where
                the hypernetwork has such a snapshot. Or a trained network, such as one of `Branches.networks`, to go on
                from at every config.
            seed: Of the order of data and of noise.
            progress: Whether to show a bar.

        Raises:
            SpaceError: If a config does not fit the space.
            OptionError: If `share` is not in (0, 1], or there is no such start; or a network has other parameters.
            LossError: As in `train`.
            StorageError: As in `train`.

        Warns:
            HypertuneWarning: Of branches that diverge.
        """
        runs = self._branch_runs(configs, share, start, seed)
        own = [run.config for run in runs]
        try:
            finished = self._finished(runs, keep=True, progress=progress)
        finally:
            self._drop_network(start, runs)
        return Branches(
            configs=tuple(own),
            metrics={n: np.array([f.metrics[n] for f in finished]) for n in (finished[0].metrics if finished else ())},
            make=lambda index: self._stored_network(runs[index]),
            cost=len(own) * self._workshop.share_of(share),
            share=float(share),
            start="network" if isinstance(start, nn.Module) else self._branch_point(start),
        )

    def branch_epochs(
        self, config: Config, *, share: float = 0.25, start: BranchPoint | nn.Module | None = None, seed: int = 0
    ) -> Iterator[tuple[int, dict[str, float]]]:
        """One branch, epoch by epoch: the number of the epoch, counted from 1, and the metrics after it.

        It is the branch that `branch` makes alone, and is kept when it has been gone through to the end. One that is
        finished already gives its last epoch at once. Whoever sees enough stops asking; then nothing is kept.

        Args:
            config: Native values.
            share: As in `branch`.
            start: As in `branch`.
            seed: As in `branch`.

        Raises:
            SpaceError: If the config does not fit the space, or there are several.
            OptionError: As in `branch`.
            LossError: As in `train`.
            StorageError: As in `train`.

        Warns:
            HypertuneWarning: If the branch diverges.
        """
        self.space.unit_of(config)  # of one config
        runs = self._branch_runs([config], share, start, seed)

        def epochs() -> Iterator[tuple[int, dict[str, float]]]:
            try:
                yield from self._epochs(runs[0])
            finally:
                self._drop_network(start, runs)

        return epochs()

    def _epochs(self, run: Run) -> Iterator[tuple[int, dict[str, float]]]:
        self._warn_of_two_decays(run)
        about = self._workshop.about(run)
        name = name_of(about)
        if self._is_known(name, run, keep=True):
            finished = self._store.find(name)
            assert finished is not None
            yield self._workshop.epochs_of(run), finished.metrics
            return
        for epoch, (finished, over) in enumerate(self._workshop.epoch_by_epoch(run), start=1):
            if over:
                self._store.add(name, finished, about, keep=True)
                self._checked.add(name)
            yield epoch, finished.metrics

    def _branch_runs(
        self, configs: Sequence[Config], share: float, start: BranchPoint | nn.Module | None, seed: int
    ) -> list[Run]:
        share = real_number("share", share, error=OptionError)
        if not 0.0 < share <= 1.0:
            raise OptionError(f"`share` must lie in (0, 1], but got {share}.")
        name = self._network_as_start(start) if isinstance(start, nn.Module) else self._branch_point(start)
        seed = seed_number(seed, error=OptionError)
        runs = [Run(config, seed, True, name, share) for config in self.space.plain(configs)]
        if not runs:
            self._drop_network(start, [Run({}, seed, True, name, share)])
        return runs

    def _drop_network(self, start: BranchPoint | nn.Module | None, runs: Sequence[Run]) -> None:
        """Let go of a network that runs have started from."""
        if isinstance(start, nn.Module) and runs:
            self._workshop.drop_start(runs[0].start)

    def following(self, recipe: Recipe) -> Trainer:
        """A trainer by another recipe, with the same folder and all else.

        Args:
            recipe: How one network is trained.

        Raises:
            OptionError: If it is no recipe, or its schedule needs a number of steps that the loader does not tell.
        """
        other = copy.copy(self)
        other.recipe = checked_recipe(recipe)
        other._workshop = self._workshop.following(recipe)
        other._checked = set()
        return other

    def on(self, device: str | torch.device) -> Trainer:
        """A trainer whose networks are trained on another device, with the same folder and all else."""
        other = copy.copy(self)
        other._workshop = self._workshop.on(device)
        return other

    def network(self, config: Config, *, seed: int = 0) -> nn.Module:
        """A plain network trained from scratch at one config, in evaluation mode, ready to use.

        Where the folder holds it, from `train`, it is that one; otherwise it is trained.

        Args:
            config: Native values.
            seed: Of initialisation, order of the data and noise.

        Raises:
            SpaceError: If the config does not fit the space, or there are several.
            OptionError: If the seed is no whole number.
        """
        self.space.unit_of(config)  # of one config
        (own,) = self.space.plain([config])
        run = Run(own, seed_number(seed, error=OptionError), True, SCRATCH, 1.0)
        self._finished([run], keep=True, progress=False)
        return self._stored_network(run)

    def about(self, config: Config) -> dict[str, Any]:
        """What makes a training from scratch at a config, and the data that it is measured on, in plain values."""
        (own,) = self.space.plain([config])
        return self._workshop.about(Run(own, 0, True, SCRATCH, 1.0)) | {"data": self._workshop.data_digest}

    def share_of(self, share: float) -> float:
        """What a training of that share of the recipe really takes of it, in whole steps."""
        return self._workshop.share_of(share)

    def measure(self, network: nn.Module) -> dict[str, float]:
        """Metrics of a network on the validation data, by name.

        Args:
            network: Plain, on the device where trainings run.
        """
        return self._workshop.measure(network)

    def collect_statistics(self, network: nn.Module, config: Config) -> float:
        """Give batch norms the running statistics of a network's own weights, in place; others are left alone.

        An average of networks needs that: the mean of their statistics is not that of the averaged weights. Returns the
        cost in trainings, of whose steps a forward pass is a third.

        Args:
            network: Plain, on the device where trainings run.
            config: For the loss, native values.
        """
        self.space.unit_of(config)
        (own,) = self.space.plain([config])
        return self._workshop.collect_statistics(network, own)

    def standard_errors(self, network: nn.Module) -> dict[str, float]:
        """Of a network's metrics, by name: how far they would be off on other validation data of the same size.

        By leaving tenths of the examples out in turn (a jackknife); NaN where examples cannot be told apart, or are too
        few.

        Args:
            network: Plain, on the device where trainings run.
        """
        without = self._workshop.without_each_group(network)
        return {name: standard_error(column) for name, column in without.items()}

    def seconds_of_training(self, config: Config, *, steps: int | None = None) -> float:
        """What one training from scratch by the whole recipe would take by itself, from the time of some steps.

        Args:
            config: Native values.
            steps: Of the whole recipe; None is as many as the loader says.

        Raises:
            SpaceError: If the config does not fit the space, or there are several.
            OptionError: If `steps` is missing, and the loader has no length.
        """
        self.space.unit_of(config)  # of one config
        (own,) = self.space.plain([config])
        count = self._workshop.steps if steps is None else steps
        if count is None:
            raise OptionError("The training loader has no length: pass `steps`, of the whole recipe.")
        return count * self._workshop.seconds_of_step(Run(own, 0, True, SCRATCH, 1.0))

    def _finished(self, runs: list[Run], *, keep: bool, progress: bool) -> list[Finished]:
        """What came out of each, of those that were finished before as well."""
        if runs:
            self._warn_of_two_decays(runs[0])
        abouts = [self._workshop.about(run) for run in runs]
        names = [name_of(about) for about in abouts]
        once = dict(zip(names, zip(runs, abouts, strict=True), strict=True))
        missing = {name for name, (run, _) in once.items() if not self._is_known(name, run, keep=keep)}
        places = {id(run): name for name, (run, _) in once.items()}
        parts = self._divided([run for run, _ in once.values()])
        # a part is carried out as a whole: with fewer networks in a stack its noise would be another one
        work = (part for part in parts if any(places[id(run)] in missing for run in part))
        kind = "truth" if runs and runs[0].start == SCRATCH else "branch"
        with tqdm(total=len(missing), disable=not (progress and missing), desc=kind, unit="training") as bar:
            for run, finished in self.executor(self._workshop, work):
                about = self._workshop.about(run)
                if (name := name_of(about)) in missing:
                    self._store.add(name, finished, about, keep=keep)
                    self._checked.add(name)
                    missing.remove(name)
                    bar.update()
        if missing:
            lost = [dict(once[name][0].config) for name in missing]
            raise DataError(f"{self.executor!r} has not carried out the trainings at {lost}.")
        found = [self._store.find(name) for name in names]
        return [one for one in found if one is not None]

    def _warn_of_two_decays(self, run: Run) -> None:
        """Once, of what `warn_of_two_decays` is about."""
        if not self._told_of_decay:
            groups = self._workshop.groups
            self._told_of_decay = warn_of_two_decays(self.loss, run.config, lambda: groups(run), stacklevel=5)

    def _divided(self, runs: list[Run]) -> Iterator[Together]:
        """Runs that may be stacked, as few parts as possible but as many as the executor would like.

        The parts do not depend on what is finished, so that a resumed call divides the same way.
        """
        alike: dict[Hashable, list[Run]] = {}
        for run in runs:
            alike.setdefault((run.seed, run.common, run.start, run.share), []).append(run)
        wanted = max(1, min(self._workshop.parallel, -(-len(runs) // self.executor.parts)))
        for group in alike.values():
            start = 0
            while start < len(group):
                size = wanted if self._workshop.stacked else 1  # which the parts before may change
                yield group[start : start + size]
                start += size

    def _is_known(self, name: str, run: Run, *, keep: bool) -> bool:
        """Whether a run is finished; one that was measured on other data, or by other metrics, is measured anew."""
        known = self._store.find(name, tensors=name not in self._checked)
        if known is None or (keep and not self._store.keeps_tensors(name)):
            return False
        if self._store.folder is not None and name not in self._checked:
            again = self._workshop.measured_anew(self._workshop.network(run, known), known)
            if again is not known:
                self._store.add(name, again, self._workshop.about(run), keep=keep)
            self._checked.add(name)
        return True

    def _network_as_start(self, network: nn.Module) -> str:
        """The name of a given network among the starts."""
        start = FromNetwork(like(self._workshop.primary, network))
        name = f"network {start.digest} {next(_COUNTER)}"
        self._workshop.add_start(name, start)
        return name

    def _branch_point(self, start: BranchPoint | None) -> BranchPoint:
        known = self._branch_points
        if not known:
            raise OptionError(
                "This trainer knows no hypernetwork to branch from; `surrogate.trainer()` makes one that does."
            )
        if start is None:
            return "early" if "early" in known else "end"
        if start not in known:
            raise OptionError(
                f"`start` must be a network or one of {list(known)}, the branch points that there are, but got"
                f" {start!r}."
            )
        return start

    def _stored_network(self, run: Run) -> nn.Module:
        """The network of a finished run."""
        finished = self._store.find(self._name(run), tensors=True)
        assert finished is not None
        return self._workshop.network(run, finished)

    def _name(self, run: Run) -> str:
        return name_of(self._workshop.about(run))


def checked_recipe(recipe: Any) -> Recipe:
    """The recipe; raises OptionError if it is none."""
    if not isinstance(recipe, Recipe):
        raise OptionError(f"`recipe` must be a Recipe, but got {recipe!r}.")
    return recipe


def _numbers(seeds: Any) -> list[int]:
    """The seeds that a number of them, or a sequence, stands for."""
    try:
        given = list(seeds)
    except TypeError:  # also a 0-d array or tensor has an `__iter__`
        (count,) = at_least(1, seeds=seeds)
        return list(range(count))
    at_least(1, seeds=len(given))
    return [seed_number(seed, name="seeds", error=OptionError) for seed in given]
