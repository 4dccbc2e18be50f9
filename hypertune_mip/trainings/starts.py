"""Where trainings start: from scratch, or from the weights that a hypernetwork makes at the config."""

from __future__ import annotations

import copy
import hashlib
import reprlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from hypertune_mip.errors import HypertuneWarning, OptionError
from hypertune_mip.hypernetwork import HyperNetwork
from hypertune_mip.randomness import forked_random_state
from hypertune_mip.space import Value
from hypertune_mip.trainings.initialization import reinitialized, strangers_to_reset
from hypertune_mip.trainings.networks import named_tensors, state_of

Initialize = Literal["auto", "reset", "given"] | Callable[[], nn.Module]
State = Mapping[str, Tensor]


class Starts(Protocol):
    """Makes the networks that trainings start from."""

    def network(self, config: Mapping[str, Value], seed: int) -> nn.Module:
        """One, to be copied: its layers may still be bound to hyperparameters."""

    @property
    def without_statistics(self) -> tuple[str, ...]:
        """Names of modules whose running statistics are not those of the weights that are made."""

    def description(self) -> dict[str, Any]:
        """What stored trainings must have started from to count, in plain values."""

    def on(self, device: torch.device) -> Starts:
        """The same, made on another device."""


class FromScratch:
    """The given network, or one with fresh weights.

    Args:
        network: As given; on the CPU.
        initialize: "given" is the network as it is, whatever the seed; "reset" draws its trainable weights anew by each
            module's own `reset_parameters`; "auto" does that if all weights look as if drawn so, and is "given"
            otherwise; or a function that makes a network, called with the seed set.
    """

    def __init__(self, network: nn.Module, initialize: Initialize) -> None:
        """See the class."""
        if not callable(initialize) and initialize not in ("auto", "reset", "given"):
            raise OptionError(
                '`initialize` must be "auto", "reset", "given" or a function that makes a network, but got'
                f" {initialize!r}."
            )
        self._network = network
        self._initialize = initialize
        self._strangers: list[str] | None = None
        self._digest: str | None = None

    @property
    def without_statistics(self) -> tuple[str, ...]:
        """None: fresh weights begin as a user would train them."""
        return ()

    @property
    def kind(self) -> str:
        """One of "function", "given" and "reset", once "auto" has been decided."""
        if callable(self._initialize):
            return "function"
        if self._initialize != "auto":
            return self._initialize
        if self._strangers is None:
            self._strangers = strangers_to_reset(self._network)
        return "given" if self._strangers else "reset"

    def network(self, config: Mapping[str, Value], seed: int) -> nn.Module:
        """See `Starts`."""
        if callable(self._initialize):
            with forked_random_state(seed=seed):
                return self._initialize()
        return reinitialized(self._network, seed) if self.kind == "reset" else self._network

    def description(self) -> dict[str, Any]:
        """See `Starts`, by what there is with the seed 0."""
        if self._digest is None:
            self._digest = digest(named_tensors(self.network({}, 0)))
        return {"from": "scratch", "initialize": self.kind, "weights": self._digest}

    def on(self, device: torch.device) -> FromScratch:
        """Itself: networks are made on the CPU."""
        return self

    def warn_of_same(self, *, stacklevel: int) -> None:
        """Warn that several starts were asked for and cannot be had, if that is so."""
        if self._initialize == "auto" and self.kind == "given":
            names = reprlib.repr(self._strangers)
            warnings.warn(
                f"All seeds start from the same weights: {names} are not as `reset_parameters` draws them, so they are"
                " pretrained or have an initialisation of their own. Seeds differ in the order of data and in noise"
                " only. Pass `initialize`, a function that makes a fresh network, to vary the start as well, or"
                ' initialize="given" if that is what is meant.',
                HypertuneWarning,
                stacklevel=stacklevel + 1,
            )


class FromHypernetwork:
    """The network that a hypernetwork makes at the config: theta(u), and all else as given.

    Args:
        hypernet: Trained.
        state: Of the hypernetwork at another time of its training, on the CPU; None is as it is.
    """

    def __init__(self, hypernet: HyperNetwork, state: State | None = None) -> None:
        """See the class."""
        self._hypernet = hypernet
        self._state = state
        self._then: HyperNetwork | None = hypernet if state is None else None

    @property
    def without_statistics(self) -> tuple[str, ...]:
        """See `Starts`."""
        return self._hypernet.batch_norms

    def __getstate__(self) -> dict[str, Any]:
        """Without the second hypernetwork, which is made anew."""
        return {**self.__dict__, "_then": self._hypernet if self._state is None else None}

    def network(self, config: Mapping[str, Value], seed: int) -> nn.Module:
        """See `Starts`; the seed makes no difference."""
        if self._then is None:
            assert self._state is not None
            self._then = copy.deepcopy(self._hypernet)
            self._then.load_state_dict(self._state)
        hypernet = self._then
        network = copy.deepcopy(hypernet.given).to(hypernet.device)
        with torch.no_grad():
            made = hypernet.effective(hypernet.space.unit_of(config))
            learned = {name: tensor[0] for name, tensor in made.items()}
            with hypernet.kernel.lock:
                learned |= dict(hypernet.network.named_buffers())  # those that training does not drop
                for name, tensor in named_tensors(network):
                    if name in learned:
                        tensor.copy_(learned[name])
        for name in hypernet.batch_norms:  # whose statistics were of other weights
            network.get_submodule(name).reset_running_stats()  # type: ignore[operator]
        return network

    def on(self, device: torch.device) -> FromHypernetwork:
        """See `Starts`."""
        return FromHypernetwork(copy.deepcopy(self._hypernet).to(device), self._state)

    def description(self) -> dict[str, Any]:
        """See `Starts`."""
        state = self._hypernet.state_dict() if self._state is None else self._state
        return {"from": "hypernetwork", "weights": digest(state.items())}


class FromNetwork:
    """A given network, whatever the config.

    Args:
        network: Built like the primary network, layers that are bound to hyperparameters included; on the CPU.
    """

    def __init__(self, network: nn.Module) -> None:
        """See the class."""
        self._network = network
        self.without_statistics = ()
        self.digest = digest(state_of(network).items())

    def network(self, config: Mapping[str, Value], seed: int) -> nn.Module:
        """See `Starts`; neither makes a difference."""
        return self._network

    def on(self, device: torch.device) -> FromNetwork:
        """Itself: what starts from it is moved."""
        return self

    def description(self) -> dict[str, Any]:
        """See `Starts`."""
        return {"from": "network", "weights": self.digest}


def digest(tensors: Iterable[tuple[str, Any]]) -> str:
    """A short name for tensors and numbers, and for their names."""
    found = hashlib.sha256()
    for name, value in tensors:
        found.update(name.encode())
        if not isinstance(value, Tensor):
            found.update(repr(value).encode())
        else:
            found.update(f"{value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
