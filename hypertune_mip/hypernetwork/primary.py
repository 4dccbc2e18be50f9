"""What of a primary network can be generated, and the checks that it can be run at many settings."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Sequence, Set
from typing import Any

import torch
from optuna.distributions import CategoricalDistribution
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hypertune_mip.errors import HypertuneWarning, NetworkError, SpaceError
from hypertune_mip.functional import ConfigModule, hyperparameters_in
from hypertune_mip.nn import check_rate, is_rate
from hypertune_mip.space import SearchSpace

Pattern = str | type[nn.Module]
"""A type of modules, or a pattern (as in `fnmatch`) of names of modules or parameters."""


def always_evaluating(network: nn.Module) -> frozenset[str]:
    """Names of the modules that stay in evaluation mode while a network is trained, as a frozen body does.

    They are those that the network's own `train()` leaves in evaluation mode, and those that were put there by hand, in
    a network that is in training mode itself, within parts that hold nothing to train. All modes are afterwards as they
    were.
    """
    parts = _parts_in_evaluation_mode(network)
    by_hand = {f"{part}.{name}".rstrip(".") for part, m in parts.items() if not _is_trained(m) for name, _ in _all(m)}
    modes = [(name, module, module.training) for name, module in _all(network)]
    network.train()
    left = {name for name, module, _ in modes if not module.training}
    for _, module, training in modes:
        module.training = training
    return frozenset(by_hand | left)


def warn_of_modes(network: nn.Module, staying: Set[str]) -> None:
    """Warn of parts in evaluation mode, in a network that is in training mode, which training will change.

    Args:
        network: As it was given.
        staying: See `always_evaluating`.
    """
    names = [name for name, part in _parts_in_evaluation_mode(network).items() if name not in staying]
    if names:
        warnings.warn(
            f"The modules {names} are in evaluation mode in a network that is in training mode, as pretrained ones"
            " come. They are trained, so training puts them in training mode. Call network.train() to say so, or freeze"
            " them (requires_grad_(False)), and they stay in evaluation mode.",
            HypertuneWarning,
            stacklevel=3,
        )


def _parts_in_evaluation_mode(network: nn.Module) -> dict[str, nn.Module]:
    """The largest parts of a network in training mode that are in evaluation mode, by name."""
    parts: dict[str, nn.Module] = {}
    for name, module in _all(network):
        if network.training and not module.training and not any(name.startswith(f"{part}.") for part in parts):
            parts[name] = module
    return parts


def _all(network: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(network.named_modules(remove_duplicate=False))


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def set_training(network: nn.Module, mode: bool, staying: Set[str]) -> None:
    """As `network.train(mode)`, but modules named in `staying` are in evaluation mode afterwards."""
    network.train(mode)
    if mode and staying:
        for name, module in _all(network):
            if name in staying:
                module.training = False


def keeps_statistics(network: nn.Module, staying: Set[str]) -> tuple[str, ...]:
    """Names of the modules that keep running statistics in training, but for those named in `staying`."""
    return tuple(
        name
        for name, module in network.named_modules()
        if isinstance(module, _NormBase) and module.track_running_stats and name not in staying
    )


def warn_of_frozen_statistics(network: nn.Module, dropped: Sequence[str]) -> None:
    """Warn of normalisation that is frozen and yet lost its running statistics, since training would change them.

    Args:
        network: Whose modules they are.
        dropped: Names of the modules that lost them.
    """
    modules = {name: network.get_submodule(name) for name in dropped}
    frozen = [name for name, module in modules.items() if [*module.parameters()] and not _is_trained(module)]
    if frozen:
        warnings.warn(
            f"{frozen} are frozen, but in training mode while the network is trained, which changes running statistics:"
            " those of the batch at hand are used instead. To keep them as they are, call network.train() and then"
            " eval() of the frozen part.",
            HypertuneWarning,
            stacklevel=3,
        )


def use_batch_statistics(network: nn.Module, staying: Set[str], *, refuse: bool) -> tuple[str, ...]:
    """Drop running statistics from the network in place, but for modules in `staying`; names of those that had them."""
    names = keeps_statistics(network, staying)
    for name in names:
        module: Any = network.get_submodule(name)
        if refuse:
            raise NetworkError(
                f"Module '{name}' ({type(module).__name__}) keeps running statistics, which would mix all settings."
                " Use GroupNorm or LayerNorm, or batch_norm='batch_statistics'."
            )
        module.track_running_stats = False
        module.running_mean = module.running_var = module.num_batches_tracked = None
    return names


def precision_of(network: nn.Module) -> torch.dtype:
    """The most exact floating-point type among a network's parameters, float32 at least."""
    dtype = torch.float32
    for parameter in network.parameters():
        if parameter.is_floating_point():
            dtype = torch.promote_types(dtype, parameter.dtype)
    return dtype


def bindings(network: nn.Module) -> dict[str, str]:
    """Hyperparameters that layers and single numbers are bound to, by their names in the network."""
    return {
        where: name
        for path, module in network.named_modules(remove_duplicate=False)
        for where, name in _bound(path, module).items()
    }


def _bound(path: str, module: nn.Module) -> dict[str, str]:
    if isinstance(module, ConfigModule):
        return {path: module.hyperparameter} if isinstance(module.hyperparameter, str) else {}
    return {f"{path}.{attribute}".lstrip("."): name for attribute, name in hyperparameters_in(module).items()}


def check_bindings(network: nn.Module, space: SearchSpace) -> None:
    """Raise SpaceError for a layer that is bound to a name which the space lacks, or to values it cannot run at."""
    for path, module in network.named_modules():
        for bound, name in _bound(path, module).items():
            where = f"Layer '{path}' ({type(module).__name__})" if bound == path else f"'{bound}'"
            if name not in space:
                raise SpaceError(f"{where} reads '{name}', but the space holds {list(space.names)}.")
            distribution = space[name]
            if isinstance(distribution, CategoricalDistribution):
                raise SpaceError(f"{where} needs a number, but '{name}' is categorical: {distribution}.")
            low, high = float(distribution.low), float(distribution.high)  # type: ignore[attr-defined]
            if isinstance(module, ConfigModule):
                module.check_range(low, high)
            elif is_rate(module, bound.rpartition(".")[2]):
                check_rate(name, low, high)


def generated_parameters(network: nn.Module, generate: Sequence[Pattern] | None) -> dict[str, nn.Module]:
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
                f"`generate` has {pattern!r}, which matches no module or parameter; modules are {list(modules)[1:]}."
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
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
        raise NetworkError(f"{where} with max_norm rewrites its weight in place. {advice}")
    if not parameter.is_floating_point():
        raise NetworkError(f"{where} has a parameter of type {parameter.dtype}. {advice}")
