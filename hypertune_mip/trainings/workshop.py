"""Where trainings are carried out: the plain network from its start through the recipe's steps to its metrics."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping
from itertools import islice
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from hypertune_mip.errors import DataError, HypertuneWarning, NetworkError, OptionError
from hypertune_mip.evaluation import Metric, ValidationData, measured, to_device, without_each_group
from hypertune_mip.evaluation.modes import gradients
from hypertune_mip.functional import ActiveConfig
from hypertune_mip.hypernetwork import bindings
from hypertune_mip.hypernetwork.primary import always_evaluating, keeps_statistics
from hypertune_mip.nn import resolve
from hypertune_mip.randomness import forked_random_state, one_at_a_time
from hypertune_mip.space import SearchSpace, Value
from hypertune_mip.training import Loss
from hypertune_mip.training.fingerprint import described
from hypertune_mip.training.fingerprint import name_of as name_of_class
from hypertune_mip.training.options import total_steps
from hypertune_mip.training.randomness import SEED_STRIDE, set_seed
from hypertune_mip.trainings.networks import (
    Alone,
    Held,
    Networks,
    RunFunction,
    Stack,
    can_be_stacked,
    decoded,
    differ_in_weights_alone,
    in_front,
    restore,
)
from hypertune_mip.trainings.recipe import Recipe
from hypertune_mip.trainings.starts import Starts, digest
from hypertune_mip.trainings.statistics import collect_statistics
from hypertune_mip.trainings.store import SCRATCH, Finished, Run, Together, name_of
from hypertune_mip.trees import tensors_of

_TIMED = 24  # steps
_COLLECTED = 16  # batches that running statistics are averaged over
_NEAR = 1e-4  # of a metric, by rounding


class Workshop:
    """Carries trainings out; knows nothing of those that are finished.

    Args:
        network: The primary network, layers bound to hyperparameters included; on the CPU.
        space: Of the configs.
        loss: As in `fit`.
        train_loader: As in `fit`.
        metric: As in `fit`.
        val_loader: As in `fit`.
        recipe: How one network is trained.
        starts: Where trainings may start, by name.
        parallel: Networks at most that are trained as a stack; 1 trains one after another.
        device: Where to train.

    Attributes:
        steps: Of the whole recipe; None where the loader has no length.
        stacked: Whether networks are trained as a stack, as far as is known: the first try tells.
        seconds: That training took so far.
    """

    def __init__(
        self,
        network: nn.Module,
        space: SearchSpace,
        loss: Loss,
        train_loader: Iterable[Any],
        metric: Metric,
        val_loader: Iterable[Any],
        recipe: Recipe,
        starts: Mapping[str, Starts],
        *,
        parallel: int,
        device: torch.device,
    ) -> None:
        """See the class."""
        self.space = space
        self.loss = loss
        self.train_loader = train_loader
        self.metric = metric
        self.recipe = recipe
        self.starts = dict(starts)
        self.parallel = parallel
        self.device = device
        self.stacked = parallel > 1 and can_be_stacked(network, recipe)
        self.seconds = 0.0
        self.primary = network
        self._validation = ValidationData(val_loader, device)
        self.steps = total_steps(train_loader, recipe.epochs, recipe.schedule, accumulate=recipe.accumulate)
        self._described: dict[str, Any] = {}
        self._schedules: dict[str, Any] = {}
        self._architecture = _architecture(network)
        self._held = Held.by(network)
        self._data_digest = ""
        self._trusted = False  # that metrics are what they were, by one that was measured again

    def add_start(self, name: str, start: Starts) -> None:
        """One more start; copies that were made before do not have it."""
        with one_at_a_time:
            self.starts = {**self.starts, name: start}
            self._described[name] = start.description()

    def drop_start(self, name: str) -> None:
        """Forget the networks of a start, but not what trainings from there are called."""
        with one_at_a_time:
            self.starts = {known: start for known, start in self.starts.items() if known != name}

    def on(self, device: str | torch.device) -> Workshop:
        """A copy that trains on another device."""
        moved = copy.copy(self)
        moved.device = torch.device(device)
        moved.starts = {name: start.on(moved.device) for name, start in self.starts.items()}
        moved._validation = ValidationData(self._validation.loader, moved.device)
        moved.seconds = 0.0
        return moved

    def carry_out(self, together: Together) -> Iterator[tuple[Run, Finished]]:
        """Train, whatever has been trained before, and give each training as it is finished; what executors call.

        Raises:
            OptionError: If the recipe makes no optimiser that can train the network, or a start is another network.
            DataError: If the training loader gives no batch.
            LossError: If the loss or metric returns something else than agreed.

        Warns:
            HypertuneWarning: Of trainings that diverge.
        """
        if self.stacked and len(together) > 1 and differ_in_weights_alone(self._networks_to_start(together)):
            try:
                yield from zip(together, self._outcome(together), strict=True)
                return
            except NetworkError:  # vmap cannot serve the network or the loss
                self.stacked = False
            except torch.OutOfMemoryError:
                self.parallel = max(1, len(together) // 2)
        size = self.parallel if self.stacked else 1
        if size < len(together):
            for start in range(0, len(together), size):
                yield from self.carry_out(together[start : start + size])
        else:
            for run in together:
                yield run, self._outcome([run])[0]

    def following(self, recipe: Recipe) -> Workshop:
        """A copy that trains by another recipe."""
        other = copy.copy(self)
        other.recipe = recipe
        other.steps = total_steps(self.train_loader, recipe.epochs, recipe.schedule, accumulate=recipe.accumulate)
        other.stacked = self.parallel > 1 and can_be_stacked(self.primary, recipe)
        other._schedules = {}
        return other

    def share_of(self, share: float) -> float:
        """What a training of that share of the recipe really takes of it, in whole steps or epochs."""
        return self._limit(share) / (self.recipe.epochs if self.steps is None else self.steps)

    def about(self, run: Run) -> dict[str, Any]:
        """All that makes a training but for loss and data, in plain values: two that are alike end in one network."""
        with one_at_a_time:
            if run.start not in self._described:
                self._described[run.start] = self.starts[run.start].description()
        steps = None if self.steps is None else self._limit(run.share)
        return {
            "config": dict(run.config),
            "seed": run.seed,
            "common": run.common,
            "start": self._described[run.start],
            "epochs": self._limit(run.share) if steps is None else None,
            "steps": steps,
            "recipe": self.recipe.description(self._trained_parameters(), run.config, steps, known=self._schedules),
            "network": self._architecture,
        }

    def groups(self, run: Run) -> list[dict[str, Any]]:
        """Of the optimiser that moves the network of a run."""
        return self.recipe.made(self._trained_parameters(), run.config).param_groups

    def _trained_parameters(self) -> list[Tensor]:
        return [parameter for parameter in self.primary.parameters() if parameter.requires_grad]

    def network(self, run: Run, finished: Finished) -> nn.Module:
        """The plain network of a training whose tensors were kept, in evaluation mode."""
        assert finished.tensors is not None
        network = resolve(self.primary, run.config).to(self.device)
        restore(network, finished.tensors, finished.numbers)
        return network.eval()

    def measure(self, network: nn.Module) -> dict[str, float]:
        """Metrics of a finished network, by name."""
        return {name: column[0] for name, column in self._measured(in_front(network)).items()}

    def collect_statistics(self, network: nn.Module, config: Mapping[str, Value]) -> float:
        """Give layers with running statistics those of a finished network's own weights, in place.

        They are averaged over an epoch of the training data, or its first batches where these are many. Returns the
        cost in trainings, of whose steps a forward pass is a third.

        Args:
            network: Plain; on the device where trainings run.
            config: For the loss, native values.
        """
        names = keeps_statistics(network, always_evaluating(self.primary))
        if not names:
            return 0.0
        columns = decoded(self.space, [config], network, self.device)
        values = ActiveConfig({name: column[0] for name, column in columns.items()})
        with forked_random_state(self.device):
            batches = (batch for group in self._epoch(0, 0, None) for batch in group)
            few = islice(batches, _COLLECTED)
            count = collect_statistics(network, names, few, lambda batch: self.loss(network, batch, values))
        return 0.0 if self.steps is None else count / (3 * self.recipe.accumulate * self.steps)

    def measured_anew(self, network: nn.Module, finished: Finished) -> Finished:
        """What came out of a training if its network is measured now: the same, if it was measured on the same data."""
        same_data = finished.measured_by == self._how_measured(finished.metrics)
        if self._trusted and same_data:
            return finished
        metrics = self.measure(network)
        told = finished.metrics
        same = told.keys() == metrics.keys() and all(
            math.isclose(told[name], value, rel_tol=_NEAR, abs_tol=_NEAR) for name, value in metrics.items()
        )
        if same_data and same:  # the metric that bears these names is the one that it was
            self._trusted = True
            return finished
        return finished._replace(metrics=metrics, measured_by=self._how_measured(metrics))

    def without_each_group(self, network: nn.Module) -> dict[str, Tensor]:
        """The metrics of a finished network, without a tenth of the examples in turn, (10,) by name."""
        with forked_random_state(self.device), self._validation.own_random_state():
            return without_each_group(self.metric, in_front(network), self._validation)

    def seconds_of_step(self, run: Run) -> float:
        """What one step of a training takes when it runs by itself, data and all; nothing is kept of it."""
        (start,) = self._networks_to_start([run])
        network = self._alone(start, run, self.steps)
        times: list[float] = []
        with forked_random_state(self.device), gradients(True):
            begin = time.perf_counter()
            for batches in islice(self._batches(run.seed, self._limit(1.0)), _TIMED):
                network.step(self.loss, batches)
                self._synchronize()
                times.append(time.perf_counter() - begin)
                begin = time.perf_counter()
        return median(times[len(times) // 3 :])  # the first ones are slower

    def _networks_to_start(self, together: Together) -> list[nn.Module]:
        """A network to start from for each run; those that start alike share one."""
        made: dict[Hashable, nn.Module] = {}
        keys: list[Hashable] = []
        for run in together:
            own = name_of({"config": dict(run.config), "seed": run.seed})
            keys.append(run.seed if run.start == SCRATCH and run.common else own)
            if keys[-1] not in made:
                seed = run.seed if run.common else int(own[:8], 16)
                with one_at_a_time:
                    made[keys[-1]] = self.starts[run.start].network(run.config, seed)
                self._check(made[keys[-1]])
        return [made[key] for key in keys]

    def _check(self, start: nn.Module) -> None:
        """Raise OptionError unless a network to start from is built like the one that is trained."""
        if (found := _places(start)) != (expected := _places(self.primary)):
            different = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
            name = different[0]
            raise OptionError(
                "A training must start from a network that is built like the primary network, with the same layers"
                f" bound to hyperparameters, but {name!r} is {found.get(name)} instead of {expected.get(name)}. Give"
                " `initialize` or `network` one that is."
            )

    def _outcome(self, together: Together) -> list[Finished]:
        """Train runs of one seed, start and share together, and measure them."""
        with one_at_a_time:
            return self._trained(together)

    def _trained(self, together: Together) -> list[Finished]:
        first, configs = together[0], [run.config for run in together]
        limit = self._limit(first.share)
        total = None if self.steps is None else limit
        networks: Alone | Stack
        if len(together) == 1:
            (start,) = self._networks_to_start(together)
            networks = self._alone(start, first, total)
            del start
        else:
            starts = self._networks_to_start(together)
            networks = Stack(starts, configs, self.space, self.recipe, self.device, total, held=self._held)
            del starts
        with forked_random_state(self.device), gradients(True):
            begin = time.perf_counter()
            for batches in self._batches(first.seed, limit):
                networks.step(self.loss, batches)
            self._synchronize()
            self.seconds += time.perf_counter() - begin
        try:
            metrics = self._measured(networks.run)
        except NetworkError:  # vmap cannot serve the metric
            metrics = None
        return [self._finished(networks, metrics, index, run) for index, run in enumerate(together)]

    def _alone(self, start: nn.Module, run: Run, total: int | None) -> Alone:
        return Alone(
            start,
            run.config,
            self.space,
            self.recipe,
            self.device,
            total,
            held=self._held,
            without_statistics=self.starts[run.start].without_statistics,
        )

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def epoch_by_epoch(self, run: Run) -> Iterator[tuple[Finished, bool]]:
        """Train alone, whatever has been trained before; after each epoch what has come out, and whether that was all.

        Between epochs nothing of the process is changed.
        """
        limit = self._limit(run.share)
        with one_at_a_time:
            (start,) = self._networks_to_start([run])
            total = None if self.steps is None else limit
            network = self._alone(start, run, total)
        steps, epochs = 0, self._epochs(limit)
        for epoch in range(epochs):
            with forked_random_state(self.device), gradients(True):
                begin = time.perf_counter()
                for batches in self._epoch(run.seed, epoch, None if self.steps is None else limit - steps):
                    network.step(self.loss, batches)
                    steps += 1
                self._synchronize()
                self.seconds += time.perf_counter() - begin
            _check_steps(steps)
            metrics = self._measured(network.run)
            over = epoch == epochs - 1 or (self.steps is not None and steps == limit)
            yield self._finished(network, metrics, 0, run, warn=over), over
            if over:
                return

    def epochs_of(self, run: Run) -> int:
        """In how many epochs a run is over, the last of which may be a part of one."""
        limit = self._limit(run.share)
        return limit if self.steps is None else math.ceil(limit * self.recipe.epochs / self.steps)

    def _epochs(self, limit: int) -> int:
        """How many a training has at most."""
        return self.recipe.epochs if self.steps is not None else limit

    def _batches(self, seed: int, limit: int) -> Iterator[list[Any]]:
        """Of each step of a training, on the device: so many steps, or epochs where the loader has no length."""
        steps = 0
        for epoch in range(self._epochs(limit)):
            for batches in self._epoch(seed, epoch, None if self.steps is None else limit - steps):
                yield batches
                steps += 1
            if self.steps is not None and steps == limit:
                return
        _check_steps(steps)

    def _epoch(self, seed: int, epoch: int, most: int | None) -> Iterator[list[Any]]:
        """Batches of each step of an epoch, on the device; its first step seeds what is random in it.

        Args:
            seed: Of the training.
            epoch: Counted from 0.
            most: Steps; None is all.
        """
        set_seed(seed * SEED_STRIDE + epoch, self.train_loader, self.device)
        left = iter(self.train_loader)
        while (most is None or most > 0) and (group := list(islice(left, self.recipe.accumulate))):
            yield [to_device(batch, self.device) for batch in group]
            most = None if most is None else most - 1

    def _measured(self, run: RunFunction) -> dict[str, list[float]]:
        """Metrics of each network, by name."""
        with forked_random_state(self.device), self._validation.own_random_state():
            values = measured(self.metric, run, self._validation)
        return {name: value.tolist() for name, value in values.items()}

    def _finished(
        self, networks: Networks, metrics: Mapping[str, list[float]] | None, index: int, run: Run, *, warn: bool = True
    ) -> Finished:
        state = networks.state(index)
        tensors = {name: tensor.cpu().clone() for name, tensor in state.tensors.items()}
        finished = Finished({}, tensors, state.numbers, "")
        if metrics is None:
            values = self.measure(self.network(run, finished))
        else:
            values = {name: column[index] for name, column in metrics.items()}
        if not all(bool(torch.isfinite(tensors[name]).all()) for name in state.trained):
            values = dict.fromkeys(values, math.nan)
            if warn:
                warnings.warn(
                    f"Real training diverged at {run.config}: a weight is not finite, so its metrics are NaN. Lower the"
                    " learning rate of the recipe if this is not what training at that config is like.",
                    HypertuneWarning,
                    stacklevel=7,
                )
        return finished._replace(metrics=values, measured_by=self._how_measured(values))

    @property
    def data_digest(self) -> str:
        """Of the validation data, as far as they are kept."""
        if not self._data_digest:
            data = [self._validation.largest] if self._validation.batches is None else list(self._validation)
            self._data_digest = digest(("batch", tensor) for batch in data for tensor in tensors_of(batch))
        return self._data_digest

    def _how_measured(self, names: Iterable[str]) -> str:
        """A digest of the validation data and of the names of the metrics."""
        return name_of({"names": list(names), "data": self.data_digest})

    def _limit(self, share: float) -> int:
        """Steps of a share of the recipe, or epochs where the loader has no length."""
        return max(1, round(share * (self.recipe.epochs if self.steps is None else self.steps)))


def _check_steps(steps: int) -> None:
    if not steps:
        raise DataError("The training loader gave no batch. Pass a DataLoader or a list of batches.")


def _places(network: nn.Module) -> dict[str, Any]:
    """What must be alike in networks that start a training, by name: parameters, and layers that are bound."""
    shapes = {name: (tuple(p.shape), str(p.dtype)) for name, p in network.named_parameters()}
    return shapes | {f"the binding of {where}": name for where, name in bindings(network).items()}


def _architecture(network: nn.Module) -> dict[str, Any]:
    """What a network is, as far as plain values can say: modules, their numbers and modes, and what is trained."""
    modules = [
        [path, name_of_class(type(module)), module.training, module.extra_repr(), described(_plain(vars(module)))]
        for path, module in network.named_modules()
    ]
    parameters = {n: [list(p.shape), str(p.dtype), p.requires_grad] for n, p in network.named_parameters()}
    return {"modules": name_of({"modules": modules}), "parameters": parameters, "bindings": bindings(network)}


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {n: value for n, value in attributes.items() if isinstance(value, (bool, int, float, str, tuple))}
