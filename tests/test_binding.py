"""Dropout and other numbers of a network as hyperparameters: what is bound, and that each setting has its own."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

import hypertune_mip as ht
from hypertune_mip.functional import dropout

SPACE = ht.SearchSpace({"rate": FloatDistribution(0.0, 0.8)})
MAPPINGS = ("vmap", "loop")
MANY = 40_000


class ReadsTheRate(nn.Module):
    """Attention that reads the rate of a dropout layer instead of calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.drop = nn.Linear(8, 24), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=self.drop.p if self.training else 0.0)


class Causal(ReadsTheRate):
    """The same by positional arguments, each place seeing those before."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, None, self.drop.p if self.training else 0.0, True)


class ReadsANumber(nn.Module):
    """Keeps its rate as a number, as many transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.attention_dropout = nn.Linear(8, 8), 0.1

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.inner(x), self.attention_dropout, training=self.training)


class SelfAttention(nn.Module):
    """PyTorch's own attention, by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class DropPath(nn.Module):
    """Drops whole examples; its rate is not called dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drop_prob = nn.Linear(8, 8), 0.2

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = (torch.rand_like(x[:, :1, :1]) >= self.drop_prob) / (1 - self.drop_prob)
        return x + self.inner(x) * kept


class StableDropout(nn.Module):
    """A dropout layer of a user's own."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) >= self.p) if self.training else x


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)),
    "channels 1d": lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout1d(0.5)),
    "channels 2d": lambda: nn.Sequential(nn.Linear(8, 8), nn.Unflatten(2, (4, 2)), nn.Dropout2d(0.5)),
    "channels 3d": lambda: nn.Sequential(nn.Linear(8, 8), nn.Unflatten(2, (2, 2, 2)), nn.Dropout3d(0.5)),
    "alpha": lambda: nn.Sequential(nn.Linear(8, 8), nn.AlphaDropout(0.5)),
    "alpha, channels": lambda: nn.Sequential(nn.Linear(8, 8), nn.FeatureAlphaDropout(0.5)),
    "a rate that is read": ReadsTheRate,
    "a rate by its place": Causal,
    "a number": ReadsANumber,
    "attention": SelfAttention,
    "encoder": lambda: nn.TransformerEncoderLayer(8, 2, 8, dropout=0.5, batch_first=True),
    "a layer of one's own": lambda: nn.Sequential(nn.Linear(8, 8), StableDropout(0.5)),
}


def bound(name: str, mapping: Any) -> ht.HyperNetwork:
    network = NETWORKS[name]()
    return ht.HyperNetwork(ht.nn.bind(network, {"*": "rate"}), SPACE, mapping=mapping)


def output(model: nn.Module, batch: Any, config: Any) -> Any:
    return model(batch)


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_dropout_follows_the_setting(name: str, mapping: Any) -> None:
    hypernet, units = bound(name, mapping).train(), SPACE.to_unit([{"rate": 0.0}, {"rate": 0.7}])
    x = torch.randn(4, 5, 8)
    first, second = (hypernet(output, units, x, split=False) for _ in range(2))
    torch.testing.assert_close(first[0], second[0])
    assert not torch.allclose(first[1], second[1])
    first.square().mean().backward()
    torch.testing.assert_close(first[0], hypernet.eval()(output, units, x, split=False)[0], rtol=1e-4, atol=1e-5)
    still, again = (hypernet.eval()(output, units, x, split=False) for _ in range(2))
    torch.testing.assert_close(still, again)


@pytest.mark.parametrize("name", NETWORKS)
def test_resolved_it_is_the_network_at_that_rate(name: str) -> None:
    network = ht.nn.bind(NETWORKS[name](), {"*": "rate"})
    plain = ht.nn.resolve(pickle.loads(pickle.dumps(copy.deepcopy(network))), {"rate": 0.25})
    rates = [
        value
        for module in plain.modules()
        for attribute, value in vars(module).items()
        if attribute in ("p", "dropout", "attention_dropout")
    ]
    assert rates and set(rates) == {0.25}
    assert not any(isinstance(v, ht.nn.Hyperparameter) for m in plain.modules() for v in vars(m).values())
    plain.train()(torch.randn(4, 5, 8))


def test_bind_replaces_dropout_by_name_and_leaves_the_given_network_alone() -> None:
    network = nn.Sequential(nn.Dropout(0.1), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3)), nn.Dropout(0.5))
    made = ht.nn.bind(network, {"1.*": "inner", "0": "outer"})
    assert [type(network[0]), type(network[2])] == [nn.Dropout, nn.Dropout]
    assert made[0].hyperparameter == "outer"
    assert made[1][1].hyperparameter == "inner"
    assert type(made[2]) is nn.Dropout
    assert ht.nn.bind(nn.Dropout(), {"*": "rate"}).hyperparameter == "rate"


def test_a_pattern_that_matches_nothing_names_what_there_is() -> None:
    network = nn.Sequential(nn.Dropout(0.1), nn.LayerNorm(2), SelfAttention())
    with pytest.raises(ht.NetworkError, match=r"'1\.\*' matches no dropout .*\['0', '2.attention.dropout'\]"):
        ht.nn.bind(network, {"1.*": "rate"})


def test_a_pattern_that_comes_too_late_is_named() -> None:
    message = r"'attention' matches is bound by \['\*'\] already\. Put 'attention' first"
    with pytest.raises(ht.NetworkError, match=message):
        ht.nn.bind(SelfAttention(), {"*": "rate", "attention": "other"})


def test_what_is_bound_already_is_named() -> None:
    network = nn.Sequential(nn.Dropout(0.5), SelfAttention())
    with pytest.raises(ht.NetworkError, match=r"bound already is \['0', '1\.attention\.dropout'\]"):
        ht.nn.bind(ht.nn.bind(network, {"*": "rate"}), {"*": "rate"})


def test_a_layer_that_stands_in_two_places_is_bound_and_resolved_in_both() -> None:
    drop, inner = nn.Dropout(0.1), nn.Sequential(nn.Dropout(0.2))
    made = ht.nn.bind(nn.Sequential(drop, nn.Linear(2, 2), drop, inner, inner), {"*": "rate"})
    layers = [made[0], made[2], made[3][0], made[4][0]]
    assert [layer.hyperparameter for layer in layers] == ["rate"] * 4
    plain = ht.nn.resolve(made, {"rate": 0.4})
    assert [layer.p for layer in (plain[0], plain[2], plain[3][0], plain[4][0])] == [0.4] * 4


def test_what_is_left_at_its_own_rate_is_named() -> None:
    network = nn.Sequential(nn.Dropout(0.5), DropPath())
    with pytest.warns(ht.HypertuneWarning, match=r"1\.drop_prob = 0\.2.*\"\*\.drop_prob\""):
        ht.nn.bind(network, {"*": "rate"})
    ht.nn.bind(network, {"0": "rate"})  # the other one was not asked for


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_any_number_is_bound_by_its_name(mapping: Any) -> None:
    made = ht.nn.bind(nn.Sequential(DropPath()), {"*.drop_prob": "rate"})
    hypernet = ht.HyperNetwork(made, SPACE, mapping=mapping).train()
    units, x = SPACE.to_unit([{"rate": 0.0}, {"rate": 0.7}]), torch.randn(16, 5, 8)
    first, second = (hypernet(output, units, x, split=False) for _ in range(2))
    torch.testing.assert_close(first[0], second[0])
    assert not torch.allclose(first[1], second[1])
    slope = ht.nn.bind(nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(0.1)), {"*.negative_slope": "rate"})
    bent = ht.HyperNetwork(slope, SPACE, mapping="loop")
    expected = F.leaky_relu(slope[0](x), 0.7)
    torch.testing.assert_close(bent(output, units, x, split=False)[1], expected, rtol=1e-4, atol=1e-5)


def test_a_stand_in_is_no_number_outside_of_a_hypernetwork() -> None:
    attention = ht.nn.bind(SelfAttention(), {"*": "rate"})
    stand_in = attention.attention.dropout
    assert repr(stand_in) == "Hyperparameter('rate')"
    for use in (float, bool, lambda rate: rate > 0, lambda rate: 1 - rate):
        with pytest.raises(ht.SpaceError, match=r"'rate'.*resolve"):
            use(stand_in)
    with pytest.raises(ht.SpaceError, match="resolve"):
        _ = ht.nn.bind(ReadsTheRate(), {"*": "rate"}).drop.p
    hypernet = ht.HyperNetwork(attention, SPACE)
    hypernet(output, SPACE.sample(2), torch.randn(2, 5, 8), split=False)
    assert hypernet.network.attention.dropout is not stand_in
    assert isinstance(hypernet.network.attention.dropout, ht.nn.Hyperparameter)  # back in place


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_a_stand_in_is_back_after_an_error(mapping: Any) -> None:
    hypernet = ht.HyperNetwork(ht.nn.bind(ReadsANumber(), {"*": "rate"}), SPACE, mapping=mapping)

    def fails(model: nn.Module, batch: Any, config: Any) -> Any:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        hypernet(fails, SPACE.sample(2), torch.randn(2, 8), split=False)
    assert isinstance(hypernet.network.attention_dropout, ht.nn.Hyperparameter)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"other": FloatDistribution(0.0, 0.5)}, r"'attention_dropout' reads 'rate'"),
        ({"rate": FloatDistribution(0.0, 1.0)}, r"must lie in \[0, 1\)"),
    ],
)
def test_a_number_bound_to_what_it_cannot_have(space: Any, message: str) -> None:
    with pytest.raises(ht.SpaceError, match=message):
        ht.HyperNetwork(ht.nn.bind(ReadsANumber(), {"*": "rate"}), ht.SearchSpace(space))


def test_bindings_of_numbers_are_kept_with_a_surrogate(tmp_path: Any) -> None:
    network = ht.nn.bind(ReadsANumber(), {"*": "rate"})
    surrogate = ht.Surrogate(ht.HyperNetwork(network, SPACE))
    surrogate.save(tmp_path)
    ht.Surrogate.load(tmp_path, network)
    with pytest.raises(ht.StorageError, match=r"attention_dropout"):
        ht.Surrogate.load(tmp_path, ReadsANumber())


# The kinds of dropout themselves, beside PyTorch's.


KINDS: dict[str, tuple[Callable[[Tensor, Any], Tensor], Callable[[Tensor, float], Tensor], tuple[int, ...]]] = {
    "dropout": (dropout.dropout, lambda x, p: F.dropout(x, p), (MANY,)),
    "dropout1d": (
        lambda x, p: dropout.channel_dropout(x, p, lead=2),
        lambda x, p: F.dropout1d(x, p),
        (MANY // 8, 4, 3),
    ),
    "alpha": (dropout.alpha_dropout, lambda x, p: F.alpha_dropout(x, p, training=True), (MANY,)),
    "alpha, channels": (
        lambda x, p: dropout.alpha_dropout(x, p, lead=2),
        lambda x, p: F.feature_alpha_dropout(x, p, training=True),
        (MANY // 8, 4, 3),
    ),
}


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("name", KINDS)
def test_it_gives_the_two_values_that_pytorch_gives_as_often(name: str, rate: float) -> None:
    ours, theirs, shape = KINDS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mine, other = ours(torch.full(shape, 2.0), torch.tensor(rate)), theirs(torch.full(shape, 2.0), rate)
    values, counts = mine.unique(return_counts=True)
    expected, often = other.unique(return_counts=True)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(counts / mine.numel(), often / mine.numel(), atol=0.02)
    if len(shape) == 3:  # whole channels
        assert torch.equal(mine, mine[..., :1].expand_as(mine))
        assert bool((mine[..., 0].std(1) > 0).any()) == (rate > 0)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.7}, {"enable_gqa": True}])
@pytest.mark.parametrize("masked", [None, "bool", "float"])
def test_attention_without_dropped_weights_is_pytorchs(options: dict[str, Any], masked: str | None) -> None:
    q = torch.randn(2, 4, 5, 8)
    k, v = (torch.randn(2, 2 if "enable_gqa" in options else 4, 5, 8) for _ in range(2))
    mask = None
    if masked is not None and "is_causal" not in options:
        mask = torch.rand(2, 1, 5, 5) > 0.3 if masked == "bool" else torch.randn(2, 1, 5, 5)
        if masked == "bool":
            mask |= torch.eye(5, dtype=torch.bool)
    expected = F.scaled_dot_product_attention(q, k, v, mask, **options)
    torch.testing.assert_close(dropout.attention(q, k, v, mask, 0.0, **options), expected)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_a_query_that_may_attend_to_nothing_gets_zeros_and_no_bad_gradient(mapping: Any) -> None:
    class Masked(ReadsTheRate):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            mask = torch.ones(5, 5, dtype=torch.bool)
            mask[2] = False
            return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=self.drop.p if self.training else 0.0)

    hypernet = ht.HyperNetwork(ht.nn.bind(Masked(), {"*": "rate"}), SPACE, mapping=mapping).train()
    found = hypernet(output, SPACE.sample(2), torch.randn(4, 5, 8), split=False)
    assert not bool(found[:, :, 2].any()) and bool(torch.isfinite(found).all())
    found.sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in hypernet.parameters() if p.grad is not None)


def test_attention_takes_a_mask_or_is_causal() -> None:
    q = torch.randn(1, 1, 3, 4)
    with pytest.raises(RuntimeError, match="both"):
        dropout.attention(q, q, q, torch.ones(3, 3, dtype=torch.bool), 0.1, is_causal=True)


def test_large_numbers_of_half_length_do_not_overflow() -> None:
    q = torch.full((1, 1, 3, 64), 40.0, dtype=torch.float16)
    assert bool(torch.isfinite(dropout.attention(q, q, q)).all())


@pytest.mark.parametrize("rate", [0.002, 0.01])
def test_small_rates_are_kept_in_half_types(rate: float) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dropped = (dropout.dropout(torch.ones(10 * MANY, dtype=torch.bfloat16), torch.tensor(rate)) == 0).float().mean()
    assert float(dropped) == pytest.approx(rate, rel=0.15)


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("functional", [False, True])
def test_dropout_in_place_changes_activations_and_leaves_data(functional: bool, mapping: Any) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.drop, self.dropout = nn.Linear(8, 8), nn.Dropout(0.5, inplace=True), 0.5

        def forward(self, x: Tensor) -> Tensor:
            h = self.inner(x)
            if functional:
                F.dropout(h, self.dropout, self.training, True)
            else:
                self.drop(h)  # its result is not looked at
            return h

    hypernet = ht.HyperNetwork(ht.nn.bind(InPlace(), {"*": "rate"}), SPACE, mapping=mapping).train()
    assert hypernet.network.drop.inplace
    x = torch.randn(64, 8)
    found = hypernet(output, SPACE.to_unit([{"rate": 0.0}, {"rate": 0.8}]), x, split=False)
    share = (found == 0).float().mean((1, 2))
    assert float(share[0]) == 0 and float(share[1]) == pytest.approx(0.8, abs=0.1)
    found.sum().backward()
    first = nn.Sequential(ht.nn.Dropout("rate", inplace=True), nn.Linear(8, 1))
    on_data = ht.HyperNetwork(first, SPACE, mapping=mapping)
    before = x.clone()
    on_data.train()(output, SPACE.sample(3), x, split=False)
    assert torch.equal(x, before)


def test_what_is_no_rate_is_left_though_its_name_says_dropout() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout_samples, self.dropout_every, self.dropout_rate = 5, 2.0, np.float32(0.25)

    bound = ht.nn.bind(Counts(), {"*": "rate"})
    assert (bound.dropout_samples, bound.dropout_every) == (5, 2.0)
    assert repr(bound.dropout_rate) == "Hyperparameter('rate')"


def test_a_number_at_two_places_is_bound_by_the_first_pattern() -> None:
    shared = ReadsANumber()
    bound = ht.nn.bind(nn.ModuleDict({"a": shared, "b": shared}), {"a": "first", "*": "second"})
    assert bound["b"].attention_dropout.name == "first"


@pytest.mark.parametrize("mapping", ["auto", "loop"])
def test_a_rate_that_is_rounded_or_asked_for_its_type_is_served(mapping: Any) -> None:
    class Rounds(ReadsANumber):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.inner(x), round(self.attention_dropout, 2), training=self.training)

    hypernet = ht.HyperNetwork(ht.nn.bind(Rounds(), {"*": "rate"}), SPACE, mapping=mapping).train()
    assert hypernet(output, SPACE.sample(2), torch.randn(4, 8), split=False).shape == (2, 4, 8)


def test_attention_drops_weights() -> None:
    q = torch.zeros(1, 1, 2000, 4)
    values = torch.ones(1, 1, 2000, 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sums = dropout.attention(q, q, values, rate=torch.tensor(0.5))
    assert float(sums.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(sums.std()) == pytest.approx((1 / 2000) ** 0.5, rel=0.1)


def test_dropout_keeps_the_type_of_activations() -> None:
    x = torch.ones(8, dtype=torch.bfloat16)
    for kind in (dropout.dropout, dropout.alpha_dropout):
        assert kind(x, torch.tensor(0.5)).dtype == torch.bfloat16
