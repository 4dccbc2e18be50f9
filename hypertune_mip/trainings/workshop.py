"""Where trainings are carried out: the plain network from its start through the recipe's steps to its metrics."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping
from itertools import islice
from statistics import median
from typing import Any

import torch
from torch import nn

from hypertune_mip.errors import DataError, HypertuneWarning, NetworkError
from hypertune_mip.evaluation import Metric, ValidationData, measured, standard_errors, to_device
from hypertune_mip.evaluation.modes import gradients
from hypertune_mip.nn import resolve
from hypertune_mip.space import SearchSpace, Value
from hypertune_mip.training import Loss
from hypertune_mip.training.options import total_steps
from hypertune_mip.training.randomness import forked_random_state, set_seed
from hypertune_mip.trainings.networks import (
    Alone,
    Networks,
    RunFunction,
    Stack,
    can_be_stacked,
    differ_in_weights_alone,
    in_front,
    named_tensors,
)
from hypertune_mip.trainings.recipe import Recipe
from hypertune_mip.trainings.starts import Starts, digest
from hypertune_mip.trainings.store import SCRATCH, Finished, Run, Together
from hypertune_mip.trees import tensors_of

_TIMED = 24  # steps
_SEED_STRIDE = 1_000_003  # keeps the random states of (seed, epoch) pairs apart


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
        self.stacked = parallel > 1 and can_be_stacked(network)
        self.seconds = 0.0
        self._network = network
        self._validation = ValidationData(val_loader, device)
        self.steps = total_steps(train_loader, recipe.epochs, recipe.schedule)
        self._described: dict[str, Any] = {}
        self._schedules: dict[str, Any] = {}
        self._names: tuple[str, ...] = ()  # of the metrics, once something has been measured

    def on(self, device: str | torch.device) -> Workshop:
        """A copy that trains on another device."""
        moved = copy.copy(self)
        moved.device = torch.device(device)
        moved._validation = ValidationData(self._validation.loader, moved.device)
        moved.seconds = 0.0
        return moved

    def carry_out(self, together: Together) -> Iterator[tuple[Run, Finished]]:
        """Train, and give each training as it is finished; what executors call.

        Raises:
            OptionError: If the recipe makes no optimiser that can train the network.
            DataError: If the training loader gives no batch.
            LossError: If the loss or metric returns something else than agreed.

        Warns:
            HypertuneWarning: Of trainings that diverge.
        """
        starts = self._networks_to_start(together)
        if self.stacked and len(together) > 1 and differ_in_weights_alone(starts):
            try:
                yield from zip(together, self._outcome(together, starts), strict=True)
                return
            except NetworkError:  # vmap cannot serve the network, loss or metric
                self.stacked = False
        for run, start in zip(together, starts, strict=True):
            yield run, self._outcome([run], [start])[0]

    def share_of(self, share: float) -> float:
        """What a training of that share of the recipe really takes of it, in whole steps or epochs."""
        return self._limit(share) / (self.recipe.epochs if self.steps is None else self.steps)

    def about(self, run: Run) -> dict[str, Any]:
        """All that makes a training, in plain values: two that are alike end in the same network."""
        if run.start not in self._described:
            self._described[run.start] = self.starts[run.start].description()
        steps = None if self.steps is None else self._limit(run.share)
        trained = [parameter for parameter in self._network.parameters() if parameter.requires_grad]
        return {
            "config": dict(run.config),
            "seed": run.seed,
            "common": run.common,
            "start": self._described[run.start],
            "share": run.share,
            "steps": steps,
            "recipe": self.recipe.description(trained, run.config, steps, known=self._schedules),
            "shapes": {name: list(p.shape) for name, p in self._network.named_parameters()},
        }

    def network(self, run: Run, finished: Finished) -> nn.Module:
        """The plain network of a training whose tensors were kept, in evaluation mode."""
        assert finished.tensors is not None
        network = resolve(self._network, run.config).to(self.device)
        own = dict(named_tensors(network))
        with torch.no_grad():
            for name, value in finished.tensors.items():
                path, _, attribute = name.rpartition(".")
                if name in own and own[name].shape == value.shape:
                    own[name].copy_(value)
                else:  # a buffer that training has made, or made of another size
                    network.get_submodule(path)._buffers[attribute] = value.to(self.device)
        return network.eval()

    def measured_anew(self, network: nn.Module, finished: Finished) -> Finished:
        """What came out of a training if its network is measured now: the same, if it was measured on the same data."""
        if self._names and finished.measured_by == self._how_measured(self._names):
            return finished
        metrics = {name: column[0] for name, column in self._measured(in_front(network)).items()}
        return finished._replace(metrics=metrics, measured_by=self._how_measured(metrics))

    def standard_errors(self, network: nn.Module) -> dict[str, float]:
        """Of the metrics of a finished network, by name, from so many validation examples; see `standard_errors`."""
        with forked_random_state(self.device), self._validation.own_random_state():
            return standard_errors(self.metric, in_front(network), self._validation)

    def seconds_of_step(self, run: Run) -> float:
        """What one step of a training takes when it runs by itself, data and all; nothing is kept of it."""
        (start,) = self._networks_to_start([run])
        network = Alone(start, run.config, self.space, self.recipe, self.device, self.steps)
        times: list[float] = []
        with forked_random_state(self.device), gradients(True):
            begin = time.perf_counter()
            for batch in islice(self._batches(run.seed, self._limit(1.0)), _TIMED):
                network.step(self.loss, batch)
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                times.append(time.perf_counter() - begin)
                begin = time.perf_counter()
        return median(times[len(times) // 3 :])  # the first ones are slower

    def _networks_to_start(self, together: Together) -> list[nn.Module]:
        """A network to start from for each run; those that start alike share one."""
        made: dict[Hashable, nn.Module] = {}
        keys: list[Hashable] = []
        for run in together:
            own = _digest(run.config, run.seed)
            keys.append(run.seed if run.start == SCRATCH and run.common else own)
            if keys[-1] not in made:
                seed = run.seed if run.common else int(own[:8], 16)
                made[keys[-1]] = self.starts[run.start].network(run.config, seed)
        return [made[key] for key in keys]

    def _outcome(self, together: Together, starts: list[nn.Module]) -> list[Finished]:
        """Train runs of one seed, start and share together, and measure them."""
        first, configs = together[0], [run.config for run in together]
        limit = self._limit(first.share)
        total = None if self.steps is None else limit
        networks: Alone | Stack
        if len(together) == 1:
            networks = Alone(starts[0], configs[0], self.space, self.recipe, self.device, total)
        else:
            networks = Stack(starts, configs, self.space, self.recipe, self.device, total)
        begin = time.perf_counter()
        with forked_random_state(self.device), gradients(True):
            for batch in self._batches(first.seed, limit):
                networks.step(self.loss, batch)
        self.seconds += time.perf_counter() - begin
        metrics = self._measured(networks.run)
        return [self._finished(networks, metrics, index, run) for index, run in enumerate(together)]

    def _batches(self, seed: int, limit: int) -> Iterator[Any]:
        """Of a training, on the device: so many steps, or epochs where the loader has no length."""
        steps = 0
        for epoch in range(self.recipe.epochs if self.steps is not None else limit):
            set_seed(seed * _SEED_STRIDE + epoch, self.train_loader, self.device)
            for batch in self.train_loader:
                yield to_device(batch, self.device)
                steps += 1
                if self.steps is not None and steps == limit:
                    return
        if not steps:
            raise DataError("The training loader gave no batch. Pass a DataLoader or a list of batches.")

    def _measured(self, run: RunFunction) -> dict[str, list[float]]:
        """Metrics of each network, by name."""
        with forked_random_state(self.device), self._validation.own_random_state():
            values = measured(self.metric, run, self._validation)
        self._names = tuple(values)
        return {name: value.tolist() for name, value in values.items()}

    def _finished(self, networks: Networks, metrics: Mapping[str, list[float]], index: int, run: Run) -> Finished:
        tensors = {name: tensor.cpu().clone() for name, tensor in networks.tensors(index).items()}
        values = {name: column[index] for name, column in metrics.items()}
        if not all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point()):
            values = dict.fromkeys(values, math.nan)
            warnings.warn(
                f"Real training diverged at {run.config}: a weight is not finite, so its metrics are NaN. Lower the"
                " learning rate of the recipe if this is not what training at that config is like.",
                HypertuneWarning,
                stacklevel=7,
            )
        return Finished(values, tensors, self._how_measured(values))

    def _how_measured(self, names: Iterable[str]) -> str:
        """A digest of the validation data, as far as one batch shows it, and of the names of the metrics."""
        shown = [("batch", tensor) for tensor in tensors_of(self._validation.largest)]
        return digest([*((name, None) for name in names), *shown])

    def _limit(self, share: float) -> int:
        """Steps of a share of the recipe, or epochs where the loader has no length."""
        return max(1, round(share * (self.recipe.epochs if self.steps is None else self.steps)))


def _digest(config: Mapping[str, Value], seed: int) -> str:
    return hashlib.sha256(json.dumps([dict(config), seed]).encode()).hexdigest()
