"""Without the extra everything else works, and importing this package says what to install."""

from __future__ import annotations

import subprocess
import sys

WITHOUT = "import sys; sys.modules['ray'] = None\n"


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def test_the_extra_is_named() -> None:
    done = run(f"{WITHOUT}import hypertune_mip_ray")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "MissingExtraError" in last
    assert 'pip install "hypertune-mip[ray]"' in last


def test_the_core_does_not_import_ray() -> None:
    done = run("import sys, hypertune_mip, hypertune_mip_optuna; print('ray' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr
    assert run(f"{WITHOUT}import hypertune_mip, hypertune_mip_optuna").returncode == 0
