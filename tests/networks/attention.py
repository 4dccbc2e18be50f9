"""Networks with attention: images, text with padding, language models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Queries, keys and values of one linear map; fewer heads of keys than of queries if told so.

    Args:
        width: Of the input and the output.
        heads: Of queries.
        shared: Heads of queries that one head of keys and values serves.
        rotary: Whether queries and keys are turned by their positions, up to `length`.
        bias: Of the linear maps.
    """

    def __init__(
        self, width: int, heads: int, *, shared: int = 1, rotary: bool = False, bias: bool = True, length: int = 8
    ) -> None:
        super().__init__()
        self.size, self.heads, self.shared, self.rotary = width // heads, heads, shared, rotary
        self.inward = nn.Linear(width, self.size * (heads + 2 * heads // shared), bias=bias)
        self.outward = nn.Linear(width, width, bias=bias)
        frequency = 100.0 ** -torch.arange(0, 1, 2 / self.size)
        angle = torch.arange(length)[:, None] * frequency.repeat(2)
        self.register_buffer("cosine", angle.cos(), persistent=False)
        self.register_buffer("sine", angle.sin(), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
        others = self.heads // self.shared
        parts = self.inward(x).unflatten(-1, (-1, self.size)).transpose(1, 2)
        q, k, v = parts.split([self.heads, others, others], 1)
        if self.rotary:
            q, k = self.turned(q), self.turned(k)
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=self.shared > 1)
        return self.outward(y.transpose(1, 2).flatten(2))

    def turned(self, x: Tensor) -> Tensor:
        """Each pair of numbers turned by an angle that grows with the position."""
        left, right = x.chunk(2, -1)
        length = x.shape[-2]
        return x * self.cosine[:length] + torch.cat([-right, left], -1) * self.sine[:length]


class PreNorm(nn.Module):
    """Attention and a perceptron, each behind a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.attention = Attention(width, heads)
        self.perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, *, causal: bool = False) -> Tensor:
        x = x + self.attention(self.norms[0](x), causal=causal)
        return x + self.perceptron(self.norms[1](x))


class VisionTransformer(nn.Module):
    """Patches of images of 4 x 4 behind a class token, from which the answer is read."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, width, 2, stride=2)
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.1 * torch.randn(1, 5, width))
        self.blocks = nn.Sequential(PreNorm(width, 2), PreNorm(width, 2))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], 1)
        return self.out(self.norm(self.blocks(tokens + self.position))[:, 0])


class TextEncoder(nn.Module):
    """Tokens of which 0 is padding, hidden from attention by a mask; norms behind the sums, a pooled first token."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.token = nn.Embedding(7, width, padding_idx=0)
        self.position = nn.Embedding(5, width)
        self.attention = Attention(width, 2)
        self.perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.pool = nn.Linear(width, width)
        self.out = nn.Linear(width, 3)

    def forward(self, index: Tensor) -> Tensor:
        seen = (index != 0)[:, None, None, :]
        position = torch.arange(index.shape[1], device=index.device)
        x = self.norms[0](self.token(index) + self.position(position))
        x = self.norms[1](x + self.attention(x, seen))
        x = self.norms[2](x + self.perceptron(x))
        return self.out(self.pool(x[:, 0]).tanh())


class LanguageModel(nn.Module):
    """Tokens to the next ones; the embedding is the output layer's weight as well."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.token = nn.Embedding(7, width)
        self.position = nn.Parameter(0.1 * torch.randn(5, width))
        self.block = PreNorm(width, 2)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 7, bias=False)
        self.out.weight = self.token.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.out(self.norm(self.block(self.token(index) + self.position, causal=True)))


class RotaryModel(nn.Module):
    """A language model with turned queries and keys, root mean square norms and gated perceptrons, without a bias."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.token = nn.Embedding(7, width)
        self.attention = Attention(width, 4, shared=2, rotary=True, bias=False)
        self.gate, self.up = nn.Linear(width, 12, bias=False), nn.Linear(width, 12, bias=False)
        self.down = nn.Linear(12, width, bias=False)
        self.norms = nn.ModuleList([nn.RMSNorm(width) for _ in range(3)])
        self.out = nn.Linear(width, 7, bias=False)

    def forward(self, index: Tensor) -> Tensor:
        x = self.token(index)
        x = x + self.attention(self.norms[0](x), causal=True)
        inner = self.norms[1](x)
        x = x + self.down(F.silu(self.gate(inner)) * self.up(inner))
        return self.out(self.norms[2](x))
