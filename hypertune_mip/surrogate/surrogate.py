"""The surrogate: a trained hypernetwork and validation data, answering for any setting at once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from tqdm.auto import tqdm

from hypertune_mip import nn as hypertune_nn
from hypertune_mip.errors import DataError, HypertuneWarning, SpaceError
from hypertune_mip.evaluation import Evaluator, Metric, to_device
from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.space import Config, SearchSpace
from hypertune_mip.surrogate import search
from hypertune_mip.surrogate.persistence import load_hypernetwork, save_hypernetwork
from hypertune_mip.surrogate.response import responses
from hypertune_mip.training import Loss, Record


class Surrogate:
    """Metrics of the primary network at any setting, without training; what `fit` returns.

    Args:
        hypernet: Trained.
        loss: What it was trained on; kept for verification against real training.
        metric: Written for one setting: (model, batch) to 0-d means by name.
        val_loader: Validation data; see `Evaluator` for how it is kept.
        history: One record an epoch, from training.
        memory_budget: Bytes that settings evaluated at once may take; None is 64 MiB on a CPU and 1 GiB on CUDA.
    """

    def __init__(
        self,
        hypernet: HyperNetwork,
        *,
        loss: Loss | None = None,
        metric: Metric | None = None,
        val_loader: Iterable[Any] | None = None,
        history: Sequence[Record] = (),
        memory_budget: int | None = None,
    ) -> None:
        """See the class."""
        if (metric is None) != (val_loader is None):
            raise DataError("`metric` and `val_loader` belong together: pass both, or neither.")
        self.hypernet = hypernet.eval()
        self.loss = loss
        self.history = list(history)
        self._evaluator = (
            Evaluator(hypernet, metric, val_loader, memory_budget=memory_budget)
            if metric is not None and val_loader is not None
            else None
        )

    def __repr__(self) -> str:
        """Hyperparameters, metrics and epochs."""
        metrics = self.metrics if self._evaluator is not None else None
        return (
            f"Surrogate(hyperparameters={list(self.space.names)}, metrics={metrics and list(metrics)},"
            f" head={self.hypernet.head}, epochs={len(self.history)})"
        )

    @property
    def space(self) -> SearchSpace:
        """The space that it was trained on."""
        return self.hypernet.space

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics."""
        return self._evaluate.names()

    @property
    def _evaluate(self) -> Evaluator:
        if self._evaluator is None:
            raise DataError(
                "This surrogate has no validation data. Pass `metric` and `val_loader` to `fit` or `Surrogate.load`."
            )
        return self._evaluator

    def evaluate(self, config: Config) -> dict[str, float]:
        """Metrics at one config, by name.

        Raises:
            SpaceError: If the config has an unknown or missing name, or a value outside the space.
            DataError: If the surrogate has no validation data.
        """
        return {name: float(value[0]) for name, value in self.evaluate_batch([config]).items()}

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
        self.space.check_units(units)
        units = self.space.snap(units)
        size = self._evaluate.chunk_size() if len(units) else 1
        chunks = tqdm(units.split(size), disable=not progress, desc="evaluate", unit="chunk")
        parts = [self._evaluate(chunk) for chunk in chunks]
        return {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}

    def gradient(self, config: Config, metric: str) -> dict[str, float]:
        """Derivative of a metric with respect to each continuous hyperparameter, native scale, by name.

        Integers, stepped floats and categoricals have no derivative and are left out.

        Raises:
            SpaceError: As in `evaluate`, or if the metric is unknown.
        """
        units = self.space.to_unit(config).requires_grad_()
        values = self._evaluate(units, differentiable=True)
        if metric not in values:
            raise SpaceError(f"The metric {metric!r} is unknown; `metric` returns {list(values)}.")
        slope = _slope(values[metric], units)
        native = self.space.decode(units)
        return {
            dim.name: float(slope[0, column] / _slope(native[dim.name], units)[0, column])
            for column, dim in enumerate(self.space.dimensions)
            if dim.cells is None
        }

    def minimize(
        self, metric: str, *, candidates: int = 512, starts: int = 8, steps: int = 30, seed: int = 0
    ) -> search.Optimum:
        """The setting with the smallest metric: Sobol candidates, then batched descent from the best of them.

        Args:
            metric: Name.
            candidates: Sobol settings to look at first.
            starts: How many of the best descend.
            steps: Of the descent; 0 for candidates alone.
            seed: Of the candidates.

        Raises:
            SpaceError: If the metric is unknown, or there is not at least one candidate and start.
        """
        if candidates < 1 or starts < 1 or steps < 0:
            raise SpaceError(
                "`candidates` and `starts` must be at least 1 and `steps` at least 0, but got"
                f" {candidates}, {starts}, {steps}."
            )
        return search.minimize(self._evaluate, metric, candidates=candidates, starts=starts, steps=steps, seed=seed)

    def pareto_front(
        self, metrics: Sequence[str], *, candidates: int = 1024, seed: int = 0
    ) -> list[search.ParetoPoint]:
        """Settings among `candidates` that no other one beats in every metric (all small), sorted by the first.

        Raises:
            SpaceError: If a metric is unknown or none is given.
        """
        if not metrics or isinstance(metrics, str):
            raise SpaceError(f"`metrics` must be a list of metric names, but got {metrics!r}.")
        return search.pareto_front(self._evaluate, metrics, candidates=candidates, seed=seed)

    def responses(self, *, bases: int = 8) -> dict[str, dict[str, float]]:
        """How far each hyperparameter alone moves each metric, as a share of its size, by hyperparameter and metric.

        Args:
            bases: Settings at which the other hyperparameters stay while one goes through its range.
        """
        return responses(self._evaluate, bases=bases)

    def materialize(self, config: Config, *, recalibrate: Iterable[Any] | None = None) -> nn.Module:
        """A plain copy of the primary network with theta(u) folded in, in evaluation mode, on the same device.

        Layers bound to hyperparameters become plain ones at the config's values. The copy answers as the surrogate
        does: `materialize(config)(x)` equals the functional evaluation to float tolerance.

        Args:
            config: Native values.
            recalibrate: Batches whose first element, or the batch itself, the network takes: layers whose running
                statistics were dropped (see `HyperNetwork`) get them back, averaged over these batches.

        Raises:
            SpaceError: As in `evaluate`.
        """
        units = self.space.to_unit(config)
        with self.hypernet.lock:
            network = hypertune_nn.resolve(self.hypernet.network, dict(config))
        with torch.no_grad():
            tensors = self.hypernet.effective(units)
            for name, parameter in network.named_parameters():
                parameter.copy_(tensors[name][0])
        network.requires_grad_(True)
        if self.hypernet.batch_norms and recalibrate is None:
            warnings.warn(
                f"{list(self.hypernet.batch_norms)} use the statistics of the batch at hand, so single predictions"
                " depend on their batch. Pass `recalibrate=train_loader` to give the network running statistics.",
                HypertuneWarning,
                stacklevel=2,
            )
        elif self.hypernet.batch_norms and recalibrate is not None:
            _recalibrate(network, self.hypernet.batch_norms, recalibrate, self.hypernet.device)
        return network.eval()

    def save(self, folder: str | Path) -> None:
        """Write the hypernetwork, space and history to a folder: safetensors and JSON, atomically.

        Functions and data are not saved: `load` takes them again.

        Raises:
            StorageError: If writing fails; what the folder held before is then as it was.
        """
        save_hypernetwork(folder, self.hypernet, self.history)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        network: nn.Module,
        *,
        loss: Loss | None = None,
        metric: Metric | None = None,
        val_loader: Iterable[Any] | None = None,
        space: SearchSpace | None = None,
        device: str | torch.device = "cpu",
    ) -> Surrogate:
        """The surrogate that `save` wrote.

        Args:
            folder: What was saved to.
            network: The primary network's architecture; the weights are replaced by the saved ones in a copy.
            loss: As in `Surrogate`.
            metric: As in `Surrogate`.
            val_loader: As in `Surrogate`.
            space: If given, it must be the saved one.
            device: Where to.

        Raises:
            StorageError: If the folder is damaged or foreign, or does not fit the network or the space.
        """
        hypernet, history = load_hypernetwork(folder, network, space)
        return cls(hypernet.to(device), loss=loss, metric=metric, val_loader=val_loader, history=history)


def _slope(value: Tensor, units: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(units)
    (slope,) = torch.autograd.grad(value.sum(), units, retain_graph=True, allow_unused=True)
    return torch.zeros_like(units) if slope is None else slope


def _recalibrate(network: nn.Module, names: Sequence[str], loader: Iterable[Any], device: torch.device) -> None:
    """Give modules running statistics again: plain averages over the batches."""
    network.eval()
    layers = [module for name, module in network.named_modules() if name in names]
    for layer in layers:
        assert isinstance(layer, _NormBase)
        size = layer.num_features
        layer.track_running_stats, layer.momentum = True, None  # None: a plain average over batches
        layer.running_mean = torch.zeros(size, device=device)
        layer.running_var = torch.ones(size, device=device)
        layer.num_batches_tracked = torch.zeros((), dtype=torch.long, device=device)
        layer.train()
    with torch.no_grad():
        for batch in loader:
            first = batch[0] if isinstance(batch, (tuple, list)) else batch
            network(to_device(first, device))
