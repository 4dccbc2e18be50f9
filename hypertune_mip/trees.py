"""Trees of tensors, in whatever containers a loader puts them: what batches are.

Containers are mappings, lists, tuples, deques and dataclasses, of any class; everything else is a leaf. Why not
`torch.utils._pytree`: it takes a mapping that is no dict, such as a tokenizer's batch, for a leaf.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from hypertune_mip.errors import DataError


def leaves(tree: Any) -> Iterator[Any]:
    """The leaves of a tree, in order."""
    children = _children(tree)
    if children is None:
        yield tree
    else:
        for child in children:
            yield from leaves(child)


def tensors_of(tree: Any) -> list[Tensor]:
    """The leaves that are tensors, in order."""
    return [leaf for leaf in leaves(tree) if isinstance(leaf, Tensor)]


def hidden_tensors(tree: Any) -> list[str]:
    """Names of attributes of containers that hold tensors beside their contents, which no function here sees."""
    children = _children(tree)
    if children is None:
        return []
    known = {field.name for field in dataclasses.fields(tree)} if dataclasses.is_dataclass(tree) else {"data"}
    beside = {name: value for name, value in getattr(tree, "__dict__", {}).items() if name not in known}
    if not dataclasses.is_dataclass(tree) and not isinstance(tree, (dict, UserDict, list, tuple, deque)):
        beside = {}  # a mapping or sequence that keeps its contents in attributes
    own = [f"{type(tree).__name__}.{name}" for name, value in beside.items() if tensors_of(value)]
    return own + [name for child in children for name in hidden_tensors(child)]


def structure(tree: Any) -> Any:
    """What tells containers and their names apart, as a value that can be compared; leaves do not count."""
    children = _children(tree)
    if children is None:
        return None
    names = tuple(tree) if isinstance(tree, Mapping) else None
    return type(tree), names, tuple(structure(child) for child in children)


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """A tree of the same containers with `function` of each leaf; one where nothing changes is given back itself.

    Raises:
        DataError: If a container is of a class that can be made neither from its items nor by a copy.
    """
    children = _children(tree)
    if children is None:
        return function(tree)
    made = [mapped(function, child) for child in children]
    same = len(made) == len(children) and all(a is b for a, b in zip(made, children, strict=True))
    return tree if same else _with(tree, made)


def with_tensors(tree: Any, tensors: Sequence[Tensor]) -> Any:
    """The tree with other tensors: `with_tensors(tree, tensors_of(tree))` is `tree`."""
    rest = iter(tensors)
    return mapped(lambda leaf: next(rest) if isinstance(leaf, Tensor) else leaf, tree)


def _children(tree: Any) -> list[Any] | None:
    """What a container holds, in order; None of a leaf."""
    if isinstance(tree, Mapping):
        return list(tree.values())
    if isinstance(tree, (list, tuple, deque)) and not isinstance(tree, PackedSequence):  # which moves as a whole
        return list(tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [getattr(tree, field.name) for field in dataclasses.fields(tree)]
    return None


def _with(tree: Any, children: list[Any]) -> Any:
    """A container as `tree` with other contents."""
    kind = type(tree)
    try:
        if isinstance(tree, (dict, UserDict)):
            made = copy.copy(tree)
            made.update(zip(tree, children, strict=True))
        elif isinstance(tree, Mapping):
            made = kind(dict(zip(tree, children, strict=True)))
        elif isinstance(tree, deque):
            made = kind(children, tree.maxlen)
        elif isinstance(tree, (list, tuple)):
            made = kind(*children) if hasattr(tree, "_fields") else kind(children)
        else:
            made = copy.copy(tree)
            for field, child in zip(dataclasses.fields(tree), children, strict=True):
                object.__setattr__(made, field.name, child)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"A batch holds a {kind.__name__}, which cannot be made anew with other tensors: {error}. Pass tensors in"
            " dicts, lists, tuples or dataclasses."
        ) from error
    return made
