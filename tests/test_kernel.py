"""Laws of the kernel: what stands in a network while a function runs, and that both mappings serve what they say."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import HEADS
from optuna.distributions import FloatDistribution
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import hypertune_mip as ht
from hypertune_mip.execution import Execution
from hypertune_mip.execution.choice import small_parameters

SPACE = ht.SearchSpace({"a": FloatDistribution(0.0, 1.0)})
EVERY_MAPPING = pytest.mark.parametrize("mapping", ["vmap", "loop"])
FAN_OUT = ht.RankOne(initialization="fan_out")


def hypernet(network: nn.Module, head: ht.Head = FAN_OUT, **options: Any) -> ht.HyperNetwork:
    return ht.HyperNetwork(network, SPACE, head=head, seed=1, **options)


def output(model: nn.Module, batch: Any, config: Any) -> Any:
    return model(batch)


class Keeps(nn.Module):
    """Keeps activations in every way there is."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.register_buffer("reassigned", torch.zeros(3))
        self.register_buffer("in_place", torch.zeros(()))
        self.log: list[Tensor] = []
        self.cache: dict[str, Tensor] = {}
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        self.kept = h
        self.log.append(h)
        self.cache["last"] = h
        self.reassigned = h.detach().mean(0)
        self.calls += 1
        return h


@EVERY_MAPPING
def test_what_a_forward_pass_keeps_is_gone_afterwards(mapping: Any) -> None:
    this = hypernet(Keeps(), mapping=mapping)
    network = this.network
    this(output, SPACE.sample(2), torch.randn(4, 3), split=False)
    assert not hasattr(network, "kept") and network.log == [] and network.cache == {}
    assert torch.equal(network.reassigned, torch.zeros(3))
    assert network.calls == (1 if mapping == "vmap" else 2)  # numbers that a module counts are its own
    assert all(type(p) is nn.Parameter for p in network.parameters())


@EVERY_MAPPING
def test_what_a_module_held_before_it_holds_again_after_an_error(mapping: Any) -> None:
    this = hypernet(Keeps(), mapping=mapping)
    before = this.network.kept = torch.ones(2)
    this.network.log.append(before)

    def fails(model: nn.Module, batch: Any, config: Any) -> Tensor:
        model(batch)
        raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"):
        this(fails, SPACE.sample(2), torch.randn(4, 3), split=False)
    assert this.network.kept is before and this.network.log == [before]


def test_buffers_that_are_changed_in_place_stay_changed() -> None:
    """They are the network's own state, as a codebook or a power iteration; vmap refuses and "auto" takes the loop."""

    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)
            self.register_buffer("total", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            h = self.inner(x)
            with torch.no_grad():
                self.total.add_(h.detach().sum(0))
            return h

    this, x = hypernet(Counts()), torch.randn(4, 3)
    results = this(output, SPACE.sample(2), x, split=False)
    torch.testing.assert_close(this.network.total, results.sum((0, 1)).detach())
    with pytest.raises(ht.NetworkError, match=r"root|network"):
        hypernet(Counts(), mapping="vmap")(output, SPACE.sample(2), x, split=False)


class Recurrent(nn.Module):
    """A recurrent module beside a linear map."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.inner = kind(3, 4, num_layers=2, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(x)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_modules_read_the_weights_of_the_setting(kind: Any) -> None:
    this, x, units = hypernet(Recurrent(kind)), torch.randn(5, 6, 3), SPACE.sample(2)
    results = this(output, units, x, split=False)
    assert not torch.allclose(results[0], results[1])
    for unit, result in zip(units, results, strict=True):
        config = SPACE.from_unit(unit[None])[0]
        torch.testing.assert_close(ht.Surrogate(this).materialize(config)(x), result)
    before = [p for p in this.network.inner._flat_weights if p is not None]
    assert all(a is b for a, b in zip(before, this.network.inner.parameters(), strict=True))
    with pytest.raises(ht.NetworkError, match="'inner'"):
        hypernet(Recurrent(kind), mapping="vmap")(output, units, x, split=False)


class Recomputed(nn.Module):
    """A block that is computed anew in the backward pass, with noise that a hyperparameter steers."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.drop = ht.nn.Dropout("a")
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        def inner(h: Tensor) -> Tensor:
            return self.drop(self.block(h.tanh())).tanh()

        h = self.first(x)
        h = inner(h) if self.reentrant is None else checkpoint(inner, h, use_reentrant=self.reentrant)
        return self.last(h)


DROPOUT = ht.SearchSpace({"a": FloatDistribution(0.0, 0.5)})


def gradients(network: nn.Module, run: Callable[[ht.HyperNetwork], Any], **options: Any) -> Tensor:
    torch.manual_seed(0)
    this = ht.HyperNetwork(network, DROPOUT, head=options.pop("head", FAN_OUT), seed=1, **options).train()
    torch.manual_seed(0)
    run(this)
    return torch.cat([p.grad.flatten() for p in this.parameters() if p.grad is not None])


def networks(make: Callable[..., nn.Module], *arguments: Any) -> list[nn.Module]:
    """One for each argument, with the same weights."""
    made = [make(argument) for argument in arguments]
    for network in made[1:]:
        network.load_state_dict(made[0].state_dict())
    return made


@pytest.mark.parametrize("head", [FAN_OUT, ht.Dense(initialization="fan_out")])
@pytest.mark.parametrize("formed", [(), ("*",)])
def test_gradients_through_recomputed_activations(head: ht.Head, formed: tuple[str, ...]) -> None:
    units, x = DROPOUT.sample(3), torch.randn(5, 3)
    execution = Execution(mapping="loop", formed=formed)

    def differentiated(this: ht.HyperNetwork) -> None:
        this(output, units, x, split=False, execution=execution).square().sum().backward()

    def trained(this: ht.HyperNetwork) -> None:
        def loss(model: nn.Module, batch: Tensor, config: Any) -> Tensor:
            return model(batch).square().sum()

        def ones(losses: Tensor, rows: slice) -> Tensor:
            return torch.ones_like(losses)

        this.weighted(loss, units, x, split=False, weigh=ones, execution=execution)[0].backward()

    plain, *recomputed = networks(Recomputed, None, False, True)
    truth = gradients(plain, trained, head=head)
    torch.testing.assert_close(gradients(plain, differentiated, head=head), truth, rtol=1e-4, atol=1e-5)
    for network in recomputed:
        for run in (differentiated, trained):
            torch.testing.assert_close(gradients(network, run, head=head), truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("reentrant", "message"),
    [
        (True, r"^The network \(Recomputed\) under torch\.utils\.checkpoint cannot run"),
        (
            False,
            r"^The network \(Recomputed\) .*under torch\.utils\.checkpoint",
        ),
    ],
)
def test_recomputed_activations_are_refused_under_vmap(reentrant: bool, message: str) -> None:
    this = ht.HyperNetwork(Recomputed(reentrant), DROPOUT, mapping="vmap")
    with pytest.raises(ht.NetworkError, match=message):
        this(output, DROPOUT.sample(2), torch.randn(4, 3), split=False)


@EVERY_MAPPING
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("formed", [(), ("*",), ("0.*",)])
@pytest.mark.parametrize("split", [True, False])
def test_a_step_is_the_weighted_sum_of_differentiable_losses(mapping: Any, head: str, formed: Any, split: bool) -> None:
    network = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    this, units = hypernet(network, HEADS[head]), SPACE.sample(3)
    x = torch.randn(*((3,) if split else ()), 4, 3, dtype=torch.float64)
    weights = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    execution = Execution(mapping=mapping, formed=formed)

    def loss(model: nn.Module, batch: Tensor, config: Any) -> Tensor:
        return model(batch).square().mean() + config["a"] * ht.losses.l2(model)

    def weigh(losses: Tensor, rows: slice) -> Tensor:
        return weights[rows]

    total, losses = this.weighted(loss, units, x, split=split, weigh=weigh, execution=execution)
    assert all(p.grad is None for p in this.parameters())  # what synchronises gradients waits for the backward pass
    (3 * total).backward()
    got = [p.grad.clone() for p in this.parameters()]
    this.zero_grad()
    expected = torch.stack(
        [
            loss(ht.Surrogate(this).materialize(c), x[i] if split else x, {k: torch.tensor(v) for k, v in c.items()})
            for i, c in enumerate(SPACE.from_unit(units))
        ]
    )
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(total.detach(), (weights * expected).sum().detach())
    (3 * (weights * this(loss, units, x, split=split)).sum()).backward()
    torch.testing.assert_close(got, [p.grad for p in this.parameters()])


@EVERY_MAPPING
def test_a_function_may_return_a_tree_and_use_gradients_of_its_own(mapping: Any) -> None:
    """Such as a penalty on the input's gradient; only the loop serves it."""
    this, x = hypernet(nn.Linear(3, 1), mapping=mapping), torch.randn(4, 3)

    def function(model: nn.Module, batch: Tensor, config: Any) -> Any:
        batch = batch.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(batch).sum(), batch, create_graph=True)
        return {"penalty": slope.square().sum(), "count": torch.tensor(len(batch))}

    if mapping == "vmap":
        with pytest.raises(ht.NetworkError):
            this(function, SPACE.sample(2), x, split=False)
        return
    found = this(function, SPACE.sample(2), x, split=False)
    weights = this.effective(SPACE.sample(2))["weight"]
    torch.testing.assert_close(found["penalty"], 4 * weights.square().sum((1, 2)))
    assert found["count"].tolist() == [4, 4]
    found["penalty"].sum().backward()
    got = this.network.weight.grad.clone()
    this.zero_grad()
    (4 * this.effective(SPACE.sample(2))["weight"].square().sum()).backward()
    torch.testing.assert_close(got, this.network.weight.grad)


def test_switches_of_torch_are_left_alone() -> None:
    """Inside as well as afterwards: another thread may be training a plain network."""
    network = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)

    def switches() -> tuple[bool, ...]:
        cuda = torch.backends.cuda
        attention = (cuda.flash_sdp_enabled(), cuda.math_sdp_enabled(), cuda.mem_efficient_sdp_enabled())
        return torch.backends.mha.get_fastpath_enabled(), *attention

    before, seen = switches(), []

    def looks(model: nn.Module, batch: Any, config: Any) -> Any:
        seen.append(switches())
        return model(batch)

    for mapping in ("vmap", "loop"):
        hypernet(network, mapping=mapping).eval()(looks, SPACE.sample(2), torch.randn(2, 5, 8), split=False)
    assert set(seen) == {before}


def test_threads_take_turns_in_one_network() -> None:
    this, x, units = hypernet(nn.Linear(3, 2)), torch.randn(4, 3), SPACE.sample(8)
    expected, wrong = this(output, units, x, split=False), []

    def work(mapping: Any) -> None:
        for _ in range(20):
            with torch.no_grad():
                found = this(output, units, x, split=False, execution=Execution(mapping=mapping))
            if not torch.allclose(found, expected, atol=1e-6):
                wrong.append(mapping)

    threads = [threading.Thread(target=work, args=(mapping,)) for mapping in ("vmap", "loop") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("head", HEADS)
def test_threads_take_turns_in_backward_passes_too(head: str) -> None:
    """In the loop these run each setting anew."""
    this, x = hypernet(nn.Linear(3, 2), HEADS[head], mapping="loop"), torch.randn(4, 3)
    before = dict(this.network.named_parameters())

    def slope() -> Tensor:
        units = SPACE.sample(8).requires_grad_()
        return torch.autograd.grad(this(output, units, x, split=False).square().sum(), units)[0]

    expected, found = slope(), []
    threads = [threading.Thread(target=lambda: found.extend(slope() for _ in range(10))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30
    for one in found:
        torch.testing.assert_close(one, expected)
    assert all(parameter is before[name] for name, parameter in this.network.named_parameters())
    assert all(parameter.grad is None for parameter in this.parameters())


def test_a_fallback_has_the_random_numbers_of_the_loop() -> None:
    """So that a network that vmap cannot serve is trained the same whether vmap was tried before or not."""

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x + torch.rand_like(x)) * torch.zeros(len(x), 1).bernoulli_(0.5)

    units, x, results = SPACE.sample(3), torch.randn(4, 3), []
    for mapping in ("loop", "auto", "auto"):
        torch.manual_seed(0)
        results.append(hypernet(InPlace(), mapping=mapping)(output, units, x, split=False))
    this = hypernet(InPlace(), mapping="auto")
    network_of_all = this.network.state_dict()
    for result, mapping in zip(results, ("loop", "auto", "auto"), strict=True):
        assert result.shape == (3, 4, 3), (mapping, network_of_all.keys())
    torch.testing.assert_close(results[1] == 0, results[0] == 0)


def test_a_parameter_is_small_that_has_no_more_elements_than_its_layers_activations() -> None:
    network = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 8, bias=False))
    names = ["0.weight", "1.weight"]  # of 16 and 32 elements; 2 examples are 16 and 24 activations
    assert small_parameters(network, names, lambda: network(torch.zeros(2, 4))) == ["0.weight"]
    assert small_parameters(network, names, lambda: network(torch.zeros(3, 4))) == names
    assert small_parameters(network, names, lambda: network(torch.zeros(1, 4))) == []


def test_gradients_of_data_are_refused_in_the_loop_instead_of_lost() -> None:
    this = hypernet(nn.Linear(3, 2), mapping="loop")
    x, units = torch.randn(4, 3), SPACE.sample(2)

    def step(units: Tensor, x: Tensor) -> Any:
        def loss(model: nn.Module, batch: Tensor, config: Any) -> Tensor:
            return model(batch).square().mean() * config["a"]

        return this.weighted(loss, units, x, split=False, weigh=lambda losses, rows: torch.ones_like(losses))

    for call in (lambda: this(output, units, x.requires_grad_(), split=False), lambda: step(units, x.requires_grad_())):
        with pytest.raises(ht.NetworkError, match="data"):
            call()
    with pytest.raises(ht.NetworkError, match="configs"):
        step(units.clone().requires_grad_(), x.detach())


def test_a_step_goes_back_once() -> None:
    this = hypernet(nn.Linear(3, 2), mapping="loop")
    total, _ = this.weighted(
        lambda model, batch, config: model(batch).square().mean(),
        SPACE.sample(2),
        torch.randn(4, 3),
        split=False,
        weigh=lambda losses, rows: torch.ones_like(losses),
    )
    total.backward(retain_graph=True)
    with pytest.raises(ht.NetworkError, match="once"):
        total.backward()


def test_a_function_need_not_be_hashable() -> None:
    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, model: nn.Module, batch: Tensor, config: Any) -> Tensor:
            return model(batch)

    assert hypernet(nn.Linear(3, 2))(Unhashable(), SPACE.sample(2), torch.randn(4, 3), split=False).shape == (2, 4, 2)
