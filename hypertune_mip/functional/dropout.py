"""Dropout at a rate that is a tensor, of all the kinds that PyTorch has for a rate that is a number.

Each is written for one setting and is safe under `torch.func.vmap`; drawn numbers are compared with the rate, so that
settings with common random numbers drop nested sets.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hypertune_mip.functional.structured import as_type

Rate = Tensor | float
_SATURATION = 1.7580993408473766  # of SELU: scale times alpha, as in `torch.nn.functional.alpha_dropout`


def dropout(x: Tensor, rate: Rate) -> Tensor:
    """`x` with each element zeroed with probability `rate` and the rest scaled by 1 / (1 - rate), in the type of x."""
    return as_type(x * (_kept(x, rate) / (1 - rate)), x.dtype)


def channel_dropout(x: Tensor, rate: Rate, *, lead: int) -> Tensor:
    """`x` with whole channels zeroed, otherwise as `dropout`.

    Args:
        x: (N, C, ...) with `lead` 2, or (C, ...) with `lead` 1.
        rate: In [0, 1).
        lead: Number of leading axes that tell channels apart.
    """
    kept = _kept(_of_channels(x, lead), rate).reshape(_shape(x, lead))
    return as_type(x * (kept / (1 - rate)), x.dtype)


def alpha_dropout(x: Tensor, rate: Rate, *, lead: int | None = None) -> Tensor:
    """`x` with elements set to SELU's negative saturation, scaled and shifted so that mean and variance stay.

    Reference: Klambauer et al., 2017, arXiv 1706.02515.

    Args:
        x: Activations of SELU.
        rate: In [0, 1).
        lead: None drops elements; a number drops whole channels as in `channel_dropout`.
    """
    kept = _kept(x, rate) if lead is None else _kept(_of_channels(x, lead), rate).reshape(_shape(x, lead))
    share = kept.to(_exact(x.dtype))
    scale = ((_SATURATION**2 * rate + 1) * (1 - rate)) ** -0.5
    return as_type(x * share * scale + ((share - 1) + rate) * (_SATURATION * scale), x.dtype)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    rate: Rate = 0.0,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` with dropout of the attention weights at `rate`.

    The weights (..., L, S) are formed: no fused kernel takes a rate of each setting. A query that may attend to nothing
    gets zeros.

    Raises:
        RuntimeError: If there is a mask and `is_causal` as well.
    """
    if is_causal and mask is not None:
        raise RuntimeError("Attention takes a mask or is_causal, but got both.")
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
    scores = (query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if mask is None:
        return dropout(scores.softmax(-1), rate) @ value
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    attends = (scores != -math.inf).any(-1, keepdim=True)
    weights = scores.where(attends, 0.0).softmax(-1) * attends  # softmax of nothing but -inf has no gradient
    return dropout(weights, rate) @ value


def _kept(x: Tensor, rate: Rate) -> Tensor:
    """Which elements stay; a rate of .01 is none that numbers of half a type's length could tell."""
    return torch.rand_like(x, dtype=_exact(x.dtype)) >= rate


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _of_channels(x: Tensor, lead: int) -> Tensor:
    return x.reshape(*x.shape[:lead], -1)[..., 0]


def _shape(x: Tensor, lead: int) -> tuple[int, ...]:
    return (*x.shape[:lead], *(1,) * (x.ndim - lead))
