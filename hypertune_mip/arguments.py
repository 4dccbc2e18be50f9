"""Numbers as users pass them, from Python, NumPy or PyTorch: understood as Python's own, or refused by name."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hypertune_mip.errors import HypertuneError

SEEDS = range(-(2**63), 2**63)
"""What is taken for a seed: PyTorch's generators take no more, once a small number is added to it."""


def plain(value: Any) -> Any:
    """A single number of NumPy or PyTorch as one of Python's; anything else as it is."""
    if isinstance(value, np.generic) or (isinstance(value, (np.ndarray, Tensor)) and np.prod(value.shape) == 1):
        value = value.item()
    return float(value) if isinstance(value, np.floating) else value  # a long double is its own item


def precision(value: Any) -> float:
    """The relative rounding error that a number of NumPy or PyTorch may have; 0 for Python's and for whole numbers."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return torch.finfo(value.dtype).eps
    if isinstance(value, (np.ndarray, np.floating)) and value.dtype in (np.float16, np.float32):
        return float(np.finfo(value.dtype).eps)
    return 0.0


def whole_number(
    name: str, value: Any, *, low: int | None = None, high: int | None = None, error: type[HypertuneError]
) -> int:
    """A whole number of any type as an int.

    Args:
        name: Of the argument, for the message.
        value: As it was passed.
        low: The least that is allowed.
        high: The largest that is allowed.
        error: What is raised if it is none, or outside of that; truth values are no numbers.
    """
    number: int | None = None
    if not isinstance(plain(value), bool):
        try:
            number = operator.index(value)
        except TypeError:
            number = None
    if number is None or (low is not None and number < low) or (high is not None and number > high):
        wanted = "" if low is None else f" of at least {low}" if high is None else f" between {low} and {high}"
        raise error(f"`{name}` must be a whole number{wanted}, but got {value!r}.")
    return number


def seed_number(value: Any, *, name: str = "seed", error: type[HypertuneError]) -> int:
    """A seed of any whole type as an int; see `whole_number`."""
    return whole_number(name, value, low=SEEDS.start, high=SEEDS.stop - 1, error=error)


def real_number(name: str, value: Any, *, error: type[HypertuneError]) -> float:
    """A number of any type as a float; `error` is raised for anything else, truth values included."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, Real):
        raise error(f"`{name}` must be a number, but got {value!r}.")
    return float(number)


def positive_number(name: str, value: Any, *, error: type[HypertuneError]) -> float:
    """A finite number above 0 of any type as a float; raises `error` otherwise."""
    number = real_number(name, value, error=error)
    if not 0.0 < number < math.inf:
        raise error(f"`{name}` must be a positive number, but got {value!r}.")
    return number
