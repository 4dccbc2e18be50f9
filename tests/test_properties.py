"""Laws over generated inputs, where a table of cases would stand for a range."""

from __future__ import annotations

import math
from collections import OrderedDict, UserDict, deque
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from torch import Tensor
from torch.func import vmap

import hypertune_mip as ht
from hypertune_mip.encoding import encode
from hypertune_mip.evaluation.data import batch_size
from hypertune_mip.training.options import Options
from hypertune_mip.training.step import settings_of_a_step, split_batch
from hypertune_mip.trees import leaves, mapped, structure, tensors_of, with_tensors

several = settings(max_examples=60, deadline=None, derandomize=True)
units = st.floats(0.0, 1.0)


# Spaces


@st.composite
def floats(draw: Any) -> FloatDistribution:
    log = draw(st.booleans())
    low = 10 ** draw(st.floats(-8, 3)) if log else draw(st.floats(-1e3, 1e3))
    high = low * 10 ** draw(st.floats(0, 8)) if log else low + 10 ** draw(st.floats(-3, 3))
    if not log and draw(st.booleans()):
        step, first, count = (
            draw(st.sampled_from([0.01, 0.1, 0.25, 2.0])),
            draw(st.integers(-9, 9)),
            draw(st.integers(1, 9)),
        )
        return FloatDistribution(round(first * step, 9), round((first + count) * step, 9), step=step)
    return FloatDistribution(low, high, log=log)


@st.composite
def integers(draw: Any) -> IntDistribution:
    if draw(st.booleans()):
        low = draw(st.integers(1, 50))
        return IntDistribution(low, low + draw(st.integers(0, 1000)), log=True)
    low, step = draw(st.integers(-100, 100)), draw(st.integers(1, 7))
    return IntDistribution(low, low + step * draw(st.integers(0, 40)), step=step)


choices = st.lists(st.one_of(st.text(max_size=3), st.integers(-9, 9)), min_size=1, max_size=5, unique=True).map(
    lambda values: CategoricalDistribution(values)
)
distributions: st.SearchStrategy[BaseDistribution] = st.one_of(floats(), integers(), choices)
spaces = st.lists(distributions, min_size=1, max_size=4).map(
    lambda each: ht.SearchSpace({f"h{i}": distribution for i, distribution in enumerate(each)})
)


@several
@given(space=spaces, data=st.data())
def test_configs_come_back_from_units(space: ht.SearchSpace, data: st.DataObject) -> None:
    """`space.from_unit(space.to_unit(configs)) == configs`, for floats up to rounding."""
    drawn = torch.tensor([[data.draw(units) for _ in space] for _ in range(3)], dtype=torch.float64)
    configs = space.from_unit(drawn)
    again = space.from_unit(space.to_unit(configs))
    for config, same in zip(configs, again, strict=True):
        for name, value in config.items():
            if isinstance(value, float):
                assert same[name] == pytest.approx(value, rel=1e-9, abs=1e-9)
                low, high = space[name].low, space[name].high  # type: ignore[attr-defined]
                assert low <= value <= high
            else:
                assert same[name] == value and type(same[name]) is type(value)
            assert space[name]._contains(space[name].to_internal_repr(value))


@several
@given(space=spaces, data=st.data())
def test_decoded_values_are_those_of_the_configs(space: ht.SearchSpace, data: st.DataObject) -> None:
    drawn = torch.tensor([[data.draw(units) for _ in space]], dtype=torch.float64)
    (config,), decoded = space.from_unit(drawn), space.decode(drawn)
    for name, value in config.items():
        distribution = space[name]
        if isinstance(distribution, CategoricalDistribution):
            numbers = all(isinstance(c, (int, float)) and not isinstance(c, bool) for c in distribution.choices)
            value = value if numbers else distribution.choices.index(value)
        assert decoded[name].item() == pytest.approx(value, rel=1e-9, abs=1e-9)


@several
@given(space=spaces, data=st.data())
def test_the_encodings_norm_does_not_depend_on_the_unit(space: ht.SearchSpace, data: st.DataObject) -> None:
    drawn = torch.tensor([[data.draw(units) for _ in space] for _ in range(2)], dtype=torch.float64)
    norms = encode(drawn, space.dimensions, "mip").norm(dim=1)
    assert norms.tolist() == pytest.approx([1.0, 1.0])


@several
@given(space=spaces)
def test_a_space_comes_back_from_json(space: ht.SearchSpace) -> None:
    """`SearchSpace.from_json(space.to_json()) == space`."""
    again = ht.SearchSpace.from_json(space.to_json())
    assert again == space and hash(again) == hash(space)


# Losses


@several
@given(data=st.data())
def test_cross_entropy_is_pytorchs(data: st.DataObject) -> None:
    """With further dimensions, labels to ignore, weights, smoothing, probabilities; plain and under vmap."""
    classes, examples = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 4))
    rest = data.draw(st.lists(st.integers(1, 3), max_size=2))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    logits = 3 * torch.randn(examples, classes, *rest, generator=generator, dtype=torch.float64)
    weight = torch.rand(classes, generator=generator, dtype=torch.float64) + 0.1 if data.draw(st.booleans()) else None
    smoothing = data.draw(units)
    options: dict[str, Any] = {"weight": weight}
    if data.draw(st.booleans()):
        target = torch.rand(examples, classes, *rest, generator=generator, dtype=torch.float64).softmax(1)
    else:
        target = torch.randint(classes, (examples, *rest), generator=generator)
        options["ignore_index"] = data.draw(st.sampled_from([-100, 255, 0]))
        if options["ignore_index"] != 0 and data.draw(st.booleans()):
            target.flatten()[0] = options["ignore_index"]
    expected = F.cross_entropy(logits, target, label_smoothing=smoothing, **options)
    rates = torch.tensor([smoothing], dtype=torch.float64)
    plain = ht.losses.cross_entropy(logits, target, label_smoothing=rates[0], **options)
    (each,) = vmap(lambda s: ht.losses.cross_entropy(logits, target, label_smoothing=s, **options))(rates)
    torch.testing.assert_close(plain, expected, equal_nan=True)
    torch.testing.assert_close(each, expected, equal_nan=True)


# Batches


@st.composite
def trees(draw: Any, examples: int, *, plain: bool) -> Any:
    """Of tensors with so many examples, and of other leaves unless `plain`."""
    tensor = st.integers(0, 2).map(lambda more: torch.arange(examples * 2**more).reshape(examples, *(2,) * more))
    other = st.one_of(st.none(), st.floats(allow_nan=False), *([] if plain else [st.text(max_size=2)]))
    inner = st.one_of(tensor, tensor, other)

    def containers(children: Any) -> Any:
        named = st.dictionaries(st.text(max_size=2), children, max_size=3)
        many = st.lists(children, max_size=3)
        return st.one_of(named, named.map(UserDict), named.map(OrderedDict), many, many.map(tuple), many.map(deque))

    found = draw(st.recursive(inner, containers, max_leaves=8))
    return (found, draw(tensor))


@several
@given(data=st.data(), examples=st.integers(1, 9))
def test_trees_keep_their_containers(data: st.DataObject, examples: int) -> None:
    tree = data.draw(trees(examples, plain=False))
    shifted = mapped(lambda leaf: leaf + 1 if isinstance(leaf, Tensor) else leaf, tree)
    assert structure(shifted) == structure(tree)
    for before, after in zip(leaves(tree), leaves(shifted), strict=True):
        assert torch.equal(after, before + 1) if isinstance(before, Tensor) else after is before
    back = with_tensors(shifted, tensors_of(tree))
    assert all(a is b for a, b in zip(leaves(back), leaves(tree), strict=True))
    assert batch_size(tree) == examples


@several
@given(data=st.data(), examples=st.integers(1, 24), count=st.integers(1, 24))
def test_parts_of_a_batch_hold_its_examples_once(data: st.DataObject, examples: int, count: int) -> None:
    batch = data.draw(trees(examples, plain=True))
    if examples < count:
        with pytest.raises(ht.DataError, match="cannot be split"):
            split_batch(batch, count)
        return
    for whole, part in zip(tensors_of(batch), tensors_of(split_batch(batch, count)), strict=True):
        assert part.shape[:2] == (count, examples // count)
        assert torch.equal(part.flatten(0, 1), whole[: count * (examples // count)])


@several
@given(
    size=st.integers(2, 64),
    more=st.integers(0, 64),
    settings_per_step=st.one_of(st.just("auto"), st.integers(1, 32)),
    least=st.integers(1, 2),
)
def test_a_short_batch_is_divided_among_as_many_as_it_serves(
    size: int, more: int, settings_per_step: Any, least: int
) -> None:
    options = Options(settings_per_step=settings_per_step, batching="split")
    largest = size + more
    whole, split = settings_of_a_step(largest, largest, options, small=False, least=least)
    count, _ = settings_of_a_step(size, largest, options, small=False, least=least)
    assert split and 1 <= count <= whole
    if more:
        assert size // count >= least
        assert count == whole or (count + 1) * least > size  # as many as there can be
    if settings_per_step == "auto":
        assert whole <= max(1, math.isqrt(largest))
