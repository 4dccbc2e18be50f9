"""Networks that cannot be served, or not as they are: errors and warnings name the module."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution
from small_problem import SPACE, data, fit, hypernet, loader, loss, metric, network, plain_network, validation
from torch import Tensor, nn

import hypertune_mip as ht

# Networks


class WithBatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5)
        self.norm = nn.BatchNorm1d(5)
        self.last = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).tanh())


ONLY_DECAY = ht.SearchSpace({"decay": FloatDistribution(1e-4, 1.0, log=True)})


def test_batch_norm_can_be_refused_by_name() -> None:
    with pytest.raises(ht.NetworkError, match=r"'norm' \(BatchNorm1d\).*mix all settings.*GroupNorm.*batch_norm="):
        ht.HyperNetwork(WithBatchNorm(), ONLY_DECAY, batch_norm="refuse")


def test_batch_norm_without_running_statistics_is_not_refused() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False))
    assert ht.HyperNetwork(network, ONLY_DECAY, batch_norm="refuse").batch_norms == ()


def test_batch_norm_uses_the_batch_and_materialises_with_a_warning_or_recalibrated() -> None:
    given = WithBatchNorm()
    net = hypernet(network=given, space=ONLY_DECAY)
    assert net.batch_norms == ("norm",)
    assert given.norm.running_mean is not None  # the user's network stays as it was
    full = loader(batch_size=20, shuffle=False)
    fitted = fit(net, metric=metric, val_loader=full, epochs=5)
    config = {"decay": 0.01}
    with pytest.warns(ht.HypertuneWarning, match=r"\['norm'\] use the statistics of the batch.*recalibrate=train_load"):
        plain = fitted.materialize(config).requires_grad_(False)
    x, y = data().tensors
    expected = fitted.evaluate(config)["error"]
    assert float((plain(x) - y).square().mean()) == pytest.approx(expected, rel=1e-5)
    assert not torch.allclose(plain(x[:4]), plain(x)[:4], rtol=1e-3)

    calibrated = fitted.materialize(config, recalibrate=full).requires_grad_(False)
    inside = calibrated.first(x)
    torch.testing.assert_close(calibrated.norm.running_mean, inside.mean(0))
    torch.testing.assert_close(calibrated.norm.running_var, inside.var(0))
    torch.testing.assert_close(calibrated(x[:4]), calibrated(x)[:4])


def test_an_embedding_with_max_norm_is_refused_by_name() -> None:
    with pytest.raises(ht.NetworkError, match=r"'0' \(Embedding\) with max_norm rewrites its weight.*Leave it out"):
        ht.HyperNetwork(nn.Sequential(nn.Embedding(4, 2, max_norm=1.0)), ONLY_DECAY)


def test_a_lazy_layer_is_refused_by_name() -> None:
    with pytest.raises(ht.NetworkError, match=r"'0' \(LazyLinear\) has no shape yet\. Run one forward pass"):
        ht.HyperNetwork(nn.Sequential(nn.LazyLinear(2)), ONLY_DECAY)


@pytest.mark.filterwarnings("ignore")  # of torch, about what it will drop
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(torch.jit.script(nn.Linear(3, 2))), r"Module '0' is TorchScript.*before torch\.jit"),
        (lambda: nn.utils.weight_norm(nn.Linear(3, 2)), r"cannot be copied.*parametrizations\.weight_norm"),
    ],
)
def test_a_network_that_cannot_be_served_at_all(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ht.NetworkError, match=message):
        ht.HyperNetwork(make(), SPACE)


@pytest.mark.parametrize(
    ("pattern", "shown"), [("encoder.*", r"'encoder\.\*'"), (nn.Conv2d, r"<class '.*Conv2d'>")], ids=["name", "type"]
)
def test_a_pattern_that_matches_nothing(pattern: Any, shown: str) -> None:
    with pytest.raises(
        ht.NetworkError, match=rf"{shown}, which matches no module or parameter; modules are \['0', '1'"
    ):
        hypernet(generate=[nn.Linear, pattern])


@pytest.mark.parametrize("case", ["no parameters", "frozen", "empty patterns"])
def test_nothing_to_generate(case: str) -> None:
    network = {"no parameters": nn.Sequential(nn.ReLU()), "frozen": plain_network().requires_grad_(False)}
    options = {"generate": []} if case == "empty patterns" else {}
    with pytest.raises(ht.NetworkError, match=r"Nothing of the primary network would be generated.*trainable"):
        ht.HyperNetwork(network.get(case, plain_network()), ONLY_DECAY, **options)


@pytest.mark.parametrize("head", [ht.RankOne(), ht.LowRank(), None])
def test_without_residual_only_a_dense_head_serves(head: ht.Head | None) -> None:
    kind = type(head or ht.RankOne()).__name__
    with pytest.raises(ht.NetworkError, match=rf"`residual=False`.*Dense\(\), but got head={kind}"):
        hypernet(head=head, residual=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "sine"}, r"`encoding` must be one of \('mip', 'none'\), but got 'sine'"),
        ({"mapping": "pmap"}, r"`mapping` must be one of \('auto', 'vmap', 'loop'\), but got 'pmap'"),
        ({"batch_norm": "keep"}, r"`batch_norm` must be one of .* but got 'keep'"),
    ],
)
def test_an_option_of_the_hypernetwork_that_is_none(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ht.NetworkError, match=message):
        hypernet(**options)


@pytest.mark.parametrize("trunk", [(), (8, 0)])
def test_a_trunk_without_width(trunk: tuple[int, ...]) -> None:
    with pytest.raises(ht.NetworkError, match=r"`trunk` must be a non-empty sequence.*but got \("):
        ht.HyperNetwork(plain_network(), ONLY_DECAY, trunk=trunk)


def test_a_head_that_cannot_be() -> None:
    with pytest.raises(ht.NetworkError, match="`rank` must be a whole number of at least 1, but got 0"):
        ht.LowRank(rank=0)
    with pytest.raises(ht.NetworkError, match=r"`initialization`.* but got 'ones'"):
        ht.Dense(initialization="ones")  # type: ignore[arg-type]


# Bound layers


@pytest.mark.parametrize(
    ("layer", "distribution", "message"),
    [
        (ht.nn.Dropout, FloatDistribution(0.0, 1.0), r"lie in \[0, 1\), but 'rate' ranges over \[0, 1\]"),
        (ht.nn.Dropout, FloatDistribution(-0.1, 0.5), r"'rate' ranges over \[-0\.1, 0\.5\]"),
        (ht.nn.GaussianNoise, FloatDistribution(-1.0, 1.0), r"not be negative, but 'rate' goes down to -1"),
        (
            ht.nn.Dropout,
            CategoricalDistribution([0.1, 0.5]),
            r"Layer '1' \(Dropout\) needs a number, but 'rate' is cat",
        ),
    ],
)
def test_a_layer_bound_to_values_it_cannot_run_at(layer: Any, distribution: Any, message: str) -> None:
    with pytest.raises(ht.SpaceError, match=message):
        ht.HyperNetwork(nn.Sequential(nn.Linear(3, 1), layer("rate")), ht.SearchSpace({"rate": distribution}))


def test_a_layer_with_a_fixed_value_it_cannot_run_at() -> None:
    with pytest.raises(ht.SpaceError, match=r"\[0, 1\), but 1\.5 ranges over"):
        ht.nn.Dropout(1.5)
    with pytest.raises(ht.SpaceError, match="not be negative"):
        ht.nn.GaussianNoise(-0.5)


def test_a_layer_bound_to_a_name_that_the_space_lacks() -> None:
    with pytest.raises(ht.SpaceError, match=r"Layer '2' \(Dropout\) reads 'dropout', but the space holds \['decay'\]"):
        hypernet(space=ONLY_DECAY)


def test_a_bound_layer_runs_in_a_hypernetwork_only() -> None:
    bound = network()
    with pytest.raises(ht.SpaceError, match=r"Dropout\('dropout'\) runs inside a hypernetwork only.*nn\.resolve"):
        bound(torch.ones(2, 3))
    plain = ht.nn.resolve(bound, {"dropout": 0.25})
    assert isinstance(plain[2], nn.Dropout) and plain[2].p == 0.25
    with pytest.raises(ht.SpaceError, match=r"Layer '2' reads 'dropout', but the config holds \['decay'\]"):
        ht.nn.resolve(bound, {"decay": 0.25})


def test_binding_what_is_not_there() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    with pytest.raises(ht.NetworkError, match=r"'encoder\.\*' matches no dropout .*dropout is \['1'\]"):
        ht.nn.bind(network, {"*": "dropout", "encoder.*": "dropout"})


# What vmap cannot serve


class LooksAtValues(nn.Module):
    """Branches on a number, which no map over settings can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y if y.mean().item() > 0 else y.tanh()


class BranchesOnTensors(LooksAtValues):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y if y.mean() > 0 else y.tanh()


class SelectsExamples(LooksAtValues):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y * y[y > -100].mean()


@pytest.mark.filterwarnings("ignore:The hypernetwork has collapsed")  # trained for an epoch or two
@pytest.mark.filterwarnings("ignore:The metric 'error' is no mean over examples")  # nor are these networks' outputs
@pytest.mark.parametrize("kind", [LooksAtValues, BranchesOnTensors, SelectsExamples])
def test_an_operation_that_vmap_cannot_serve_says_so_and_runs_in_a_loop(kind: type[LooksAtValues]) -> None:
    with pytest.raises(ht.NetworkError, match=rf'{kind.__name__}.* many settings at once.*mapping="loop"'):
        fit(hypernet(network=kind(), space=ONLY_DECAY, mapping="vmap"), settings_per_step=2, epochs=1)
    for mapping in ("loop", "auto"):
        net = hypernet(network=kind(), space=ONLY_DECAY, mapping=mapping)
        surrogate = fit(net, settings_per_step=2, epochs=1, **validation())
        assert math.isfinite(surrogate.evaluate({"decay": 0.1})["error"])


def test_an_error_of_the_users_own_passes_through() -> None:
    def broken(model: nn.Module, batch: Any, config: Any) -> Tensor:
        return loss(model, (batch[0].reshape(-1, 7), batch[1]), config)

    with pytest.raises(RuntimeError, match="is invalid for input of size") as info:
        fit(loss=broken)
    assert not isinstance(info.value, ht.NetworkError)


def test_a_network_that_failed_is_as_it_was() -> None:
    net = hypernet(network=LooksAtValues(), space=ONLY_DECAY, mapping="vmap")
    with pytest.raises(ht.NetworkError):
        fit(net, epochs=1)
    assert all(type(parameter) is nn.Parameter for parameter in net.network.parameters())
