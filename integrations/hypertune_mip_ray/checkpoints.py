"""Where a run of Ray Train keeps its checkpoints, and the newest of them that can be read."""

from __future__ import annotations

import dataclasses
import json
import re
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


_NAME = re.compile(r"checkpoint_[\d._-]+")
_SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray's own list of checkpoints


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


def with_absolute_path(config: RunConfig) -> RunConfig:
    """The same, with a path that Ray takes: it refuses relative ones."""
    root = str(config.storage_path)
    if config.storage_filesystem is not None or "://" in root:
        return config
    return dataclasses.replace(config, storage_path=str(Path(root).expanduser().absolute()))


def run_folder(config: RunConfig, *, resume: bool | Literal["auto"]) -> RunFolder:
    """Where a run is kept: Ray would go on with one of the same name without a word, also with one that is finished.

    Raises:
        OptionError: If there is a run already, and it is not to be resumed; or none, and it is.
    """
    filesystem, root = config.storage_filesystem, str(config.storage_path)
    if filesystem is None:
        if "://" not in root:
            root = Path(root).as_uri()
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


def is_checkpoint(name: str) -> bool:
    """Whether a folder within a run's is a checkpoint by its name, and no copy or other thing that a user put there."""
    return _NAME.fullmatch(name) is not None


def newest(folder: RunFolder, *, expected: bool) -> str | None:
    """The name of the newest checkpoint that can be read; None if there is none yet.

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
    names = [i.base_name for i in listed if i.type == pyarrow.fs.FileType.Directory]
    chosen: str | None = None
    damaged: list[str] = []
    for name in sorted(filter(is_checkpoint, names), reverse=True):
        try:
            with opened(folder, name):
                chosen = name
                break
        except StorageError as error:
            damaged.append(str(error))
    if expected and chosen is None:
        raise StorageError(f"No checkpoint in '{folder.path}' can be read: {' '.join(damaged)}")
    if damaged:
        where = f"from '{folder.path}/{chosen}'" if chosen is not None else "from its start"
        warnings.warn(f"Training goes on {where}, because: {' '.join(damaged)}", HypertuneWarning, stacklevel=3)
    return chosen


@contextmanager
def opened(folder: RunFolder, name: str) -> Iterator[Path]:
    """A checkpoint as a folder on this machine.

    Raises:
        StorageError: If it cannot be read.
    """
    with Checkpoint(f"{folder.path}/{name}", folder.filesystem).as_directory() as local:
        check_readable(local)
        yield Path(local)


def mend(folder: RunFolder) -> None:
    """Set Ray's own list of checkpoints aside where it is damaged or names some that are gone: Ray refuses such a run.

    Nothing is lost by that: the checkpoints themselves are looked for in storage.

    Warns:
        HypertuneWarning: If it was set aside.
    """
    path = f"{folder.path}/{_SNAPSHOT}"
    if folder.filesystem.get_file_info(path).type == pyarrow.fs.FileType.NotFound:
        return
    try:
        with folder.filesystem.open_input_stream(path) as stream:
            listed = [each["checkpoint_dir_name"] for each in json.loads(stream.read())["checkpoint_results"]]
        infos = folder.filesystem.get_file_info([f"{folder.path}/{name}" for name in listed])
        gone = [info.base_name for info in infos if info.type == pyarrow.fs.FileType.NotFound]
        reason = f"it names {gone}, which are gone" if gone else None
    except (ValueError, KeyError, TypeError) as error:
        reason = f"it cannot be read ({error!r})"
    if reason is not None:
        folder.filesystem.move(path, f"{path}.damaged")
        warnings.warn(
            f"Ray's list of checkpoints, '{path}', was set aside, because {reason}.", HypertuneWarning, stacklevel=4
        )
