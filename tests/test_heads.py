"""Rules and structured weights by themselves: shapes, formulas, padding, types of numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from cases import HEADS
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

import hypertune_mip as ht
from hypertune_mip.functional import StructuredWeight, formed, plain, square_sum
from hypertune_mip.heads import LowRankWeight, RankOneWeight

every_head = pytest.mark.parametrize("head", HEADS)


class Bare(nn.Module):
    """The owner of a parameter that no layer of torch's owns."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape))


def numbers(rule: ht.heads.Rule, *lead: int, scale: float = 0.1, seed: int = 0) -> Tensor:
    return scale * torch.randn(*lead, rule.size, generator=torch.Generator().manual_seed(seed))


def run(layer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """The layer with a weight in the place of its own."""
    other = copy.deepcopy(layer)
    other._parameters["weight"] = weight  # type: ignore[assignment]
    return other(x)


# What is scaled


@pytest.mark.parametrize(
    ("module", "sizes"),
    [
        (nn.Linear(5, 3), (3, 5)),
        (nn.Linear(5, 1), (1, 5)),
        (nn.Embedding(7, 4), (7, 4)),
        (nn.Conv2d(4, 6, 3), (6, 4)),
        (nn.Conv2d(1, 6, 3), (6, 1)),
        (nn.Conv2d(4, 6, 3, groups=2), (6, 4)),
        (nn.ConvTranspose2d(4, 6, 3), (4, 6)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 6)),
        (nn.Bilinear(3, 4, 2), (2, 3)),
        (nn.Bilinear(128, 64, 3), (3 * 128, 3 * 64)),
        (Bare(8, 128, 64), (8 * 128, 8 * 64)),
        (Bare(2, 3, 64, 64), (6 * 64, 6 * 64)),
        (Bare(8, 48, 48), (8 * 48, 8 * 48)),
        (Bare(8, 47, 48), (8, 47)),
        (Bare(16, 3, 3, 3), (16, 3)),
        (Bare(1, 5, 8), (5, 8)),
        (Bare(5, 1, 8, 1), (5, 8)),
        (Bare(1, 1, 8), (8,)),
        (Bare(8, 1, 1), (8,)),
        (Bare(1, 1), (1,)),
        (Bare(8), (8,)),
    ],
    ids=lambda value: str(value if isinstance(value, tuple) else [type(value).__name__, *value.weight.shape]),
)
def test_rows_and_columns_of_a_parameter(module: nn.Module, sizes: tuple[int, ...]) -> None:
    """Under the rank-one head; vectors have one number for each element."""
    assert ht.RankOne().rule(module.weight, module).sizes == sizes


def test_a_stack_costs_less_than_three_numbers_for_each_that_is_generated() -> None:
    """The rule of shape's promise, with the default trunk, where it is tightest."""
    for rows, columns in ((48, 48), (25, 600), (60, 40), (128, 128)):
        rule = ht.RankOne().rule(Bare(4, rows, columns).weight, Bare(4, rows, columns))
        assert rule.size == 4 * (rows + columns)
        assert 65 * rule.size < 3 * 4 * rows * columns


def test_rank_one_is_the_outer_product_of_scales() -> None:
    """By explicit formulas: matrices, kernels, groups, transposed convolutions and stacks."""
    for module, formula, split in (
        (nn.Linear(5, 3), "oi,o,i->oi", ((3,), (5,))),
        (nn.Conv2d(4, 6, 3), "oixy,o,i->oixy", ((6,), (4,))),
        (nn.ConvTranspose1d(4, 6, 3), "iox,i,o->iox", ((4,), (6,))),
        (Bare(2, 48, 50), "edh,ed,eh->edh", ((2, 48), (2, 50))),
        (Bare(1, 5, 8), "and,n,d->and", ((5,), (8,))),
        (Bare(6, 2, 3, 3), "oixy,o,i->oixy", ((6,), (2,))),
    ):
        rule = ht.RankOne().rule(module.weight, module)
        own = numbers(rule)
        row, column = (1 + part.reshape(shape) for part, shape in zip(own.split(rule.sizes), split, strict=True))
        expected = torch.einsum(formula, module.weight, row, column)
        torch.testing.assert_close(plain(rule.tensor(module.weight, own)), expected)
        torch.testing.assert_close(rule.form(module.weight, own), expected)
    grouped = nn.Conv1d(4, 6, 3, groups=2)  # outputs 0-2 see inputs 0 and 1, outputs 3-5 inputs 2 and 3
    rule = ht.RankOne().rule(grouped.weight, grouped)
    row, column = (1 + numbers(rule)).split(rule.sizes)
    seen = torch.tensor([[0, 1]] * 3 + [[2, 3]] * 3)
    expected = grouped.weight * row[:, None, None] * column[seen][:, :, None]
    torch.testing.assert_close(rule.form(grouped.weight, numbers(rule)), expected)


def test_low_rank_mixes_directions_of_each_matrix() -> None:
    for module, stack, rows in ((Bare(2, 48, 50), 2, 48), (nn.Conv2d(4, 6, 3), 1, 6), (Bare(1, 5, 8), 1, 5)):
        rule = ht.LowRank(rank=3).rule(module.weight, module)
        assert rule.sizes == (stack * 3,)
        own = numbers(rule)
        left, right = rule.left.reshape(stack, rows, 3), rule.right.reshape(stack, 3, -1)
        change = torch.einsum("sok,sk,ski->soi", left, own.reshape(stack, 3), right)
        expected = module.weight + change.reshape(module.weight.shape)
        torch.testing.assert_close(rule.form(module.weight, own), expected)


@every_head
def test_rules_work_with_leaves_that_collect_gradients(head: str) -> None:
    """One setting after another: gradients to theta_0 and the numbers are those of the formed weight."""
    layer, x = nn.Conv2d(2, 4, 3), torch.randn(3, 2, 5, 5)
    rule = HEADS[head].rule(layer.weight, layer)
    results = []
    for way in (lambda weight: weight, plain):
        theta_0, own = layer.weight.detach().clone().requires_grad_(), numbers(rule).requires_grad_()
        weight = way(rule.tensor(theta_0, own))
        (run(layer, weight, x).square().mean() + square_sum(weight)).backward()
        results.append((theta_0.grad, own.grad))
    torch.testing.assert_close(*results, rtol=2e-5, atol=2e-5)


# Padding


def padded() -> nn.Embedding:
    layer = nn.Embedding(6, 4, padding_idx=2)
    nn.init.normal_(layer.weight)  # the padding row as well
    return layer


INDEX = torch.tensor([[2, 0, 5], [1, 2, 2]])


@every_head
def test_the_padding_row_is_that_of_theta_0(head: str) -> None:
    """Values, formed and factored, in an embedding and in a bag."""
    layer, bag = padded(), nn.EmbeddingBag(6, 4, padding_idx=2)
    nn.init.normal_(bag.weight)
    for module in (layer, bag):
        rule = HEADS[head].rule(module.weight, module)
        weight = rule.tensor(module.weight, numbers(rule))
        others = torch.arange(6) != 2
        assert torch.equal(plain(weight)[2], module.weight[2])
        assert torch.equal(rule.form(module.weight, numbers(rule)), plain(weight))
        assert not torch.isclose(plain(weight)[others], module.weight[others]).any()
        results = [run(module, way(weight), INDEX) for way in (lambda w: w, formed, plain)]
        torch.testing.assert_close(results[0], results[2])
        torch.testing.assert_close(results[1], results[2])
        if module is layer:
            assert all(torch.equal(y[INDEX == 2], layer.weight[2].expand(3, 4)) for y in results)


@every_head
@pytest.mark.parametrize("split", [False, True], ids=["shared indices", "own indices"])
@pytest.mark.parametrize("way", [lambda weight: weight, formed], ids=["factored", "formed"])
@pytest.mark.parametrize("mapped", [False, True], ids=["loop", "vmap"])
def test_padding_sends_no_gradient(head: str, split: bool, way: Callable, mapped: bool) -> None:
    """Neither to theta_0's row, nor to the numbers, in either way to run a layer and over settings."""
    layer = padded()
    rule = HEADS[head].rule(layer.weight, layer)
    own = numbers(rule, 3).requires_grad_()
    index = torch.stack([INDEX, INDEX.flip(1), torch.full_like(INDEX, 2)]) if split else INDEX

    def one(own: Tensor, index: Tensor) -> Tensor:
        y = F.embedding(index, way(rule.tensor(layer.weight, own)), padding_idx=2)
        return (y**3).sum()

    if mapped:
        results = vmap(one, in_dims=(0, 0 if split else None))(own, index)
    else:
        results = torch.stack([one(own[i], index[i] if split else index) for i in range(3)])
    theta_0, gradient = torch.autograd.grad(results.sum(), [layer.weight, own])
    assert torch.equal(theta_0[2], torch.zeros(4)) and theta_0[0].abs().min() > 0
    if split:
        assert torch.equal(gradient[2], torch.zeros(rule.size))  # this setting has seen nothing but padding


@every_head
def test_a_penalty_sends_the_padding_row_its_own_gradient_alone(head: str) -> None:
    """As it does in a plain network: twice the row, exactly, since Adam would blow up a rounding error at zero."""
    layer = padded()
    rule = HEADS[head].rule(layer.weight, layer)
    weight = rule.tensor(layer.weight, numbers(rule))
    torch.testing.assert_close(square_sum(weight), plain(weight).square().sum())
    (gradient,) = torch.autograd.grad(square_sum(weight), layer.weight)
    assert torch.equal(gradient[2], 2 * layer.weight[2])


# Types of numbers

LAYERS: dict[Callable, tuple[nn.Module, tuple[int, ...]]] = {
    F.linear: (nn.Linear(8, 6), (4, 8)),
    F.conv1d: (nn.Conv1d(8, 6, 3), (4, 8, 5)),
    F.conv2d: (nn.Conv2d(8, 6, 3), (4, 8, 5, 5)),
    F.conv3d: (nn.Conv3d(8, 6, 2), (4, 8, 3, 3, 3)),
    F.conv_transpose1d: (nn.ConvTranspose1d(8, 6, 3), (4, 8, 5)),
    F.conv_transpose2d: (nn.ConvTranspose2d(8, 6, 3), (4, 8, 5, 5)),
    F.conv_transpose3d: (nn.ConvTranspose3d(8, 6, 2), (4, 8, 3, 3, 3)),
    F.embedding: (nn.Embedding(8, 6), ()),
}


def layer_and_input(function: Callable, *, bias: bool = True) -> tuple[nn.Module, Tensor]:
    layer, shape = LAYERS[function]
    layer = copy.deepcopy(layer)
    if not bias and hasattr(layer, "bias"):
        layer.bias = None
    return layer, torch.randn(*shape) if shape else torch.tensor([[0, 3], [7, 1]])


def test_every_layer_of_the_tables_is_tried_here() -> None:
    assert set(LAYERS) == {*RankOneWeight.layers} == {*LowRankWeight.layers}


def _factored(rule: ht.heads.Rule, module: nn.Module, data: Tensor, own: Tensor) -> Tensor:
    return run(module, rule.tensor(module.weight, own), data)


@every_head
@pytest.mark.parametrize("function", LAYERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_layers_result_has_the_type_of_the_plain_layers(head: str, function: Callable, bias: bool) -> None:
    """With autocast and without, for inputs of both types, for a network in bfloat16 with exact numbers."""
    layer, x = layer_and_input(function, bias=bias)
    low = (lambda x: x.bfloat16()) if x.is_floating_point() else (lambda x: x)
    exact, half = layer, copy.deepcopy(layer).bfloat16()
    for module, data, enabled in ((exact, x, False), (exact, x, True), (exact, low(x), True), (half, low(x), False)):
        rule = HEADS[head].rule(module.weight, module)
        own = numbers(rule)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            expected = module(data)
            weight = rule.tensor(module.weight, own)
            results = [run(module, way(weight), data) for way in (lambda w: w, plain)]
            if head != "dense":  # torch itself lowers some plain layers only under vmap
                one = partial(_factored, rule, module, data)
                results.append(vmap(one)(own.expand(2, -1))[1])
            assert plain(weight).dtype == rule.form(module.weight, own).dtype == module.weight.dtype
        assert [result.dtype for result in results] == [expected.dtype] * len(results)
        tolerance = 2e-5 if expected.dtype == torch.float32 else 5e-2
        for result in results:
            torch.testing.assert_close(result, results[1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("head", ["rank one", "low rank"])
def test_formed_weights_and_penalties_are_exact_under_autocast(head: str) -> None:
    """Weights of settings that differ by less than bfloat16 can tell stay apart until the layer runs."""
    for module in (nn.Linear(8, 6), nn.Conv2d(4, 6, 3, groups=2), Bare(2, 48, 50)):
        rule = HEADS[head].rule(module.weight, module)
        own = numbers(rule, scale=1e-3)
        results = []
        for enabled in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                weight = rule.tensor(module.weight, own)
                results.append((plain(weight), square_sum(weight), weight.absolute_sum()))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("head", ["rank one", "low rank"])
@pytest.mark.parametrize("function", LAYERS, ids=lambda f: f.__name__)
def test_settings_stay_apart_under_autocast(head: str, function: Callable) -> None:
    """Scales of 1.003 and 1.004 are one number in bfloat16; over a batch the outputs still move as they do exactly.

    Each bfloat16 is off by up to 0.4 %, so the share of the exact movement in all outputs together is looked at.
    """
    generator = torch.Generator().manual_seed(0)
    layer, x = layer_and_input(function)
    x = torch.rand(512, *x.shape[1:], generator=generator) if x.is_floating_point() else x
    rule = HEADS[head].rule(layer.weight, layer)
    for parameter in (*layer.parameters(), *rule.parameters()):
        nn.init.normal_(parameter, generator=generator)
    own = numbers(rule, 20, scale=0.002)
    moves = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), torch.no_grad():
            first, *others = (run(layer, rule.tensor(layer.weight, part), x).double() for part in (0 * own[0], *own))
        moves.append(torch.stack(others) - first)
    exact, low = moves
    share = (exact * low).sum() / (exact * exact).sum()
    assert 0.9 < share < 1.1
    assert all(move.any() for move in low)


# Structured weights as tensors


def test_a_structured_weight_shows_its_kind_and_shape() -> None:
    layer = padded()
    for name, kind in (("rank one", "RankOneWeight"), ("low rank", "LowRankWeight")):
        rule = HEADS[name].matrix_rule(layer.weight, layer)
        weight = rule.tensor(layer.weight, numbers(rule))
        assert repr(weight) == f"{kind}(shape=(6, 4))" and isinstance(weight, StructuredWeight)


def test_formulas() -> None:
    """What numbers mean: they are kept in files."""
    layer = nn.Linear(5, 3)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    scaling = ht.RankOne().rule(weight, layer)
    n = numbers(scaling)
    row, column = n.split([3, 5])
    torch.testing.assert_close(scaling.form(weight, n), weight * torch.outer(1 + row, 1 + column))
    additive = ht.Dense().rule(weight, layer)
    n = numbers(additive)
    torch.testing.assert_close(additive.form(weight, n), weight + n.reshape(3, 5))
    shift = ht.RankOne().rule(bias, layer)
    n = numbers(shift)
    torch.testing.assert_close(shift.form(bias, n), bias + n)


@every_head
def test_an_embedding_that_scales_gradients_by_frequency_does_so(head: str) -> None:
    layer = nn.Embedding(5, 4, scale_grad_by_freq=True)
    rule, index = HEADS[head].rule(layer.weight, layer), torch.tensor([0, 0, 0, 2])
    gradients = []
    for form in (False, True):
        theta_0 = layer.weight.detach().clone().requires_grad_()
        weight = rule.tensor(theta_0, numbers(rule))
        run(layer, plain(weight) if form else weight, index).sum().backward()
        gradients.append(theta_0.grad)
    torch.testing.assert_close(*gradients)


# Initialisation


@pytest.mark.parametrize(("head", "sizes"), [(ht.RankOne, (400, 25)), (ht.LowRank, (8,)), (ht.Dense, (10_000,))])
def test_each_block_of_numbers_has_the_scale_of_its_own_size(head: type[ht.Head], sizes: tuple[int, ...]) -> None:
    """Kaiming by fan-out: a variance of 2 / (1 + 0.01^2) over the rows of the block, not of all blocks together."""
    layer = nn.Linear(25, 400)
    rule = head(initialization="fan_out").rule(layer.weight, layer)
    assert rule.sizes == sizes
    weight = torch.empty(rule.size, 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rule.initialize(weight)
    for block in weight.split(rule.sizes):
        assert float(block.var()) == pytest.approx(2 / (1 + 1e-4) / len(block), rel=0.15)
    zero = head().rule(layer.weight, layer)
    zero.initialize(weight)
    assert not bool(weight.any())
