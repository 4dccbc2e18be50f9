"""What a run is: all that must be the same in each part of a run that is stopped and resumed.

What may differ between parts: the options that `Options` declares so (where training runs and what is seen of it, never
what is learned), the number of workers, and the number of batches an epoch. Data and loss cannot be compared.

A factory is a function, whose name says nothing: what it makes is described instead.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from hypertune_mip.arguments import plain
from hypertune_mip.hypernetwork import HyperNetwork, bindings
from hypertune_mip.training.options import Options

_SHOWN = 8  # differences
_NOTHING = "nothing"
_FACTORIES = ("optimizer", "schedule")
_GROUPING = ("optimizer", "normalize", "residual", "freeze_theta_0")  # the schedule has other numbers with each
_TEXT = reprlib.Repr()
_TEXT.maxstring = 80


def fingerprint(hypernet: HyperNetwork, options: Options, **made: Any) -> dict[str, Any]:
    """A description in plain values, `differences` of which are the reasons not to go on with a run.

    Args:
        hypernet: What is trained.
        options: How.
        **made: Descriptions of the optimiser and the schedule that the options' factories make.
    """
    fixed = [f.name for f in dataclasses.fields(options) if not f.metadata["may_differ"] and f.name not in _FACTORIES]
    return {
        "order": list(hypernet.space),
        "space": described(hypernet.space.to_json()["distributions"]),
        "head": described(hypernet.head),
        "trunk": list(hypernet.widths),
        "encoding": hypernet.encoding,
        "residual": hypernet.residual,
        "generate": list(hypernet.generated),
        "freeze_theta_0": hypernet.freeze_theta_0,
        "mapping": hypernet.kernel.mapping,
        "bindings": described(bindings(hypernet.network)),
        "dtype": str(hypernet.dtype),
        **{name: described(getattr(options, name)) for name in fixed},
        **made,
    }


def description_of(optimizer: Optimizer) -> dict[str, Any]:
    """An optimiser's class, and the choices of each of its groups."""
    groups = [
        {"tensors": len(group["params"]), **described({k: v for k, v in group.items() if k != "params"})}
        for group in optimizer.param_groups
    ]
    return {"class": name_of(type(optimizer)), "groups": groups}


def described(value: Any) -> Any:
    """A value as plain ones, which stay the same when they are stored; of a function or another object, its name."""
    value = plain(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value if value == value else repr(value)
    if isinstance(value, (Tensor, np.ndarray)):
        return described(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: described(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    return name_of(value if hasattr(value, "__qualname__") else type(value))


def differences(saved: dict[str, Any], now: dict[str, Any]) -> str:
    """What was and what is, by name, for a message; empty if there is no difference."""
    if any(saved.get(name) != now[name] for name in _GROUPING):
        saved, now = ({name: each[name] for name in each if name != "schedule"} for each in (saved, now))
    found = _differences(saved, now, "")
    more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return ", ".join(found[:_SHOWN] + more)


def _differences(saved: Any, now: Any, path: str) -> list[str]:
    if saved == now:
        return []
    if _are_groups(saved) and _are_groups(now) and len(saved) == len(now):
        saved, now = dict(enumerate(saved)), dict(enumerate(now))
    if not isinstance(saved, dict) or not isinstance(now, dict):
        return [f"{path} was {_shown(saved)}, is {_shown(now)}"]
    names = [*now, *(name for name in saved if name not in now)]
    if saved.get("class") != now.get("class"):
        names = ["class"]
    return [
        each
        for name in names
        for each in _differences(saved.get(name, _NOTHING), now.get(name, _NOTHING), f"{path}.{name}".lstrip("."))
    ]


def _shown(value: Any) -> str:
    if _are_groups(value):
        return f"a list of {len(value)}"
    if isinstance(value, dict) and "class" in value:
        return str(value["class"])
    return _NOTHING if value is _NOTHING else _TEXT.repr(value)


def _are_groups(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def name_of(of: Any) -> str:
    """Of a class or function, with its module."""
    return f"{of.__module__}.{of.__qualname__}"
