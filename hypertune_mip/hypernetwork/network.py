"""The hypernetwork: trunk + head + theta_0, and the way in which a primary network runs at many settings.

    e(u)     = [cos(pi u / 2), sin(pi u / 2)] / sqrt(d)       input encoding
    theta(u) = theta_0 + h(e(u); omega)                       output encoding

Reference: Gonzalez Ortiz, Guttag, Dalca, ICLR 2024, arXiv 2304.07645. Deviations: the encoding has norm 1 (see
`encoding`), and a head may multiply theta_0 by 1 + r c^T instead of adding a full residual (see `heads`).
"""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vmap

from hypertune_mip.encoding import Encoding, encode, encoded_size
from hypertune_mip.errors import NetworkError
from hypertune_mip.functional import ActiveConfig, active, plain
from hypertune_mip.functional.placement import about_vmap, attention_for_many_settings, find_slots, in_place, loop
from hypertune_mip.heads import Dense, Head, RankOne, Rule
from hypertune_mip.hypernetwork.primary import (
    Pattern,
    check_bindings,
    generated_parameters,
    use_batch_statistics,
)
from hypertune_mip.space import SearchSpace

Function = Callable[[nn.Module, Any, ActiveConfig], Any]
"""Of (primary network at one setting, data of that setting, config): a loss, or a metric behind an adapter."""


class HyperNetwork(nn.Module):
    """A primary network whose weights are a learned function of the hyperparameters.

    Args:
        network: The primary network, new or pretrained. It is copied; the copy's weights are theta_0 and are learned.
        space: The hyperparameters that it is conditioned on.
        head: How weights depend on the setting: `RankOne()`, `LowRank()` or `Dense()`.
        trunk: Widths of the hidden layers; the last is the number H of features that every head reads.
        encoding: "mip", or "none" to feed units as they are (ablation).
        residual: Whether theta_0 is added to what the head predicts; False is an ablation for `Dense`.
        generate: What is generated: types of modules (`nn.Linear`), or patterns of module names (`"encoder.*"`) or
            parameter names (`"*.bias"`). All else shares one learned value over all settings. None generates every
            parameter that is trainable in `network`.
        freeze_theta_0: Whether the primary network's own weights stay as given.
        mapping: "vmap" runs all settings at once; "loop" one after another, for networks that vmap cannot serve.
        batch_norm: "batch_statistics" makes layers with running statistics use those of the batch at hand, since
            running ones would mix all settings; "refuse" raises instead.
        seed: Of the trunk's initialisation.

    Raises:
        NetworkError: If a module cannot be generated, by name, or a pattern matches nothing.
        SpaceError: If a layer is bound to a name that the space lacks, or to a range that it cannot run at.

    Example:
        >>> from optuna.distributions import FloatDistribution
        >>> space = SearchSpace({"dropout": FloatDistribution(0.0, 0.5)})
        >>> HyperNetwork(nn.Linear(3, 2), space).effective(space.sample(4))["weight"].shape
        torch.Size([4, 2, 3])
    """

    def __init__(
        self,
        network: nn.Module,
        space: SearchSpace,
        *,
        head: Head | None = None,
        trunk: Sequence[int] = (64, 64),
        encoding: Encoding = "mip",
        residual: bool = True,
        generate: Sequence[Pattern] | None = None,
        freeze_theta_0: bool = False,
        mapping: Literal["vmap", "loop"] = "vmap",
        batch_norm: Literal["batch_statistics", "refuse"] = "batch_statistics",
        seed: int = 0,
    ) -> None:
        """See the class."""
        super().__init__()
        _check_options(trunk, encoding, mapping, batch_norm)
        self.space = space
        self.head = _with_residual(RankOne() if head is None else head, residual)
        self.widths = tuple(trunk)
        self.encoding = encoding
        self.residual = residual
        self.mapping = mapping
        self.freeze_theta_0 = freeze_theta_0
        self._given = (copy.deepcopy(network),)  # in a tuple: it is no part of what is trained, moved or saved
        self.network = copy.deepcopy(network)
        self.batch_norms = use_batch_statistics(self.network, refuse=batch_norm == "refuse")
        check_bindings(self.network, space)
        owners = generated_parameters(self.network, generate)
        self.generated: tuple[str, ...] = tuple(owners)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it would reseed every CUDA device
            self.trunk = _trunk(self.encoded_size, self.widths)
            self.rules = nn.ModuleDict(
                {
                    _key(name): self.head.rule(self.network.get_parameter(name), module)
                    for name, module in owners.items()
                }
            )
            self.heads = self._heads()
        like = next(self.network.parameters())
        for part in (self.trunk, self.rules, self.heads):
            part.to(like)
        if freeze_theta_0:
            self.network.requires_grad_(False)
        self._slots = find_slots(self.network, self.generated)
        self.lock = threading.RLock()  # held while settings' tensors stand in the network

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the lock, so that copies and worker processes get one of their own."""
        state = self.__dict__.copy()
        del state["lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """See `__getstate__`."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.lock = threading.RLock()

    def extra_repr(self) -> str:
        """Sizes and switches, in one line."""
        theta = sum(p.numel() for p in self.network.parameters())
        omega = sum(p.numel() for p in self.parameters()) - theta
        return (
            f"hyperparameters={list(self.space.names)}, head={self.head}, trunk={self.widths},"
            f" encoding={self.encoding!r}, generated={len(self.generated)} tensors,"
            f" theta_0={theta:,} numbers, omega={omega:,} numbers"
        )

    @property
    def given(self) -> nn.Module:
        """The primary network as it was given, untrained, for comparisons with real training."""
        return self._given[0]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.trunk.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The primary network's floating-point type, used throughout."""
        return next(self.trunk.parameters()).dtype

    @property
    def encoded_size(self) -> int:
        """Number of columns E of what `encoded` gives."""
        return encoded_size(self.space.dimensions, self.encoding)

    def encoded(self, units: Float[Tensor, "S d"]) -> Float[Tensor, "S E"]:
        """Settings as the trunk sees them, on the hypernetwork's device."""
        return encode(units.to(self.device, self.dtype), self.space.dimensions, self.encoding)

    def rule(self, name: str) -> Rule:
        """The rule of one generated parameter, by its name in the primary network."""
        return cast(Rule, self.rules[_key(name)])

    def numbers(self, units: Float[Tensor, "S d"]) -> dict[str, Float[Tensor, "S numbers"]]:
        """What the rules read, by parameter name: for each setting the numbers that make its tensor."""
        parts = self.heads(self.trunk(self.encoded(units))).split([self.rule(n).size for n in self.generated], -1)
        return dict(zip(self.generated, parts, strict=True))

    def effective(self, units: Float[Tensor, "S d"]) -> dict[str, Float[Tensor, "S ..."]]:
        """theta(u) formed in full, by name in the primary network, for generated and shared parameters alike."""

        def form(numbers: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: plain(tensor) for name, tensor in self._tensors(numbers).items()}

        with self.lock:  # no other thread may have its tensors in the network
            formed = vmap(form)(self.numbers(units))
            shared = {
                name: parameter.expand(len(units), *parameter.shape)
                for name, parameter in self.network.named_parameters()
                if name not in formed
            }
        return formed | shared

    def forward(
        self,
        function: Function,
        units: Float[Tensor, "S d"],
        data: Any,
        *,
        split: bool,
        reads: set[str] | None = None,
    ) -> Any:
        """`function(model, data, config)` at every setting: its result with the axis S in front.

        `model` is the primary network itself with theta(u) in place, so any of its methods may be called.

        Args:
            function: Written for one setting; returns a tensor or a tree of tensors.
            units: The settings.
            data: A tree of tensors; with `split` each has the axis S in front and every setting gets its own part,
                otherwise every setting gets all of it.
            split: See `data`.
            reads: Collects the names that the function, or a layer that it ran, looked up in its config.

        Raises:
            NetworkError: If an operation of the network, loss or metric cannot run under vmap.
        """
        numbers = self.numbers(units)
        configs = {
            name: value.to(self.device, self.dtype) if value.is_floating_point() else value.to(self.device)
            for name, value in self.space.decode(units).items()
        }

        def one(numbers: dict[str, Tensor], configs: dict[str, Tensor], data: Any) -> Any:
            config = ActiveConfig(configs, reads)
            with active(config), in_place(self._slots, self._tensors(numbers)):
                return function(self.network, data, config)

        with self.lock, attention_for_many_settings(self.device):
            if self.mapping == "loop":
                return loop(one, len(units), numbers, configs, data, split=split)
            try:
                mapped = vmap(one, in_dims=(0, 0, 0 if split else None), randomness="different")
                return mapped(numbers, configs, data)
            except (RuntimeError, NotImplementedError) as error:
                if not about_vmap(error):
                    raise
                raise NetworkError(
                    f"The primary network, loss or metric cannot run for many settings at once: {error}"
                    ' Avoid that operation, or pass HyperNetwork(..., mapping="loop"), which is slower.'
                ) from error

    def _heads(self) -> nn.Linear:
        """The linear maps of all rules, one below the other, so that a step computes them at once."""
        sizes = [self.rule(name).size for name in self.generated]
        heads = nn.Linear(self.widths[-1], sum(sizes))
        nn.init.zeros_(heads.bias)
        for name, rows in zip(self.generated, heads.weight.split(sizes), strict=True):
            self.rule(name).initialize(rows)
        return heads

    def _tensors(self, numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        theta_0 = {slot.name: slot.tensor for slot in self._slots}
        return {name: self.rule(name).tensor(theta_0[name], part) for name, part in numbers.items()}


def _key(name: str) -> str:
    return "/" + name.replace(".", "/")  # a ModuleDict key holds no dot and must not be an attribute's name


def _trunk(inputs: int, widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        linear = nn.Linear(inputs, width)
        nn.init.kaiming_normal_(linear.weight, a=0.01, mode="fan_out", nonlinearity="leaky_relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.LeakyReLU(0.01)]
        inputs = width
    return nn.Sequential(*layers)


def _with_residual(head: Head, residual: bool) -> Head:
    if residual:
        return head
    if not isinstance(head, Dense):
        raise NetworkError(f"`residual=False` is an ablation for head=Dense(), but got head={head}.")
    return dataclasses.replace(head, residual=False)


def _check_options(trunk: Sequence[int], encoding: str, mapping: str, batch_norm: str) -> None:
    if not trunk or any(width < 1 for width in trunk):
        raise NetworkError(f"`trunk` must be a non-empty sequence of positive widths, but got {trunk!r}.")
    for name, value, allowed in (
        ("encoding", encoding, ("mip", "none")),
        ("mapping", mapping, ("vmap", "loop")),
        ("batch_norm", batch_norm, ("batch_statistics", "refuse")),
    ):
        if value not in allowed:
            raise NetworkError(f"`{name}` must be one of {allowed}, but got {value!r}.")
