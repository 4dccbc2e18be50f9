"""Folders that several write to, read from, and keep files of their own in."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import small_problem as problem
import torch
from filelock import FileLock
from small_problem import fit, network, validation
from torch import Tensor, nn

import hypertune_mip as ht
from hypertune_mip import folders, storage
from hypertune_mip.folders import LOCK, turn
from hypertune_mip.storage import load_json, load_tree, save_json, save_tree

OLD, NEW, OTHER = 0, 1, 2
REPLACEMENTS = 2  # of a save: the tensors, then the index
needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")


def save(folder: Path, number: int) -> None:
    """A state of which every part tells its number."""
    save_tree(folder, "state", {"number": number, "weights": torch.full((1000,), float(number))}, kind="test")


def load(folder: Path) -> int:
    """The number of a state that is whole."""
    tree = load_tree(folder, "state", kind="test")
    assert bool((tree["weights"] == tree["number"]).all())
    return int(tree["number"])


def names(folder: Path) -> list[str]:
    """Of the files, sorted; those of tensors as "tensors"."""
    found = [path.name for path in folder.iterdir()]
    return sorted("tensors" if name.endswith(".safetensors") else name for name in found)


CLEAN = sorted([LOCK, "state.json", "tensors"])


def at_each_replacement(monkeypatch: pytest.MonkeyPatch, look: Callable[[int, bool], None]) -> None:
    """`look(stage, after)` is called before and after each replacement of a file that was not made by `look` itself."""
    real, stage, busy = os.replace, 0, False

    def replace(source: Any, target: Any) -> None:
        nonlocal stage, busy
        if busy:
            return real(source, target)
        stage, busy = stage + 1, True
        look(stage, False)
        real(source, target)
        look(stage, True)
        busy = False

    monkeypatch.setattr(os, "replace", replace)


def age(path: Path) -> Path:
    """A file as if it had been there for a while."""
    long_ago = time.time() - 2 * folders.GRACE
    os.utime(path, (long_ago, long_ago))
    return path


# One writer, seen from outside


@pytest.mark.parametrize("before", [None, OLD])
def test_a_reader_meets_the_old_state_or_the_new_one_at_every_stage(
    tmp_path: Path, before: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before is not None:
        save(tmp_path, before)
    seen: list[int | None] = []

    def look(stage: int, after: bool) -> None:
        if before is None and stage <= 2 and not (stage == 2 and after):
            assert not (tmp_path / "state.json").exists()
            seen.append(None)
        else:
            seen.append(load(tmp_path))

    at_each_replacement(monkeypatch, look)
    save(tmp_path, NEW)
    assert seen == [before] * (2 * REPLACEMENTS - 1) + [NEW]
    assert load(tmp_path) == NEW and names(tmp_path) == CLEAN


@needs_fork
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("killed_at", range(1, REPLACEMENTS + 1))
def test_a_writer_that_is_killed_leaves_a_whole_state_and_its_files_go(
    tmp_path: Path, killed_at: int, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, OLD)

    def look(stage: int, is_after: bool) -> None:
        if (stage, is_after) == (killed_at, after):
            os._exit(7)

    def killed() -> None:
        at_each_replacement(monkeypatch, look)
        save(tmp_path, NEW)

    assert in_processes(killed) == [7]
    assert load(tmp_path) == (NEW if (killed_at, after) == (REPLACEMENTS, True) else OLD)
    assert len(names(tmp_path)) > len(CLEAN)
    save(tmp_path, OTHER)
    assert load(tmp_path) == OTHER
    for path in tmp_path.iterdir():
        if path.name not in ("state.json", LOCK):
            age(path)
    save(tmp_path, OTHER)
    assert load(tmp_path) == OTHER and names(tmp_path) == CLEAN


def in_processes(*works: Callable[[], None]) -> list[int | None]:
    """Exit codes of processes that do these at the same time."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work) for work in works]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_the_tensors_are_in_place_for_good_before_the_index_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is flushed between: or after a power failure one name might be there without the other."""
    events: list[str] = []
    real_replace, real_fsync = os.replace, os.fsync

    def replace(source: Any, target: Any) -> None:
        events.append(Path(target).suffix)
        real_replace(source, target)

    def fsync(handle: int) -> None:
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        real_fsync(handle)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "fsync", fsync)
    save(tmp_path, NEW)
    if os.path.exists("/proc/self/fd"):
        assert events == ["file", "file", ".safetensors", "folder", ".json", "folder"]


# Several writers


@pytest.mark.parametrize("inner", [OLD, NEW, OTHER])
@pytest.mark.parametrize("outer", [OLD, NEW])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, REPLACEMENTS + 1))
def test_a_save_in_the_midst_of_another(
    tmp_path: Path, at: int, after: bool, outer: int, inner: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a signal handler, of the state before, the same or another one; the last one to be named counts."""
    save(tmp_path, OLD)

    def look(stage: int, is_after: bool) -> None:
        if (stage, is_after) == (at, after):
            save(tmp_path, inner)
            assert load(tmp_path) == inner

    at_each_replacement(monkeypatch, look)
    save(tmp_path, outer)
    assert load(tmp_path) == (inner if (at, after) == (REPLACEMENTS, True) else outer)
    assert names(tmp_path) == CLEAN


def test_a_save_that_fails_leaves_the_state_that_another_saved_in_its_midst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, OLD)

    def look(stage: int, after: bool) -> None:
        if (stage, after) == (2, False):
            save(tmp_path, NEW)  # of the very tensors that the outer one has put there
            raise OSError(errno.ENOSPC, "No space left on device")

    at_each_replacement(monkeypatch, look)
    with pytest.raises(ht.StorageError, match="No space left"):
        save(tmp_path, NEW)
    assert load(tmp_path) == NEW and names(tmp_path) == CLEAN


def write_often(folder: Path, numbers: list[int]) -> None:
    for number in numbers:
        save(folder, number)


def read_until(folder: Path, done: Callable[[], bool]) -> set[int]:
    """What a reader meets; it must never fail."""
    found = set()
    while not done():
        found.add(load(folder))
    return found


@needs_fork
def test_two_processes_write_while_others_read(tmp_path: Path) -> None:
    save(tmp_path, OLD)
    context = multiprocessing.get_context("fork")
    numbers = [[k + 2 * i for i in range(40)] for k in (1, 2)]
    writers = [context.Process(target=write_often, args=(tmp_path, each)) for each in numbers]
    for writer in writers:
        writer.start()
    found = read_until(tmp_path, lambda: all(not writer.is_alive() for writer in writers))
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert load(tmp_path) in (numbers[0][-1], numbers[1][-1])
    assert len(found) > 1 and names(tmp_path) == CLEAN


def test_threads_write_the_same_two_states_while_others_read(tmp_path: Path) -> None:
    """Whose tensor files have the same names, and come and go."""
    save(tmp_path, OLD)
    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write_often, tmp_path, [OLD, NEW] * 15) for _ in range(2)]
        readers = [pool.submit(read_until, tmp_path, lambda: all(w.done() for w in writers)) for _ in range(2)]
        for each in (*writers, *readers):
            each.result(60)
    assert load(tmp_path) == NEW and names(tmp_path) == CLEAN


def test_writers_to_two_folders_do_not_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "PATIENCE", 0.1)
    with held(tmp_path / "one"):
        save(tmp_path / "other", NEW)
    assert load(tmp_path / "other") == NEW


class held:
    """Another thread's turn in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._taken, self._over = folder, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold)

    def _hold(self) -> None:
        with turn(self._folder):
            self._taken.set()
            self._over.wait(60)

    def __enter__(self) -> None:
        self._thread.start()
        self._taken.wait(60)

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


def test_a_writer_that_never_ends_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, OLD)
    monkeypatch.setattr(folders, "PATIENCE", 0.1)
    with held(tmp_path):
        with pytest.raises(ht.StorageError, match=rf"Could not save to '{tmp_path}': another .* has locked '.*{LOCK}'"):
            save(tmp_path, NEW)
        assert load(tmp_path) == OLD  # readers need no turn
    save(tmp_path, NEW)
    assert load(tmp_path) == NEW


@pytest.mark.parametrize("error", [OSError(errno.ENOTSUP, "no locks"), NotImplementedError("no locks")])
def test_a_file_system_without_locks(tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving goes on; what might be another writer's is left alone."""

    def acquire(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(FileLock, "acquire", acquire)
    save(tmp_path, OLD)
    theirs = tmp_path / f".writing-{'0' * 32}"
    theirs.touch()
    age(theirs)
    save(tmp_path, NEW)
    assert load(tmp_path) == NEW
    assert names(tmp_path) == sorted([theirs.name, "state.json", "tensors"])


def test_a_lock_that_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(*args: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    save(tmp_path, OLD)
    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(ht.StorageError, match=rf"Could not save to '{tmp_path}': .*Permission denied"):
        save(tmp_path, NEW)
    assert load(tmp_path) == OLD


# Readers


def test_a_reader_whose_tensors_are_gone_by_then_reads_what_is_there_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, OLD)
    real, states = storage._digest, [NEW, OLD, OTHER]

    def late(path: Path) -> str:
        if states and threading.current_thread() is threading.main_thread():
            other = threading.Thread(target=save, args=(tmp_path, states.pop(0)))
            other.start()
            other.join()
        return real(path)

    monkeypatch.setattr(storage, "_digest", late)
    assert load(tmp_path) == OTHER


def test_reading_makes_no_file(tmp_path: Path) -> None:
    """So that a folder may be read-only."""
    save(tmp_path, OLD)
    (tmp_path / LOCK).unlink()
    before = names(tmp_path)
    load(tmp_path)
    assert names(tmp_path) == before


def test_a_folder_that_is_damaged_does_not_make_a_reader_wait(tmp_path: Path) -> None:
    save_tree(tmp_path, "state", {"not a number": float("nan"), "weights": torch.ones(3)}, kind="test")
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(b"damaged")
    with pytest.raises(ht.StorageError, match="truncated or was altered"):
        load_tree(tmp_path, "state", kind="test")


# Files of others


OWN = ["surrogate-of-my-thesis", "surrogate-", "checkpoint-best", "checkpoint-0123456789ABCDEF", "truth-v1"]


def keep_own(folder: Path) -> Iterator[Path]:
    for name in OWN:
        yield folder / f"{name}.safetensors"
    yield folder / "surrogate-0123456789abcdef.safetensors"  # named as one of ours, but of another content
    yield folder / ".writing-my-thesis"


def test_a_users_files_stay(tmp_path: Path) -> None:
    files = list(keep_own(tmp_path))
    for path in files:
        path.write_text("mine")
        age(path)
    for seed in (0, 1):
        surrogate = fit(epochs=1, seed=seed, checkpoint=tmp_path, **validation())
        surrogate.save(tmp_path)
        surrogate.trainer(ht.Recipe(epochs=1), tmp_path).train([problem.CONFIG], seeds=[seed], progress=False)
    assert all(path.read_text() == "mine" for path in files)
    assert len(list(tmp_path.glob("*.safetensors"))) == len(files) - 1 + 4


def test_what_a_dead_writer_left_goes_once_it_is_old(tmp_path: Path) -> None:
    save(tmp_path, OLD)
    content = b"tensors that no index names"
    digest = hashlib.sha256(content).hexdigest()[:16]
    left = [tmp_path / f"state-{digest}.safetensors", tmp_path / f".writing-{'a1' * 16}"]
    others = [tmp_path / f"surrogate-{digest}.safetensors", tmp_path / f"state-{digest}.safetensors.bak"]
    for path in (*left, *others):
        path.write_bytes(content)
    save(tmp_path, NEW)
    assert all(path.exists() for path in (*left, *others))  # a live writer's, where a file system pretends to lock
    for path in (*left, *others):
        age(path)
    save(tmp_path, OTHER)
    assert not any(path.exists() for path in left) and all(path.exists() for path in others)
    assert load(tmp_path) == OTHER


def test_a_live_writers_files_stay_however_old_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, OLD)
    monkeypatch.setattr(folders, "GRACE", -1.0)

    def look(stage: int, after: bool) -> None:
        if not after:
            save(tmp_path, OTHER)

    at_each_replacement(monkeypatch, look)
    save(tmp_path, NEW)
    assert load(tmp_path) == NEW and names(tmp_path) == CLEAN


def test_an_index_cannot_make_us_delete_a_users_file(tmp_path: Path) -> None:
    save(tmp_path / "folder", OLD)
    inside, outside = tmp_path / "folder" / "state-mine.safetensors", tmp_path / "state-0123456789abcdef.safetensors"
    for path, name in ((inside, inside.name), (outside, f"../{outside.name}")):
        path.write_text("mine")
        index = tmp_path / "folder" / "state.json"
        document = json.loads(index.read_text())
        document["tensors"]["file"] = name
        index.write_text(json.dumps(document))
        save(tmp_path / "folder", NEW)
        assert path.read_text() == "mine"


FOREIGN = {
    "of another program": '{"model": "of someone else"}',
    "no object": "[1, 2]",
    "no JSON": "notes",
    "empty": "",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_users_index_is_not_replaced(tmp_path: Path, content: str) -> None:
    surrogate = fit(epochs=1, **validation())
    for name, write in {
        "surrogate": lambda: surrogate.save(tmp_path),
        "checkpoint": lambda: fit(loss=never, checkpoint=tmp_path),
    }.items():
        path = tmp_path / f"{name}.json"
        path.write_text(content)
        with pytest.raises(ht.StorageError, match=rf"'{path}'.* (none|not one) of ours"):
            write()
        assert path.read_text() == content
    assert sorted(path.name for path in tmp_path.glob("*.*s*")) == ["checkpoint.json", "surrogate.json"]


def never(model: nn.Module, batch: Any, config: Any) -> Tensor:
    raise AssertionError("trained before it was clear that the result can be kept")


def test_a_state_of_another_kind_is_not_replaced(tmp_path: Path) -> None:
    save(tmp_path, OLD)
    with pytest.raises(ht.StorageError, match=r"Saving a 'cake' would replace '.*state\.json', which holds a 'test'"):
        save_tree(tmp_path, "state", {}, kind="cake")
    assert load(tmp_path) == OLD


def test_a_state_of_a_later_release_may_be_replaced(tmp_path: Path) -> None:
    save(tmp_path, OLD)
    path = tmp_path / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    save(tmp_path, NEW)
    assert load(tmp_path) == NEW and names(tmp_path) == CLEAN


# JSON alone, and what lies above


def test_one_json_file_is_replaced_whole_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("a file that was named by hand may be any")
    left = tmp_path / f".writing-{'b2' * 16}"
    left.touch()
    age(left)
    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(save_json, path, [k] * 1000, kind="test") for k in range(20)]:
            each.result(60)
    assert len(set(load_json(path, kind="test"))) == 1
    assert names(tmp_path) == sorted([LOCK, "state.json"])


def trainer(folder: Path, **options: Any) -> ht.Trainer:
    options |= validation() | {"recipe": ht.Recipe(epochs=1), "folder": folder}
    return ht.Trainer(network(), problem.SPACE, problem.loss, problem.loader(), **options)


@needs_fork
def test_processes_that_train_for_real_lose_nothing_of_each_other(tmp_path: Path) -> None:
    """Each saves after every training."""

    def work(seed: int) -> Callable[[], None]:
        def run() -> None:
            own = trainer(tmp_path, parallel=1)
            for each in range(4):
                own.train([problem.CONFIG], seeds=[10 * seed + each], progress=False)

        return run

    assert in_processes(work(1), work(2)) == [0, 0]
    assert "finished=8" in repr(trainer(tmp_path))
    assert sum(path.suffix == ".json" for path in tmp_path.iterdir()) == 8
