"""Compatibility: what of a network is generated, which mapping serves it, and what a step costs beside a plain one.

The networks are those of `tests/cases.py` that are more than a layer, and those of other packages in `tests/zoo`, which
need `pip install "hypertune-mip[zoo]"` (`make compatibility`). They are tiny: a step is mostly calls.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median
from typing import Any

import torch
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

import hypertune_mip as ht
from benchmarks import results
from benchmarks.networks import Marked
from hypertune_mip.execution import FACTORED, FORMED, Execution
from tests import cases
from tests.zoo import ZOO

OWN = (
    *("transformer", "vision transformer", "text encoder", "language model", "rotary model"),
    *("mixed experts", "routed experts", "scaled convolutions", "down and up", "recurrent"),
    *("adapted", "weight norm", "orthogonal", "spectral norm", "sampling", "graph", "quantized"),
)
PACKAGES = {  # that are installed under other names than they are imported by
    "monai": "monai",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
    "torch_geometric": "torch-geometric",
    "x_transformers": "x-transformers",
}
WAYS: dict[str, tuple[int, Execution]] = {  # settings of a step that has the whole batch, and how they run
    "one": (1, FORMED),
    "three, vmap": (3, FACTORED),
    "three, loop": (3, FORMED),
}
SPACE = {"weight_decay": FloatDistribution(1e-6, 1e-2, log=True)}
ROUNDS, WARM, STEPS = 3, 1, 6


@dataclass(frozen=True)
class Subject:
    """A network of either table, with its batches and a loss of (network, batch)."""

    name: str
    package: str
    make: Callable[[], nn.Module]
    batches: Callable[[], list[Any]]
    plain_loss: Callable[[nn.Module, Any], Tensor]

    def loss(self, model: nn.Module, batch: Any, config: Any) -> Tensor:
        return self.plain_loss(model, batch) + 0.5 * config["weight_decay"] * ht.losses.l2(model)

    def hypernet(self, **options: Any) -> ht.HyperNetwork:
        return ht.HyperNetwork(self.make(), ht.SearchSpace(SPACE), **options)


def run(smoke: bool = False) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other packages, about themselves
            rows = [_row(subject, smoke) for subject in subjects()[:: 9 if smoke else 1]]
        packages = {row["package"] for row in rows if row["package"]}
        versions = {name: version(PACKAGES.get(name, name)) for name in sorted(packages)}
        return results.write("compatibility", {"rows": rows, "versions": versions, "rounds": ROUNDS}, smoke=smoke)
    finally:
        torch.set_num_threads(threads)


def subjects() -> list[Subject]:
    """Of both tables, in their order."""
    own = [
        Subject(name, "", table.network, lambda table=table: [table.input()] * 2, _mean_square)  # type: ignore[misc]
        for name, table in ((name, cases.NETWORKS[name]) for name in OWN)
    ]
    others = [
        Subject(name, row.package.partition(".")[0], row.network, lambda row=row: row.batches(2), row.loss)  # type: ignore[misc]
        for name, row in ZOO.items()
    ]
    return own + others


def _mean_square(model: nn.Module, batch: Any) -> Tensor:
    return model(batch).square().mean()


def _row(subject: Subject, smoke: bool) -> dict[str, Any]:
    network, this = subject.make(), subject.hypernet()
    mapping, why = _mapping(subject)
    ways = {name: way for name, way in WAYS.items() if mapping == "vmap" or way[1].mapping == "loop"}
    rounds = [
        {"plain": _plain(subject)} | {name: _fitted(subject, *way) for name, way in ways.items()}
        for _ in range(1 if smoke else ROUNDS)
    ]
    return {
        "name": subject.name,
        "package": subject.package,
        "parameters": sum(p.numel() for p in network.parameters()),
        "generated": sum(this.network.get_parameter(name).numel() for name in this.generated),
        "mapping": mapping,
        "why": why,
        "plain_milliseconds": median(one["plain"] for one in rounds),
        "ratios": {name: median(one[name] / one["plain"] for one in rounds) for name in ways},
    }


def _mapping(subject: Subject) -> tuple[str, str]:
    """Which one serves a step of training, and why vmap does not."""
    this = subject.hypernet(mapping="vmap").train()
    try:
        this(subject.loss, this.space.sample(2), subject.batches()[0], split=False).sum().backward()
    except ht.NetworkError as error:
        return "loop", str(error).partition(" Avoid that operation")[0]
    return "vmap", ""


def _plain(subject: Subject) -> float:
    network = subject.make().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)

    def training(loader: Marked) -> None:
        for batch in loader:
            optimizer.zero_grad()
            subject.loss(network, batch, {"weight_decay": 1e-4}).backward()
            optimizer.step()

    return _milliseconds(training, subject)


def _fitted(subject: Subject, settings: int, execution: Execution) -> float:
    options: dict[str, Any] = {"settings_per_step": settings, "batching": "full", "execution": execution}

    def training(loader: Marked) -> None:
        ht.fit(subject.hypernet(), subject.loss, loader, epochs=1, progress=False, device="cpu", **options)

    return _milliseconds(training, subject)


def _milliseconds(training: Callable[[Marked], None], subject: Subject) -> float:
    """Of the processor, a step; a median."""
    times: list[float] = []
    training(Marked(subject.batches(), WARM + STEPS, lambda step: times.append(1e3 * time.process_time())))
    return median(after - before for before, after in zip(times[WARM:], times[WARM + 1 :], strict=False))


if __name__ == "__main__":
    run()
