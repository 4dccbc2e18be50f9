"""Operations that the map serves by versions of its own: attention, noise in new tensors, norms of views."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import output
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

import hypertune_mip as ht

SPACE = ht.SearchSpace({"a": FloatDistribution(0.0, 1.0)})


FAN_OUT = ht.RankOne(initialization="fan_out")


def hypernet(network: nn.Module, head: ht.Head = FAN_OUT, **options: Any) -> ht.HyperNetwork:
    return ht.HyperNetwork(network, SPACE, head=head, seed=1, **options)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # which the loop meets in evaluation mode
@pytest.mark.parametrize("training", [True, False])
def test_padding_of_pytorchs_own_encoder_is_served(training: bool) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1)

        def forward(self, x: Tensor) -> Tensor:
            padding = torch.zeros(3, 5, dtype=torch.bool)
            padding[0, 3:] = True
            return self.encoder(x, src_key_padding_mask=padding).masked_fill(padding.unsqueeze(-1), 0.0)

    network, units, x = Padded(), SPACE.sample(2), torch.randn(3, 5, 8)
    with torch.no_grad():
        mapped, looped = (
            hypernet(network, mapping=m).train(training)(output, units, x, split=False) for m in ("vmap", "loop")
        )
    torch.testing.assert_close(mapped, looped, rtol=1e-4, atol=1e-5)


class OwnAttention(nn.Module):
    """Attention by the functional form, with a mask."""

    def __init__(self, mask: Tensor | None, causal: bool) -> None:
        super().__init__()
        self.inner, self.mask, self.causal = nn.Linear(8, 24), mask, causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inner(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, self.mask, is_causal=self.causal)


@pytest.mark.parametrize(
    "mask",
    [None, "causal", torch.rand(5, 5) > 0.5, torch.randn(3, 1, 5, 5), torch.randn(1, 2, 5, 5), torch.randn(2, 5, 5)],
)
def test_attention_is_that_of_each_setting(mask: Any) -> None:
    causal = isinstance(mask, str)
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        mask = mask | torch.eye(5, dtype=torch.bool)
    network, x = OwnAttention(None if causal else mask, causal), torch.randn(3, 5, 8)
    results = []
    for mapping in ("vmap", "loop"):
        this = hypernet(network, mapping=mapping)
        this(output, SPACE.sample(2), x, split=False).square().sum().backward()
        results.append([p.grad for p in this.parameters()])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mapping", ["vmap", "loop"])
def test_attention_with_a_mask_of_numbers_is_served_under_autocast(mapping: Any) -> None:
    network, x, units = OwnAttention(torch.randn(5, 5), False), torch.randn(3, 5, 8), SPACE.sample(2)
    this = hypernet(network, mapping=mapping)
    expected = this(output, units, x, split=False)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = this(output, units, x, split=False)
        bare = hypernet(OwnAttention(None, False), mapping=mapping)(output, units, x, split=False)
    assert lowered.dtype == bare.dtype == torch.bfloat16
    torch.testing.assert_close(lowered.float(), expected, rtol=5e-2, atol=5e-2)


def test_attention_under_vmap_keeps_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings are folded into the batch, so torch's own backends run, whose memory does not grow with length^2."""
    calls: list[torch.Size] = []
    real = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is real.default:
                calls.append(args[0].shape)
            return func(*args, **(kwargs or {}))

    for network in (OwnAttention(None, False), nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)):
        calls.clear()
        this = hypernet(network, mapping="vmap").train()
        with Watch():
            this(output, SPACE.sample(4), torch.randn(3, 5, 8), split=False)
        assert calls == [torch.Size([12, 2, 5, 4])]


def test_a_masks_missing_batch_axis_is_folded_as_well() -> None:
    class Masks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            h = self.inner(x).unflatten(-1, (2, 4)).transpose(1, 2)
            return F.scaled_dot_product_attention(h, h, h, h[0, 0] @ h[0, 0].T)

    x, units = torch.randn(3, 5, 8), SPACE.sample(2)
    results = [hypernet(Masks(), mapping=mapping)(output, units, x, split=False) for mapping in ("vmap", "loop")]
    assert results[0].shape == results[1].shape


def test_hooks_of_saved_tensors_are_no_checkpoint() -> None:
    class Hooked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
                return self.inner(x).tanh()

    network, units, x = Hooked(), SPACE.sample(2), torch.randn(4, 3)
    mapped, looped = (hypernet(network, mapping=m)(output, units, x, split=False) for m in ("vmap", "loop"))
    torch.testing.assert_close(mapped, looped)
    mapped.sum().backward()


NOISES: dict[str, Any] = {
    "of a distribution": lambda x: torch.distributions.Normal(x, torch.ones_like(x)).rsample() - x,
    "of no setting": lambda x: torch.empty(len(x), 1).normal_(),
    "of the data's type": lambda x: x.new_empty((len(x), 1)).bernoulli_(0.5),
    "like the data": lambda x: torch.empty_like(x).uniform_(),
}


@pytest.mark.parametrize("mapping", ["vmap", "loop"])
@pytest.mark.parametrize("name", NOISES)
def test_noise_that_is_written_into_a_new_tensor_is_each_settings_own(name: str, mapping: Any) -> None:
    units, x = SPACE.sample(1).expand(40, -1), torch.randn(100, 3)
    this = hypernet(nn.Linear(3, 3), mapping=mapping)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        noise = this(lambda m, b, c: NOISES[name](b) + 0 * m(b), units, x, split=False)
    assert not torch.allclose(noise[0], noise[1])
    mean = {"of a distribution": 0.0, "of no setting": 0.0}.get(name, 0.5)
    assert float(noise.detach().mean()) == pytest.approx(mean, abs=0.03)


def test_a_group_norm_of_what_is_not_contiguous_is_mapped() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.norm = nn.Linear(4, 4), nn.GroupNorm(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.inner(x).transpose(1, 2).unflatten(2, (2, 2)))

    units, x, network = SPACE.sample(3), torch.randn(2, 4, 4), Transposed()
    mapped, looped = (hypernet(network, mapping=m)(output, units, x, split=False) for m in ("vmap", "loop"))
    torch.testing.assert_close(mapped, looped)
