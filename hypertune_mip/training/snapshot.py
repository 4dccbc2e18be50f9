"""The hypernetwork as it was early in training: a branch may start from there as well as from its end.

Branches from early weights order settings best, those from the end give the best networks; so both are kept.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hypertune_mip.errors import StorageError
from hypertune_mip.hypernetwork import HyperNetwork

_SHARE = 0.25  # of the epochs


class Snapshot:
    """A copy of the hypernetwork's state after a quarter of the epochs: `round(epochs / 4)`, at least 1.

    A run of one epoch has none, and no run has one before that epoch.

    Args:
        hypernet: Whose state.
        epochs: Of the whole run.
    """

    def __init__(self, hypernet: HyperNetwork, epochs: int) -> None:
        """See the class."""
        quarter = max(1, round(_SHARE * epochs))
        self._epoch = quarter if quarter < epochs else None
        self._hypernet = hypernet
        self.tensors: dict[str, Tensor] | None = None
        """What the hypernetwork's `load_state_dict` takes, on the CPU."""

    def take(self, epoch: int) -> None:
        """Copy the state as it is now, if this is the epoch to do so.

        Args:
            epoch: That has just been trained, counted from 1.
        """
        if epoch == self._epoch:
            state = self._hypernet.state_dict()
            self.tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}

    def state_dict(self) -> dict[str, Any]:
        """See `Part`."""
        return {"tensors": self.tensors}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """See `Part`.

        Raises:
            StorageError: If it is of another hypernetwork.
        """
        tensors = state["tensors"]
        if tensors is not None:
            expected = {name: tensor.shape for name, tensor in self._hypernet.state_dict().items()}
            if {name: getattr(tensor, "shape", None) for name, tensor in tensors.items()} != expected:
                raise StorageError("its tensors are not those of this hypernetwork")
        self.tensors = tensors
