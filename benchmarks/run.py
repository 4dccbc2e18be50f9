"""Run every benchmark, or those that are named: `python -m benchmarks.run [--smoke] [NAME ...]`."""

from __future__ import annotations

import argparse
import importlib
import json

NAMES = (
    "cheap",
    "instant",
    "emulator",
    "right",
    "steady",
    "defaults",
    "optuna_rate",
    "exact",
    "rates",
    "cost",
    "plans",
    "steps",
    "gpu",
    "trust",
    "responses",
    "branches",
    "search",
    "rivals",
    "delivery",
    "ray_kills",
    "ray_delivery_kills",
    "ray_steps",
    "ray_tune",
    "sklearn_cost",
    "peers",
    "refit",
)
APART = ("compatibility",)  # needs the extra `zoo`, so it runs only when it is named


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"from {', '.join(NAMES + APART)}; without a name all but the last"
    )
    parser.add_argument("--smoke", action="store_true", help="as small as it goes: shows that the scripts run")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in NAMES + APART]
    if unknown:
        parser.error(f"unknown benchmarks {unknown}; choose from {', '.join(NAMES + APART)}")
    for name in arguments.names or NAMES:
        print(f"== {name}")
        print(json.dumps(importlib.import_module(f"benchmarks.{name}").run(arguments.smoke), indent=1)[:2000])


if __name__ == "__main__":
    main()
