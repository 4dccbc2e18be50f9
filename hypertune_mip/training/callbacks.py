"""Callbacks: any function that takes the dict of an epoch; here the one that writes to TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypertune_mip.errors import MissingExtraError


class TensorBoard:
    """Writes every number of an epoch's record to TensorBoard, through `torch.utils.tensorboard`.

    Args:
        folder: Where to; `tensorboard --logdir folder` shows it.

    Raises:
        MissingExtraError: If TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        """See the class."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("The TensorBoard callback", "tensorboard") from error
        self._writer = SummaryWriter(log_dir=str(folder))

    def __call__(self, record: dict[str, Any]) -> None:
        """Write one epoch's record."""
        for name, value in record.items():
            if isinstance(value, (int, float)) and name != "epoch":
                self._writer.add_scalar(name, value, record["epoch"])
        self._writer.flush()
