"""Processes that are killed on purpose, and the journals by which it is known what they had done by then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Literal

PATIENCE = 300.0  # seconds
_PLACES: list[tempfile.TemporaryDirectory[str]] = []  # of Ray: files by which it finds a cluster outlive a killed one
Kind = Literal["worker", "node", "cluster"]
KINDS: tuple[Kind, ...] = ("node", "worker", "cluster")
RUNS = {"worker": 8, "node": 4, "cluster": 8}


def start(module: str, folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """A process of its own that runs a module; its output goes to the file `log` of the folder."""
    command = [sys.executable, "-m", module, str(folder), *options]
    log = (folder / "log").open("ab")
    place = tempfile.TemporaryDirectory(prefix="kill", ignore_cleanup_errors=True)
    _PLACES.append(place)
    environment = {**os.environ, "RAY_TMPDIR": place.name}
    return subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parent.parent, env=environment)


def wait(process: subprocess.Popen[bytes], *, expect: int = 0) -> None:
    """Until it ends, which it must do with that code."""
    code = process.wait(PATIENCE)
    if code != expect:
        raise RuntimeError(f"{process.args!r} ended with {code}, not {expect}; see the log in its folder.")


def journal(folder: Path) -> list[dict[str, Any]]:
    """What was written by `note` so far."""
    path = folder / "journal"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def note(folder: Path, **values: Any) -> None:
    """Write a line of the journal, with the process and the time."""
    with (folder / "journal").open("a") as file:
        file.write(json.dumps({**values, "pid": os.getpid(), "time": time.time()}) + "\n")


def until_noted(count: int, folder: Path, process: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
    """The journal as soon as it has so many lines."""
    end = time.monotonic() + PATIENCE
    while len(lines := journal(folder)) < max(1, count):
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{process.args!r} did not come to line {count} of its journal; see the log beside it.")
        time.sleep(0.02)
    return lines


def order(folder: Path) -> None:
    """Tell the process that has called `obey` to kill."""
    (folder / "kill").touch()


def obey(folder: Path, node: Any, *, driver: bool) -> None:
    """Once it is ordered, kill all processes of a node of Ray's, and with `driver` this process as well."""

    def executioner() -> None:
        while not (folder / "kill").exists():
            time.sleep(0.02)
        node.kill_all_processes(check_alive=False, allow_graceful=False)
        if driver:
            os._exit(9)

    threading.Thread(target=executioner, daemon=True).start()
