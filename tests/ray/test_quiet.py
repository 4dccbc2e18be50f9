"""What a user sees of a run: one bar, and nothing that workers print or log."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")

import ray

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

SCRIPT = """
import logging, sys
import small_problem as problem
from ray.train import RunConfig, ScalingConfig
import hypertune_mip_ray as ht_ray

def loader():
    print("printed by a worker")
    logging.getLogger("worker").warning("logged by a worker")
    return problem.loader()

if __name__ == "__main__":
    ht_ray.fit(
        problem.hypernet(), problem.loss, loader, epochs=3, settings_per_step=2,
        scaling_config=ScalingConfig(num_workers=2), run_config=RunConfig(name="run", storage_path=sys.argv[1]),
    )
"""


def test_a_run_shows_one_bar_and_nothing_else(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=200, env=environment
    )
    assert done.returncode == 0, done.stderr
    lines = (done.stdout + done.stderr.replace("\r", "\n")).splitlines()
    shown = [line for line in lines if line and "(raylet)" not in line]  # which warns of what other tests have started
    assert [line for line in shown if not line.startswith("fit: ")] == []
    assert "3/3" in done.stderr
    assert (tmp_path / "run").exists()
