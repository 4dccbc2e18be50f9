"""What workers tell the driver while they train: how far they are, what they warn of, and why training cannot go on."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import ray
from ray import cloudpickle
from ray.util.queue import Empty, Full, Queue
from tqdm.auto import tqdm

from hypertune_mip import HypertuneError, HypertuneWarning
from hypertune_mip_ray.cluster import on_this_node

_POLL = 0.5  # seconds that the driver waits for news before it looks whether the block has ended


@dataclass(frozen=True)
class Sender:
    """A worker's way to the driver.

    Args:
        mailbox: A queue of (epoch, loss), and of messages to warn of: plain values, for which its process need not
            import anything.
        failures: A queue of one error, pickled.
    """

    mailbox: Queue
    failures: Queue

    def progress(self, epoch: int, loss: float) -> None:
        """An epoch is over."""
        self._put((epoch, loss))

    def warning(self, message: str) -> None:
        """Something that the driver is to warn of."""
        self._put(message)

    def failed(self, error: HypertuneError) -> None:
        """Training has met an error that would come again."""
        with suppress(ray.exceptions.RayError, Full):
            self.failures.put_nowait(cloudpickle.dumps(error))

    def has_failed(self) -> bool:
        """Whether a worker has said so, of this start of the workers or of one before."""
        with suppress(ray.exceptions.RayError):
            return not self.failures.empty()
        return False

    def _put(self, news: tuple[int, float] | str) -> None:
        """The mailbox may be gone, but news must never stop training."""
        with suppress(ray.exceptions.RayError):
            self.mailbox.put(news)


class Mailbox:
    """The driver's side.

    Args:
        sender: For the workers.
    """

    def __init__(self, sender: Sender) -> None:
        """See the class."""
        self.sender = sender

    def failure(self) -> HypertuneError | None:
        """The error that workers have sent, if any."""
        with suppress(ray.exceptions.RayError, Empty):
            error: HypertuneError = cloudpickle.loads(self.sender.failures.get_nowait())
            return error
        return None


@contextmanager
def delivered(epochs: int, *, progress: bool) -> Iterator[Mailbox]:
    """One bar for all workers, and their warnings as this process's own, while the block runs.

    Args:
        epochs: The bar's length.
        progress: Whether to show the bar.
    """
    options = {"num_cpus": 0, "scheduling_strategy": on_this_node()}
    mailbox, failures = Queue(actor_options=options), Queue(maxsize=1, actor_options=options)
    messages: dict[str, None] = {}  # of restarted workers, each once
    stop = threading.Event()
    with tqdm(total=epochs, desc="fit", unit="epoch", disable=not progress) as bar:

        def read(news: tuple[int, float] | str) -> None:
            if isinstance(news, str):
                messages[news] = None
                return
            epoch, loss = news
            bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            bar.update(epoch - bar.n)

        def keep_reading() -> None:
            while not stop.is_set():
                try:
                    read(mailbox.get(timeout=_POLL))
                except Empty:
                    continue
                except ray.exceptions.RayError:  # the mailbox is gone, but the workers need not be
                    return

        thread = threading.Thread(target=keep_reading, daemon=True)
        thread.start()
        try:
            yield Mailbox(Sender(mailbox, failures))
        finally:
            stop.set()
            thread.join()
            with suppress(ray.exceptions.RayError):
                for news in mailbox.get_nowait_batch(mailbox.qsize()):
                    read(news)
                mailbox.shutdown(force=True)
                failures.shutdown(force=True)
            for message in messages:
                warnings.warn(message, HypertuneWarning, stacklevel=4)
