"""Single layers, and what holds parameters in unusual ways."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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


class Both(nn.Module):
    """A layer with a weight of three dimensions."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.both = nn.Bilinear(size, size, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.both(x, x)
