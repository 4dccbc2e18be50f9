"""Writing into a folder that others write to, read from, and keep files of their own in.

Writers of a folder take turns by a lock on its hidden file `.hypertune-mip.lock`, which is empty and stays there: to
delete it would let a third writer lock another file of that name. Readers need no lock, so a folder may be read-only.
What a writer left that was killed is deleted in a later one's turn.

A lock that nobody lets go of is lost with its process. Where a file system has no locks, writers go on without, and
leave all files alone but those that they know to be theirs; there only one may write at a time.
"""

from __future__ import annotations

import errno
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from hypertune_mip.errors import StorageError

LOCK = ".hypertune-mip.lock"
"""Name of the file that writers of a folder lock."""
PATIENCE = 600.0
"""Seconds that a writer waits for its turn: another one's large files may take minutes on a slow disk."""
GRACE = 3600.0
"""Age in seconds from which on a file counts as left over, in case that a file system only pretends to lock."""
_TEMPORARY = re.compile(r"\.writing-[0-9a-f]{32}")
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_turns: list[Turn] = []  # of this process that have not ended


class Turn:
    """A writer's turn in a folder; see `turn`.

    Args:
        folder: Where.
        alone: Whether no other writer can be at work, but for one in whose midst this one was called.

    Attributes:
        made: Names of the files that were claimed in this turn, or in one that was called in its midst.
    """

    def __init__(self, folder: Path, *, alone: bool) -> None:
        """See the class."""
        self.folder = folder
        self.alone = alone
        self._place = os.path.realpath(folder)
        self._temporary: list[Path] = []
        self.made: set[str] = set()
        self._claimed: set[str] = set()

    def temporary(self) -> Path:
        """A new file in the folder, which is deleted at the end of the turn unless it has been moved."""
        path = self.folder / f".writing-{uuid.uuid4().hex}"
        self.claim(path)
        self._temporary.append(path)
        path.touch(exist_ok=False)  # not by `tempfile`, whose files nobody else may read
        return path

    def claim(self, path: Path) -> None:
        """Until the end of the turn no other one deletes this file, which no index names yet."""
        self._claimed.add(path.name)
        self.made.add(path.name)

    def needed_elsewhere(self, path: Path) -> bool:
        """Whether another turn has claimed a file: this one was called in its midst."""
        return any(path.name in other._claimed for other in self._others())

    def is_left_over(self, path: Path) -> bool:
        """Whether a file that no index names is of no use to anyone who is at work."""
        if not self.alone or self.needed_elsewhere(path) or path.is_symlink() or not path.is_file():
            return False
        return time.time() - path.stat().st_mtime > GRACE

    def _begin(self) -> None:
        _turns.append(self)
        delete(p for p in self.folder.iterdir() if _TEMPORARY.fullmatch(p.name) and self.is_left_over(p))

    def _end(self) -> None:
        _turns.remove(self)
        delete(self._temporary)
        for other in self._others():
            other.made |= self.made

    def _others(self) -> list[Turn]:
        return [other for other in _turns if other is not self and other._place == self._place]


@contextmanager
def turn(folder: str | Path) -> Iterator[Turn]:
    """A block in which no other process or thread writes to a folder; the same thread may enter it again.

    Args:
        folder: Made where it does not exist.

    Raises:
        StorageError: If the folder cannot be written to, or another writer takes too long.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock, alone = _locked(folder)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"Could not save to '{folder}': {error}. What was saved there before is as it was."
        ) from error
    try:
        own = Turn(folder, alone=alone)
        own._begin()
        try:
            yield own
        finally:
            own._end()
    finally:
        if alone:
            lock.release()


def _locked(folder: Path) -> tuple[FileLock, bool]:
    """The folder's lock, and whether it could be taken."""
    path = os.path.join(os.path.realpath(folder), LOCK)
    lock = FileLock(path, is_singleton=True)  # one a thread and folder: a lock may be entered by who has it
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise StorageError(
            f"Could not save to '{folder}': another process or thread has been saving there for {PATIENCE:g} s, and has"
            f" locked '{path}'. Wait until it is done, or take another folder."
        ) from None
    except NotImplementedError:  # filelock's own, of a file system without locks
        return lock, False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return lock, False
    return lock, True


def flush(path: Path) -> None:
    """Make sure that a file's content outlives a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_names(folder: Path) -> None:
    """The same of the names in a folder, as far as the file system can: some have no such operation."""
    with suppress(OSError):
        flush(folder)


def delete(paths: Iterable[Path]) -> None:
    """Delete files that nobody needs, as far as that is allowed; what goes wrong is left to a later turn."""
    with suppress(OSError):
        for path in paths:
            with suppress(OSError):
                path.unlink(missing_ok=True)
