"""Laws of storage, over random trees: what is loaded is what was saved."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hypertune_mip.storage import load_json, load_tree, save_json, save_tree

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool
)  # fmt: skip
SPECIAL = [0.0, -0.0, math.nan, math.inf, -math.inf, 1e300, 5e-324]
few = settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """0-d and empty ones, views and parameters included."""
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size, values = math.prod(shape), st.sampled_from([*SPECIAL, 1.5, -3.0])
    dtype = draw(st.sampled_from(DTYPES))
    whole = torch.tensor(draw(st.lists(values, min_size=size, max_size=size)), dtype=torch.float64).reshape(shape)
    tensor = (whole if dtype.is_floating_point else whole.nan_to_num(0.0, 1.0, -1.0).clamp(0, 100)).to(dtype)
    if draw(st.booleans()) and tensor.ndim > 1:
        tensor = tensor.transpose(0, 1)
    return tensor.requires_grad_() if dtype.is_floating_point and draw(st.booleans()) else tensor


numbers = st.one_of(st.integers(), st.sampled_from(SPECIAL), st.floats(), st.booleans(), st.none())
of_numpy = st.one_of(
    st.integers(-100, 100).map(np.int64),
    st.integers(0, 100).map(np.uint8),
    st.floats(width=32).map(np.float32),
    st.floats().map(np.float64),
    st.booleans().map(np.bool_),
)
words = st.text(max_size=6) | st.sampled_from(["__tensor__", "__items__", "a/b", "0", "", "weights'"])
leaves = st.one_of(numbers, of_numpy, words, tensors())
keys = words | st.integers(-2, 2)
trees = st.recursive(
    leaves, lambda part: st.lists(part, max_size=3) | st.dictionaries(keys, part, max_size=3), max_leaves=12
)


def assert_same(found: Any, saved: Any) -> None:
    """To the last bit, and of the same types, but for NumPy's numbers, which come back as Python's, and tuples."""
    if isinstance(saved, Tensor):
        assert isinstance(found, Tensor) and found.dtype == saved.dtype and found.shape == saved.shape
        assert bits(found) == bits(saved)
    elif isinstance(saved, Mapping):
        assert list(found) == list(saved) and [type(key) for key in found] == [type(key) for key in saved]
        for key, value in saved.items():
            assert_same(found[key], value)
    elif isinstance(saved, (list, tuple)):
        assert isinstance(found, list) and len(found) == len(saved)
        for pair in zip(found, saved, strict=True):
            assert_same(*pair)
    else:
        saved = saved.item() if isinstance(saved, np.generic) else saved
        assert type(found) is type(saved) and repr(found) == repr(saved)


def bits(tensor: Tensor) -> bytes:
    flat = tensor.detach().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


@few
@given(st.dictionaries(keys, trees, max_size=4))
def test_load_tree_gives_what_save_tree_was_given(tree: dict[Any, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_tree(folder, "tree", tree, kind="test")
        assert_same(load_tree(folder, "tree", kind="test"), tree)


@few
@given(st.lists(st.dictionaries(keys, trees, max_size=2), min_size=2, max_size=4))
def test_the_last_of_many_states_is_there_and_nothing_of_the_others(states: list[dict[Any, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as fresh:
        for tree in states:
            save_tree(folder, "tree", tree, kind="test")
        save_tree(fresh, "tree", states[-1], kind="test")
        assert contents(folder) == contents(fresh)


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


plain = st.recursive(
    st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=6)),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=6), part, max_size=3),
    max_leaves=8,
)


@few
@given(plain)
def test_load_json_gives_what_save_json_was_given(content: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_json(f"{folder}/some.json", content, kind="test")
        assert_same(load_json(f"{folder}/some.json", kind="test"), content)
