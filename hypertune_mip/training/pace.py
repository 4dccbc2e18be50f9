"""How fast the heads learn beside theta_0.

Heads that scale whole rows and columns can empty the network within a few dozen steps, long before theta_0 has learned
anything that is worth keeping. So for the first part of training, while settings with a small loss lead (see
`weighting`), the learning rate of trunk and heads is a small share of that of theta_0; the share grows to 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

START = 0.03  # of theta_0's learning rate
LEAD = 0.15  # share of training in which settings with a small loss lead and the heads hold back


def lead(progress: float) -> float:
    """1 at the start of training, falling to 0 when the lead is over; `progress` is the share that is over."""
    return max(0.0, 1.0 - progress / LEAD)


class Pace:
    """Slows those parameters of an optimiser that are not theta_0.

    Groups are looked up in the optimiser each time, since its `load_state_dict` puts new ones in place of the old.

    Args:
        optimizer: Its groups are split in place, so schedules must be made afterwards. Groups without an `lr` are left
            as they are.
        theta_0: The parameters that keep their rate.
        active: False leaves everything as it is.
    """

    def __init__(self, optimizer: Optimizer, theta_0: nn.Module, *, active: bool = True) -> None:
        """See the class."""
        self._optimizer = optimizer
        self._kept = {id(parameter) for parameter in theta_0.parameters() if parameter.requires_grad}
        self._active = active and bool(self._kept)  # with theta_0 frozen there is nothing to wait for
        if self._active:
            optimizer.param_groups[:] = [part for group in optimizer.param_groups for part in self._split(group)]

    @contextmanager
    def at(self, progress: float) -> Iterator[None]:
        """The optimiser's rates inside the block are those for this share of training."""
        factor = START ** lead(progress)
        slowed = [group for group in self._optimizer.param_groups if self._is_slowed(group)]
        rates = [group["lr"] for group in slowed]
        for group in slowed:
            group["lr"] = group["lr"] * factor
        try:
            yield
        finally:
            for group, rate in zip(slowed, rates, strict=True):
                group["lr"] = rate

    def _split(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        parts = [[p for p in group["params"] if (id(p) in self._kept) is kept] for kept in (True, False)]
        return [{**group, "params": part} for part in parts if part]

    def _is_slowed(self, group: dict[str, Any]) -> bool:
        return self._active and "lr" in group and id(group["params"][0]) not in self._kept
