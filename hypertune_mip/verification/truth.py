"""Truth: the plain primary network trained from scratch at given settings, with a stated budget."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import reprlib
import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from hypertune_mip.arguments import plain, seed_number
from hypertune_mip.errors import DataError, HypertuneWarning, NetworkError, StorageError
from hypertune_mip.evaluation import Metric, ValidationData, mean_over_batches, named_scalars, to_device
from hypertune_mip.evaluation.modes import gradients
from hypertune_mip.execution import Mode
from hypertune_mip.folders import turn
from hypertune_mip.hypernetwork.primary import precision_of
from hypertune_mip.nn import resolve
from hypertune_mip.space import Config, SearchSpace, Value
from hypertune_mip.storage import load_tree, save_tree
from hypertune_mip.training import Loss, OptionError, adam, cosine
from hypertune_mip.training.options import OptimizerFactory, ScheduleFactory, at_least, total_steps
from hypertune_mip.training.randomness import forked_random_state, set_seed
from hypertune_mip.verification.group import Group, can_be_stacked, differ_in_weights_alone
from hypertune_mip.verification.initialization import kept_by_reset, reinitialized, strangers_to_reset

Initialize = Literal["auto", "reset", "given"] | Callable[[], nn.Module]

_NAME = "truth"
_SEED_STRIDE = 1_000_003  # keeps the random states of (seed, epoch) pairs apart


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How a single network is trained; see `Truth` for each.

    Raises:
        OptionError: If `epochs` is no whole number of at least 1.
    """

    epochs: int
    optimizer: OptimizerFactory = adam
    schedule: ScheduleFactory | None = cosine

    def __post_init__(self) -> None:
        """Validate."""
        object.__setattr__(self, "epochs", *at_least(1, epochs=self.epochs))


class Runs(NamedTuple):
    """Real trainings that are carried out together.

    Args:
        configs: One for each, native values.
        seed: Of all.
        common: As in `Truth.train`.
    """

    configs: list[dict[str, Value]]
    seed: int
    common: bool


class Executor(Protocol):
    """Carries out real trainings, in this process or elsewhere."""

    parts: int
    """How many `Runs` it would like to have at a time."""

    def __call__(self, truth: Truth, work: Iterable[Runs]) -> Iterator[tuple[Runs, list[dict[str, float]]]]:
        """Give the metrics of each of the `Runs`, from `truth.carry_out`, in any order, as soon as they are known."""


class InThisProcess:
    """Runs after runs."""

    parts = 1

    def __call__(self, truth: Truth, work: Iterable[Runs]) -> Iterator[tuple[Runs, list[dict[str, float]]]]:
        """See `Executor`."""
        return ((runs, truth.carry_out(runs)) for runs in work)


class Truth:
    """Trains the plain primary network from scratch, at any settings, and remembers what came out.

    Args:
        network: The primary network as a user would train it, layers bound to hyperparameters included; it is copied.
        space: Whose configs it is trained at.
        loss: As in `fit`: the very function that the hypernetwork was trained on.
        train_loader: As in `fit`.
        metric: As in `fit`.
        val_loader: As in `fit`.
        epochs: The budget: passes over `train_loader`.
        optimizer: From parameters to a torch optimiser; give the one that you would train a single network with.
        schedule: From (optimiser, steps) to a torch schedule that is advanced every step; None keeps the rate.
        initialize: Where runs start. "given" is `network` as it is, whatever the seed, for pretrained ones; "reset"
            draws trainable weights anew by each module's own `reset_parameters`, while what is frozen stays; "auto"
            does that if all weights look as if drawn so, and is "given" otherwise; or a function that makes a network,
            called with the seed set.
        mapping: As in `HyperNetwork`: with "loop" networks are trained one after another.
        parallel: Networks that are trained at once, where `torch.func.vmap` can serve the network, loss and optimiser;
            others are trained one after another. 1 always does.
        device: Where to train.
        folder: Where finished runs are kept; they are not trained again, by this object or a later one, nor lost if
            several processes share the folder. Space, budget and shapes are checked; loss and data cannot be, so take
            another folder for others.

    Raises:
        OptionError: If an option is invalid.
        DataError: If a loader is empty, or the network has nothing to train.
        StorageError: If `folder` holds runs of another budget, or cannot be read.

    Example:
        >>> from optuna.distributions import FloatDistribution
        >>> from hypertune_mip import losses
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> truth = Truth(
        ...     nn.Linear(1, 1),
        ...     SearchSpace({"decay": FloatDistribution(0.0, 1.0)}),
        ...     lambda model, x, config: (model(x) - x).square().mean() + config["decay"] * losses.l2(model),
        ...     [x],
        ...     metric=lambda model, x: {"error": (model(x) - x).square().mean()},
        ...     val_loader=[x],
        ...     epochs=10,
        ... )
        >>> truth.train([{"decay": 0.0}, {"decay": 1.0}], seeds=3, progress=False)["error"].shape
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
        epochs: int,
        optimizer: OptimizerFactory = adam,
        schedule: ScheduleFactory | None = cosine,
        initialize: Initialize = "auto",
        mapping: Mode = "auto",
        parallel: int = 16,
        device: str | torch.device = "cpu",
        folder: str | Path | None = None,
    ) -> None:
        """See the class."""
        epochs, parallel = at_least(1, epochs=epochs, parallel=parallel)
        if not callable(initialize) and initialize not in ("auto", "reset", "given"):
            raise OptionError(
                '`initialize` must be "auto", "reset", "given" or a function that makes a network, but got'
                f" {initialize!r}."
            )
        if mapping not in ("auto", "vmap", "loop"):
            raise OptionError(f'`mapping` must be "auto", "vmap" or "loop", but got {mapping!r}.')
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise DataError("The primary network has no trainable parameter, so there is nothing to train.")
        self.space = space
        self.loss = loss
        self.train_loader = train_loader
        self.metric = metric
        self.epochs = epochs
        self.optimizer = optimizer
        self.schedule = schedule
        self.initialize = initialize
        self.mapping = mapping
        self.parallel = parallel
        self.device = torch.device(device)
        self.folder = folder
        self.seconds = 0.0
        self.executor: Executor = InThisProcess()
        self._network = copy.deepcopy(network)
        self._validation = ValidationData(val_loader, self.device)
        self._steps = total_steps(train_loader, epochs, schedule)
        self._stacked = parallel > 1 and mapping != "loop" and can_be_stacked(self._network, optimizer)
        self._strangers: list[str] | None = None
        self._given_digest: str | None = None
        self._runs: dict[str, dict[str, float]] = {}
        if folder is not None and (Path(folder) / f"{_NAME}.json").exists():
            self._runs = self._load(folder)

    def __repr__(self) -> str:
        """The budget, and how many runs are done."""
        return (
            f"Truth(epochs={self.epochs}, optimizer={self._budget()['optimizer']}, runs={len(self._runs)},"
            f" {'stacked' if self._stacked else 'one after another'})"
        )

    def on(self, device: str | torch.device) -> Truth:
        """A copy that trains on another device, and knows what has been trained so far."""
        moved = copy.copy(self)
        moved.device = torch.device(device)
        moved._network = copy.deepcopy(self._network).to(device)
        moved._validation = ValidationData(self._validation.loader, moved.device)
        moved._runs = dict(self._runs)
        return moved

    def train(
        self, configs: Sequence[Config], *, seeds: int | Sequence[int] = 1, common: bool = True, progress: bool = True
    ) -> dict[str, Float[np.ndarray, "S R"]]:
        """Metrics of the network trained from scratch at each config with each seed, by name.

        A run whose loss stops being finite has NaN for every metric. Runs that are stored already are not repeated.

        Args:
            configs: Native values.
            seeds: Of initialisation, order of the data and noise; a number R stands for 0, ..., R - 1. The noise of
                dropout and augmentation also depends on which networks are trained together.
            common: Whether a seed means the same initialisation at all settings, which makes differences between them
                less noisy. Otherwise each setting draws its own from the seed.
            progress: Whether to show a bar.

        Raises:
            SpaceError: If a config does not fit the space.
            OptionError: If there is no seed, or one is no whole number.
            LossError: If the metric returns something else than agreed.
            StorageError: If finished runs cannot be stored.

        Warns:
            HypertuneWarning: If several seeds start from the same weights, since those are the network's own; and of
                runs that diverge.
        """
        numbers = _numbers(seeds)
        self._check_starts(len(numbers), common)
        own = self.space.from_unit(self.space.to_unit(configs))
        keys = [[_key(config, seed, common) for seed in numbers] for config in own]
        missing = {
            seed: [i for i in first_of_each([row[r] for row in keys]) if keys[i][r] not in self._runs]
            for r, seed in enumerate(numbers)
        }
        total = sum(map(len, missing.values()))
        work = self._divided({seed: [own[i] for i in rows] for seed, rows in missing.items()}, common)
        with tqdm(total=total, disable=not (progress and total), desc="truth", unit="training") as bar:
            for runs, results in self.executor(self, work):
                names = [_key(config, runs.seed, runs.common) for config in runs.configs]
                self._runs |= dict(zip(names, results, strict=True))
                self._save()
                bar.update(len(names))
        metrics = {tuple(self._runs[key]) for row in keys for key in row}
        if len(metrics) > 1:
            raise StorageError(
                f"'{self.folder}' holds real trainings with other metrics: {sorted(metrics)}. Take another folder."
            )
        return {
            name: np.array([[self._runs[key][name] for key in row] for row in keys]).reshape(len(own), len(numbers))
            for name in next(iter(metrics), ())
        }

    def network(self, config: Config, *, seed: int = 0) -> nn.Module:
        """A plain network trained from scratch at one config, in evaluation mode, ready to use.

        Args:
            config: Native values.
            seed: Of initialisation, order of the data and noise.

        Raises:
            SpaceError: If the config does not fit the space, or there are several.
            OptionError: If the seed is no whole number.
        """
        (own,) = self.space.from_unit(self.space.unit_of(config))
        seed = seed_number(seed, error=OptionError)
        group = self._trained([own], seed, self._starts([own], seed, common=True), "loop")
        network = resolve(group.network, own)
        for name, stacked in group.weights.items():
            network.get_parameter(name).data.copy_(stacked.detach()[0])
        return network.eval()

    def _divided(self, configs_by_seed: Mapping[int, list[dict[str, Value]]], common: bool) -> Iterator[Runs]:
        """As few `Runs` as possible, but as many as the executor would like."""
        wanted = -(-sum(map(len, configs_by_seed.values())) // self.executor.parts)
        for seed, configs in configs_by_seed.items():
            start = 0
            while start < len(configs):
                size = max(1, min(self.parallel, wanted)) if self._stacked else 1  # which the runs before may change
                yield Runs(configs[start : start + size], seed, common)
                start += size

    def carry_out(self, runs: Runs) -> list[dict[str, float]]:
        """Train for real, whatever has been trained before, and give the metrics of each; what executors call."""
        configs, seed, common = runs
        starts = self._starts(configs, seed, common=common)
        if self._stacked and len(configs) > 1 and differ_in_weights_alone(starts):
            try:
                return self._measured(self._trained(configs, seed, starts, "vmap"), configs)
            except NetworkError:  # vmap cannot serve the network, loss or metric
                self._stacked = False
        return [
            self._measured(self._trained([config], seed, [start], "loop"), [config])[0]
            for config, start in zip(configs, starts, strict=True)
        ]

    def _starts(self, configs: list[dict[str, Value]], seed: int, *, common: bool) -> list[nn.Module]:
        """A network to start from for each config."""
        if common:
            return [self._start(seed)] * len(configs)
        return [self._start(int(_key(config, seed, common)[:8], 16)) for config in configs]

    def _start(self, seed: int) -> nn.Module:
        if callable(self.initialize):
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                return self.initialize()
        return reinitialized(self._network, seed) if self._start_kind() == "reset" else self._network

    def _start_kind(self) -> str:
        """Where runs start, once "auto" has been decided."""
        if callable(self.initialize):
            return "function"
        if self.initialize != "auto":
            return self.initialize
        if self._strangers is None:
            self._strangers = strangers_to_reset(self._network)
        return "given" if self._strangers else "reset"

    def _check_starts(self, seeds: int, common: bool) -> None:
        """Warn if different starts were asked for and cannot be had."""
        if self.initialize == "auto" and (seeds > 1 or not common) and self._start_kind() == "given":
            names = reprlib.repr(self._strangers)
            warnings.warn(
                f"All seeds start from the same weights: {names} are not as `reset_parameters` draws them, so they are"
                " pretrained or have an initialisation of their own. Seeds differ in the order of data and in noise"
                " only. Pass `initialize`, a function that makes a fresh network, to vary the start as well, or"
                ' initialize="given" if that is what is meant.',
                HypertuneWarning,
                stacklevel=3,
            )

    def _trained(
        self,
        configs: list[dict[str, Value]],
        seed: int,
        starts: list[nn.Module],
        mapping: Literal["vmap", "loop"],
    ) -> Group:
        values = {name: column.to(self.device) for name, column in self._decoded(configs).items()}
        group = Group(copy.deepcopy(starts[0]).to(self.device), starts, values, mapping)
        optimizer = self.optimizer(list(group.weights.values()))
        schedule = None if self.schedule is None or self._steps is None else self.schedule(optimizer, self._steps)
        begin = time.perf_counter()
        with forked_random_state(self.device), gradients(True):
            for epoch in range(self.epochs):
                set_seed(seed * _SEED_STRIDE + epoch, self.train_loader, self.device)
                for batch in self.train_loader:
                    optimizer.zero_grad(set_to_none=True)
                    group.backward(self.loss, to_device(batch, self.device))
                    optimizer.step()
                    if schedule is not None:
                        schedule.step()
        self.seconds += time.perf_counter() - begin
        return group

    def _decoded(self, configs: list[dict[str, Value]]) -> dict[str, Tensor]:
        dtype = precision_of(self._network)
        decoded = self.space.decode(self.space.to_unit(configs))
        return {name: column.to(dtype) if column.is_floating_point() else column for name, column in decoded.items()}

    def _measured(self, group: Group, configs: list[dict[str, Value]]) -> list[dict[str, float]]:
        def measure(batch: Any) -> dict[str, Tensor]:
            return group.metrics(lambda model, data: named_scalars(self.metric, model, data), batch)

        with forked_random_state(self.device), self._validation.own_random_state():
            means = {name: value.tolist() for name, value in mean_over_batches(measure, self._validation).items()}
        results = [{name: column[i] for name, column in means.items()} for i in range(group.size)]
        for index, config in enumerate(configs):
            if not all(bool(torch.isfinite(weights[index]).all()) for weights in group.weights.values()):
                results[index] = dict.fromkeys(means, math.nan)
                warnings.warn(
                    f"Real training diverged at {config}: a weight is not finite, so its metrics are NaN. Lower the"
                    " learning rate of `optimizer` if this is not what training at that setting is like.",
                    HypertuneWarning,
                    stacklevel=4,
                )
        return results

    def _budget(self) -> dict[str, Any]:
        """What must be the same for stored runs to count."""
        probe = self.optimizer([nn.Parameter(torch.zeros(1))])
        numbers = {
            k: v
            for k, v in ((name, plain(value)) for name, value in probe.defaults.items())
            if isinstance(v, (int, float, str, tuple)) and v is not False
        }
        return {
            "space": self.space.to_json(),
            "shapes": {name: list(p.shape) for name, p in self._network.named_parameters()},
            "epochs": self.epochs,
            "steps": self._steps,
            "optimizer": f"{type(probe).__name__}({', '.join(f'{k}={v}' for k, v in numbers.items())})",
            "schedule": getattr(self.schedule, "__qualname__", repr(self.schedule)),
            "initialize": self._start_kind(),
            "given": self._digest(),
        }

    def _digest(self) -> str | None:
        """Of all that training takes from the network as it is given."""
        kind = self._start_kind()
        if kind == "function":
            return None
        if self._given_digest is None:
            state = kept_by_reset(self._network) if kind == "reset" else self._network.state_dict()
            digest = hashlib.sha256()
            for name, value in state.items():
                digest.update(name.encode())
                if isinstance(value, Tensor):
                    digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
            self._given_digest = digest.hexdigest()[:16]
        return self._given_digest

    def _save(self) -> None:
        """Write all runs, with those that others have added to the folder in the meantime."""
        if self.folder is None:
            return
        with turn(self.folder) as own:
            if (own.folder / f"{_NAME}.json").exists():
                self._runs = self._load(own.folder) | self._runs
            save_tree(own.folder, _NAME, {"budget": self._budget(), "runs": self._runs}, kind=_NAME)

    def _load(self, folder: str | Path) -> dict[str, dict[str, float]]:
        tree = load_tree(folder, _NAME, kind=_NAME)
        saved, budget = tree["budget"], self._budget()
        different = [
            f"{key} was {saved.get(key)!r}, is {value!r}" for key, value in budget.items() if saved.get(key) != value
        ]
        if different:
            raise StorageError(
                f"'{folder}' holds real trainings with another budget: {', '.join(different)}. Take another folder."
            )
        runs: dict[str, dict[str, float]] = tree["runs"]
        return runs


def _numbers(seeds: Any) -> list[int]:
    """The seeds that a number of them, or a sequence, stands for."""
    try:
        given = list(seeds)
    except TypeError:  # also a 0-d array or tensor has an `__iter__`
        (count,) = at_least(1, seeds=seeds)
        return list(range(count))
    at_least(1, seeds=len(given))
    return [seed_number(seed, name="seeds", error=OptionError) for seed in given]


def _key(config: Mapping[str, Value], seed: int, common: bool) -> str:
    """A run's name: a digest of what makes it."""
    return hashlib.sha256(json.dumps([dict(config), seed, common]).encode()).hexdigest()[:16]


def first_of_each(keys: Sequence[Hashable]) -> list[int]:
    """Indices of `keys` without repetitions."""
    return sorted({key: index for index, key in reversed(list(enumerate(keys)))}.values())
