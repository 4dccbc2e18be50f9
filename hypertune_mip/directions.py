"""Which values of a metric are the better ones, in Optuna's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from hypertune_mip.errors import SpaceError

Direction = Literal["minimize", "maximize"]


def checked_direction(value: Any, *, where: str = "A direction") -> Direction:
    """The direction that a value is; raises SpaceError, naming `where` it was given, if it is none."""
    if value not in get_args(Direction):
        raise SpaceError(f'{where} must be "minimize" or "maximize", but got {value!r}.')
    return "maximize" if value == "maximize" else "minimize"


def checked_directions(directions: Mapping[str, Direction] | None) -> dict[str, Direction]:
    """Directions by metric, as they were stated; raises SpaceError if they are no mapping to such words."""
    if directions is not None and not isinstance(directions, Mapping):
        raise SpaceError(
            f'`directions` must give a direction by metric, for example {{"auc": "maximize"}}, but got {directions!r}.'
        )
    return {n: checked_direction(value, where=f"The direction of {n!r}") for n, value in (directions or {}).items()}


def sign(direction: Direction) -> float:
    """What a value is multiplied by so that small ones are the better ones.

    Example:
        >>> sign("minimize"), sign("maximize")
        (1.0, -1.0)
    """
    return -1.0 if direction == "maximize" else 1.0
