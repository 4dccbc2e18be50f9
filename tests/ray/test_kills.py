"""Runs that are killed at a random moment finish; the benchmark of the same name does more of them."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hypertune_mip as ht

pytest.importorskip("ray")

ROOT = Path(__file__).parent.parent.parent

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Callable[[str], Any]]:
    """Imports one by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture(scope="module")
def losses(benchmark: Any, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Of a run that nothing disturbs."""
    return benchmark("ray_kills").uninterrupted(tmp_path_factory.mktemp("kills") / "whole")


@pytest.mark.parametrize("kind", ["worker", "node", "cluster"])
def test_a_run_that_is_killed_finishes(kind: str, benchmark: Any, losses: list[float], tmp_path: Path) -> None:
    kills = benchmark("ray_kills")
    row = kills.killed(kind, 0, tmp_path / kind, losses)
    assert row["finished"]
    assert row["seconds_until_training_again"] is not None  # else the kill came too late to change anything
    assert row["same"] in (True, None)
    assert row["lost"] == 0
    assert row["repeated"] <= kills.EVERY


@pytest.fixture(scope="module")
def delivery(benchmark: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one that nothing disturbs ends in."""
    return benchmark("ray_delivery_kills").uninterrupted(tmp_path_factory.mktemp("kills") / "whole")


@pytest.mark.parametrize("kind", ["worker", "node", "cluster"])
def test_a_delivery_that_is_killed_ends_in_the_same_network(
    kind: str, benchmark: Any, delivery: dict[str, Any], tmp_path: Path
) -> None:
    kills = benchmark("ray_delivery_kills")
    row = kills.killed(kind, 0, tmp_path / kind, delivery)
    assert row["same"]
    assert row["lost"] == 0
    assert row["repeated"] <= kills.TASKS  # only what was under way


@pytest.fixture
def place() -> Iterator[str]:
    """For Ray's sockets, whose paths must be short."""
    folder = tempfile.mkdtemp(prefix="ray")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_the_example_loses_a_worker_and_nothing_else(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    script = str(ROOT / "examples" / "ray_train.py")
    command = [sys.executable, script, "--epochs", "8", "--settings", "3", "--output", str(tmp_path)]
    environment = {**os.environ, "RAY_TMPDIR": place}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert content["epochs"] == [8, 8]
    assert len(content["spearman"]) == 2
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    digits = importlib.import_module("digits")
    assert ht.Surrogate.load(tmp_path / "surrogate", digits.make_network()).space == digits.space


def test_the_delivery_of_the_example_loses_a_task_and_goes_on_from_its_folder(tmp_path: Path, place: str) -> None:
    pytest.importorskip("sklearn")
    script = str(ROOT / "examples" / "ray_deliver.py")
    command = [sys.executable, script, "--epochs", "8", "--trainings", "2", "--output", str(tmp_path)]
    environment = {**os.environ, "RAY_TMPDIR": place}

    def delivered() -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
        assert done.returncode == 0, done.stderr
        return (tmp_path / "delivered.json").read_text()

    first = delivered()
    assert (tmp_path / "killed").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "trainings").iterdir()}
    assert len(kept) > 2
    assert delivered() == first
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "trainings").iterdir()} == kept
