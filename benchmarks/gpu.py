"""A GPU: is everything right there, and what does it cost? Under five minutes; needs torch, optuna and this package.

`python -m benchmarks.gpu` on a machine with one CUDA device writes `benchmarks/results/gpu.json`: gradients and outputs
of small networks beside a CPU in float64, under every mapping and head; then steps of training beside eager and
captured plain ones, memory, and evaluation. `--device cpu --smoke` runs all of it as small as it goes, without such a
device.

Every part has a process of its own: an error is written down, and what comes after it still runs, even where CUDA
itself has failed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_costs, gpu_right, results

SECONDS = 280.0
_GRACE = 20.0  # seconds that a process has to start and to come to an end


def run(smoke: bool = False) -> dict[str, Any]:
    if not torch.cuda.is_available() and not smoke:
        return {"skipped": "PyTorch sees no CUDA device; see `python -m benchmarks.gpu --help`."}
    return measured("cuda" if torch.cuda.is_available() else "cpu", smoke=smoke)


def measured(device: str, *, smoke: bool, output: Path | None = None, seconds: float = SECONDS) -> dict[str, Any]:
    """The whole document; it is written after every part."""
    start = time.perf_counter()
    document: dict[str, Any] = {"benchmark": "gpu", "device": about(device), "correct": [], "trained": [], "costs": []}
    path = output or results.path("gpu", smoke=smoke)
    left = lambda: seconds - (time.perf_counter() - start)  # noqa: E731

    def keep() -> None:
        document["environment"] = results.environment()
        document["seconds"] = time.perf_counter() - start
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n")

    for key, share in (("correct", 0.55), ("trained", 0.45)):
        document[key] = _all(getattr(gpu_right, key), device, smoke, until=lambda s=share: left() - s * seconds)
        keep()
        _report(key, document[key])
    for name in gpu_costs.CASES:
        if left() < 0:
            document["costs"].append({"case": name, "error": "not run: out of time"})
            continue
        rows, error = _apart(gpu_costs.measured, name, device, smoke, left() / 2, seconds=left())
        document["costs"] += rows or [{"case": name, "error": error}]
        keep()
        print(json.dumps(document["costs"][-1]), flush=True)
    keep()
    return document


def about(device: str) -> dict[str, Any]:
    """What figures depend on."""
    if device == "cpu":
        return {"name": "cpu"}
    return {
        "name": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "memory": torch.cuda.get_device_properties(0).total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _all(part: Any, device: str, smoke: bool, until: Callable[[], float]) -> list[dict[str, Any]]:
    """The rows of a part, from as many processes as it takes: one in which CUDA has failed is of no more use."""
    cases, rows = part.cases(smoke), []
    while len(rows) < len(cases):
        seconds = until()
        found, error = _apart(part, device, smoke, len(rows), seconds, seconds=seconds)
        rows += found
        if error and len(rows) < len(cases):  # go on behind the case that ended the process
            rows.append({**cases[len(rows)], "error": error})
    return rows


def _apart(
    function: Callable[..., Iterator[dict[str, Any]]], *arguments: Any, seconds: float
) -> tuple[list[dict[str, Any]], str | None]:
    """Rows that a function yields in a process of its own, and what ended it if it did not end by itself."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.touch()
        process = get_context("spawn").Process(target=_write, args=(path, function, arguments))
        process.start()
        process.join(max(0.0, seconds) + _GRACE)
        error = None
        if process.is_alive():
            process.kill()
            process.join()
            error = f"TimeoutError: no end after {max(0.0, seconds) + _GRACE:.0f} s"
        elif process.exitcode:
            error = f"ChildProcessError: the process has ended with {process.exitcode}"
        return [json.loads(line) for line in path.read_text().splitlines()], error


def _write(path: Path, function: Callable[..., Iterator[dict[str, Any]]], arguments: tuple[Any, ...]) -> None:
    with path.open("a") as file:
        for row in function(*arguments):
            file.write(json.dumps(row) + "\n")
            file.flush()


def _report(key: str, rows: list[dict[str, Any]]) -> None:
    wrong = [row for row in rows if not row.get("right")]
    print(f"{key}: {len(rows) - len(wrong)} of {len(rows)} right", flush=True)
    for row in wrong:
        print("  ", json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--smoke", action="store_true", help="as small as it goes: shows that the script runs")
    parser.add_argument("--output", type=Path, help="where to, instead of benchmarks/results/gpu.json")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="no case is begun after as many")
    given = parser.parse_args()
    document = measured(given.device, smoke=given.smoke, output=given.output, seconds=given.seconds)
    print(f"{document['seconds']:.0f} s")


if __name__ == "__main__":
    main()
