"""Networks whose parameters or inputs have a structure: adapters, parametrisations, graphs, samples, integers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal


class Recurrent(nn.Module):
    """A recurrent module between linear maps."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(3, 4)
        self.inner = nn.GRU(4, 4, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(self.inward(x).tanh())[0][:, -1])


class Adapted(nn.Module):
    """A frozen linear map, and beside it a trainable one of rank two; in front and behind, maps of its own."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.base = nn.Linear(width, width).requires_grad_(False)
        self.down = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.up = nn.Parameter(0.1 * torch.randn(width, 2))
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        change = F.linear(F.linear(x, self.down), self.up)
        return self.out((self.base(x) + 2.0 * change).tanh())


class Parametrized(nn.Module):
    """A linear map whose weight is a function of other tensors, between two that are not."""

    def __init__(self, parametrization: Callable[[nn.Module], nn.Module], width: int = 4) -> None:
        super().__init__()
        self.inward = nn.Linear(3, width)
        self.inner = parametrization(nn.Linear(width, width))
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(self.inward(x).tanh()).tanh())


class Sampling(nn.Module):
    """An input described by a distribution; what is drawn from it while training, else its mean, is decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4))
        self.decode = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        mean, spread = self.encode(x).chunk(2, -1)
        hidden = Normal(mean, spread.exp(), validate_args=False).rsample() if self.training else mean
        return torch.cat([self.decode(hidden), mean, spread], -1)


class Graph(nn.Module):
    """Nodes that sum messages over their edges, which come with the input."""

    def __init__(self) -> None:
        super().__init__()
        self.message = nn.Linear(6, 4)
        self.update = nn.Linear(7, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, graph: tuple[Tensor, Tensor]) -> Tensor:
        x, (source, target) = graph
        messages = self.message(torch.cat([x[source], x[target]], -1)).relu()
        sums = torch.zeros(len(x), 4, dtype=x.dtype, device=x.device).index_add(0, target, messages)
        return self.out(self.update(torch.cat([x, sums], -1)).tanh().mean(0))


class Quantized(nn.Module):
    """A frozen weight of small integers and its scale, in front of a trainable map."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        whole = torch.randint(-127, 128, (width, 3), dtype=torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)
        self.register_buffer("scale", torch.full((width, 1), 0.01))
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.linear(x, self.weight.to(x.dtype) * self.scale).tanh())
