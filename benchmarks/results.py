"""Where measurements go: one JSON file a benchmark, with what it was measured on."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).parent / "results"
_PACKAGES = {  # and the modules by which to tell whether they are installed
    "torch": "torch",
    "optuna": "optuna",
    "numpy": "numpy",
    "scipy": "scipy",
    "scikit-learn": "sklearn",
    "ray": "ray",
}


def environment() -> dict[str, Any]:
    """Versions and device."""
    return {
        "packages": {name: version(name) for name, module in _PACKAGES.items() if find_spec(module) is not None},
        "python": platform.python_version(),
        "device": "cpu" if not torch.cuda.is_available() else torch.cuda.get_device_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def path(name: str, *, smoke: bool) -> Path:
    """The JSON file of a benchmark; a smoke run's figures mean nothing and are kept apart."""
    return FOLDER / ("smoke" if smoke else "") / f"{name}.json"


def write(name: str, content: dict[str, Any], *, smoke: bool) -> dict[str, Any]:
    """Write one benchmark's measurements and return them as read back."""
    target = path(name, smoke=smoke)
    target.parent.mkdir(parents=True, exist_ok=True)
    document = {"benchmark": name, "environment": environment(), **content}
    target.write_text(json.dumps(document, indent=1, default=_plain) + "\n")
    return read(name, smoke=smoke)


def read(name: str, *, smoke: bool = False) -> dict[str, Any]:
    """One benchmark's measurements."""
    content: dict[str, Any] = json.loads(path(name, smoke=smoke).read_text())
    return content


def kept(name: str, stated: dict[str, Any], *, smoke: bool) -> dict[str, Any]:
    """What an earlier run has measured, if it was one of the same size; empty otherwise."""
    if smoke or not path(name, smoke=smoke).exists():
        return {}
    document = read(name)
    return document if all(document.get(key) == value for key, value in stated.items()) else {}


def _plain(value: Any) -> Any:
    if isinstance(value, (np.floating, np.integer)):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON serialisable")
