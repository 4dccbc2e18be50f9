"""The default head: rows and columns of theta_0 are scaled.

    W(u)[o, i] = W_0[o, i] (1 + r(u)[o]) (1 + c(u)[i])

A stack of matrices has rows and columns for each of them, a kernel is scaled as a whole (see `axes`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypertune_mip.functional import StructuredWeight, as_type, exact, lowered, scaled
from hypertune_mip.heads.axes import Axes, axes_of, channels
from hypertune_mip.heads.base import Head
from hypertune_mip.heads.rule import Initialization, Rule


@dataclass(frozen=True, kw_only=True)
class RankOne(Head):
    """W(u) = W_0 * (1 + r(u)) (1 + c(u))^T: the default; (H + 1)(rows + columns) numbers a matrix."""

    def matrix_rule(self, parameter: Tensor, module: nn.Module) -> Rule:
        """See `Head.matrix_rule`."""
        axes = axes_of(parameter, module)
        assert axes is not None
        return Scaling(axes, self.initialization)


class Scaling(Rule):
    """theta_0 scaled by rows and columns."""

    def __init__(self, axes: Axes, initialization: Initialization) -> None:
        """See the class."""
        super().__init__([prod(axes.row_shape), prod(axes.column_shape)], initialization)
        self.axes = axes

    def tensor(self, theta_0: Tensor, numbers: Tensor) -> Tensor:
        """See `Rule.tensor`."""
        return RankOneWeight(theta_0, *self._scales(theta_0, numbers), self.axes)

    def form(self, theta_0: Tensor, numbers: Tensor) -> Tensor:
        """See `Rule.form`; without the structured weight between, which costs a small network a few per cent."""
        return _form(theta_0, *self._scales(theta_0, numbers), self.axes)

    def _scales(self, theta_0: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        if numbers.dtype != theta_0.dtype:
            numbers = numbers.to(torch.promote_types(numbers.dtype, theta_0.dtype))
        row, column = (1 + numbers).split(self.sizes)
        return row, column


def _form(theta_0: Tensor, row: Tensor, column: Tensor, axes: Axes) -> Tensor:
    """Row times column first, so that theta_0 is gone through once and kernels meet one number each.

    Why not a `torch.autograd.Function`: its backward pass is no faster than this one on any weight tried.
    """
    scale = row.reshape(axes.row_shape) * column.reshape(axes.column_shape)
    if axes.shape == theta_0.shape:
        return as_type(theta_0 * scale, theta_0.dtype)
    return as_type((theta_0.reshape(axes.shape) * scale).reshape(theta_0.shape), theta_0.dtype)


# Layers, by factors. Zero padding, stride and dilation commute with the scales.


def _linear(input: Tensor, weight: RankOneWeight, bias: Tensor | None = None) -> Tensor | None:
    if weight.theta_0.ndim != 2:
        return None
    y = F.linear(lowered(scaled(input, weight.column)), lowered(weight.theta_0))
    return scaled(y, weight.row, bias)


def _convolution(
    function: Callable[..., Tensor],
    input: Tensor,
    weight: RankOneWeight,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: str | int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor | None:
    if weight.axes != channels(weight.theta_0.shape, groups):
        return None
    rest = (stride, padding, dilation, groups)
    return _between(function, input, weight.column, weight.theta_0, rest, weight.row, bias)


def _transposed_convolution(
    function: Callable[..., Tensor],
    input: Tensor,
    weight: RankOneWeight,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    output_padding: int | tuple[int, ...] = 0,
    groups: int = 1,
    dilation: int | tuple[int, ...] = 1,
) -> Tensor | None:
    if weight.axes != channels(weight.theta_0.shape, groups):
        return None
    rest = (stride, padding, output_padding, groups, dilation)
    return _between(function, input, weight.row, weight.theta_0, rest, weight.column, bias)


def _between(
    function: Callable[..., Tensor],
    input: Tensor,
    before: Tensor,
    theta_0: Tensor,
    rest: tuple[object, ...],
    after: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """A convolution between scales of its input and output channels."""
    spatial = (1,) * (theta_0.ndim - 2)
    y = function(lowered(scaled(input, before.reshape(-1, *spatial))), lowered(theta_0), None, *rest)
    return scaled(y, after.reshape(-1, *spatial), None if bias is None else bias.reshape(-1, *spatial))


def _embedding(
    input: Tensor,
    weight: RankOneWeight,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor | None:
    if padding_idx is not None or max_norm is not None or scale_grad_by_freq:
        return None
    rows = F.embedding(input, weight.theta_0) * F.embedding(input, weight.row.unsqueeze(-1)) * weight.column
    return as_type(rows, weight.theta_0.dtype)


class RankOneWeight(StructuredWeight):
    """W_0 scaled by rows and columns: W[o, i] = W_0[o, i] row[o] column[i].

    Args:
        theta_0: W_0.
        row: Scale of each row of each matrix, one behind the other, 1 where nothing changes.
        column: Scale of each column of each matrix.
        axes: Where W_0 has its rows and columns.
    """

    layers = {  # noqa: RUF012
        F.linear: _linear,
        **{f: partial(_convolution, f) for f in (F.conv1d, F.conv2d, F.conv3d)},
        **{
            f: partial(_transposed_convolution, f) for f in (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
        },
        F.embedding: _embedding,
    }

    def __init__(self, theta_0: Tensor, row: Tensor, column: Tensor, axes: Axes) -> None:
        """See the class."""
        self.theta_0 = theta_0
        self.row = row
        self.column = column
        self.axes = axes

    def form(self) -> Tensor:
        """See `StructuredWeight.form`."""
        return _form(self.theta_0, self.row, self.column, self.axes)

    def square_sum(self) -> Tensor:
        """See `StructuredWeight.square_sum`; a matrix-vector product instead of a formed weight."""
        return self._weighted(self.theta_0 * self.theta_0, self.row * self.row, self.column * self.column)

    def absolute_sum(self) -> Tensor:
        """See `StructuredWeight.absolute_sum`."""
        return self._weighted(self.theta_0.abs(), self.row.abs(), self.column.abs())

    def _weighted(self, entries: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Sum of entries, of W_0's shape, each times the numbers of its row and column."""
        stack, rows, columns = self.axes.stack, self.axes.rows, self.axes.columns
        entries = as_type(entries, row.dtype)
        if entries.numel() > stack * rows * columns:
            entries = entries.reshape(stack * rows, columns, -1).sum(-1)
        with exact(entries):
            if stack == 1:
                return (entries.reshape(rows, columns) @ column) @ row
            return (entries.reshape(stack, rows, columns) @ column.reshape(stack, columns, 1)).flatten() @ row
