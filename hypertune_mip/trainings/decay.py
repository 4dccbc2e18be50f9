"""Weights that would decay twice: by the penalty of a task's loss, and by the optimiser of a recipe."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hypertune_mip.errors import HypertuneWarning
from hypertune_mip.tasks import ClassificationLoss, RegressionLoss


def warn_of_two_decays(
    loss: Any, config: Mapping[str, Any], groups: Callable[[], Sequence[Mapping[str, Any]]], *, stacklevel: int
) -> bool:
    """Warn where a task's loss penalises weights that an optimiser decays as well; whether that could be seen.

    Args:
        loss: Of the trainings; what a user's own does is not known.
        config: Of one of them.
        groups: Makes the parameter groups of its optimiser.
        stacklevel: Whose line the warning names: 2 for the one that calls this.
    """
    if not isinstance(loss, (ClassificationLoss, RegressionLoss)) or "weight_decay" not in config:
        return False
    values = [group.get("weight_decay") for group in groups()]
    decays = {float(value) for value in values if isinstance(value, (int, float)) and value}
    if decays:
        shown = ", ".join(f"{decay:g}" for decay in sorted(decays))
        warnings.warn(
            "Weights decay twice: by 'weight_decay', which the task's loss penalises, and by the recipe's"
            f" optimiser, by {shown} at the first config. Pass `weight_decay=0` to the optimiser, or train"
            " by a loss without the penalty (`surrogate.replace(loss=...)`).",
            HypertuneWarning,
            stacklevel=stacklevel,
        )
    return True
