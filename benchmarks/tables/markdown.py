"""Parts of a table."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def environment(document: dict[str, Any]) -> str:
    e = document["environment"]
    return f"\n\nMeasured on {e['device']} ({e['cores']} cores), torch {e['packages']['torch']}, Python {e['python']}."


def spread(values: list[float], digits: int = 3) -> str:
    """Median, and in brackets the smallest and largest."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def group(rows: list[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups
