"""Finished trainings: what came out of each, in memory or in a folder that processes share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from hypertune_mip.errors import StorageError
from hypertune_mip.space import Value
from hypertune_mip.storage import load_tree, save_tree

_KIND = "training"
_PREFIX = "training-"
SCRATCH = "scratch"
"""The start of a training that is none of a hypernetwork's branch points."""


class Run(NamedTuple):
    """One training to carry out.

    Args:
        config: Native values.
        seed: Of initialisation, order of the data and noise.
        common: Whether the seed means the same initialisation at all configs.
        start: Where it starts: "scratch", or a branch point of the hypernetwork.
        share: Of the recipe.
    """

    config: dict[str, Value]
    seed: int
    common: bool
    start: str
    share: float


Together = list[Run]
"""Trainings of one start, share and seed, which may be carried out as a stack."""


class Finished(NamedTuple):
    """What came out of a training.

    Args:
        metrics: On the validation data; NaN if it diverged.
        tensors: Of the network's state, on the CPU; None where they are not kept.
        numbers: Of the network's state.
        measured_by: A digest of the validation data and the names of the metrics.
    """

    metrics: dict[str, float]
    tensors: dict[str, Tensor] | None
    numbers: dict[str, float | None]
    measured_by: str


class Store:
    """Finished trainings by a name that says all that made them.

    Args:
        folder: Where each is kept in files of its own, written at once, so that several processes may share it; None
            keeps them in memory.

    Raises:
        StorageError: From its methods, if a file cannot be written, or is damaged.
    """

    def __init__(self, folder: str | Path | None) -> None:
        """See the class."""
        self.folder = None if folder is None else Path(folder)
        self._known: dict[str, Finished] = {}

    def __len__(self) -> int:
        """How many there are."""
        if self.folder is None:
            return len(self._known)
        return sum(1 for _ in self.folder.glob(f"{_PREFIX}*.json"))

    def find(self, name: str, *, tensors: bool = False) -> Finished | None:
        """The training of that name, if it is finished.

        Args:
            name: See `name_of`.
            tensors: Whether its tensors are wanted as well, which a folder has to be read for.
        """
        if self.folder is not None and (tensors or name not in self._known):
            if not (self.folder / f"{_PREFIX}{name}.json").exists():
                return None
            found = self._read(name)
            self._known[name] = found._replace(tensors=None)
            return found
        return self._known.get(name)

    def keeps_tensors(self, name: str) -> bool:
        """Whether the tensors of a finished training are kept."""
        return self.folder is not None or self._known[name].tensors is not None

    def add(self, name: str, finished: Finished, about: Mapping[str, Any], *, keep: bool) -> None:
        """Keep a finished training.

        Args:
            name: See `name_of`.
            finished: What came out.
            about: What made it, for a reader of the files.
            keep: Whether its tensors stay in memory, where there is no folder.
        """
        if self.folder is None:
            before = self._known.get(name)
            if before is not None:  # a network that was trained anew, by itself: the metrics stay those that were told
                finished = finished._replace(metrics=before.metrics)
            self._known[name] = finished if keep else finished._replace(tensors=None)
            return
        save_tree(self.folder, f"{_PREFIX}{name}", {"about": about, **finished._asdict()}, kind=_KIND)
        self._known[name] = finished._replace(tensors=None)

    def _read(self, name: str) -> Finished:
        assert self.folder is not None
        tree = load_tree(self.folder, f"{_PREFIX}{name}", kind=_KIND)
        try:
            return Finished(*(tree[field] for field in Finished._fields))
        except KeyError as error:
            raise StorageError(
                f"'{self.folder / f'{_PREFIX}{name}.json'}' does not hold what a training needs: {error!r}."
            ) from error


def name_of(about: Mapping[str, Any]) -> str:
    """A digest of plain values, as a name for what they describe."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:20]
