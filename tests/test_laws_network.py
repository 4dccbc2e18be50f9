"""Laws of heads, structured weights and the hypernetwork, over every primary network and head."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from cases import HEADS, NETWORKS, TOLERANCE, hypernet, output, space
from optuna.distributions import FloatDistribution
from torch import nn
from torch.func import functional_call

import hypertune_mip as ht
from hypertune_mip.functional import StructuredWeight

every_network = pytest.mark.parametrize("network", NETWORKS)
every_head = pytest.mark.parametrize("head", HEADS)
pytestmark = pytest.mark.filterwarnings(  # torch maps these by a loop
    "ignore:There is a performance drop .* aten..(_weight_norm|bilinear|embedding_bag|_embedding_bag):UserWarning"
)


def close(left: torch.Tensor, right: torch.Tensor) -> None:
    tolerance = TOLERANCE[left.dtype]
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


@every_network
@every_head
def test_mapped_is_the_explicit_loop(network: str, head: str) -> None:
    """Values and gradients, with the same data for every setting and with a part for each."""
    mapped, looped = hypernet(network, head), hypernet(network, head, mapping="loop")
    units = space().sample(3)
    for split in (False, True):
        data = NETWORKS[network].input(*((3,) if split else ()))
        results = [h(output, units, data, split=split) for h in (mapped, looped)]
        close(*results)
        for h, result in zip((mapped, looped), results, strict=True):
            h.zero_grad()
            result.square().mean().backward()
        for left, right in zip(mapped.parameters(), looped.parameters(), strict=True):
            assert (left.grad is None) == (right.grad is None)
            if left.grad is not None:
                close(left.grad, right.grad)


@every_network
def test_the_map_serves_what_it_is_said_to_serve(network: str) -> None:
    this = hypernet(network, "rank one", mapping="vmap").train()
    units, data = space().sample(2), NETWORKS[network].input()
    if NETWORKS[network].vmap:
        this(output, units, data, split=False)
    else:
        with pytest.raises(ht.NetworkError, match="loop"):
            this(output, units, data, split=False)


@every_network
@every_head
def test_factored_is_weight_space(network: str, head: str) -> None:
    """A network that never forms its weights gives what the formed weights give."""
    this, units, data = hypernet(network, head), space().sample(3), NETWORKS[network].input()
    formed = this.effective(units)
    assert list(formed) == [*this.generated, *(n for n in formed if n not in this.generated)]
    results = this(output, units, data, split=False)
    for index, result in enumerate(results):
        close(result, functional_call(this.network, {n: t[index] for n, t in formed.items()}, (data,)))


@every_network
@every_head
def test_materialized_is_functional(network: str, head: str) -> None:
    this, data = hypernet(network, head), NETWORKS[network].input()
    config = space().from_unit(space().sample(2))[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ht.HypertuneWarning)  # batch norm says that it uses batch statistics
        plain = ht.Surrogate(this).materialize(config)
    assert not any(isinstance(p, StructuredWeight) for p in plain.parameters())
    close(plain(data), this(output, space().to_unit(config), data, split=False)[0])


@every_network
@every_head
def test_settings_differ(network: str, head: str) -> None:
    """Nothing is ignored without a word: whatever is trainable is generated and changes, and so does the output."""
    this, units = hypernet(network, head), space().sample(2)
    assert this.generated == tuple(n for n, p in this.given.named_parameters() if p.requires_grad)
    formed = this.effective(units)
    for name in this.generated:
        assert not torch.equal(formed[name][0], formed[name][1]), name
    left, right = this(output, units, NETWORKS[network].input(), split=False)
    assert not torch.allclose(left, right)


@every_network
@every_head
def test_a_head_at_zero_is_the_network_of_theta_0(network: str, head: str) -> None:
    """So a pretrained network starts as it is, under every head."""
    given = NETWORKS[network].network().eval()
    this = ht.HyperNetwork(given, space(), head=type(HEADS[head])()).eval()
    results = this(output, space().sample(2), NETWORKS[network].input(), split=False)
    expected = this.network(NETWORKS[network].input())  # batch norm has dropped its running statistics here
    close(results, torch.stack([expected, expected]))
    for name, parameter in given.named_parameters():
        assert torch.equal(parameter, this.network.get_parameter(name))


@every_network
@every_head
def test_penalties_are_those_of_formed_weights(network: str, head: str) -> None:
    """Of all that is trained."""
    this, units = hypernet(network, head), space().sample(3)
    got = this(lambda m, b, c: (ht.losses.l2(m), ht.losses.l1(m)), units, (), split=False)
    formed = [t for name, t in this.effective(units).items() if this.network.get_parameter(name).requires_grad]
    close(got[0], sum(t.flatten(1).square().sum(1) for t in formed))
    close(got[1], sum(t.flatten(1).abs().sum(1) for t in formed))


@every_network
def test_the_network_is_as_it_was_after_an_error(network: str) -> None:
    this = hypernet(network, "rank one")
    before = [id(p) for p in this.network.parameters()]

    def fails(model: nn.Module, batch: object, config: object) -> None:
        raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"):
        this(fails, space().sample(2), (), split=False)
    assert [id(p) for p in this.network.parameters()] == before
    assert all(type(p) is nn.Parameter for p in this.network.parameters())


@every_network
@every_head
def test_pickled_and_copied_it_is_the_same(network: str, head: str) -> None:
    this, units, data = hypernet(network, head), space().sample(2), NETWORKS[network].input()
    expected = this(output, units, data, split=False)
    copies = [copy.deepcopy(this)]
    if NETWORKS[network].pickled:
        copies.append(pickle.loads(pickle.dumps(this)))
    with torch.no_grad():
        for parameter in this.parameters():
            parameter.zero_()
    for other in copies:
        assert torch.equal(other(output, units, data, split=False), expected)


@pytest.mark.parametrize("network", [name for name, row in NETWORKS.items() if row.noisy])
@every_head
def test_noise_in_training_is_drawn_for_each_setting_and_alike_by_both_mappings(network: str, head: str) -> None:
    """From one state of the generator, one setting gets the same numbers either way, and so the same gradients."""
    units, data = space().sample(1), NETWORKS[network].input()
    results, gradients = [], []
    for mapping in ("vmap", "loop"):
        this = hypernet(network, head, mapping=mapping).train()
        first, *others = this(output, units.expand(10, -1), data, split=False)
        assert not all(torch.allclose(first, other) for other in others)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            results.append(this(output, units, data, split=False))
        results[-1].square().mean().backward()
        gradients.append([p.grad for p in this.parameters()])
    close(*results)
    for left, right in zip(*gradients, strict=True):
        close(left, right)


@every_head
def test_the_order_of_a_state_dict_does_not_matter(head: str) -> None:
    """Two weights of one shape are told apart by name."""
    network = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    this = ht.HyperNetwork(network, space(), head=HEADS[head], seed=1).eval()
    other = ht.HyperNetwork(network, space(), head=HEADS[head], seed=2).eval()
    other.load_state_dict(dict(reversed(this.state_dict().items())))
    units, x = space().sample(2), torch.randn(4, 3)
    assert torch.equal(this(output, units, x, split=False), other(output, units, x, split=False))


def test_theta_0_is_no_bias_of_a_layer() -> None:
    """Whatever re-initialises the trunk's and heads' layers leaves theta_0 alone, under a name of its own."""
    this = hypernet("mlp", "dense")
    before = {name: p.clone() for name, p in this.network.named_parameters()}

    def forget(module: nn.Module) -> None:
        for parameter in module.parameters(recurse=False):
            nn.init.zeros_(parameter)

    this.trunk.apply(forget)
    this.heads.apply(forget)
    for name, value in before.items():
        assert torch.equal(this.get_parameter(f"network.{name}"), value)
    x = NETWORKS["mlp"].input()
    close(this(output, space().sample(1), x, split=False)[0], NETWORKS["mlp"].network()(x))


def test_tied_weights_are_generated_once_and_stay_tied() -> None:
    this = hypernet("tied weights", "rank one")
    assert this.generated == ("embed.weight", "out.bias")
    pairs = this(lambda m, b, c: (m.embed.weight.form(), m.out.weight.form()), space().sample(2), (), split=False)
    assert torch.equal(*pairs)


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["0"], ["0.weight", "0.bias"]),
        (["*.bias"], ["0.bias", "2.bias"]),
        ([nn.Linear], ["0.weight", "0.bias", "2.weight", "2.bias"]),
        (["2.weight", "0.b*"], ["0.bias", "2.weight"]),
        ("2", ["2.weight", "2.bias"]),
    ],
)
def test_what_is_not_generated_is_shared(patterns: list, names: list[str]) -> None:
    this = hypernet("mlp", "rank one", generate=patterns)
    assert list(this.generated) == names
    for name, tensor in this.effective(space().sample(2)).items():
        assert torch.equal(tensor[0], tensor[1]) == (name not in names)


def test_frozen_parameters_of_the_given_network_are_shared() -> None:
    network = NETWORKS["mlp"].network()
    network[0].requires_grad_(False)
    this = ht.HyperNetwork(network, space())
    assert this.generated == ("2.weight", "2.bias")
    assert not this.network[0].weight.requires_grad


def test_theta_0_can_be_frozen() -> None:
    this = hypernet("mlp", "rank one", freeze_theta_0=True)
    this(output, space().sample(2), NETWORKS["mlp"].input(), split=False).sum().backward()
    assert all(p.grad is None for p in this.network.parameters())
    assert all(p.grad is not None for p in this.trunk.parameters())


def test_the_given_network_is_left_alone() -> None:
    network = NETWORKS["batch norm"].network()
    state = copy.deepcopy(network.state_dict())
    ht.HyperNetwork(network, space())
    assert network[1].track_running_stats
    assert all(torch.equal(a, b) for a, b in zip(state.values(), network.state_dict().values(), strict=True))


FACTORED = [
    *("mlp", "conv1d, strided", "conv2d, dilated", "conv3d", "bare convolution"),
    *("conv transpose 1d", "conv transpose 3d", "embedding", "padding"),
]


@pytest.mark.parametrize(
    ("network", "head"),
    [(network, head) for network in FACTORED for head in ("rank one", "low rank")]
    + [(network, "rank one") for network in ("conv2d, grouped", "conv transpose")],  # low-rank groups are formed
)
def test_factored_layers_never_form_their_weights(network: str, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: StructuredWeight) -> torch.Tensor:
        raise AssertionError("a weight was formed")

    this = hypernet(network, head)
    for kind in (ht.heads.RankOneWeight, ht.heads.LowRankWeight):
        monkeypatch.setattr(kind, "form", forbidden)
    this(output, space().sample(2), NETWORKS[network].input(), split=False)


@pytest.mark.parametrize("head", ["rank one", "low rank"])
@pytest.mark.parametrize("function", [nn.functional.linear, nn.functional.conv1d, nn.functional.embedding])
def test_arguments_by_name_are_those_by_place(function: Callable[..., torch.Tensor], head: str) -> None:
    layer, x = {
        nn.functional.linear: (nn.Linear(3, 2), torch.randn(4, 3)),
        nn.functional.conv1d: (nn.Conv1d(3, 2, 2), torch.randn(4, 3, 5)),
        nn.functional.embedding: (nn.Embedding(5, 2), torch.tensor([[0, 3], [4, 1]])),
    }[function]
    this, units = ht.HyperNetwork(layer, space(), head=HEADS[head]), space().sample(2)
    options = ("bias",) if hasattr(layer, "bias") else ()

    def by_name(model: nn.Module, batch: torch.Tensor, config: object) -> torch.Tensor:
        return function(input=batch, weight=model.weight, **{name: getattr(model, name) for name in options})

    close(this(by_name, units, x, split=False), this(output, units, x, split=False))


def test_the_encodings_norm_keeps_the_size_of_generated_weights_apart_from_the_unit() -> None:
    """The paper's point: without encoding and residual, the weights are proportional to the unit."""
    one = ht.SearchSpace({"a": FloatDistribution(0.0, 1.0)})
    sizes = {}
    for encoding, residual in (("none", False), ("mip", True)):
        this = ht.HyperNetwork(
            nn.Linear(20, 20), one, head=ht.Dense(initialization="fan_out"), encoding=encoding, residual=residual
        )
        units = torch.tensor([[0.1], [0.5], [1.0]], dtype=torch.float64)
        sizes[encoding] = this.effective(units)["weight"].flatten(1).norm(dim=1)
    torch.testing.assert_close(sizes["none"] / sizes["none"][-1], torch.tensor([0.1, 0.5, 1.0]))
    assert sizes["mip"].max() / sizes["mip"].min() < 1.2
