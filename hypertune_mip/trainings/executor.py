"""Who carries trainings out: this process, or the workers of an integration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from hypertune_mip.trainings.store import Finished, Run, Together
from hypertune_mip.trainings.workshop import Workshop


class Executor(Protocol):
    """Carries trainings out."""

    parts: int
    """How many parts of the work it would like to have at a time."""

    def __call__(self, workshop: Workshop, work: Iterable[Together]) -> Iterator[tuple[Run, Finished]]:
        """What `workshop.carry_out` gives for each part, in any order, as soon as it is known."""


class InThisProcess:
    """Part after part."""

    parts = 1

    def __call__(self, workshop: Workshop, work: Iterable[Together]) -> Iterator[tuple[Run, Finished]]:
        """See `Executor`."""
        for together in work:
            yield from workshop.carry_out(together)
