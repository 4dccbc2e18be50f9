"""How much each hyperparameter moves each metric: finds those that are ignored, and a collapsed hypernetwork."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from hypertune_mip.errors import HypertuneWarning
from hypertune_mip.evaluation import Measure

_GRID = 3  # both ends and the middle
NEGLIGIBLE = 1e-3
"""Share of a metric's size below which the response to one hyperparameter counts as none."""
COLLAPSED = 5e-3
"""Share below which responses to all hyperparameters count as none; a collapsed network still flickers a little."""


def responses(measure: Measure, *, bases: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """Mean range of each metric as one hyperparameter goes through its range, by hyperparameter and metric.

    Hyperparameters with one value only are left out. The others stay at each of `bases` settings in turn; the range is
    divided by the metric's mean size, so 0.1 means that the hyperparameter alone moves the metric by a tenth.
    """
    space = measure.space
    fixed = space.sample(bases, seed=seed)
    grid = torch.linspace(0, 1, _GRID, dtype=fixed.dtype)
    table: dict[str, dict[str, float]] = {}
    for column, (name, distribution) in enumerate(space.items()):
        if distribution.single():
            continue
        units = fixed.repeat_interleave(_GRID, dim=0)
        units[:, column] = grid.repeat(bases)
        values = measure(space.snap(units))
        table[name] = {metric: _relative_range(value) for metric, value in values.items()}
    return table


def warn_of_no_response(table: dict[str, dict[str, float]], ignored: frozenset[str], *, stacklevel: int = 2) -> None:
    """Warn of each hyperparameter that no metric responds to, or once if that holds for all of them.

    Args:
        table: From `responses`.
        ignored: Hyperparameters that have been warned of already.
        stacklevel: Whose line the warnings name: 2 for the one that calls this.
    """
    strongest = {name: max(row.values()) for name, row in table.items()}
    if strongest and max(strongest.values()) < COLLAPSED:
        warnings.warn(
            "The hypernetwork has collapsed: no metric responds to any hyperparameter, none by more than"
            f" {COLLAPSED:.1%}. Its answers mean nothing. Lower the largest penalties in the space, train longer, or"
            " give `optimizer` a lower learning rate.",
            HypertuneWarning,
            stacklevel=stacklevel,
        )
    flat = [name for name, response in strongest.items() if response < NEGLIGIBLE]
    for name in flat:
        if name not in ignored:
            warnings.warn(
                f"no metric responds to '{name}': over its whole range none changes by more than {NEGLIGIBLE:.1%}."
                " Either it does not matter here, or training was too short to learn it.",
                HypertuneWarning,
                stacklevel=stacklevel,
            )


def _relative_range(value: Tensor) -> float:
    rows = value.reshape(-1, _GRID)
    size = value.abs().mean()
    spread = (rows.amax(1) - rows.amin(1)).mean()
    return float(spread / size) if size > 0 else 0.0
