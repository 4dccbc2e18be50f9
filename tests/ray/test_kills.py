"""Runs that are killed at a random moment finish; the benchmark of the same name does more of them."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hypertune_mip as ht

pytest.importorskip("ray")

ROOT = Path(__file__).parent.parent.parent

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def kills() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield importlib.import_module("benchmarks.ray_kills")


@pytest.fixture(scope="module")
def losses(kills: Any, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Of a run that nothing disturbs."""
    return kills.uninterrupted(tmp_path_factory.mktemp("kills") / "whole")


@pytest.mark.parametrize("kind", ["worker", "node", "cluster"])
def test_a_run_that_is_killed_finishes(kind: str, kills: Any, losses: list[float], tmp_path: Path) -> None:
    row = kills.killed(kind, 0, tmp_path / kind, losses)
    assert row["finished"]
    assert row["seconds_until_training_again"] is not None  # else the kill came too late to change anything
    assert row["same"] in (True, None)
    assert row["lost"] == 0
    assert row["repeated"] <= kills.EVERY


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
