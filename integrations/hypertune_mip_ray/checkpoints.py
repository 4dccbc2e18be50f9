"""Where a run of Ray Train keeps its checkpoints, and the newest of them that can be read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow.fs
from ray.train import Checkpoint, RunConfig

from hypertune_mip import HypertuneWarning, OptionError, StorageError
from hypertune_mip.training.checkpoint import check_readable

IN_THIS_PROCESS = "checkpoint_0"  # comes before those of Ray, whose names are "checkpoint_" and the time


class RunFolder(NamedTuple):
    """Where a run is kept.

    Args:
        filesystem: On this machine, or any storage.
        path: Of the folder there.
    """

    filesystem: pyarrow.fs.FileSystem
    path: str

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        return isinstance(self.filesystem, pyarrow.fs.LocalFileSystem)


def run_folder(config: RunConfig, *, resume: bool | Literal["auto"]) -> RunFolder:
    """Where a run is kept: Ray would go on with one of the same name without a word, also with one that is finished.

    Raises:
        OptionError: If there is a run already, and it is not to be resumed; or none, and it is.
    """
    filesystem, root = config.storage_filesystem, str(config.storage_path)
    if filesystem is None:
        if "://" not in root:
            root = Path(root).expanduser().absolute().as_uri()
        filesystem, root = pyarrow.fs.FileSystem.from_uri(root)
    path = f"{root}/{config.name}"
    exists = filesystem.get_file_info(path).type != pyarrow.fs.FileType.NotFound
    if exists and not resume:
        raise OptionError(
            f"The run '{config.name}' exists in '{config.storage_path}'. Pass resume=True to go on with it, or a"
            " RunConfig with another name."
        )
    if resume is True and not exists:
        raise OptionError(f"There is no run '{config.name}' in '{config.storage_path}' to resume.")
    return RunFolder(filesystem, path)


@contextmanager
def newest(folder: RunFolder, *, expected: bool) -> Iterator[Path | None]:
    """The newest checkpoint that can be read, in a folder on this machine; None if there is none yet.

    All in storage count, not only those that Ray knows: it learns of one up to two seconds after it was written, and a
    worker may be lost in between.

    Args:
        folder: Of the run.
        expected: Whether there must be one.

    Raises:
        StorageError: If there must be one, but none can be read.

    Warns:
        HypertuneWarning: If a damaged one is passed over.
    """
    listed = folder.filesystem.get_file_info(pyarrow.fs.FileSelector(folder.path, allow_not_found=True))
    paths = [
        i.path for i in listed if i.type == pyarrow.fs.FileType.Directory and i.base_name.startswith("checkpoint_")
    ]
    damaged: list[str] = []
    for path in sorted(paths, reverse=True):
        with Checkpoint(path, folder.filesystem).as_directory() as local:
            try:
                check_readable(local)
            except StorageError as error:
                damaged.append(str(error))
                continue
            if damaged:
                warnings.warn(
                    f"Training goes on from '{path}', because: {' '.join(damaged)}", HypertuneWarning, stacklevel=3
                )
            yield Path(local)
            return
    if expected:
        raise StorageError(f"No checkpoint in '{folder.path}' can be read: {' '.join(damaged)}")
    yield None
