"""Inputs and targets of a batch, where it is of a usual form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypertune_mip.errors import DataError

INPUTS = "x"
TARGETS = ("y", "target", "targets", "label", "labels")
"""Keys of a mapping that targets may have; one of them."""


def targets_of(batch: Any) -> Any:
    """The targets of a batch: the second element of a pair (x, y), or what a mapping holds by a key of `TARGETS`.

    Raises:
        DataError: If the batch is neither a pair nor a mapping with one such key.

    Example:
        >>> targets_of(("inputs", "targets")), targets_of({"ids": 1, "mask": 2, "labels": 3})
        ('targets', 3)
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[1]
    found = [key for key in TARGETS if key in batch] if isinstance(batch, Mapping) else []
    if len(found) != 1:
        raise DataError(
            f"Targets must be the second element of a batch (x, y), or in a dict under one of {list(TARGETS)}, but got"
            f" {_shown(batch)}."
        )
    return batch[found[0]]


def pair_of(batch: Any) -> tuple[Any, Any]:
    """Inputs and targets of a batch (x, y), or of a mapping that holds nothing but "x" and one key of `TARGETS`.

    Raises:
        DataError: If the batch is neither.

    Example:
        >>> pair_of({"x": 1, "y": 2})
        (1, 2)
    """
    if isinstance(batch, Mapping) and (len(batch) != 2 or INPUTS not in batch):
        raise DataError(
            f'A batch that is a dict must hold "{INPUTS}" and its targets under one of {list(TARGETS)}, and nothing'
            f" else, but got {_shown(batch)}."
        )
    targets = targets_of(batch)
    return (batch[INPUTS] if isinstance(batch, Mapping) else batch[0]), targets


def _shown(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a {type(batch).__name__} with {list(batch)}"
    return f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
