"""Trees of tensors and plain values in a folder: safetensors for the tensors, JSON for the rest, no pickle.

The JSON file names the tensor file and its SHA-256 and is replaced last, in one step, so a folder holds either the old
state or the new one whatever happens in between (a crash, a full disk). It holds the SHA-256 of its own content, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hypertune_mip.errors import StorageError

SCHEMA_VERSION = 1
_TENSOR = "__tensor__"
_ITEMS = "__items__"


def save_tree(folder: str | Path, name: str, tree: Mapping[str, Any], *, kind: str) -> None:
    """Write a tree to `folder/name.json` and a tensor file beside it, atomically.

    Args:
        folder: Made where it does not exist.
        name: Stem of the JSON file; a former state of that name is replaced, and kept whole if writing fails.
        tree: Dicts, lists, tuples (read back as lists), tensors, numbers, strings, booleans and None.
        kind: What the tree is, checked on reading.

    Raises:
        StorageError: If a value cannot be stored, or the file system refuses.
    """
    tensors: dict[str, Tensor] = {}
    description = _describe(tree, tensors, name)
    folder = Path(folder)
    temporary: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        weights = _temporary(folder, temporary)
        save_file(tensors, weights)
        digest = _digest(weights)
        target = folder / f"{name}-{digest[:16]}.safetensors"
        document = _document(kind, description, tensors={"file": target.name, "sha256": digest})
        index = _temporary(folder, temporary)
        index.write_text(json.dumps(document, indent=1, allow_nan=True))
        weights.chmod(index.stat().st_mode)  # safetensors leaves a file that nobody else may read
        for path in (weights, index):
            _flush(path)
        if not target.exists():
            temporary.append(target)  # until the index names it
        os.replace(weights, target)
        os.replace(index, folder / f"{name}.json")
        temporary.clear()
        _flush(folder)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"Could not save to '{folder}': {error}. What was saved there before is as it was."
        ) from error
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
    for old in folder.glob(f"{name}-*.safetensors"):
        if old != target:
            old.unlink(missing_ok=True)


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
    temporary: list[Path] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = _temporary(path.parent, temporary)
        written.write_text(json.dumps(_document(kind, content), indent=1, allow_nan=True))
        _flush(written)
        os.replace(written, path)
        temporary.clear()
        _flush(path.parent)
    except OSError as error:
        raise StorageError(f"Could not save to '{path}': {error}. What was saved there before is as it was.") from error
    finally:
        for left in temporary:
            left.unlink(missing_ok=True)


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
    document = _checked(path, kind)
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
    except (OSError, SafetensorError, KeyError, TypeError) as error:
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


def _temporary(folder: Path, made: list[Path]) -> Path:
    path = folder / f".writing-{uuid.uuid4().hex}"
    path.touch(exist_ok=False)  # not by `tempfile`, whose files nobody else may read
    made.append(path)
    return path


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content_digest(description: Any) -> str:
    return hashlib.sha256(json.dumps(description).encode()).hexdigest()


def _describe(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """The JSON form of a tree; tensors go to `tensors` under their path in the tree."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()  # tied tensors must not share memory
        return {_TENSOR: path}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, (str, int)):
                raise StorageError(f"Cannot save '{path}': its key {key!r} is neither a string nor a whole number.")
        items = [[k, _describe(v, tensors, f"{path}/{k}")] for k, v in value.items()]
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
