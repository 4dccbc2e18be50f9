"""Checkpoints of a training run: written atomically after an epoch, read back to go on bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hypertune_mip.errors import StorageError
from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.storage import load_tree, save_tree

_NAME = "checkpoint"
_KIND = "training checkpoint"


def save_checkpoint(
    folder: str | Path,
    hypernet: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler | None,
    progress: dict[str, Any],
) -> None:
    """Write the state of a run.

    Args:
        folder: Where to; the checkpoint before is replaced.
        hypernet: The weights.
        optimizer: Its state.
        schedule: Its state, if there is one.
        progress: The rest, plain values: epoch, position in the Sobol sequence, history, a fingerprint of the run.
    """
    tree = {
        "hypernet": hypernet.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": _plain(schedule.state_dict()) if schedule is not None else None,
        "progress": progress,
    }
    save_tree(folder, _NAME, tree, kind=_KIND)


def load_checkpoint(
    folder: str | Path,
    hypernet: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler | None,
    *,
    fingerprint: dict[str, Any],
) -> dict[str, Any]:
    """Put a run's state back in place and return its progress.

    Raises:
        StorageError: If the checkpoint cannot be read, or belongs to a run with other settings.
    """
    tree = load_tree(folder, _NAME, kind=_KIND)
    saved = tree["progress"]["fingerprint"]
    different = [key for key, value in fingerprint.items() if saved.get(key) != value]
    if different:
        details = ", ".join(f"{key} was {saved.get(key)!r}, is {fingerprint[key]!r}" for key in different)
        raise StorageError(f"The checkpoint in '{folder}' belongs to another run: {details}.")
    try:
        hypernet.load_state_dict(tree["hypernet"])
        optimizer.load_state_dict(tree["optimizer"])
        if schedule is not None and tree["schedule"] is not None:
            schedule.load_state_dict(tree["schedule"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise StorageError(f"The checkpoint in '{folder}' does not fit this run: {error}") from error
    progress: dict[str, Any] = tree["progress"]
    return progress


def check_readable(folder: str | Path) -> None:
    """Raise StorageError if there is no whole checkpoint in a folder."""
    load_tree(folder, _NAME, kind=_KIND)


def load_result(folder: str | Path, hypernet: HyperNetwork) -> tuple[list[dict[str, Any]], frozenset[str]]:
    """Put a run's weights into `hypernet` and return its history, and the hyperparameters that nothing has read.

    Raises:
        StorageError: If the checkpoint cannot be read, or was written for another hypernetwork.
    """
    tree = load_tree(folder, _NAME, kind=_KIND)
    try:
        hypernet.load_state_dict(tree["hypernet"])
    except RuntimeError as error:
        raise StorageError(f"The checkpoint in '{folder}' does not fit this hypernetwork: {error}") from error
    progress = tree["progress"]
    return progress["history"], frozenset(hypernet.space) - set(progress["reads"])


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """A schedule's state without functions, which it cannot restore either."""
    return {k: v for k, v in state.items() if isinstance(v, (int, float, str, list, tuple, type(None)))}
