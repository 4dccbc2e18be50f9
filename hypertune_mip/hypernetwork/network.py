"""The hypernetwork: trunk + head + theta_0, and the way in which a primary network runs at many settings.

    e(u)     = [cos(pi u / 2), sin(pi u / 2)] / sqrt(d)       input encoding
    theta(u) = theta_0 + h(e(u); omega)                       output encoding

Reference: Gonzalez Ortiz, Guttag, Dalca, ICLR 2024, arXiv 2304.07645. Deviations: the encoding has norm 1 (see
`encoding`), and a head may multiply theta_0 by 1 + r c^T instead of adding a full residual (see `heads`).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence, Set
from typing import Any, Literal, Self, cast

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from hypertune_mip.arguments import seed_number, whole_number
from hypertune_mip.encoding import Encoding, encode, encoded_size
from hypertune_mip.errors import NetworkError, SpaceError
from hypertune_mip.execution import Execution, Function, Kernel, Mode, Setting
from hypertune_mip.execution.sequential import Weigh
from hypertune_mip.heads import Dense, Head, RankOne, Rule
from hypertune_mip.hypernetwork.primary import (
    Pattern,
    always_evaluating,
    check_bindings,
    generated_parameters,
    precision_of,
    set_training,
    use_batch_statistics,
    warn_of_frozen_statistics,
    warn_of_modes,
)
from hypertune_mip.randomness import forked_random_state
from hypertune_mip.space import SearchSpace

_ALL = "numbers"  # a setting's only value, as the kernel names it


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
        mapping: "vmap" runs all settings at once, "loop" one after another, which serves every network; "auto" takes
            what is faster, and what serves the network.
        batch_norm: "batch_statistics" makes layers with running statistics use those of the batch at hand, since
            running ones would mix all settings; "refuse" raises instead.
        seed: Of the trunk's initialisation.

    Raises:
        NetworkError: If an option is invalid, a module cannot be generated, by name, or a pattern matches nothing.
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
        mapping: Mode = "auto",
        batch_norm: Literal["batch_statistics", "refuse"] = "batch_statistics",
        seed: int = 0,
    ) -> None:
        """See the class."""
        super().__init__()
        _check_kinds(network, space)
        widths = _widths(trunk)
        _check_options(encoding, mapping, batch_norm)
        seed = seed_number(seed, error=NetworkError)
        self.space = space
        self.head = _with_residual(RankOne() if head is None else head, residual)
        self.widths = widths
        self.encoding = encoding
        self.residual = residual
        self.freeze_theta_0 = freeze_theta_0
        self._given = (_copied(network),)  # in a tuple: it is no part of what is trained, moved or saved
        self.network = _copied(network)
        self._staying = always_evaluating(self.network)
        warn_of_modes(self.network, self._staying)
        self.batch_norms = use_batch_statistics(self.network, self._staying, refuse=batch_norm == "refuse")
        warn_of_frozen_statistics(self.network, self.batch_norms)
        check_bindings(self.network, space)
        owners = generated_parameters(self.network, generate)
        self.generated: tuple[str, ...] = tuple(owners)
        self._keys = {name: _key(name) for name in self.generated}
        with forked_random_state(seed=seed):
            self.trunk = _trunk(self.encoded_size, self.widths)
            self.rules = nn.ModuleDict(
                {
                    self._keys[name]: self.head.rule(self.network.get_parameter(name), module)
                    for name, module in owners.items()
                }
            )
            self._sizes = [self.rule(name).size for name in self.generated]
            self.heads = self._heads()
        device, dtype = next(self.network.parameters()).device, precision_of(self.network)
        for part in (self.trunk, self.rules, self.heads):
            part.to(device, dtype)
        if freeze_theta_0:
            self.network.requires_grad_(False)
        self.kernel = Kernel(self.network, self.generated, self._tensors, made_from=self.rules, mapping=mapping)

    def extra_repr(self) -> str:
        """Sizes and switches, in one line."""
        theta = sum(p.numel() for p in self.network.parameters())
        omega = sum(p.numel() for p in self.parameters()) - theta
        return (
            f"hyperparameters={list(self.space.names)}, head={self.head}, trunk={self.widths},"
            f" encoding={self.encoding!r}, generated={len(self.generated)} tensors,"
            f" theta_0={theta:,} numbers, omega={omega:,} numbers"
        )

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules; those of the primary network that train in evaluation mode stay in it."""
        super().train(mode)
        set_training(self.network, mode, self._staying)
        return self

    @property
    def given(self) -> nn.Module:
        """The primary network as it was given, untrained, for comparisons with real training."""
        return self._given[0]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.heads.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the hypernetwork's own numbers: the most exact one in the primary network, float32 at least."""
        return self.heads.weight.dtype

    @property
    def encoded_size(self) -> int:
        """Number of columns E of what `encoded` gives."""
        return encoded_size(self.space.dimensions, self.encoding)

    def encoded(self, units: Float[Tensor, "S d"]) -> Float[Tensor, "S E"]:
        """Settings as the trunk sees them, on the hypernetwork's device."""
        return encode(units.to(self.device, self.dtype), self.space.dimensions, self.encoding)

    def rule(self, name: str) -> Rule:
        """The rule of one generated parameter, by its name in the primary network."""
        return cast(Rule, self.rules[self._keys[name]])

    def numbers(self, units: Float[Tensor, "S d"]) -> Float[Tensor, "S numbers"]:
        """What the rules read: for each setting the numbers that make its tensors, one tensor's behind the other's.

        They are computed in the network's own precision, also under autocast: settings differ by little.
        """
        with torch.autocast(self.device.type, enabled=False):
            numbers: Tensor = self.heads(self.trunk(self.encoded(units)))
            return numbers

    def configs(self, units: Float[Tensor, "S d"]) -> dict[str, Num[Tensor, "S"]]:
        """Native values at units, by name, on the hypernetwork's device; floats in its type."""
        decoded = self.space.decode(units).items()
        return {n: v.to(self.device, self.dtype) if v.is_floating_point() else v.to(self.device) for n, v in decoded}

    def settings(self, units: Float[Tensor, "S d"]) -> Setting:
        """Settings as the kernel takes them."""
        return Setting({_ALL: self.numbers(units)}, self.configs(units))

    def effective(self, units: Float[Tensor, "S d"]) -> dict[str, Float[Tensor, "S ..."]]:
        """theta(u) formed in full, by name in the primary network, for generated and shared parameters alike."""
        with self.kernel.lock:  # no other thread may have its tensors in the network
            own = dict(self.network.named_parameters())
        everything = frozenset(self.generated)
        rows = [self._tensors(own, {_ALL: numbers}, everything) for numbers in self.numbers(units)]
        formed = {name: torch.stack([row[name] for row in rows]) for name in self.generated} if rows else {}
        shared = {name: p.expand(len(units), *p.shape) for name, p in own.items() if name not in everything}
        return formed | shared

    def forward(
        self,
        function: Function,
        units: Float[Tensor, "S d"],
        data: Any,
        *,
        split: bool,
        execution: Execution | None = None,
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
            execution: How settings are run; None is what `mapping` says.
            reads: Collects the names that the function, or a layer that it ran, looked up in its config.

        Raises:
            NetworkError: If an operation of the network, loss or metric cannot run under a mapping that was asked for.
        """
        own = self.settings(units)
        return self.kernel.run(function, own, data, split=split, execution=execution, reads=reads)

    def weighted(
        self,
        function: Function,
        units: Float[Tensor, "S d"],
        data: Any,
        *,
        split: bool,
        weigh: Weigh,
        execution: Execution | None = None,
        reads: set[str] | None = None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "S"]]:
        """Sum over settings of weights x losses, to call `backward` on once, and the losses without history.

        This is how training runs: where settings run one after another, each one's backward pass is inside.

        Args:
            function: A loss, written for one setting.
            units: See `forward`.
            data: See `forward`.
            split: See `forward`.
            weigh: From losses (n,) of some of the settings, and the slice that these are, to their weights (n,).
            execution: See `forward`.
            reads: See `forward`.
        """
        own = self.settings(units)
        return self.kernel.weighted(function, own, data, split=split, weigh=weigh, execution=execution, reads=reads)

    def _heads(self) -> nn.Linear:
        """The linear maps of all rules, one below the other, so that a step computes them at once."""
        heads = nn.Linear(self.widths[-1], sum(self._sizes))
        nn.init.zeros_(heads.bias)
        for name, rows in zip(self.generated, heads.weight.split(self._sizes), strict=True):
            self.rule(name).initialize(rows)
        return heads

    def _tensors(
        self, parameters: Mapping[str, Tensor], values: Mapping[str, Tensor], form: Set[str]
    ) -> dict[str, Tensor]:
        """Of one setting, by name; see `Kernel`. Its values are all rules' numbers, one behind the other."""
        tensors = {}
        for name, numbers in zip(self.generated, values[_ALL].split(self._sizes), strict=True):
            rule = self.rule(name)
            tensors[name] = (rule.form if name in form else rule.tensor)(parameters[name], numbers)
        return tensors


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


def _copied(network: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(network)
    except (RuntimeError, TypeError) as error:
        raise NetworkError(
            f"The network cannot be copied: {error} Keep no results of computations, locks or files in its modules;"
            " take torch.nn.utils.parametrizations.weight_norm in place of torch.nn.utils.weight_norm."
        ) from error


def _check_kinds(network: Any, space: Any) -> None:
    if isinstance(network, HyperNetwork):
        raise NetworkError("`network` must be the primary network, an nn.Module, but got a HyperNetwork already.")
    if not isinstance(network, nn.Module):
        raise NetworkError(f"`network` must be the primary network, an nn.Module, but got a {type(network).__name__}.")
    for path, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise NetworkError(
                f"Module '{path}' is TorchScript, in which no weights can be put in place. Pass the network as it was"
                " before torch.jit.script or torch.jit.trace."
            )
    if not isinstance(space, SearchSpace):
        raise SpaceError(
            f"`space` must be a SearchSpace, but got a {type(space).__name__}. Pass for example"
            ' SearchSpace({"dropout": FloatDistribution(0.0, 0.5)}).'
        )


def _widths(trunk: Sequence[int]) -> tuple[int, ...]:
    try:
        widths = tuple(whole_number("trunk", width, low=1, error=NetworkError) for width in trunk)
    except (NetworkError, TypeError):
        widths = ()
    if not widths:
        raise NetworkError(f"`trunk` must be a non-empty sequence of positive widths, but got {trunk!r}.")
    return widths


def _check_options(encoding: str, mapping: str, batch_norm: str) -> None:
    for name, value, allowed in (
        ("encoding", encoding, ("mip", "none")),
        ("mapping", mapping, ("auto", "vmap", "loop")),
        ("batch_norm", batch_norm, ("batch_statistics", "refuse")),
    ):
        if value not in allowed:
            raise NetworkError(f"`{name}` must be one of {allowed}, but got {value!r}.")
