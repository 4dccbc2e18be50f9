"""Which axes of a parameter are the rows and columns of matrices, for heads that treat weights as matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

_STACKED = 24  # weights for each row and column of a matrix from which on matrices of a stack are scaled by themselves


@dataclass(frozen=True)
class Axes:
    """A parameter as a stack of matrices, each of whose elements may be a kernel.

    Args:
        shape: That of the parameter, or one that it is reshaped to: (*stack, rows, ..., columns, *kernel), with axes of
            size 1 between rows and columns.
        row_axis: Where the rows are.
        column_axis: Where the columns are, behind the rows.
    """

    shape: tuple[int, ...]
    row_axis: int
    column_axis: int

    @property
    def stack(self) -> int:
        """Number of matrices."""
        return math.prod(self.shape[: self.row_axis])

    @property
    def rows(self) -> int:
        """Rows of each matrix."""
        return self.shape[self.row_axis]

    @property
    def columns(self) -> int:
        """Columns of each matrix."""
        return self.shape[self.column_axis]

    @cached_property
    def row_shape(self) -> tuple[int, ...]:
        """One number for each row of each matrix, as it broadcasts against `shape`."""
        return self.shape[: self.row_axis + 1] + (1,) * (len(self.shape) - self.row_axis - 1)

    @cached_property
    def column_shape(self) -> tuple[int, ...]:
        """One number for each column of each matrix, as it broadcasts against `shape`."""
        own = {*range(self.row_axis), self.column_axis}
        return tuple(size if axis in own else 1 for axis, size in enumerate(self.shape))


def channels(shape: Sequence[int], groups: int = 1) -> Axes:
    """How linear maps, embeddings and convolutions hold a weight: rows, columns, kernel; one matrix for each group.

    A transposed convolution has its input channels in front, so its rows are what a convolution's columns are.
    """
    if groups == 1:
        return Axes(tuple(shape), 0, 1)
    return Axes((groups, shape[0] // groups, *shape[1:]), 1, 2)


def axes_of(parameter: Tensor, module: nn.Module, *, by_group: bool = True) -> Axes | None:
    """Rows and columns of a parameter that `module` owns, or None for a vector.

    The weights of linear maps, embeddings and convolutions are known by their module. Any other parameter is read by
    its shape, in which axes of size 1 do not count: two axes are rows and columns. Of more, the last two are, and those
    in front a stack, where rows * columns >= 24 (rows + columns) holds for them: with the 64 features of the default
    trunk the hypernetwork then has less than three numbers for each weight. Otherwise (a kernel, as in (16, 3, 3, 3))
    the first two are rows and columns.

    Args:
        parameter: The primary network's.
        module: Its owner.
        by_group: Whether the groups of a convolution are matrices of their own.
    """
    shape = tuple(parameter.shape)
    if parameter is module._parameters.get("weight"):
        if isinstance(module, _ConvNd):
            return channels(shape, module.groups if by_group else 1)
        if isinstance(module, (nn.Linear, nn.Embedding, nn.EmbeddingBag)):
            return channels(shape)
    long = [axis for axis, size in enumerate(shape) if size != 1]
    if len(long) < 2:
        return None
    last = Axes(shape, long[-2], long[-1])
    stacked = last.rows * last.columns >= _STACKED * (last.rows + last.columns)
    return last if stacked else Axes(shape, long[0], long[1])
