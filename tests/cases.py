"""Tables of spaces, heads and primary networks. Every law runs over every row; what is new adds a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from torch import nn
from torch.nn.utils import parametrizations

import hypertune_mip as ht
from tests.networks import attention, images, layers, routing, structures

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10}

SPACES: dict[str, dict[str, BaseDistribution]] = {
    "float": {"a": FloatDistribution(-2.0, 3.0)},
    "log float": {"a": FloatDistribution(1e-5, 1e-1, log=True)},
    "stepped float": {"a": FloatDistribution(0.0, 1.0, step=0.1)},
    "int": {"a": IntDistribution(-3, 4)},
    "stepped int": {"a": IntDistribution(2, 14, step=3)},
    "log int": {"a": IntDistribution(1, 200, log=True)},
    "numbers to choose from": {"a": CategoricalDistribution([0.5, 1, 8])},
    "names to choose from": {"a": CategoricalDistribution(["x", "y", None])},
    "booleans": {"a": CategoricalDistribution([True, False])},
    "one value": {"a": FloatDistribution(2.0, 2.0), "b": IntDistribution(3, 3)},
    "mixture": {
        "decay": FloatDistribution(1e-6, 1.0, log=True),
        "kind": CategoricalDistribution(["p", "q", "r"]),
        "count": IntDistribution(1, 9),
        "rate": FloatDistribution(0.0, 0.5),
    },
}

HEADS: dict[str, ht.Head] = {
    "dense": ht.Dense(initialization="fan_out"),
    "rank one": ht.RankOne(initialization="fan_out"),
    "low rank": ht.LowRank(rank=3, initialization="fan_out"),
}


@dataclass(frozen=True)
class Network:
    """A primary network and an input for it.

    Args:
        make: The network.
        shape: Of the input.
        index: Whether the input is of class indices below 7.
        edges: How many edges between the rows of the input come with it, in a pair.
        dtype: Of parameters and inputs.
        vmap: Whether vmap serves its training; settings run one after another where it does not.
        noisy: Whether it draws random numbers in training.
        pickled: Whether torch lets it be pickled.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    index: bool = False
    edges: int = 0
    dtype: torch.dtype = torch.float32
    vmap: bool = True
    noisy: bool = False
    pickled: bool = True

    def network(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make().to(self.dtype)

    def input(self, *lead: int) -> Any:
        generator = torch.Generator().manual_seed(1)
        if self.index:
            return torch.randint(7, (*lead, *self.shape), generator=generator)
        x = torch.randn(*lead, *self.shape, generator=generator, dtype=self.dtype)
        if self.edges:
            return x, torch.randint(self.shape[0], (*lead, 2, self.edges), generator=generator)
        return x


NETWORKS: dict[str, Network] = {
    "mlp": Network(lambda: nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)), (4, 3)),
    "no bias": Network(lambda: nn.Linear(3, 2, bias=False), (4, 3)),
    "float64": Network(lambda: nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)), (4, 3), dtype=torch.float64),
    "conv1d, strided": Network(lambda: nn.Conv1d(2, 6, 3, stride=2, padding=1), (3, 2, 9)),
    "conv2d, dilated": Network(lambda: nn.Conv2d(2, 4, 3, dilation=2, padding="same"), (3, 2, 8, 8)),
    "conv2d, grouped": Network(lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (3, 4, 5, 5)),
    "conv2d, depthwise": Network(lambda: nn.Conv2d(4, 8, 3, groups=4), (3, 4, 5, 5)),
    "conv2d, reflected": Network(lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), (3, 2, 5, 5)),
    "conv2d, one image": Network(lambda: nn.Conv2d(2, 4, 3), (2, 5, 5)),
    "conv3d": Network(lambda: nn.Conv3d(2, 4, 2), (2, 2, 4, 4, 4)),
    "conv transpose": Network(lambda: nn.ConvTranspose2d(4, 2, 3, stride=2, groups=2), (2, 4, 4, 4)),
    "conv transpose 1d": Network(lambda: nn.ConvTranspose1d(3, 4, 3, padding=1, dilation=2), (2, 3, 6)),
    "conv transpose 3d": Network(lambda: nn.ConvTranspose3d(2, 3, 2, stride=2, output_padding=1), (2, 2, 3, 3, 3)),
    "bare convolution": Network(layers.BareConvolution, (3, 2, 5, 5)),
    "experts": Network(layers.Experts, (3, 48)),
    "embedding": Network(lambda: nn.Embedding(7, 4, padding_idx=0), (3, 5), index=True),
    "padding": Network(lambda: layers.Padded(nn.Embedding(7, 4, padding_idx=2)), (3, 5), index=True),
    "padding in a bag": Network(lambda: layers.Padded(nn.EmbeddingBag(7, 4, padding_idx=2)), (3, 5), index=True),
    "tied weights": Network(layers.Tied, (3, 5), index=True),
    "tied weights, padding": Network(layers.PaddedAndTied, (3, 5), index=True),
    "layer norm": Network(lambda: nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6)), (4, 3)),
    "group norm": Network(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)), (3, 2, 5, 5)),
    "batch norm": Network(lambda: nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6)), (5, 3)),
    "attention": Network(layers.Position, (2, 5, 8)),
    "transformer": Network(lambda: nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True), (2, 5, 8)),
    "bilinear": Network(lambda: layers.Both(3), (4, 3)),
    "bilinear, large": Network(lambda: layers.Both(48), (2, 48)),
    "parameter at the root": Network(layers.RootParameter, (4, 3)),
    "weight norm": Network(lambda: parametrizations.weight_norm(nn.Linear(3, 4)), (4, 3), pickled=False),
    "orthogonal": Network(partial(structures.Parametrized, parametrizations.orthogonal), (4, 3), pickled=False),
    "spectral norm": Network(
        partial(structures.Parametrized, parametrizations.spectral_norm), (4, 3), vmap=False, pickled=False
    ),
    "vision transformer": Network(attention.VisionTransformer, (3, 2, 4, 4)),
    "text encoder": Network(attention.TextEncoder, (3, 5), index=True),
    "language model": Network(attention.LanguageModel, (3, 5), index=True),
    "rotary model": Network(attention.RotaryModel, (3, 5), index=True),
    "mixed experts": Network(routing.MixedExperts, (5, 6)),
    "routed experts": Network(routing.RoutedExperts, (5, 6), vmap=False),
    "scaled convolutions": Network(images.ScaledConvolutions, (3, 2, 6, 6), noisy=True),
    "down and up": Network(images.DownAndUp, (2, 2, 4, 4)),
    "recurrent": Network(structures.Recurrent, (4, 5, 3), vmap=False),
    "adapted": Network(structures.Adapted, (4, 6)),
    "sampling": Network(structures.Sampling, (4, 3), noisy=True),
    "graph": Network(structures.Graph, (5, 3), edges=8),
    "quantized": Network(structures.Quantized, (4, 3)),
}


def space(name: str = "mixture") -> ht.SearchSpace:
    return ht.SearchSpace(SPACES[name])


def hypernet(network: str, head: str, **options: Any) -> ht.HyperNetwork:
    """In evaluation mode, with heads that make settings differ."""
    return ht.HyperNetwork(NETWORKS[network].network(), space(), head=HEADS[head], seed=3, **options).eval()


def output(model: nn.Module, batch: Any, config: Any) -> Any:
    """The simplest function of a model: its output."""
    return model(batch)
