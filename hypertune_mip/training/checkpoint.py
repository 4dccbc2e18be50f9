"""Checkpoints of a training run: written atomically after an epoch, read back to go on bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypertune_mip import storage
from hypertune_mip.errors import StorageError
from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.storage import check_storable, load_tree, save_tree
from hypertune_mip.training.fingerprint import differences
from hypertune_mip.training.run_state import RunState, Trained

_NAME = "checkpoint"
_KIND = "training checkpoint"
Fingerprint = dict[str, Any]


def check_can_be_saved(state: RunState) -> None:
    """Raise StorageError, by name, if a part of a run holds what no checkpoint can: a function, or any other object."""
    for name, part in state.parts.items():
        if name != "hypernet":  # tensors only, and many
            check_storable(part.state_dict(), f"{_NAME}/{name}")


def check_place(folder: str | Path) -> None:
    """Raise StorageError if a checkpoint there would replace a file that is none of ours."""
    storage.check_place(folder, _NAME, kind=_KIND)


def save_checkpoint(folder: str | Path, state: RunState, fingerprint: Fingerprint) -> None:
    """Write the state of a run.

    Args:
        folder: Where to; the checkpoint before is replaced.
        state: Of the run.
        fingerprint: What the run is.

    Raises:
        StorageError: If it cannot be written.
    """
    save_tree(folder, _NAME, {"fingerprint": fingerprint, **state.state_dict()}, kind=_KIND)


def load_checkpoint(folder: str | Path, state: RunState, fingerprint: Callable[[int | None], Fingerprint]) -> None:
    """Put a run's state back in place.

    Args:
        folder: What was saved to.
        state: Whose parts are restored.
        fingerprint: What this run is, if it had as many steps as asked for.

    Raises:
        StorageError: If the checkpoint cannot be read, or belongs to another run.
    """
    tree = load_tree(folder, _NAME, kind=_KIND)
    try:
        saved, total = dict(tree.pop("fingerprint")), tree["schedule"]["total"]
        total = None if total is None else int(total)
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"The checkpoint in '{folder}' does not hold what a run needs: {error!r}.") from error
    if different := differences(saved, fingerprint(total)):
        raise StorageError(f"The checkpoint in '{folder}' belongs to another run: {different}.")
    try:
        state.load_state_dict(tree)
    except StorageError as error:
        raise StorageError(f"The checkpoint in '{folder}' does not fit this run: {error}.") from error


def check_readable(folder: str | Path) -> None:
    """Raise StorageError if there is no whole checkpoint in a folder."""
    load_tree(folder, _NAME, kind=_KIND)


def load_result(folder: str | Path, hypernet: HyperNetwork) -> Trained:
    """Put a run's weights into `hypernet`; returns what its training reports.

    Raises:
        StorageError: If the checkpoint cannot be read, or was written for another hypernetwork.
    """
    tree = load_tree(folder, _NAME, kind=_KIND)
    try:
        hypernet.load_state_dict(tree["hypernet"])
        progress, unread = tree["progress"], frozenset(hypernet.space) - set(tree["progress"]["reads"])
        return Trained(progress["history"], unread, tree["plan"], tree["snapshot"]["tensors"])
    except (RuntimeError, KeyError, TypeError) as error:
        raise StorageError(f"The checkpoint in '{folder}' does not fit this hypernetwork: {error}") from error
