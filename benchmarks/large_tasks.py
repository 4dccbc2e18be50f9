"""Larger tasks, on which a training takes half a minute of one core: images, a residual network, a transformer."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pydoc_data.topics import topics

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hypertune_mip as ht
from benchmarks.tasks import Task, _float, fashion_images, standardized_fashion
from benchmarks.trust_tasks import b2_fashion

_CONTEXT = 64
_TRAIN, _HELD_OUT = 1024, 512  # sequences


def fashion_cocktail() -> Task:
    """Eight regularisers at once on 2,000 images of 14 x 14."""
    x, y = fashion_images(6000)
    return replace(b2_fashion(), name="fashion_cocktail", test=(x[4000:], y[4000:]))


def fashion_resnet() -> Task:
    """A residual network on 6,000 images of 28 x 28."""
    x, y = standardized_fashion(10_000)
    parts = [(x[cut], y[cut]) for cut in (slice(6000), slice(6000, 8000), slice(8000, None))]
    task = ht.Classification()
    return Task(
        "fashion_resnet",
        space=ht.SearchSpace(
            {
                "weight_decay": _float(1e-5, 1e-1, log=True),
                "dropout": _float(0.0, 0.7),
                "label_smoothing": _float(0.0, 0.4),
                "mixup": _float(0.0, 1.0),
            }
        ),
        network=ResNet,
        loss=task.loss,
        metric=task.metric,  # type: ignore[arg-type]  # which is no list
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        batch_size=100,
        epochs=10,
        learning_rate=3e-3,
    )


def text_transformer() -> Task:
    """Two layers that predict the next character of Python's own help texts."""
    windows = _windows()
    cuts = np.cumsum([_TRAIN, _HELD_OUT, _HELD_OUT])
    parts = [
        (part[:, :-1], part[:, 1:]) for part in torch.tensor(windows[: cuts[-1]]).split([_TRAIN, *[_HELD_OUT] * 2])
    ]
    task = ht.Classification()
    vocabulary = int(windows.max()) + 1
    return Task(
        "text_transformer",
        space=ht.SearchSpace(
            {
                "weight_decay": _float(1e-6, 1e-2, log=True),
                "dropout": _float(0.0, 0.5),
                "dropout_embedding": _float(0.0, 0.5),
                "label_smoothing": _float(0.0, 0.3),
            }
        ),
        network=lambda: Transformer(vocabulary),
        loss=task.loss,
        metric=task.metric,  # type: ignore[arg-type]
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        batch_size=32,
        epochs=8,
        learning_rate=3e-3,
    )


class Block(nn.Module):
    """Two convolutions with group norm and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.first_norm = nn.GroupNorm(4, outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(4, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        return F.relu(inner + self.shortcut(x))


class ResNet(nn.Sequential):
    """Of three blocks."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False), nn.GroupNorm(4, 8), nn.ReLU(),
            Block(8, 8, 1), Block(8, 16, 2), Block(16, 32, 2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), ht.nn.Dropout("dropout"), nn.Linear(32, 10),
        )  # fmt: skip


class Transformer(nn.Module):
    """Causal; gives logits (N, vocabulary, length)."""

    def __init__(self, vocabulary: int, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(_CONTEXT, width)
        self.dropout = ht.nn.Dropout("dropout_embedding")
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, vocabulary)

    def forward(self, characters: Tensor) -> Tensor:
        places = torch.arange(characters.shape[1], device=characters.device)
        x = self.dropout(self.characters(characters) + self.places(places))
        for layer in self.layers:
            x = layer(x)
        return self.out(self.norm(x)).transpose(1, 2)


class Layer(nn.Module):
    """Attention, then two linear layers, each behind a norm and with a shortcut."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projections = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = ht.nn.Dropout("dropout")

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        parts = self.projections(self.attention_norm(x)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(n, length, width)))
        return x + self.dropout(self.feed_forward(self.norm(x)))


@cache
def _windows() -> np.ndarray:
    """Texts of Python's `help()` as indices of characters, in shuffled windows that do not overlap."""
    text = "\n".join(topics[name] for name in sorted(topics))
    alphabet = sorted(set(text))
    numbers = np.array([alphabet.index(character) for character in text])
    count = len(numbers) // (_CONTEXT + 1)
    windows = numbers[: count * (_CONTEXT + 1)].reshape(count, _CONTEXT + 1)
    shuffled: np.ndarray = windows[np.random.default_rng(0).permutation(count)]
    return shuffled


TASKS = (fashion_cocktail, fashion_resnet, text_transformer)
