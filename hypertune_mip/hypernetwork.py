"""The hypernetwork: trunk + head + theta_0, and the way in which a primary network runs at many settings.

    e(u)     = [cos(pi u / 2), sin(pi u / 2)] / sqrt(d)       input encoding
    theta(u) = theta_0 + h(e(u); omega)                       output encoding

Reference: Gonzalez Ortiz, Guttag, Dalca, ICLR 2024, arXiv 2304.07645. Deviations: the encoding has norm 1 (see
`encoding`), and a head may multiply theta_0 by 1 + r c^T instead of adding a full residual (see `heads`).
"""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from optuna.distributions import CategoricalDistribution
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_map

from hypertune_mip.encoding import Encoding, encode, encoded_size
from hypertune_mip.errors import NetworkError, SpaceError
from hypertune_mip.functional import ActiveConfig, ConfigModule, StructuredWeight, active
from hypertune_mip.heads import Dense, Head, RankOne, Rule
from hypertune_mip.space import SearchSpace

Function = Callable[[nn.Module, Any, ActiveConfig], Any]
"""Of (primary network at one setting, data of that setting, config): a loss, or a metric behind an adapter."""
Pattern = str | type[nn.Module]


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
        self.network = copy.deepcopy(network)
        self.batch_norms = _use_batch_statistics(self.network, refuse=batch_norm == "refuse")
        _check_bindings(self.network, space)
        owners = _generated(self.network, generate)
        self.generated: tuple[str, ...] = tuple(owners)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.trunk = _trunk(self.encoded_size, self.widths)
            self.rules = nn.ModuleDict()
            for name, module in owners.items():
                rule = self.head.rule(self.network.get_parameter(name), module, self.widths[-1])
                self.rules[_key(name)] = rule
        like = next(self.network.parameters())
        self.trunk.to(like)
        self.rules.to(like)
        if freeze_theta_0:
            self.network.requires_grad_(False)
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the lock, so that copies and worker processes get one of their own."""
        state = self.__dict__.copy()
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """See `__getstate__`."""
        super().__setstate__(state)
        self._lock = threading.RLock()

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
        features = self.trunk(self.encoded(units))
        rules = [self.rule(name) for name in self.generated]
        weight = torch.cat([rule.weight for rule in rules])  # one product for all heads
        bias = torch.cat([rule.bias for rule in rules])
        parts = nn.functional.linear(features, weight, bias).split([sum(r.sizes) for r in rules], -1)
        return dict(zip(self.generated, parts, strict=True))

    def effective(self, units: Float[Tensor, "S d"]) -> dict[str, Float[Tensor, "S ..."]]:
        """theta(u) formed in full, by name in the primary network, for generated and shared parameters alike."""

        def form(numbers: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: plain(tensor) for name, tensor in self._tensors(numbers).items()}

        with self._lock:  # no other thread may have its tensors in the network
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
            with active(config), _in_place(slots, self._tensors(numbers)):
                return function(self.network, data, config)

        with self._lock, _no_attention_fast_path():
            slots = _slots(self.network, self.generated)
            if self.mapping == "loop":
                return _loop(one, len(units), numbers, configs, data, split=split)
            try:
                mapped = vmap(one, in_dims=(0, 0, 0 if split else None), randomness="different")
                return mapped(numbers, configs, data)
            except (RuntimeError, NotImplementedError) as error:
                if "vmap" not in str(error) and "batching rule" not in str(error).lower():
                    raise
                raise NetworkError(
                    f"The primary network, loss or metric cannot run for many settings at once: {error}"
                    ' Avoid that operation, or pass HyperNetwork(..., mapping="loop"), which is slower.'
                ) from error

    def _tensors(self, numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.rule(name).tensor(self.network.get_parameter(name), part) for name, part in numbers.items()}


def plain(tensor: Tensor) -> Tensor:
    """The tensor itself, or the formed one where it is structured."""
    return tensor.form() if isinstance(tensor, StructuredWeight) else tensor


Slot = tuple[nn.Module, str, str]
"""A place that holds a parameter: the owner, the name there, and the name of the parameter."""


def _slots(network: nn.Module, names: Sequence[str]) -> list[Slot]:
    """All places that hold the named parameters, those of tied copies included."""
    by_identity = {id(network.get_parameter(name)): name for name in names}
    return [
        (module, leaf, by_identity[id(parameter)])
        for module in network.modules()
        for leaf, parameter in module._parameters.items()
        if id(parameter) in by_identity
    ]


@contextmanager
def _in_place(slots: Sequence[Slot], tensors: dict[str, Tensor]) -> Iterator[None]:
    """Put one setting's tensors where the network keeps its parameters, and the parameters back at the end.

    `torch.func.functional_call` does the same for one forward call; here the whole loss runs inside, which may call any
    method of the network and ask for its parameters, at a tenth of the cost.
    """
    originals = [module._parameters[leaf] for module, leaf, _ in slots]
    try:
        for module, leaf, name in slots:
            module._parameters[leaf] = tensors[name]  # type: ignore[assignment]
        yield
    finally:
        for (module, leaf, _), original in zip(slots, originals, strict=True):
            module._parameters[leaf] = original


def _loop(one: Callable[..., Any], settings: int, numbers: Any, configs: Any, data: Any, *, split: bool) -> Any:
    results = []
    for index in range(settings):
        at = lambda tree, i=index: tree_map(lambda t: t[i], tree)  # noqa: E731
        results.append(one(at(numbers), at(configs), at(data) if split else data))
    return tree_map(lambda *parts: torch.stack(parts), *results)


@contextmanager
def _no_attention_fast_path() -> Iterator[None]:
    """Keep attention on the path that looks at its weights through `__torch_function__` and vmap."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


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


def _use_batch_statistics(network: nn.Module, *, refuse: bool) -> tuple[str, ...]:
    """Drop running statistics from the network in place; names of the modules that had them."""
    names = []
    for name, module in network.named_modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            if refuse:
                raise NetworkError(
                    f"Module '{name}' ({type(module).__name__}) keeps running statistics, which would mix all settings."
                    " Use GroupNorm or LayerNorm, or batch_norm='batch_statistics'."
                )
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
            names.append(name)
    return tuple(names)


def _check_bindings(network: nn.Module, space: SearchSpace) -> None:
    for path, module in network.named_modules():
        if not isinstance(module, ConfigModule) or not isinstance(module.hyperparameter, str):
            continue
        name = module.hyperparameter
        where = f"Layer '{path}' ({type(module).__name__})"
        if name not in space:
            raise SpaceError(f"{where} reads '{name}', but the space holds {list(space.names)}.")
        distribution = space[name]
        if isinstance(distribution, CategoricalDistribution):
            raise SpaceError(f"{where} needs a number, but '{name}' is categorical: {distribution}.")
        module.check_range(float(distribution.low), float(distribution.high))  # type: ignore[attr-defined]


def _generated(network: nn.Module, generate: Sequence[Pattern] | None) -> dict[str, nn.Module]:
    """Owner of each parameter to generate, by parameter name, in the network's order; tied parameters appear once."""
    if isinstance(generate, (str, type)):
        generate = [generate]
    modules = dict(network.named_modules(remove_duplicate=False))
    used: set[Pattern] = set()
    owners: dict[str, nn.Module] = {}
    for name, parameter in network.named_parameters():
        path = name.rpartition(".")[0]
        matching = {p for p in generate or () if _matches(p, name, path, modules[path])}
        used |= matching
        if matching or (generate is None and parameter.requires_grad):
            _check_served(path, modules[path], parameter)
            owners[name] = modules[path]
    for pattern in generate or ():
        if pattern not in used:
            raise NetworkError(
                f"`generate` has {pattern!r}, which matches no module or parameter; the network has {list(modules)[1:]}."
            )
    if not owners:
        raise NetworkError(
            "Nothing of the primary network would be generated, so no metric could respond to a hyperparameter."
            " Pass a network that has trainable parameters."
        )
    return owners


def _matches(pattern: Pattern, name: str, path: str, module: nn.Module) -> bool:
    if isinstance(pattern, str):
        return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(name, pattern)
    return isinstance(module, pattern)


def _check_served(path: str, module: nn.Module, parameter: Tensor) -> None:
    where = f"Module '{path}' ({type(module).__name__})"
    advice = "Leave it out of `generate`, and it is shared by all settings."
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise NetworkError(f"{where} has no shape yet. Run one forward pass of the network first.")
    if isinstance(module, nn.RNNBase):
        raise NetworkError(
            f"{where} reads its weights past the ones that a setting gives it, so they cannot be generated. {advice}"
        )
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
        raise NetworkError(f"{where} with max_norm rewrites its weight in place. {advice}")
    if not parameter.is_floating_point():
        raise NetworkError(f"{where} has a parameter of type {parameter.dtype}. {advice}")
