"""How functions take the options: as keywords that type checkers, `help` and `inspect.signature` know.

`Options` declares them. Type checkers read no dataclass as keywords, so the `TypedDict`s here repeat names and types; a
test holds them equal. Signature and documentation are made from the declaration.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, get_type_hints

import torch

from hypertune_mip.execution import Execution
from hypertune_mip.training.optimizers import OptimizerFactory, ScheduleFactory
from hypertune_mip.training.options import (
    Callback,
    Options,
    Precision,
    UnknownOptionError,
)

_WIDTH = 120
_INDENT = 8  # of an argument in the docstring of a function
_Function = TypeVar("_Function", bound=Callable[..., Any])


class TrainingKeywords(TypedDict, total=False):
    """Options that mean the same wherever training runs; see `Options`."""

    epochs: int
    settings_per_step: int | Literal["auto"]
    batching: Literal["auto", "split", "full"]
    endpoints: float
    normalize: bool
    optimizer: OptimizerFactory
    schedule: ScheduleFactory | None
    gradient_clip: float | None
    accumulate: int
    precision: Precision
    execution: Execution | Literal["measured", "usual"]
    capture: bool
    seed: int
    progress: bool
    callbacks: Sequence[Callback]
    validate_every: int | None
    validation_settings: int


class FitKeywords(TrainingKeywords, total=False):
    """All options of `fit`; see `Options`."""

    device: str | torch.device
    checkpoint: str | Path | None
    checkpoint_every: int
    resume: bool


def takes_options(
    names: Collection[str], *, notes: Mapping[str, str] | None = None
) -> Callable[[_Function], _Function]:
    """A decorator for a function with `**options`: puts the options into its signature and its documentation.

    The function itself stays as it is, and asks `check_names` for what it was given.

    Args:
        names: Of the options that it takes.
        notes: What to add to the description of an option, by name.
    """
    declared = [field for field in dataclasses.fields(Options) if field.name in names]
    types = get_type_hints(Options)

    def decorate(function: _Function) -> _Function:
        own = inspect.signature(function)
        hints = get_type_hints(function)
        parameters = [
            parameter.replace(annotation=hints[parameter.name])
            for parameter in own.parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        parameters += [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=types[f.name])
            for f in declared
        ]
        signature = own.replace(parameters=parameters, return_annotation=hints["return"])
        function.__signature__ = signature  # type: ignore[attr-defined]
        described = {f.name: f"{f.metadata['description']} {(notes or {}).get(f.name, '')}" for f in declared}
        function.__doc__ = _documented(function.__doc__, described)
        return function

    return decorate


def check_names(
    function: Callable[..., Any], options: Mapping[str, Any], *, elsewhere: Mapping[str, str] | None = None
) -> None:
    """Raise UnknownOptionError, with the closest name, unless a function takes all these options.

    Args:
        function: One with `takes_options`.
        options: What it was given, by name.
        elsewhere: What to say of options that other functions take and this one does not.
    """
    known, elsewhere = list(inspect.signature(function).parameters), elsewhere or {}
    for name in options:
        if name in known:
            continue
        if name in elsewhere:
            where = f"{function.__module__.partition('.')[0]}.{function.__name__}"
            raise UnknownOptionError(f"`{name}` is no option of `{where}`: {elsewhere[name]}")
        close = difflib.get_close_matches(name, known, n=1)
        advice = f"Did you mean `{close[0]}`?" if close else f"It takes {', '.join(f'`{each}`' for each in known)}."
        raise UnknownOptionError(f"`{function.__name__}` has no option `{name}`. {advice}")


def _documented(text: str | None, described: Mapping[str, str]) -> str | None:
    """A docstring whose entry for `**options` has given way to one for each."""
    if text is None:  # python -OO
        return None
    lines = text.splitlines()
    (place,) = [index for index, line in enumerate(lines) if line.strip().startswith("**options:")]
    entries = [
        textwrap.fill(
            f"{name}: {description.strip()}",
            _WIDTH,
            initial_indent=" " * _INDENT,
            subsequent_indent=" " * (_INDENT + 4),
            break_on_hyphens=False,
        )
        for name, description in described.items()
    ]
    return "\n".join([*lines[:place], *entries, *lines[place + 1 :]])
