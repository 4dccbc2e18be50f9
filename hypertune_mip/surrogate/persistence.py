"""What a saved surrogate holds, and the checks that a folder fits the network it is loaded for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hypertune_mip.errors import HypertuneError, StorageError
from hypertune_mip.heads import Head, heads_named
from hypertune_mip.hypernetwork import HyperNetwork, bindings
from hypertune_mip.space import SearchSpace
from hypertune_mip.storage import load_tree, save_tree

_NAME = "surrogate"
_KIND = "surrogate"
PARTS = ("history", "execution", "early", "directions", "reports", "correction")
"""What a surrogate is beside its hypernetwork, functions and data, as its constructor names it."""


def save_surrogate(folder: str | Path, hypernet: HyperNetwork, parts: Mapping[str, Any]) -> None:
    """Write a hypernetwork, and what else a surrogate is.

    Args:
        folder: Where to.
        hypernet: The surrogate's.
        parts: Trees by the names in `PARTS`.

    Raises:
        StorageError: If it cannot be written.
    """
    assert tuple(parts) == PARTS
    tree = {
        "space": hypernet.space.to_json(),
        "head": _head_to_json(hypernet.head),
        "trunk": hypernet.widths,
        "encoding": hypernet.encoding,
        "residual": hypernet.residual,
        "freeze_theta_0": hypernet.freeze_theta_0,
        "mapping": hypernet.kernel.mapping,
        "generated": hypernet.generated,
        "shapes": _shapes(hypernet.network),
        "bindings": bindings(hypernet.network),
        "state": hypernet.state_dict(),
        **parts,
    }
    save_tree(folder, _NAME, tree, kind=_KIND)


def load_surrogate(
    folder: str | Path, network: nn.Module, space: SearchSpace | None
) -> tuple[HyperNetwork, dict[str, Any]]:
    """The hypernetwork, around a copy of `network`, and the parts that `save_surrogate` wrote.

    Args:
        folder: What was saved to.
        network: The same architecture as before; its weights do not matter.
        space: If given, the space that must have been saved.

    Raises:
        StorageError: If the folder is damaged, or does not fit the network or the space.
    """
    tree = load_tree(folder, _NAME, kind=_KIND)
    try:
        saved_space = SearchSpace.from_json(tree["space"])
        head = _head_from_json(folder, tree["head"])
        generated, shapes, bound, state = tree["generated"], tree["shapes"], tree["bindings"], tree["state"]
        parts = {name: tree[name] for name in PARTS}
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"'{folder}' does not hold what a surrogate needs: {error!r}.") from error
    if space is not None and space != saved_space:
        raise StorageError(f"'{folder}' was trained on another space:\n{saved_space}\nbut got\n{space}")
    _check_shapes(folder, shapes, _shapes(network))
    if bound != bindings(network):
        raise StorageError(
            f"'{folder}' was saved for a network whose layers are bound to hyperparameters as {bound}, but those of the"
            f" network given are {bindings(network)}."
        )
    try:
        hypernet = HyperNetwork(
            network,
            saved_space,
            head=head,
            trunk=tree["trunk"],
            encoding=tree["encoding"],
            residual=tree["residual"],
            generate=generated,
            freeze_theta_0=tree["freeze_theta_0"],
            mapping=tree["mapping"],
        )
        hypernet.load_state_dict(state)
    except StorageError:
        raise
    except (HypertuneError, RuntimeError, KeyError) as error:
        raise StorageError(f"'{folder}' does not fit this network: {error}") from error
    return hypernet.eval(), parts


def _head_to_json(head: Head) -> dict[str, Any]:
    """A head's class and options, such that `_head_from_json` makes an equal one; raises StorageError otherwise."""
    kind = type(head)
    name = kind.__name__
    _head_class(name, f"The head {name} cannot be saved")
    if "__init__" in vars(kind) and "__dataclass_fields__" not in vars(kind):
        raise StorageError(
            f"The head {name} has an `__init__` of its own, so its options are not known and it cannot be saved."
            " Make it a dataclass: @dataclasses.dataclass(frozen=True, kw_only=True)."
        )
    options = {field.name: getattr(head, field.name) for field in dataclasses.fields(head) if field.init}
    try:
        again = kind(**json.loads(json.dumps(options)))
    except (TypeError, ValueError, HypertuneError) as error:
        raise StorageError(
            f"The head {head} cannot be saved: its options do not come back from JSON: {error}"
        ) from error
    if again != head:
        raise StorageError(
            f"The head {head} cannot be saved: from JSON it comes back as {again}. Use options of JSON's types, or"
            " convert them in its `__post_init__` (a tuple comes back as a list)."
        )
    return {"type": name, "module": kind.__module__, "options": options}


def _head_from_json(folder: str | Path, saved: dict[str, Any]) -> Head:
    """The head that `_head_to_json` described, of a class that is there already: nothing is imported by its name."""
    kind = _head_class(saved["type"], f"'{folder}' was trained with a head {saved['type']} of '{saved['module']}'")
    return kind(**saved["options"])


def _head_class(name: str, why: str) -> type[Head]:
    """The only class of heads of that name."""
    classes = heads_named(name)
    if not classes:
        raise StorageError(f"{why}, which this process does not know. Define or import that class before loading.")
    if len(classes) > 1:
        places = [f"{kind.__module__}.{kind.__qualname__}" for kind in classes]
        raise StorageError(f"{why}: there are {len(classes)} heads of that name, {places}. Rename one of them.")
    return classes[0]


def _shapes(network: nn.Module) -> dict[str, list[int]]:
    return {name: list(parameter.shape) for name, parameter in network.named_parameters()}


def _check_shapes(folder: str | Path, saved: dict[str, Any], given: dict[str, Any]) -> None:
    if saved == given:
        return
    missing = [name for name in saved if name not in given]
    extra = [name for name in given if name not in saved]
    other = [f"{n}: {saved[n]} saved, {given[n]} given" for n in saved if n in given and saved[n] != given[n]]
    raise StorageError(
        f"'{folder}' was saved for another network: missing {missing}, extra {extra}, other shapes {other}."
    )
