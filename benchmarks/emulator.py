"""Emulator: settings a second and errors on two tasks; exact evaluation in plain forward passes of as many networks."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

import hypertune_mip as ht
from benchmarks import results, tasks
from benchmarks.cheap import seconds_of

TASKS = (tasks.fashion3, tasks.digits8)
POINTS = 2048
SETTINGS = 100_000
ROUNDS = 9
SPACE = ht.SearchSpace({"weight_decay": FloatDistribution(1e-5, 1e-1, log=True)})


def run(smoke: bool = False) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ht.HypertuneWarning)  # that an error is large is what is measured
        emulated = [_emulated(make(), smoke) for make in TASKS]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        exact = [_exact(network, 1 if smoke else ROUNDS, 2 if smoke else 16) for network in NETWORKS]
    finally:
        torch.set_num_threads(threads)
    content = {"points": POINTS, "settings": SETTINGS, "rounds": ROUNDS, "emulated": emulated, "exact": exact}
    return results.write("emulator", content, smoke=smoke)


def _emulated(task: tasks.Task, smoke: bool) -> dict[str, Any]:
    task = tasks.shortened(task) if smoke else task
    surrogate = tasks.fitted(task, 0)
    points = 64 if smoke else POINTS
    start = time.perf_counter()
    emulator = surrogate.emulator(points=points, progress=False)
    made = time.perf_counter() - start
    units = task.space.sample(1000 if smoke else SETTINGS, seed=1)
    emulator(units[:100])
    seconds = median(seconds_of(lambda: emulator(units)) for _ in range(1 if smoke else 5))
    return {
        "task": task.name,
        "hyperparameters": len(task.space),
        "seconds_to_make": made,
        "settings_per_second": len(units) / seconds,
        "errors": {name: asdict(error) for name, error in emulator.errors.items()},
    }


# Exact evaluation


@dataclass(frozen=True)
class Network:
    """A primary network and a validation batch of ten classes."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class Encoder(nn.Module):
    """Attention over tokens, and the mean of what comes out."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x).mean(1))


def resnet() -> nn.Module:
    stem = nn.Conv2d(3, 32, 3, padding=1)
    return nn.Sequential(stem, Block(32), Block(32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


NETWORKS = (
    Network("MLP 196-256-256-10, 2,000 examples", lambda: tasks.mlp(196, 10, width=256, depth=2), (2000, 196)),
    Network("ResNet of width 32, 128 images of 16 x 16", resnet, (128, 3, 16, 16)),
    Network("transformer of width 64, 64 x 32 tokens", Encoder, (64, 32, 64)),
)


def _exact(network: Network, rounds: int, settings: int) -> dict[str, Any]:
    """Medians of interleaved rounds."""
    torch.manual_seed(0)
    batch = torch.randn(*network.shape), torch.randint(10, network.shape[:1])
    hypernet = ht.HyperNetwork(network.make(), SPACE)
    surrogate = ht.Surrogate(hypernet, metric=tasks.classification, val_loader=[batch])
    configs = SPACE.from_unit(SPACE.sample(settings))
    plain = surrogate.materialize(configs[0])

    @torch.no_grad()
    def forward() -> None:
        for _ in range(settings):
            tasks.classification(plain, batch)

    surrogate.evaluate_batch(configs)
    forward()
    pairs = [(seconds_of(lambda: surrogate.evaluate_batch(configs)), seconds_of(forward)) for _ in range(rounds)]
    return {
        "network": network.name,
        "settings": settings,
        "settings_at_once": surrogate._evaluator.chunk_size(),
        "seconds_of_a_forward_pass": median(one for _, one in pairs) / settings,
        "forward_passes": median(many / one for many, one in pairs),
    }
