"""What works with which networks."""

from __future__ import annotations

from typing import Any

from benchmarks import results
from benchmarks.tables.markdown import environment, table


def compatibility_own() -> str:
    """Small versions of usual architectures, as the tests have them."""
    document = results.read("compatibility")
    return _table([row for row in document["rows"] if not row["package"]])


def compatibility_zoo() -> str:
    """Networks of other packages."""
    document = results.read("compatibility")
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    note = f"\n\nMedians of {document['rounds']} interleaved rounds, one thread; {versions}."
    return _table([row for row in document["rows"] if row["package"]]) + note + environment(document)


def compatibility_why() -> str:
    """What vmap says of the networks that it does not serve."""
    lines = []
    for row in results.read("compatibility")["rows"]:
        if row["mapping"] == "loop":
            where, _, said = row["why"].partition(" cannot run for many settings at once: ")
            lines.append([row["name"], where, said.removeprefix("vmap: ").partition(". ")[0].rstrip(".")])
    return table(["network", "where", "what vmap says"], lines)


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        [
            row["name"],
            f"{row['parameters']:,}",
            f"{100 * row['generated'] / row['parameters']:.0f} %",
            "vmap, loop" if row["mapping"] == "vmap" else "loop",
            f"{row['plain_milliseconds']:.1f} ms",
            *(_ratio(row, way) for way in ("one", "three, vmap", "three, loop")),
        ]
        for row in rows
    ]
    header = ["network", "parameters", "generated", "served by", "plain step", "one setting", "three, vmap"]
    return table([*header, "three, loop"], lines)


def _ratio(row: dict[str, Any], way: str) -> str:
    return f"{row['ratios'][way]:.1f}" if way in row["ratios"] else "-"
