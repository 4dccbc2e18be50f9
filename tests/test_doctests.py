"""The examples in docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from types import ModuleType

import pytest

import hypertune_mip
import hypertune_mip_optuna
import hypertune_mip_sklearn


def modules(package: ModuleType) -> list[str]:
    found = pkgutil.walk_packages(package.__path__, prefix=f"{package.__name__}.")
    return [package.__name__, *(module.name for module in found)]


ALL = [name for package in (hypertune_mip, hypertune_mip_optuna, hypertune_mip_sklearn) for name in modules(package)]


@pytest.mark.parametrize("name", ALL)
def test_examples_in_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    examples = [
        example for name in ALL for test in finder.find(importlib.import_module(name)) for example in test.examples
    ]
    assert len(examples) >= 10
