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
    return x * as_type((torch.rand_like(x) >= rate) / (1 - rate), x.dtype)


def channel_dropout(x: Tensor, rate: Rate, *, lead: int) -> Tensor:
    """`x` with whole channels zeroed, otherwise as `dropout`.

    Args:
        x: (N, C, ...) with `lead` 2, or (C, ...) with `lead` 1.
        rate: In [0, 1).
        lead: Number of axes whose elements are dropped one by one.
    """
    kept = torch.rand_like(_of_channels(x, lead)) >= rate
    return x * as_type(kept / (1 - rate), x.dtype).reshape(_shape(x, lead))


def alpha_dropout(x: Tensor, rate: Rate, *, lead: int | None = None) -> Tensor:
    """`x` with elements set to SELU's negative saturation, scaled and shifted so that mean and variance stay.

    Reference: Klambauer et al., 2017, arXiv 1706.02515.

    Args:
        x: Activations of SELU.
        rate: In [0, 1).
        lead: None drops elements; a number drops whole channels as in `channel_dropout`.
    """
    like = x if lead is None else _of_channels(x, lead)
    kept = as_type(torch.rand_like(like) >= rate, x.dtype)
    if lead is not None:
        kept = kept.reshape(_shape(x, lead))
    scale = ((_SATURATION**2 * rate + 1) * (1 - rate)) ** -0.5
    return as_type(x * kept * scale + ((kept - 1) + rate) * (_SATURATION * scale), x.dtype)


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

    The weights (..., L, S) are formed: no fused kernel takes a rate of each setting.
    """
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return dropout(scores.softmax(-1), rate) @ value


def _of_channels(x: Tensor, lead: int) -> Tensor:
    return x.reshape(*x.shape[:lead], -1)[..., 0]


def _shape(x: Tensor, lead: int) -> tuple[int, ...]:
    return (*x.shape[:lead], *(1,) * (x.ndim - lead))
