"""The state of a run, as parts: what a checkpoint holds, and what a resumed run goes on from."""

from __future__ import annotations

import dataclasses
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from hypertune_mip.errors import StorageError
from hypertune_mip.execution import Execution
from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.training.schedule import Schedule
from hypertune_mip.training.settings import SettingsStream
from hypertune_mip.training.snapshot import Snapshot
from hypertune_mip.training.weighting import SettingWeights

Record = dict[str, Any]
"""Of one epoch: epoch, step, loss (mean over steps and settings), learning_rate, seconds, validation figures."""


class Trained(NamedTuple):
    """What training reports.

    Args:
        history: One record an epoch.
        unread: Hyperparameters that neither the loss nor a layer has read.
        execution: How the settings of a step ran, in plain values; see `Planned`.
        snapshot: The hypernetwork's state after a quarter of the epochs, on the CPU; None where there is none, see
            `Snapshot`.
    """

    history: list[Record]
    unread: frozenset[str]
    execution: dict[str, Any]
    snapshot: dict[str, Tensor] | None


class Part(Protocol):
    """A part of a run's state; the names at the top of its state stay the same over a run."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, from which it can go on."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Go on from such a state."""


@dataclass
class Planned:
    """What decides how many settings share a step, and in which way they run.

    Args:
        largest_batch: Examples of the largest batch so far.
        small: Whether the network does little work on a batch, once it has been looked at.
        execution: The way, once it has been chosen.
        seconds: What a step took by each way that was measured: pairs of the way, in plain values, and the time.
        captured: Whether steps were captured on CUDA.
        not_captured: Why not, if it was tried.
    """

    largest_batch: int = 0
    small: bool | None = None
    execution: Execution | None = None
    seconds: list[list[Any]] = field(default_factory=list)
    captured: bool = False
    not_captured: str | None = None

    def state_dict(self) -> dict[str, Any]:
        """See `Part`."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return own | {"execution": None if self.execution is None else self.execution.to_json()}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """See `Part`."""
        for name, value in state.items():
            setattr(self, name, value)
        self.execution = None if state["execution"] is None else Execution.from_json(state["execution"])


@dataclass
class Progress:
    """How far a run has come.

    Args:
        history: One record an epoch.
        reads: Hyperparameters that the loss or a layer has read.
        stopped: Whether a callback has ended the run.
    """

    history: list[Record] = field(default_factory=list)
    reads: set[str] = field(default_factory=set)
    stopped: bool = False

    @property
    def epochs(self) -> int:
        """That are done."""
        return len(self.history)

    @property
    def steps(self) -> int:
        """That are done."""
        return int(self.history[-1]["step"]) if self.history else 0

    def state_dict(self) -> dict[str, Any]:
        """See `Part`."""
        return {"history": self.history, "reads": sorted(self.reads), "stopped": self.stopped}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """See `Part`."""
        self.history = state["history"]
        self.reads.clear()  # the training step holds the same set
        self.reads.update(state["reads"])
        self.stopped = bool(state["stopped"])


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The parts, which are saved under their names here and restored in this order."""

    hypernet: HyperNetwork
    optimizer: Optimizer
    schedule: Schedule  # after the optimiser, whose rates it may set anew
    scaler: torch.amp.GradScaler
    settings: SettingsStream
    weights: SettingWeights
    plan: Planned
    snapshot: Snapshot
    progress: Progress

    @property
    def parts(self) -> dict[str, Part]:
        """By name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def state_dict(self) -> dict[str, Any]:
        """The state of each part by its name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """`a.load_state_dict(b.state_dict())`, and `a` goes on as `b` would, bit for bit on a CPU.

        Raises:
            StorageError: If a part is missing or strange, by name.
        """
        _check_names("the state", state, self.parts)
        for name, part in self.parts.items():
            fresh, saved = part.state_dict(), state[name]
            try:
                _check_names("it", saved, fresh)
                part.load_state_dict(_as_in(fresh, saved))
            except (StorageError, RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
                raise StorageError(f"'{name}' does not fit: {error}") from error


def _check_names(what: str, saved: Any, expected: Iterable[str]) -> None:
    if not isinstance(saved, Mapping):
        raise StorageError(f"{what} must hold {list(expected)}, but is a {type(saved).__name__}")
    missing = [name for name in expected if name not in saved]
    extra = [name for name in saved if name not in set(expected)]
    if missing or extra:
        raise StorageError(f"{what} lacks {reprlib.repr(missing)}, and holds {reprlib.repr(extra)} too many")


def _as_in(fresh: Any, saved: Any) -> Any:
    """What was saved, with the containers that a fresh state has: JSON knows neither tuples nor counters."""
    if fresh is None or saved is None:
        return saved
    if _kind(fresh) is not _kind(saved):
        raise StorageError(f"{reprlib.repr(saved)} stands where {reprlib.repr(fresh)} was at the start")
    if isinstance(saved, dict):
        items = {name: _as_in(fresh.get(name), item) for name, item in saved.items()}
        return Counter(items) if isinstance(fresh, Counter) else items
    if isinstance(saved, list):
        return type(fresh)(_as_in(*pair) for pair in zip_longest(fresh[: len(saved)], saved))
    return saved


def _kind(value: Any) -> type:
    """Of a value in a state; a number may have become a tensor."""
    if isinstance(value, (bool, int, float, np.generic)) or (isinstance(value, Tensor) and value.ndim == 0):
        return float
    return next((kind for kind in (Tensor, str, Mapping) if isinstance(value, kind)), list)
