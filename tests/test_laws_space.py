"""Laws of search spaces and of the input encoding."""

from __future__ import annotations

import math

import pytest
import torch
from cases import SPACES, space
from optuna import create_study
from optuna.samplers import RandomSampler

import hypertune_mip as ht
from hypertune_mip.encoding import encode, encoded_size
from hypertune_mip.space import SobolStream

every_space = pytest.mark.parametrize("name", SPACES)


def optuna_configs(name: str, count: int = 30) -> list[dict]:
    study = create_study(sampler=RandomSampler(seed=1))
    return [study.ask(SPACES[name]).params for _ in range(count)]


def same(left: dict, right: dict) -> bool:
    return list(left) == list(right) and all(
        math.isclose(left[k], right[k], rel_tol=1e-9, abs_tol=1e-12)
        if isinstance(left[k], float)
        else left[k] == right[k]
        for k in left
    )


@every_space
def test_from_unit_of_to_unit_is_the_config(name: str) -> None:
    configs = optuna_configs(name)
    back = space(name).from_unit(space(name).to_unit(configs))
    assert all(same(left, right) for left, right in zip(configs, back, strict=True))
    assert [[type(v) for v in c.values()] for c in back] == [[type(v) for v in c.values()] for c in configs]


@every_space
def test_snap_is_to_unit_of_from_unit(name: str) -> None:
    this = space(name)
    units = torch.rand(50, len(this), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    snapped = this.snap(units)
    free = [dim.cells is None and dim.from_unit(0.0) != dim.from_unit(1.0) for dim in this.dimensions]
    torch.testing.assert_close(this.to_unit(this.from_unit(units))[:, free], units[:, free])
    torch.testing.assert_close(this.snap(snapped), snapped)
    assert this.from_unit(snapped) == this.from_unit(units)


@every_space
def test_decode_gives_the_values_of_from_unit(name: str) -> None:
    this = space(name)
    units = this.sample(40)
    decoded = this.decode(units)
    for dim in this.dimensions:
        choices = getattr(dim, "choices", None)
        for config, value in zip(this.from_unit(units), decoded[dim.name].tolist(), strict=True):
            if choices and not all(isinstance(c, (int, float)) for c in choices):
                assert choices[value] == config[dim.name]
            else:
                assert value == pytest.approx(float(config[dim.name]), rel=1e-6)


@every_space
def test_samples_are_inside_snapped_and_repeatable(name: str) -> None:
    this = space(name)
    units = this.sample(33, seed=4)
    this.check_units(units)
    assert units.shape == (33, len(this))
    torch.testing.assert_close(this.snap(units), units)
    assert torch.equal(units, this.sample(33, seed=4))
    for config in this.from_unit(units):
        assert all(SPACES[name][k]._contains(SPACES[name][k].to_internal_repr(v)) for k, v in config.items())


@every_space
def test_every_discrete_value_is_equally_likely(name: str) -> None:
    this = space(name)
    for column, dim in enumerate(this.dimensions):
        if dim.cells is None or type(dim).__name__ == "LogInteger":
            continue
        values = [str(dim.from_unit(u)) for u in this.sample(dim.cells * 128)[:, column].tolist()]
        counts = [values.count(v) for v in set(values)]
        assert len(counts) == dim.cells
        assert max(counts) - min(counts) <= 32


@every_space
def test_encoding_has_norm_one(name: str) -> None:
    this = space(name)
    units = torch.cat([this.sample(20), torch.zeros(1, len(this)), torch.ones(1, len(this))])
    encoded = encode(units, this.dimensions)
    assert encoded.shape == (22, encoded_size(this.dimensions, "mip"))
    torch.testing.assert_close(encoded.norm(dim=-1), torch.ones(22, dtype=units.dtype))


def test_encoding_tells_all_units_apart_and_none_is_the_identity() -> None:
    this = space("float")
    units = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    encoded = encode(units, this.dimensions)
    assert torch.pdist(encoded).min() > 0.01
    assert torch.equal(encode(units, this.dimensions, "none"), units)


@every_space
def test_json_gives_the_space_back(name: str) -> None:
    assert ht.SearchSpace.from_json(space(name).to_json()) == space(name)


def test_columns_follow_declaration_order() -> None:
    this = space("mixture")
    config = {"rate": 0.25, "count": 5, "kind": "r", "decay": 1e-3}  # another order
    torch.testing.assert_close(
        this.to_unit(config), torch.tensor([[0.5, 5 / 6, 0.5, 0.5]], dtype=torch.float64), rtol=1e-6, atol=1e-6
    )
    assert list(this.from_unit(this.to_unit(config))[0]) == ["decay", "kind", "count", "rate"]


def test_oversampled_endpoints() -> None:
    units = space("float").sample(1000, endpoints=0.2)
    for end in (0.0, 1.0):
        assert (units == end).double().mean().item() == pytest.approx(0.1, abs=0.01)


def test_a_stream_goes_on_at_any_position() -> None:
    whole = SobolStream(3, seed=5).draw(20)
    assert torch.equal(SobolStream(3, seed=5, position=13).draw(7), whole[13:])


def test_decode_passes_gradients_straight_through_rounding() -> None:
    units = torch.tensor([[0.31]], dtype=torch.float64, requires_grad=True)
    value = space("stepped int").decode(units)["a"]
    (slope,) = torch.autograd.grad(value.sum(), units)
    assert value.item() == 5.0
    assert slope.item() == pytest.approx(15.0)  # five cells of width 3
