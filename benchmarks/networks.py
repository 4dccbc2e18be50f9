"""Primary networks of ordinary sizes, their batches and their loss, for benchmarks of time and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

import hypertune_mip as ht

CONFIG = {"weight_decay": 1e-4, "label_smoothing": 0.1}
SPACE = {"weight_decay": FloatDistribution(1e-6, 1e-2, log=True), "label_smoothing": FloatDistribution(0.0, 0.3)}


def loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
    """Cross-entropy of smoothed labels, of images or of tokens, with a penalty."""
    x, y = batch
    logits = model(x).flatten(0, -2)
    fit = ht.losses.cross_entropy(logits, y.flatten(), label_smoothing=config["label_smoothing"])
    return fit + 0.5 * config["weight_decay"] * ht.losses.l2(model)


def metric(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    x, y = batch
    return {"loss": F.cross_entropy(model(x).flatten(0, -2).float(), y.flatten())}


@dataclass(frozen=True)
class Case:
    """A network and its batches: of images (N, ...), or of tokens (N, length) where there is a vocabulary."""

    network: Callable[[], nn.Module]
    batch: int
    shape: tuple[int, ...]
    classes: int
    tokens: bool = False

    def batches(self, count: int, device: str | torch.device = "cpu") -> list[tuple[Tensor, Tensor]]:
        """In memory, on the device."""
        return [self._batch(seed, device) for seed in range(count)]

    def _batch(self, seed: int, device: str | torch.device) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        if self.tokens:
            text = torch.randint(self.classes, (self.batch, self.shape[0] + 1), generator=generator).to(device)
            return text[:, :-1].contiguous(), text[:, 1:].contiguous()
        x = torch.randn(self.batch, *self.shape, generator=generator)
        return x.to(device), torch.randint(self.classes, (self.batch,), generator=generator).to(device)

    def hypernet(self, **options: Any) -> ht.HyperNetwork:
        torch.manual_seed(0)
        return ht.HyperNetwork(self.network(), ht.SearchSpace(SPACE), **options)

    def plain(self) -> nn.Module:
        torch.manual_seed(0)
        return ht.nn.resolve(self.network(), CONFIG).train()


class Marked:
    """A loader of so many steps from a few batches, which calls `mark` whenever one is asked for, and at the end.

    Args:
        batches: Given in turn.
        steps: Of an epoch.
        mark: Takes the number of the step that is about to begin; `steps` when all are over.
    """

    def __init__(self, batches: Sequence[Any], steps: int, mark: Callable[[int], None]) -> None:
        self.batches = batches
        self.steps = steps
        self.mark = mark

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        for step in range(self.steps):
            self.mark(step)
            yield self.batches[step % len(self.batches)]
        self.mark(self.steps)


def plain_training(network: nn.Module, loader: Marked, *, autocast: torch.dtype | None = None) -> None:
    """An epoch of training from scratch, as a user writes it: fused Adam, cosine schedule."""
    device = next(network.parameters()).device
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(loader))
    for batch in loader:
        optimizer.zero_grad()
        with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            value = loss(network, batch, CONFIG)
        value.backward()
        optimizer.step()
        schedule.step()


def mlp() -> nn.Module:
    """196-256-256-10."""
    layers = [nn.Linear(196, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    return nn.Sequential(*layers)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.GroupNorm(8, outputs) for _ in range(2)])
        self.short = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(8, outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(inner)) + self.short(x))


def resnet18(width: int = 64, classes: int = 10, blocks: Sequence[int] = (2, 2, 2, 2)) -> nn.Module:
    """For images of 32 x 32, with GroupNorm."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.GroupNorm(8, width), nn.ReLU()]
    inputs = width
    for stage, count in enumerate(blocks):
        outputs = width * 2**stage
        for index in range(count):
            layers.append(_Block(inputs, outputs, 2 if stage and not index else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class _Layer(nn.Module):
    """Causal attention and a perceptron, each behind a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.inward = nn.Linear(width, 3 * width)
        self.outward = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inward(self.norms[0](x)).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2).chunk(3, 1)
        x = x + self.outward(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class GPT(nn.Module):
    """A language model: tokens (N, length) to logits (N, length, vocabulary)."""

    def __init__(self, vocabulary: int, width: int, layers: int, length: int, heads: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.layers = nn.Sequential(*(_Layer(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.norm(self.layers(self.token(tokens) + self.position)))
