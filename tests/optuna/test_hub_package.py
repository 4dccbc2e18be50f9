"""The sampler's OptunaHub entry: the files that the hub asks for, and an example that runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from hypertune_mip_optuna import SurrogateSampler

HUB = Path(__file__).parents[2] / "integrations/optunahub/package"
FOLDER = HUB / "samplers/hypertune_mip"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"hub_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_module_gives_the_sampler() -> None:
    assert load(FOLDER / "__init__.py").SurrogateSampler is SurrogateSampler


def test_the_front_matter_is_complete() -> None:
    _, front, text = (FOLDER / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(front)
    assert set(fields) == {"author", "title", "description", "tags", "optuna_versions", "license"}
    assert all(fields.values())
    assert "## Example" in text
    assert (FOLDER / "LICENSE").read_text() == (HUB.parents[2] / "LICENSE").read_text()


def test_the_example_runs() -> None:
    pytest.importorskip("sklearn")
    study = load(FOLDER / "example.py").main(epochs=3, trials=5)
    assert len(study.trials) == 5
    assert study.best_value < 2.3  # better than guessing one of ten digits
