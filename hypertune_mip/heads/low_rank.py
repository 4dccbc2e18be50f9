"""A head with shared directions, W(u) = W_0 + L diag(s(u)) R: a setting mixes a few learned matrices into theta_0."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypertune_mip.arguments import whole_number
from hypertune_mip.errors import NetworkError
from hypertune_mip.functional import StructuredWeight, exact, lowered, scaled
from hypertune_mip.heads.axes import Axes, axes_of, channels
from hypertune_mip.heads.base import Head
from hypertune_mip.heads.rule import Initialization, Rule


@dataclass(frozen=True, kw_only=True)
class LowRank(Head):
    """W(u) = W_0 + L diag(s(u)) R with shared, learned L and R, for each matrix of a stack.

    Args:
        initialization: See `Head`.
        rank: Number of shared directions, at least 1; capped at the smaller side of each weight.
    """

    rank: int = 8

    def __post_init__(self) -> None:
        """Validate."""
        super().__post_init__()
        object.__setattr__(self, "rank", whole_number("rank", self.rank, low=1, error=NetworkError))

    def matrix_rule(self, parameter: Tensor, module: nn.Module) -> Rule:
        """See `Head.matrix_rule`; groups of a convolution are small, so they share their directions."""
        axes = axes_of(parameter, module, by_group=False)
        assert axes is not None
        return Mixing(axes, self.initialization, rank=self.rank)


class Mixing(Rule):
    """theta_0 plus a combination, by setting, of `rank` shared directions for each matrix; kernels count as columns."""

    def __init__(self, axes: Axes, initialization: Initialization, *, rank: int) -> None:
        """See the class."""
        stack, rows, columns = axes.stack, axes.rows, math.prod(axes.shape[axes.row_axis + 1 :])
        rank = min(rank, rows, columns)
        super().__init__([stack * rank], initialization)
        self.axes = axes
        self.left = nn.Parameter(torch.randn(stack, rows, rank) / math.sqrt(rank))
        self.right = nn.Parameter(torch.randn(stack, rank, columns) / math.sqrt(columns))

    def tensor(self, theta_0: Tensor, numbers: Tensor) -> Tensor:
        """See `Rule.tensor`."""
        left, right = self.left.to(theta_0.dtype), self.right.to(theta_0.dtype)
        return LowRankWeight(theta_0, left, numbers, right, self.axes)


# Layers, by factors. Not under autocast: a change that is small beside the output would be rounded away in every
# element, whereas rounding the formed weight loses nothing on average.


def _lowered(
    function: Callable[..., Tensor], input: Tensor, weight: LowRankWeight, bias: Tensor | None, *rest: object
) -> Tensor | None:
    """What a linear map or convolution gives under autocast, or None where that is off."""
    if not torch.is_autocast_enabled(input.device.type):
        return None
    return function(lowered(input), lowered(weight.form()), None if bias is None else lowered(bias), *rest)


def _linear(input: Tensor, weight: LowRankWeight, bias: Tensor | None = None) -> Tensor | None:
    if weight.theta_0.ndim != 2:
        return None
    y = _lowered(F.linear, input, weight, bias)
    if y is None:
        change = F.linear(scaled(F.linear(input, weight.right[0]), weight.scale), weight.left[0])
        y = F.linear(input, weight.theta_0, bias) + change
    return y


def _convolution(
    function: Callable[..., Tensor],
    input: Tensor,
    weight: LowRankWeight,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: str | int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor | None:
    """A convolution to `rank` channels, then one of kernel size 1."""
    shape = weight.theta_0.shape
    if groups != 1 or weight.axes != channels(shape):
        return None
    rest, spatial = (stride, padding, dilation), (1,) * (len(shape) - 2)
    left, right = weight.left.reshape(shape[0], -1, *spatial), weight.right.reshape(-1, *shape[1:])
    y = _lowered(function, input, weight, bias, *rest)
    if y is None:
        inner = scaled(function(input, right, None, *rest), weight.scale.reshape(-1, *spatial))
        y = function(input, weight.theta_0, bias, *rest) + function(inner, left)
    return y


def _transposed_convolution(
    function: Callable[..., Tensor],
    pointwise: Callable[..., Tensor],
    input: Tensor,
    weight: LowRankWeight,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    output_padding: int | tuple[int, ...] = 0,
    groups: int = 1,
    dilation: int | tuple[int, ...] = 1,
) -> Tensor | None:
    """A convolution of kernel size 1 to `rank` channels, then a transposed one."""
    shape = weight.theta_0.shape
    if groups != 1 or weight.axes != channels(shape):
        return None
    rest, spatial = (stride, padding, output_padding, 1, dilation), (1,) * (len(shape) - 2)
    left, right = weight.left[0].T.reshape(-1, shape[0], *spatial), weight.right.reshape(-1, *shape[1:])
    y = _lowered(function, input, weight, bias, *rest)
    if y is None:
        inner = scaled(pointwise(input, left), weight.scale.reshape(-1, *spatial))
        y = function(input, weight.theta_0, bias, *rest) + function(inner, right, None, *rest)
    return y


def _embedding(
    input: Tensor,
    weight: LowRankWeight,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor | None:
    if padding_idx is not None or max_norm is not None or scale_grad_by_freq:
        return None
    with exact(weight.theta_0):
        change = (F.embedding(input, weight.left[0]) * weight.scale).to(weight.right.dtype) @ weight.right[0]
        return (F.embedding(input, weight.theta_0) + change).to(weight.theta_0.dtype)


class LowRankWeight(StructuredWeight):
    """W_0 + left diag(scale) right, with left and right shared by all settings.

    Args:
        theta_0: W_0.
        left: (stack, rows, rank).
        scale: (stack * rank,), of this setting.
        right: (stack, rank, columns), with a kernel's elements among the columns.
        axes: Where W_0 has its rows and columns.
    """

    layers = {  # noqa: RUF012
        F.linear: _linear,
        **{f: partial(_convolution, f) for f in (F.conv1d, F.conv2d, F.conv3d)},
        **{
            f: partial(_transposed_convolution, f, pointwise)
            for f, pointwise in (
                (F.conv_transpose1d, F.conv1d),
                (F.conv_transpose2d, F.conv2d),
                (F.conv_transpose3d, F.conv3d),
            )
        },
        F.embedding: _embedding,
    }

    def __init__(self, theta_0: Tensor, left: Tensor, scale: Tensor, right: Tensor, axes: Axes) -> None:
        """See the class."""
        self.theta_0 = theta_0
        self.left = left
        self.scale = scale
        self.right = right
        self.axes = axes

    def form(self) -> Tensor:
        """See `StructuredWeight.form`."""
        with exact(self.theta_0):
            scale = self.scale.reshape(self.axes.stack, 1, -1)
            change = (self.left * scale).to(self.right.dtype) @ self.right
        return (self.theta_0 + change.reshape(self.theta_0.shape)).to(self.theta_0.dtype)

    def square_sum(self) -> Tensor:
        """See `StructuredWeight.square_sum`: |W_0|^2 + 2 <W_0, L diag(s) R> + s (L'L * RR') s, for each matrix."""
        with exact(self.theta_0):
            left, right, scale = self.left.mT, self.right, self.scale.reshape(self.axes.stack, -1)
            theta_0 = self.theta_0.reshape(self.axes.stack, self.axes.rows, -1)
            cross = ((left @ theta_0) * right).sum(-1)
            gram = (left @ self.left) * (right @ right.mT)
            mixed = (gram * scale.unsqueeze(-2)).sum(-1)
            return theta_0.square().sum() + ((2 * cross + mixed) * scale).sum()
