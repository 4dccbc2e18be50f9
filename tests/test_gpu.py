"""What holds on a CPU holds on CUDA: every network, head and mapping, captured steps, mixed precision, attention."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import small_problem
import torch
import torch.nn.functional as F
from cases import HEADS, NETWORKS, hypernet, output, space
from optuna.distributions import FloatDistribution
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import hypertune_mip as ht

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings(
        "ignore:There is a performance drop .* aten..(_weight_norm|bilinear|embedding_bag|_embedding_bag):UserWarning"
    ),
]
CUDA = torch.device("cuda")
CLOSE = {"rtol": 1e-7, "atol": 1e-9}  # in float64, where devices add up in other orders


@pytest.mark.parametrize("mapping", ["auto", "loop"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("network", NETWORKS)
def test_values_and_gradients_are_those_of_the_cpu(network: str, head: str, mapping: Any) -> None:
    units, data = space().sample(3), NETWORKS[network].input()
    data = tree_map(lambda t: t.double() if t.is_floating_point() else t, data)
    results = []
    for device in (torch.device("cpu"), CUDA):
        this = hypernet(network, head, mapping=mapping).double().to(device)
        value = this(output, units, tree_map(lambda t, d=device: t.to(d), data), split=False)
        value.square().mean().backward()
        gradients = {name: p.grad.cpu() for name, p in this.named_parameters() if p.grad is not None}
        results.append((value.detach().cpu(), gradients))
    torch.testing.assert_close(*results, **CLOSE)


class Attends(nn.Module):
    """Attention by the functional form, as language models have it."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(width, 3 * width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inner(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)).mean(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mapping", ["vmap", "loop"])
def test_attention_has_right_gradients_on_every_backend_that_is_picked(mapping: Any, dtype: torch.dtype) -> None:
    """Under vmap by itself one backend raises in its backward pass and another one is wrong without a word."""
    torch.manual_seed(0)
    network, x = Attends(), torch.randn(8, 64, 64)
    gradients = []
    for device, kind in ((torch.device("cpu"), torch.float64), (CUDA, dtype)):
        this = ht.HyperNetwork(
            copy.deepcopy(network).to(kind), space(), head=HEADS["rank one"], mapping=mapping, seed=1
        )
        this = this.to(device)
        this(output, space().sample(4), x.to(device, kind), split=False).float().square().mean().backward()
        gradients.append(torch.cat([p.grad.double().cpu().flatten() for p in this.parameters()]))
    error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert error < {torch.float32: 1e-3, torch.bfloat16: 0.1}[dtype]


def trained(**options: Any) -> ht.Surrogate:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ht.HypertuneWarning)
        batches = small_problem.loader(batch_size=5)
        return small_problem.fit(train_loader=batches, device="cuda", epochs=12, **options)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"gradient_clip": 1.0}, {"settings_per_step": 1}])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_captured_steps_train_as_eager_ones(options: dict[str, Any], precision: str) -> None:
    options = {"execution": "usual", "precision": precision, "batching": "full"} | options
    eager, captured = trained(capture=False, **options), trained(**options)
    assert captured.execution["captured"], captured.execution
    for one, other in zip(eager.history, captured.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3 if precision == "float32" else 0.05)


def test_a_loss_that_cannot_be_captured_is_trained_all_the_same() -> None:
    def loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
        value = small_problem.loss(model, batch, config)
        return value * (1.0 if float(value.detach()) > 0 else 2.0)  # waits for the device

    surrogate = trained(loss=loss, execution="usual", settings_per_step=1, batching="full")
    assert not surrogate.execution["captured"] and surrogate.execution["not_captured"]
    assert surrogate.history[-1]["loss"] < surrogate.history[0]["loss"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_attention_trains_in_every_precision(precision: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 16, 64)
    batch = x, x.mean((1, 2)).gt(0).long()
    one = ht.SearchSpace({"label_smoothing": FloatDistribution(0.0, 0.3)})

    def loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
        return ht.losses.cross_entropy(model(batch[0]), batch[1], label_smoothing=config["label_smoothing"])

    surrogate = ht.fit(
        ht.HyperNetwork(Attends(), one),
        loss,
        [batch] * 10,
        epochs=6,
        precision=precision,
        device="cuda",
        progress=False,
    )
    assert surrogate.history[-1]["loss"] < surrogate.history[0]["loss"]


def test_a_surrogate_answers_on_cuda_as_on_the_cpu() -> None:
    surrogate = trained(**small_problem.validation())
    units = surrogate.space.sample(50)
    expected = surrogate.to("cpu").evaluate_units(units)
    for name, values in surrogate.evaluate_units(units).items():
        assert values == pytest.approx(expected[name], rel=1e-4)
