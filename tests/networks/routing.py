"""Mixtures of experts: a gate weighs the best two of four for each token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPERTS, BEST = 4, 2


class MixedExperts(nn.Module):
    """Every expert sees every token; those that are not chosen count nothing."""

    def __init__(self, width: int = 6, inner: int = 8) -> None:
        super().__init__()
        self.gate = nn.Linear(width, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.randn(EXPERTS, width, inner) / width**0.5)
        self.down = nn.Parameter(torch.randn(EXPERTS, inner, width) / inner**0.5)

    def forward(self, x: Tensor) -> Tensor:
        values, chosen = self.gate(x).topk(BEST, -1)
        weights = torch.zeros(len(x), EXPERTS, dtype=x.dtype, device=x.device).scatter(-1, chosen, values.softmax(-1))
        inner = F.gelu(torch.einsum("nd,edh->enh", x, self.up))
        return torch.einsum("enh,ehd,ne->nd", inner, self.down, weights)


class RoutedExperts(nn.Module):
    """Every expert sees its own tokens only, so sizes inside depend on the data."""

    def __init__(self, width: int = 6, inner: int = 8) -> None:
        super().__init__()
        self.gate = nn.Linear(width, EXPERTS, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)) for _ in range(EXPERTS)
        )

    def forward(self, x: Tensor) -> Tensor:
        values, chosen = self.gate(x).topk(BEST, -1)
        weights, result = values.softmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            tokens, place = torch.where(chosen == number)
            result = result.index_add(0, tokens, weights[tokens, place, None] * expert(x[tokens]))
        return result
