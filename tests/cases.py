"""Tables of spaces, heads and primary networks. Every law runs over every row; what is new adds a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from torch import Tensor, nn

import hypertune_mip as ht

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


class Tied(nn.Module):
    """An embedding whose weight is the output layer's as well."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7)
        self.out.weight = self.embed.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.out(self.embed(index))


class RootParameter(nn.Module):
    """A parameter of its own beside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.inner = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * self.scale)


class Position(nn.Module):
    """A positional parameter of shape (1, T, E) in front of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position
        return self.attention(x, x, x, need_weights=False)[0]


def _parametrized() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))


class Padded(nn.Module):
    """An embedding whose padding row is not zero."""

    def __init__(self, layer: nn.Embedding | nn.EmbeddingBag) -> None:
        super().__init__()
        self.embed = layer
        with torch.no_grad():
            layer.weight[layer.padding_idx] = torch.linspace(0.5, 1.0, layer.embedding_dim)

    def forward(self, index: Tensor) -> Tensor:
        return self.embed(index)


class PaddedAndTied(Padded):
    """Such an embedding whose weight is the output layer's as well, which does send gradients to the padding row."""

    def __init__(self) -> None:
        super().__init__(nn.Embedding(7, 4, padding_idx=2))
        self.out = nn.Linear(4, 7)
        self.out.weight = self.embed.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.out(self.embed(index))


class Experts(nn.Module):
    """A stack of matrices, each with its own rows and columns, and a scale of shape (E, 1, 1) beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 48, 48) / 7)
        self.scale = nn.Parameter(torch.ones(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nd,edh->enh", x, self.weight) * self.scale


class BareConvolution(nn.Module):
    """A kernel that is no convolution layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 2, 3, 3) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.kernel, padding=1)


@dataclass(frozen=True)
class Network:
    """A primary network and an input for it."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    index: bool = False  # whether the input is of class indices below 7
    dtype: torch.dtype = torch.float32

    def network(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make().to(self.dtype)

    def input(self, *lead: int) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        if self.index:
            return torch.randint(7, (*lead, *self.shape), generator=generator)
        return torch.randn(*lead, *self.shape, generator=generator, dtype=self.dtype)


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
    "bare convolution": Network(BareConvolution, (3, 2, 5, 5)),
    "experts": Network(Experts, (3, 48)),
    "embedding": Network(lambda: nn.Embedding(7, 4, padding_idx=0), (3, 5), index=True),
    "padding": Network(lambda: Padded(nn.Embedding(7, 4, padding_idx=2)), (3, 5), index=True),
    "padding in a bag": Network(lambda: Padded(nn.EmbeddingBag(7, 4, padding_idx=2)), (3, 5), index=True),
    "tied weights": Network(Tied, (3, 5), index=True),
    "tied weights, padding": Network(PaddedAndTied, (3, 5), index=True),
    "layer norm": Network(lambda: nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6)), (4, 3)),
    "group norm": Network(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)), (3, 2, 5, 5)),
    "batch norm": Network(lambda: nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6)), (5, 3)),
    "attention": Network(Position, (2, 5, 8)),
    "transformer": Network(lambda: nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True), (2, 5, 8)),
    "bilinear": Network(lambda: Both(3), (4, 3)),
    "bilinear, large": Network(lambda: Both(48), (2, 48)),
    "parameter at the root": Network(RootParameter, (4, 3)),
    "weight norm": Network(_parametrized, (4, 3)),
}


class Both(nn.Module):
    """A layer with a weight of three dimensions."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.both = nn.Bilinear(size, size, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.both(x, x)


def space(name: str = "mixture") -> ht.SearchSpace:
    return ht.SearchSpace(SPACES[name])


def hypernet(network: str, head: str, **options: Any) -> ht.HyperNetwork:
    """In evaluation mode, with heads that make settings differ."""
    return ht.HyperNetwork(NETWORKS[network].network(), space(), head=HEADS[head], seed=3, **options).eval()


def output(model: nn.Module, batch: Any, config: Any) -> Any:
    """The simplest function of a model: its output."""
    return model(batch)
