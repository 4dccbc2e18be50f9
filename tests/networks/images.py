"""Networks on images."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScaledBlock(nn.Module):
    """A depthwise convolution and a perceptron over channels, scaled, and left out for some images while training."""

    def __init__(self, width: int, left_out: float) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.scale = nn.Parameter(0.1 * torch.ones(width))
        self.left_out = left_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.perceptron(self.norm(self.spatial(x).permute(0, 2, 3, 1)))
        y = (y * self.scale).permute(0, 3, 1, 2)
        if self.training:
            y = y * (torch.rand_like(y[:, :1, :1, :1]) >= self.left_out) / (1 - self.left_out)
        return x + y


class ScaledConvolutions(nn.Module):
    """Such blocks on patches of an image, and the mean over places."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, width, 2, stride=2)
        self.blocks = nn.Sequential(ScaledBlock(width, 0.2), ScaledBlock(width, 0.4))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.blocks(self.patches(x)).mean((2, 3))))


class DownAndUp(nn.Module):
    """An image to an image: down by pooling, up by a transposed convolution, joined with what it was before."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.down = self.layer(2, width)
        self.bottom = self.layer(width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.joined = self.layer(2 * width, width)
        self.out = nn.Conv2d(width, 2, 1)

    @staticmethod
    def layer(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(2, outputs), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        high = self.down(x)
        low = self.bottom(nn.functional.max_pool2d(high, 2))
        return self.out(self.joined(torch.cat([high, self.up(low)], 1)))
