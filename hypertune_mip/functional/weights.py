"""Weights that depend on a setting and are never formed where a layer can do without.

A structured weight stands for W(u) in place of a plain tensor inside the primary network. A linear map, convolution or
embedding that meets one uses its factors; any other operation gets the formed tensor, so every module is served and
both ways agree to float tolerance. The mathematics is that of ONE setting; `torch.func.vmap` adds the axis S, and the
shared W_0 then enters one matrix product for all settings.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

_METADATA = frozenset(
    [
        *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "requires_grad", "layout")),
        *(getattr(Tensor, name).__get__ for name in ("is_cuda", "is_nested", "is_sparse", "is_quantized")),
        *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.is_complex),
    ]
)  # fmt: skip
_CONVOLUTIONS = frozenset([F.conv1d, F.conv2d, F.conv3d])


class StructuredWeight(Tensor):
    """A weight of one setting, held as factors around the shared theta_0."""

    theta_0: Tensor

    @staticmethod
    def __new__(cls, theta_0: Tensor, *factors: Any, **options: Any) -> Self:
        """An empty shell with theta_0's shape, dtype and device."""
        shell: Self = Tensor._make_wrapper_subclass(cls, theta_0.shape, dtype=theta_0.dtype, device=theta_0.device)
        return shell

    @abstractmethod
    def form(self) -> Tensor:
        """The weight as a plain tensor of theta_0's shape."""

    @abstractmethod
    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`F.linear(x, self.form(), bias)` without forming the weight."""

    @abstractmethod
    def convolve(
        self, function: Callable[..., Tensor], x: Tensor, bias: Tensor | None, *rest: Any, **options: Any
    ) -> Tensor:
        """`function(x, self.form(), bias, *rest, **options)` for conv1d, conv2d or conv3d."""

    @abstractmethod
    def embed(self, index: Tensor, **options: Any) -> Tensor:
        """`F.embedding(index, self.form(), **options)` without forming the weight."""

    def square_sum(self) -> Tensor:
        """Sum of squares of the formed weight, 0-d."""
        return self.form().square().sum()

    def absolute_sum(self) -> Tensor:
        """Sum of absolute values of the formed weight, 0-d."""
        return self.form().abs().sum()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Kind and shape: the values of a weight under vmap cannot be shown."""
        return f"{type(self).__name__}(shape={tuple(self.theta_0.shape)})"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Send a layer's call to the factored form, and every other call to the formed tensor."""
        options = dict(kwargs or {})
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **options)
        weight = args[1] if len(args) > 1 else options.get("weight")
        if isinstance(weight, StructuredWeight) and args and not isinstance(args[0], StructuredWeight):
            result = weight._factored(func, args, options)
            if result is not None:
                return result
        plain_args, plain_options = tree_map_only(StructuredWeight, lambda w: w.form(), (args, options))
        return func(*plain_args, **plain_options)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls that come from below Python get the formed tensor as well."""
        plain_args, plain_options = tree_map_only(StructuredWeight, lambda w: w.form(), (args, dict(kwargs or {})))
        return func(*plain_args, **plain_options)

    def _factored(self, func: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Tensor | None:
        """The result of a layer's call by factors, or None where the layer needs the formed weight."""
        if func is F.embedding and options.get("max_norm") is None and len(args) == 2:
            return self.embed(args[0], padding_idx=options.get("padding_idx"))
        rest = {name: value for name, value in options.items() if name not in ("weight", "bias")}
        bias = args[2] if len(args) > 2 else options.get("bias")
        if func is F.linear and len(self.theta_0.shape) == 2:
            return self.linear(args[0], bias)
        if func in _CONVOLUTIONS:
            groups = args[6] if len(args) > 6 else options.get("groups", 1)
            if self._serves_convolution(groups):
                return self.convolve(func, args[0], bias, *args[3:], **rest)
        return None

    def _serves_convolution(self, groups: int) -> bool:
        return False


class RankOneWeight(StructuredWeight):
    """W_0 scaled by rows and columns: W[o, i] = W_0[o, i] row[o] column[i].

    Args:
        theta_0: W_0, shape (rows, columns / groups, *kernel); with `kernel` False all dimensions after the first are
            columns.
        row: Scale of each row, (rows,), 1 where nothing changes.
        column: Scale of each column, (columns,).
        groups: Of a grouped convolution, else 1.
        kernel: Whether dimensions after the second belong to a kernel that is not scaled.
    """

    def __init__(self, theta_0: Tensor, row: Tensor, column: Tensor, *, groups: int = 1, kernel: bool = False) -> None:
        """See the class."""
        self.theta_0 = theta_0
        self.row = row
        self.column = column
        self.group_count = groups
        self.kernel = kernel

    def _blocks(self) -> tuple[Tensor, Tensor, Tensor]:
        """W_0 as (groups, rows / groups, columns / groups, kernel), with row and column to match."""
        shape, groups = self.theta_0.shape, self.group_count
        columns = shape[1] if self.kernel else self.theta_0[0].numel()
        blocks = self.theta_0.reshape(groups, shape[0] // groups, columns, -1)
        return blocks, self.row.reshape(groups, -1), self.column.reshape(groups, -1)

    def form(self) -> Tensor:
        """See `StructuredWeight.form`."""
        blocks, row, column = self._blocks()
        scaled = blocks * row[:, :, None, None] * column[:, None, :, None]
        return scaled.reshape(self.theta_0.shape)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """See `StructuredWeight.linear`."""
        y = F.linear(x * self.column, self.theta_0)
        return y * self.row if bias is None else torch.addcmul(bias, y, self.row)

    def _serves_convolution(self, groups: int) -> bool:
        return self.kernel and groups == self.group_count

    def convolve(
        self, function: Callable[..., Tensor], x: Tensor, bias: Tensor | None, *rest: Any, **options: Any
    ) -> Tensor:
        """See `StructuredWeight.convolve`; zero padding and stride commute with the scales."""
        spatial = (1,) * (len(self.theta_0.shape) - 2)
        y = function(x * self.column.reshape(-1, *spatial), self.theta_0, None, *rest, **options)
        y = y * self.row.reshape(-1, *spatial)
        return y if bias is None else y + bias.reshape(-1, *spatial)

    def embed(self, index: Tensor, **options: Any) -> Tensor:
        """See `StructuredWeight.embed`."""
        rows = F.embedding(index, self.theta_0, **options)
        return rows * self.column * F.embedding(index, self.row[:, None], **options)

    def square_sum(self) -> Tensor:
        """See `StructuredWeight.square_sum`; a matrix-vector product instead of a formed weight."""
        return self._weighted(self.theta_0 * self.theta_0, self.row * self.row, self.column * self.column)

    def absolute_sum(self) -> Tensor:
        """See `StructuredWeight.absolute_sum`."""
        return self._weighted(self.theta_0.abs(), self.row.abs(), self.column.abs())

    def _weighted(self, entries: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Sum of entries, of W_0's shape, each times the numbers of its row and column."""
        matrix = entries.flatten(2).sum(-1) if self.kernel else entries.flatten(1)
        if self.group_count == 1:
            return (matrix @ column) @ row
        blocks = matrix.reshape(self.group_count, -1, matrix.shape[1])
        return (blocks @ column.reshape(self.group_count, -1, 1)).flatten() @ row


class LowRankWeight(StructuredWeight):
    """W_0 + left diag(scale) right, with left and right shared by all settings.

    Args:
        theta_0: W_0, shape (rows, ...).
        left: (rows, rank).
        scale: (rank,), of this setting.
        right: (rank, ...), the shape of W_0 after its first dimension.
        kernel: Whether W_0 belongs to a convolution without groups.
    """

    def __init__(self, theta_0: Tensor, left: Tensor, scale: Tensor, right: Tensor, *, kernel: bool = False) -> None:
        """See the class."""
        self.theta_0 = theta_0
        self.left = left
        self.scale = scale
        self.right = right
        self.kernel = kernel

    def form(self) -> Tensor:
        """See `StructuredWeight.form`."""
        change = (self.left * self.scale) @ self.right.flatten(1)
        return self.theta_0 + change.reshape(self.theta_0.shape)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """See `StructuredWeight.linear`."""
        y = F.linear(x, self.theta_0) + F.linear(F.linear(x, self.right) * self.scale, self.left)
        return y if bias is None else y + bias

    def _serves_convolution(self, groups: int) -> bool:
        return self.kernel and groups == 1

    def convolve(
        self, function: Callable[..., Tensor], x: Tensor, bias: Tensor | None, *rest: Any, **options: Any
    ) -> Tensor:
        """See `StructuredWeight.convolve`: a convolution to `rank` channels, then one of kernel size 1."""
        spatial = (1,) * (len(self.theta_0.shape) - 2)
        inner = function(x, self.right, None, *rest, **options) * self.scale.reshape(-1, *spatial)
        y = function(x, self.theta_0, None, *rest, **options)
        y = y + function(inner, self.left.reshape(*self.left.shape, *spatial))
        return y if bias is None else y + bias.reshape(-1, *spatial)

    def embed(self, index: Tensor, **options: Any) -> Tensor:
        """See `StructuredWeight.embed`."""
        rows = F.embedding(index, self.theta_0, **options)
        return rows + (F.embedding(index, self.left, **options) * self.scale) @ self.right

    def square_sum(self) -> Tensor:
        """See `StructuredWeight.square_sum`: |W_0|^2 + 2 <W_0, L diag(s) R> + s (L'L * RR') s."""
        right = self.right.flatten(1)
        cross = ((self.left.T @ self.theta_0.flatten(1)) * right).sum(-1)
        gram = (self.left.T @ self.left) * (right @ right.T)
        return self.theta_0.square().sum() + 2 * cross @ self.scale + (gram @ self.scale) @ self.scale


def plain(tensor: Tensor) -> Tensor:
    """The tensor itself, or the formed one where it is structured."""
    return tensor.form() if isinstance(tensor, StructuredWeight) else tensor
