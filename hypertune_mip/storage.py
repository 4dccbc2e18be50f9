"""Trees of tensors and plain values in a folder: safetensors for the tensors, JSON for the rest, no pickle.

The JSON file, the index, names the tensor file and its SHA-256 and is replaced last, in one step, so a folder holds
either the old state or the new one whatever happens in between (a crash, a full disk). It holds the SHA-256 of its own
content, too. A tensor file's name is that of the tree and the beginning of its SHA-256.

Several processes and threads may save to one folder: one of the states stays there, whole. Others may read meanwhile.
Of the files there only those are deleted that an index of ours has named, or that a writer of ours has left (see
`folders`): a user's own may lie beside them, whatever their names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hypertune_mip.arguments import plain
from hypertune_mip.errors import StorageError
from hypertune_mip.folders import Turn, delete, flush, flush_names, turn

SCHEMA_VERSION = 1
_TENSOR = "__tensor__"
_ITEMS = "__items__"


def save_tree(folder: str | Path, name: str, tree: Mapping[str, Any], *, kind: str) -> None:
    """Write a tree to `folder/name.json` and a tensor file beside it, atomically.

    Args:
        folder: Made where it does not exist.
        name: Stem of the JSON file; a former state of that name is replaced, and kept whole if writing fails.
        tree: Dicts, lists, tuples (read back as lists), tensors, numbers, strings, booleans and None; numbers of NumPy
            are read back as Python's.
        kind: What the tree is, checked on reading.

    Raises:
        StorageError: If a value cannot be stored, the file system refuses, or `folder/name.json` is a file of somebody
            else's.
    """
    tensors: dict[str, Tensor] = {}
    description = _describe(tree, tensors, name)
    folder = Path(folder)
    with turn(folder) as own:
        check_place(folder, name, kind=kind)
        try:
            _replace(own, name, kind, description, tensors)
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"Could not save to '{folder}': {error}. What was saved there before is as it was."
            ) from error


def _replace(own: Turn, name: str, kind: str, description: Any, tensors: dict[str, Tensor]) -> None:
    folder, path = own.folder, own.folder / f"{name}.json"
    weights = own.temporary()
    save_file(tensors, weights)
    digest = _digest(weights)
    target = folder / f"{name}-{digest[:16]}.safetensors"
    document = _document(kind, description, tensors={"file": target.name, "sha256": digest})
    index = own.temporary()
    index.write_text(json.dumps(document, indent=1, allow_nan=True))
    weights.chmod(index.stat().st_mode)  # safetensors leaves a file that nobody else may read
    for each in (weights, index):
        flush(each)
    own.claim(target)
    is_new = not target.exists()
    try:
        os.replace(weights, target)
        flush_names(folder)  # or the index might be there after a power failure, and the tensors not
        before = _named_by(path)
        os.replace(index, path)
    except BaseException:
        if is_new and target.name != _named_by(path):
            delete([target])
        raise
    flush_names(folder)
    delete(_unnamed(own, name, known={before, *own.made}))


def _unnamed(own: Turn, name: str, *, known: set[str | None]) -> Iterator[Path]:
    """Tensor files that the index does not name: those `known` to be ours, and what writers of ours have left."""
    named = _named_by(own.folder / f"{name}.json")
    for path in own.folder.iterdir():
        start = _start_of_digest(path.name, name)
        if start is None or path.name == named or own.needed_elsewhere(path):
            continue
        if path.name in known or (own.is_left_over(path) and _digest(path).startswith(start)):
            yield path


def _named_by(path: Path) -> str | None:
    """The file that an index names, whoever made it; None where there is no such index."""
    try:
        file = json.loads(path.read_text())["tensors"]["file"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return file if isinstance(file, str) else None


def _start_of_digest(file: str, name: str) -> str | None:
    """Of a tensor file, by the name that `save_tree` gives it; None if it has another one."""
    match = re.fullmatch(rf"{re.escape(name)}-([0-9a-f]{{16}})\.safetensors", file)
    return None if match is None else match[1]


def check_place(folder: str | Path, name: str, *, kind: str) -> None:
    """Raise StorageError if `save_tree` would have to replace a file that is none of ours."""
    path = Path(folder) / f"{name}.json"
    if not os.path.lexists(path):
        return
    try:
        document = json.loads(path.read_text())
        found = document["kind"] if {"schema_version", "content", "content_sha256"} <= document.keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        found = None
    if found != kind:
        held = "is damaged or none of ours" if found is None else f"holds a {found!r}"
        raise StorageError(
            f"Saving a {kind!r} would replace '{path}', which {held}. Move that file away, or take another folder."
        )


def check_storable(tree: Any, name: str) -> None:
    """Raise StorageError, by the path below `name`, if a tree holds what `save_tree` cannot store."""
    _describe(tree, {}, name)


def save_json(path: str | Path, content: Any, *, kind: str) -> None:
    """Write plain values to one JSON file, atomically; a former file of that name is replaced or kept whole.

    Args:
        path: Its folder is made where it does not exist.
        content: Dicts with string keys, lists, numbers, strings, booleans and None.
        kind: What it is, checked on reading.

    Raises:
        StorageError: If the file system refuses.
    """
    path = Path(path)
    with turn(path.parent) as own:
        try:
            written = own.temporary()
            written.write_text(json.dumps(_document(kind, content), indent=1, allow_nan=True))
            flush(written)
            os.replace(written, path)
        except OSError as error:
            raise StorageError(
                f"Could not save to '{path}': {error}. What was saved there before is as it was."
            ) from error
        flush_names(path.parent)


def load_json(path: str | Path, *, kind: str) -> Any:
    """What `save_json` wrote: `load_json(p, kind=k) == content`.

    Raises:
        StorageError: If the file is missing, truncated or altered, or is of another kind or schema version.
    """
    return _checked(Path(path), kind)["content"]


def load_tree(folder: str | Path, name: str, *, kind: str, device: str = "cpu") -> dict[str, Any]:
    """The tree that `save_tree` wrote: `load_tree(f, n, kind=k) == tree`, with tuples as lists.

    Raises:
        StorageError: If a file is missing, truncated or altered, or is of another kind or schema version.
    """
    path = Path(folder) / f"{name}.json"
    while True:
        version = _version(path)
        document = _checked(path, kind)
        try:
            return _tree(path, document, device)
        except StorageError:
            if _version(path) == version:
                raise
            # another state was saved meanwhile: the one that was asked for is gone, as if it had been asked for later


def _version(path: Path) -> tuple[int, int] | None:
    """Another one whenever the file has been replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _tree(path: Path, document: dict[str, Any], device: str) -> dict[str, Any]:
    """What an index and the tensor file that it names hold."""
    try:
        content, file, digest = document["content"], document["tensors"]["file"], document["tensors"]["sha256"]
    except (KeyError, TypeError) as error:
        raise StorageError(f"'{path}' is truncated, altered or not one of ours: {error!r}.") from error
    weights = path.parent / Path(str(file)).name
    try:
        if _digest(weights) != digest:
            raise StorageError(f"'{weights}' is truncated or was altered: its SHA-256 does not match '{path}'.")
        tensors = load_file(weights, device=device)
        tree: dict[str, Any] = _restore(content, tensors)
    except StorageError:
        raise
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError) as error:  # RuntimeError: gone in between
        raise StorageError(f"'{weights}' cannot be read: {error!r}.") from error
    return tree


def _document(kind: str, content: Any, **more: Any) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        **more,
        "content_sha256": _content_digest(content),
        "content": content,
    }


def _checked(path: Path, kind: str) -> dict[str, Any]:
    """The document in a JSON file that is one of ours, of this kind and version, and unaltered."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        version, found, content = document["schema_version"], document["kind"], document["content"]
        intact = version != SCHEMA_VERSION or document["content_sha256"] == _content_digest(content)
    except FileNotFoundError as error:
        raise StorageError(f"There is no '{path}'. Is '{path.parent}' a folder that `save` wrote to?") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"'{path}' is truncated, altered or not one of ours: {error!r}.") from error
    if found != kind:
        raise StorageError(f"'{path}' holds a {found!r}, but a {kind!r} was expected.")
    if version != SCHEMA_VERSION:
        raise StorageError(
            f"'{path}' has schema version {version!r}, but this release reads version {SCHEMA_VERSION}."
            " Load it with the release that wrote it."
        )
    if not intact:
        raise StorageError(f"'{path}' was altered: its content does not match its SHA-256.")
    return document


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content_digest(description: Any) -> str:
    return hashlib.sha256(json.dumps(description).encode()).hexdigest()


def _describe(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """The JSON form of a tree; tensors go to `tensors` under their path in the tree."""
    if isinstance(value, np.generic):
        value = plain(value)
    if isinstance(value, Tensor):
        while path in tensors:  # the keys "a/b" and "a" with "b" in it, or 0 and "0"
            path += "'"
        tensors[path] = value.detach().cpu().contiguous().clone()  # tied tensors must not share memory
        return {_TENSOR: path}
    if isinstance(value, Mapping):
        plainly = {plain(key): item for key, item in value.items()}
        for key in plainly:
            if not isinstance(key, (str, int)):
                raise StorageError(f"Cannot save '{path}': its key {key!r} is neither a string nor a whole number.")
        items = [[k, _describe(v, tensors, f"{path}/{k}")] for k, v in plainly.items()]
        return {_ITEMS: items}  # pairs, because keys may be integers and their order counts
    if isinstance(value, (list, tuple)):
        return [_describe(item, tensors, f"{path}/{i}") for i, item in enumerate(value)]
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise StorageError(f"Cannot save '{path}': {type(value).__name__} is neither a tensor nor a plain value.")


def _restore(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors[value[_TENSOR]]
        return {key: _restore(item, tensors) for key, item in value[_ITEMS]}
    if isinstance(value, list):
        return [_restore(item, tensors) for item in value]
    return value
