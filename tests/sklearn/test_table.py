"""From tables to what a network reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn import config_context

import hypertune_mip as ht
from hypertune_mip_sklearn.table import Batches, bent, is_frame, make_encoder, stacked

FRAME = pd.DataFrame(
    {
        "size": [1.0, 2.0, np.nan, 4.0, 100.0],
        "color": ["red", "blue", "red", None, "blue"],
        "good": [True, False, True, True, False],
        "count": [1, 2, 3, 4, 5],
        "same": [7.0] * 5,
    }
)


def test_columns_are_standardised_imputed_bent_and_one_hot() -> None:
    columns = make_encoder(FRAME).fit(FRAME).transform(FRAME)
    sizes = np.array([1.0, 2.0, 3.0, 4.0, 100.0])  # the median where one is missing
    np.testing.assert_allclose(columns[:, 0], bent((sizes - sizes.mean()) / sizes.std()))
    np.testing.assert_array_equal(columns[:, 2], np.zeros(5))  # a constant says nothing
    assert columns.shape == (5, 3 + 1 + 3 + 2)  # numbers, one indicator, colors with the missing one, both truths
    assert np.isfinite(columns).all()
    np.testing.assert_array_equal(columns[:, 4:7].sum(1), np.ones(5))


def test_pandas_and_polars_are_the_same_to_it() -> None:
    other = pl.from_pandas(FRAME)
    assert is_frame(FRAME)
    assert is_frame(other)
    assert not is_frame(FRAME.to_numpy())
    np.testing.assert_array_equal(
        make_encoder(other).fit(other).transform(other), make_encoder(FRAME).fit(FRAME).transform(FRAME)
    )


def test_what_training_has_not_seen() -> None:
    encoder = make_encoder(FRAME).fit(FRAME)
    unknown = encoder.transform(FRAME.assign(color="green", size=-1e300))
    assert np.isfinite(unknown).all()
    assert unknown[:, 0].min() > -8.01
    np.testing.assert_array_equal(unknown[:, 4:7], np.zeros((5, 3)))


def test_rare_categories_share_a_column() -> None:
    frame = pd.DataFrame({"name": [f"name {i}" for i in range(100)] + ["often"] * 50})
    assert make_encoder(frame).fit(frame).transform(frame).shape == (150, 30)


def test_an_unseen_category_is_a_rare_one_where_there_are_any() -> None:
    frame = pd.DataFrame({"name": [f"name {i}" for i in range(100)] + ["often"] * 50})
    encoder = make_encoder(frame).fit(frame)
    unseen = pd.DataFrame({"name": ["another"]})
    rare = encoder.transform(frame).astype(bool) & encoder.transform(unseen).astype(bool)
    assert rare[:100].any()
    assert not rare[100:].any()


def test_names_that_are_numbers_are_names() -> None:
    frame = pd.DataFrame({1: [True, False, True], 0: [0.5, 1.5, 2.5], 7: ["a", "b", "a"]})
    columns = make_encoder(frame).fit(frame).transform(frame)
    assert columns.shape == (3, 1 + 2 + 2)


@pytest.mark.parametrize("kind", ["string", "object", "category"])
def test_missing_text_of_any_type(kind: str) -> None:
    frame = pd.DataFrame({"kind": pd.array(["a", None, "b"], dtype=kind)})
    np.testing.assert_array_equal(make_encoder(frame).fit(frame).transform(frame), [[1, 0, 0], [0, 0, 1], [0, 1, 0]])


def test_the_global_output_makes_no_difference() -> None:
    with config_context(transform_output="pandas"):
        columns = make_encoder(FRAME).fit(FRAME).transform(FRAME)
    assert isinstance(columns, np.ndarray)


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame])
def test_stacked(kind: Any) -> None:
    parts = [kind({"a": [1, 2]}), kind({"a": [3]})]
    assert np.asarray(stacked(*parts)).ravel().tolist() == [1, 2, 3]
    assert type(stacked(*parts)) is kind


def test_a_column_of_dates_is_refused_by_name() -> None:
    with pytest.raises(ht.DataError, match="'when' holds Datetime"):
        make_encoder(FRAME.assign(when=pd.Timestamp("2020-01-01")))


@pytest.mark.parametrize(("rows", "size"), [(10, 3), (9, 4), (7, 7), (100, 32), (5, 1)])
def test_batches_hold_each_row_once(rows: int, size: int) -> None:
    batches = Batches({"x": torch.arange(rows), "y": -torch.arange(rows)}, size, shuffle=True)
    epochs = [list(batches) for _ in range(2)]
    for epoch in epochs:
        assert len(epoch) == len(batches)
        sizes = [len(batch["x"]) for batch in epoch]
        assert max(sizes) <= size
        assert max(sizes) - min(sizes) <= 1
        assert sorted(torch.cat([batch["x"] for batch in epoch]).tolist()) == list(range(rows))
        assert all(torch.equal(batch["x"], -batch["y"]) for batch in epoch)
    if rows > size > 1:
        assert not all(torch.equal(a["x"], b["x"]) for a, b in zip(*epochs, strict=True))
