"""Weights that depend on a setting and are never formed where a layer can do without.

A structured weight stands for W(u) in place of a plain tensor inside the primary network. A layer in its table uses its
factors; any other operation gets the formed tensor, so every module is served and both ways agree to float tolerance.
The mathematics is that of ONE setting; `torch.func.vmap` adds the axis S, and the shared W_0 then enters one matrix
product for all settings.

Under autocast a weight's numbers keep their own type, so that settings which differ by less than the lower type can
tell stay apart; what a factored layer returns has the type that the plain layer would return.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

_METADATA = frozenset(
    [
        *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "requires_grad", "layout")),
        *(getattr(Tensor, name).__get__ for name in ("is_cuda", "is_nested", "is_sparse", "is_quantized")),
        *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.is_complex),
    ]
)  # fmt: skip
_LOWERED = frozenset([torch.float32, torch.bfloat16, torch.float16])  # what autocast changes: never float64

Layer = Callable[..., Tensor | None]
"""Takes the arguments of a torch function whose second one, `weight`, is structured, and gives that function's result
by the factors; or None for arguments with which it needs the formed weight."""


class StructuredWeight(Tensor):
    """A weight of one setting, held as factors around the shared theta_0.

    Attributes:
        layers: The layer table of a subclass: torch functions that it serves by its factors, and how.
        theta_0: The primary network's own weight, whose shape, type and device are those of this one.
    """

    layers: ClassVar[Mapping[Callable[..., Any], Layer]] = {}
    theta_0: Tensor
    requires_grad = True  # it stands for a parameter that is trained,
    _is_param = True  # and isinstance(weight, nn.Parameter), by torch's own convention

    @staticmethod
    def __new__(cls, theta_0: Tensor, *factors: Any, **options: Any) -> Self:
        """An empty shell with theta_0's shape, dtype and device."""
        shell: Self = Tensor._make_wrapper_subclass(cls, theta_0.shape, dtype=theta_0.dtype, device=theta_0.device)
        return shell

    @abstractmethod
    def form(self) -> Tensor:
        """The weight as a plain tensor of theta_0's shape and type."""

    def formed(self) -> Tensor:
        """What a run with formed weights places: the plain tensor, but for what layers could not tell of that."""
        return self.form()

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
        if isinstance(weight, StructuredWeight) and func in weight.layers:
            result = weight.layers[func](*args, **options)
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


def plain(tensor: Tensor) -> Tensor:
    """The tensor itself, or the formed one where it is structured."""
    return tensor.form() if isinstance(tensor, StructuredWeight) else tensor


def formed(tensor: Tensor) -> Tensor:
    """The tensor itself, or what `StructuredWeight.formed` gives: for networks that run with formed weights."""
    return tensor.formed() if isinstance(tensor, StructuredWeight) else tensor


def square_sum(tensor: Tensor) -> Tensor:
    """Sum of squares of a plain or structured tensor, 0-d."""
    return tensor.square_sum() if isinstance(tensor, StructuredWeight) else tensor.square().sum()


def absolute_sum(tensor: Tensor) -> Tensor:
    """Sum of absolute values of a plain or structured tensor, 0-d."""
    return tensor.absolute_sum() if isinstance(tensor, StructuredWeight) else tensor.abs().sum()


def scaled(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x * scale + bias` in the type of x, rounded to it at the end only: 1.003 would be 1.004 in bfloat16."""
    y = x * scale if bias is None else torch.addcmul(bias, x, scale)
    return as_type(y, x.dtype)


def as_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in a type; `Tensor.to` by itself costs as much as a small operation where there is nothing to do."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def lowered(tensor: Tensor) -> Tensor:
    """The tensor as autocast hands it to a linear map or a convolution; itself where autocast is off.

    Why not leave it to torch: under vmap it lowers some of these layers only, and never a bias.
    """
    device = tensor.device.type
    if tensor.dtype in _LOWERED and torch.is_autocast_enabled(device):
        return tensor.to(torch.get_autocast_dtype(device))
    return tensor


def exact(tensor: Tensor) -> AbstractContextManager[Any]:
    """Inside it, matrix products of weights with weights are not rounded by an autocast around it."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
