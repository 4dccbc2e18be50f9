"""What workers tell the driver while they train: how far they are, and what they warn of."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from tqdm.auto import tqdm

from hypertune_mip import HypertuneWarning
from hypertune_mip_ray.cluster import on_this_node

_POLL = 0.2  # seconds between looks into the mailbox
_PATIENCE = 10.0  # seconds that a worker waits for the mailbox, which may be gone


class News(NamedTuple):
    """What there is to know in the driver."""

    epoch: int = 0
    loss: float = float("nan")
    warnings: tuple[str, ...] = ()


class Mailbox:
    """Holds the last news."""

    def __init__(self) -> None:
        """Empty."""
        self._news = News()

    def progress(self, epoch: int, loss: float) -> None:
        """An epoch is over."""
        self._news = self._news._replace(epoch=epoch, loss=loss)

    def warning(self, message: str) -> None:
        """Something that the driver is to warn of."""
        self._news = self._news._replace(warnings=(*self._news.warnings, message))

    def read(self) -> News:
        """All of it."""
        return self._news


@dataclass(frozen=True)
class Sender:
    """A worker's way to the mailbox.

    Args:
        mailbox: An actor that is a `Mailbox`.
    """

    mailbox: Any

    def progress(self, epoch: int, loss: float) -> None:
        """As in `Mailbox`."""
        self._call("progress", epoch, loss)

    def warning(self, message: str) -> None:
        """As in `Mailbox`."""
        self._call("warning", message)

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            ray.get(getattr(self.mailbox, name).remote(*arguments), timeout=_PATIENCE)
        except ray.exceptions.RayError:
            pass  # news must never stop training


@contextmanager
def delivered(epochs: int, *, progress: bool) -> Iterator[Sender]:
    """One bar for all workers, and their warnings as this process's own, while the block runs.

    Args:
        epochs: The bar's length.
        progress: Whether to show the bar.
    """
    actor: Any = ray.remote(num_cpus=0, scheduling_strategy=on_this_node())(Mailbox)
    mailbox = actor.remote()
    stop = threading.Event()
    with tqdm(total=epochs, desc="fit", unit="epoch", disable=not progress) as bar:

        def look() -> News:
            news: News = ray.get(mailbox.read.remote())
            if news.epoch != bar.n:
                bar.set_postfix(loss=f"{news.loss:.4g}", refresh=False)
                bar.update(news.epoch - bar.n)
            return news

        def keep_looking() -> None:
            while not stop.wait(_POLL):
                look()

        thread = threading.Thread(target=keep_looking, daemon=True)
        thread.start()
        try:
            yield Sender(mailbox)
        finally:
            stop.set()
            thread.join()
            news = look()
            ray.kill(mailbox)
            for message in dict.fromkeys(news.warnings):
                warnings.warn(message, HypertuneWarning, stacklevel=4)
