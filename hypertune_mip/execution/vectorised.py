"""All settings at once, by `torch.func.vmap`, with the few functions that vmap alone would run badly or wrongly.

Attention: under vmap torch's backends for `scaled_dot_product_attention` have no rule (CPU), raise in their backward
pass (memory-efficient) or give wrong gradients (cuDNN). Here settings are folded into the batch axis and the function
runs once, outside of vmap, on whatever backend torch picks, with its memory. Linear maps: torch would copy a weight of
each setting for all leading axes of the input; here those axes are one.

All of it is a mode of this thread: no switch of the process is touched.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor
from torch.func import vmap
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from hypertune_mip.errors import NetworkError
from hypertune_mip.functional import StructuredWeight, dropout

_UNINITIALISED = frozenset({torch.empty, torch.empty_like, Tensor.new_empty})  # that noise is then written into
_LEFT_ALIGNED = getattr(torch, "_nested_tensor_from_mask_left_aligned", None)  # asked by `nn.TransformerEncoder`
_ATTENTION = F.scaled_dot_product_attention
_REQUIRES_GRAD = Tensor.requires_grad.__get__  # type: ignore[attr-defined]


class _Kind(NamedTuple):
    """A kind of dropout that PyTorch has.

    Args:
        run: It at a rate that is a tensor.
        channels: Whether it drops whole channels.
        unbatched: Axes of an input without a batch axis.
        on: Whether it drops anything unless `training` says so.
    """

    run: Callable[..., Tensor]
    channels: bool = False
    unbatched: int | None = None
    on: bool = True


_OF_RATES: dict[Callable[..., Any], _Kind] = {
    F.dropout: _Kind(dropout.dropout),
    F.dropout1d: _Kind(dropout.channel_dropout, channels=True, unbatched=2),
    F.dropout2d: _Kind(dropout.channel_dropout, channels=True),  # which takes (C, H, W) for (N, C, L)
    F.dropout3d: _Kind(dropout.channel_dropout, channels=True, unbatched=4),
    F.alpha_dropout: _Kind(dropout.alpha_dropout, on=False),
    F.feature_alpha_dropout: _Kind(dropout.alpha_dropout, channels=True, on=False),
}


def run(function: Callable[..., Any], own: Any, data: Any, *, split: bool) -> Any:
    """`function(own, data)` at all settings: its result with the axis S in front.

    Args:
        function: Of one setting.
        own: A tree of tensors with the axis S in front.
        data: A tree of tensors, with the axis S in front if `split`, else for all settings.
        split: See `data`.

    Raises:
        RecomputesError: If activations are checkpointed while gradients are on: the backward pass would recompute them
            from other weights.
        RuntimeError: If vmap cannot serve an operation, or the function fails by itself; nothing tells them apart.
    """

    def one(own: Any, data: Any) -> Any:
        with _Mapped(tree_leaves(own)[0]):
            return function(own, data)

    return vmap(one, in_dims=(0, 0 if split else None), randomness="different")(own, data)


class RecomputesError(NetworkError):
    """A network checkpoints its activations, which cannot be mapped."""


class _Mapped(TorchFunctionMode):
    """Sends functions to versions that map well; the rest runs as it is.

    Args:
        own: Any tensor that each setting has of its own.
    """

    def __init__(self, own: Tensor) -> None:
        super().__init__()
        self._own = own

    def _of_each_setting(self, tensor: Tensor) -> Tensor:
        """An uninitialised tensor that may be filled with other random numbers at each setting."""
        if not tensor.is_floating_point() or is_batchedtensor(tensor):
            return tensor
        return torch.zeros_like(tensor) + (self._own.detach().flatten()[:1].sum() * 0).to(tensor.dtype)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if _recomputes():
            raise RecomputesError(
                "A block of the network runs under torch.utils.checkpoint, whose backward pass cannot be mapped over"
                ' settings. Use HyperNetwork(..., mapping="loop"), or drop the checkpoint.'
            )
        if func is _ATTENTION:
            return _attention(*args, **options)
        if func is F.linear:
            return _linear(*args, **options)
        if func is _LEFT_ALIGNED:
            return False  # so that padding is masked: nested tensors have no map
        if func is F.group_norm:
            return func(args[0].contiguous(), *args[1:], **options)
        if func in _UNINITIALISED and "out" not in options:
            return self._of_each_setting(func(*args, **options))
        if func is Tensor.bernoulli_:
            return _bernoulli(*args, **options)
        if func in _OF_RATES and (result := _with_rate(func, *args, **options)) is not None:
            return result
        if func == _REQUIRES_GRAD:
            return _requires_grad(args[0])
        if func is F.multi_head_attention_forward:
            with self:
                return _without_asking(func)(*args, **options)
        return func(*args, **options)


def placed(tensor: Tensor) -> Tensor:
    """A tensor that stands for a parameter, so that it is taken for a trainable one."""
    tensor._is_param = True  # isinstance(tensor, nn.Parameter), by torch's own convention
    return tensor


def _requires_grad(tensor: Tensor) -> bool:
    """Whether a tensor requires gradients; PyTorch itself says of every tensor under vmap that it does not."""
    if getattr(tensor, "_is_param", False):
        return True
    while is_batchedtensor(tensor):
        tensor = get_unwrapped(tensor)
    return tensor.requires_grad


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if isinstance(weight, StructuredWeight) or input.ndim <= 2 or not is_batchedtensor(weight):
        return F.linear(input, weight, bias)
    result: Tensor = F.linear(input.flatten(0, -2), weight, bias).unflatten(0, input.shape[:-1])
    return result


def _bernoulli(tensor: Tensor, p: Tensor | float = 0.5, *, generator: Any = None) -> Tensor:
    """`Tensor.bernoulli_`, of which vmap has no version for a probability of each setting."""
    if generator is not None or not is_batchedtensor(tensor):
        return Tensor.bernoulli_(tensor, p, generator=generator)
    return tensor.copy_(torch.rand_like(tensor) < p)


def _with_rate(
    function: Callable[..., Any], input: Tensor, p: Any = 0.5, training: bool | None = None, inplace: bool = False
) -> Tensor | None:
    """A kind of dropout at a rate of each setting; None where the rate is a number."""
    if not isinstance(p, Tensor):
        return None
    kind = _OF_RATES[function]
    if not (kind.on if training is None else training):
        return input
    options = {"lead": 1 if input.ndim == kind.unbatched else 2} if kind.channels else {}
    dropped = kind.run(input, p, **options)
    return input.copy_(dropped) if inplace and _requires_grad(input) else dropped


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **options: Any
) -> Tensor:
    if isinstance(rate := rest[0] if rest else options.get("dropout_p"), Tensor):
        options.pop("dropout_p", None)
        if len(rest) > 1:
            options["is_causal"] = rest[1]
        return dropout.attention(query, key, value, attn_mask, rate, **options)
    inputs = [query, key, value] if attn_mask is None else [query, key, value, attn_mask]
    if not any(map(is_batchedtensor, inputs)):
        alone: Tensor = _ATTENTION(query, key, value, attn_mask, *rest, **options)
        return alone
    device = query.device.type
    if torch.is_autocast_enabled(device):  # as autocast itself would, which does not see what is folded
        dtype = torch.get_autocast_dtype(device)
        query, key, value = (t.to(dtype) for t in (query, key, value))
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(dtype)
    result: Tensor = _Folded.apply((rest, options), query, key, value, attn_mask)  # type: ignore[no-untyped-call]
    return result


class _Folded(torch.autograd.Function):
    """Attention whose mapped axis becomes part of the batch axis; only its rule for vmap is ever used."""

    @staticmethod
    def forward(call: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        raise AssertionError("attention runs outside of the map")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        raise AssertionError("attention runs outside of the map")

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        call: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
    ) -> tuple[Tensor, int]:
        rest, options = call
        size, dims = info.batch_size, in_dims[1:]
        axes = max(t.ndim - (d is not None) for t, d in zip((query, key, value), dims, strict=False))
        query, key, value = (_fold(t, d, size, axes) for t, d in zip((query, key, value), dims, strict=False))
        if mask is not None:
            own = mask.ndim - (dims[3] is not None)
            if dims[3] is not None or (own == axes and axes > 2 and mask.shape[0] > 1):
                mask = _fold(mask, dims[3], size, axes, batch=len(query) // size)
        result = _ATTENTION(query, key, value, mask, *rest, **options)
        return (result.unflatten(0, (size, -1)) if axes > 2 else result), 0


def _fold(tensor: Tensor, dim: int | None, size: int, axes: int, batch: int | None = None) -> Tensor:
    """A tensor of `axes` axes for each of `size` settings, the settings in the first of the axes (or before two).

    A mask may lack the batch axis, or have 1 there, and gets it.
    """
    lead = tensor.movedim(dim, 0) if dim is not None else tensor.expand(size, *tensor.shape)
    while lead.ndim <= axes:
        lead = lead.unsqueeze(1)
    if axes > 2 and batch is not None:
        lead = lead.expand(size, batch, *lead.shape[2:])
    return lead.flatten(0, 1) if axes > 2 else lead


def _recomputes() -> bool:
    """Whether the block that runs is one of `torch.utils.checkpoint`, with gradients on."""
    hooks = _top_hooks(True) if torch.is_grad_enabled() else None
    return hooks is not None and "_checkpoint_hook" in getattr(hooks[0], "__qualname__", "")


_top_hooks: Callable[[bool], Any] = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", lambda ignore_is_tracing: None
)


def _without_asking(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of torch that does not look for overrides of itself, so that those of what it calls count."""
    asked = {name: _no for name in function.__globals__ if name.startswith("has_torch_function")}
    return types.FunctionType(function.__code__, function.__globals__ | asked, None, function.__defaults__)


def _no(*arguments: Any) -> bool:
    return False
