"""What a step of training costs, on a CPU and on a GPU."""

from __future__ import annotations

from typing import Any

from benchmarks import results
from benchmarks.tables.markdown import environment, table


def steps() -> str:
    """A hypernetwork's step in plain ones, with one setting a step and with the defaults; and memory."""
    document = results.read("steps")
    lines = [
        [
            row["case"],
            f"{row['plain_milliseconds']:.1f} ms",
            f"{row['ratios']['whole']:.2f}",
            _at_most(row["target"], row["ratios"]["whole"]),
            f"{row['ratios']['default']:.2f}",
            *(f"{row['memory_ratios'][part]['whole']:.2f}" for part in ("saved", "live")),
            _at_most(row["memory_target"], row["memory_ratios"]["live"]["whole"]),
            f"{row['start_in_plain_steps']['default']:.0f}",
        ]
        for row in document["rows"]
    ]
    header = ["network", "plain step", "one setting, whole batch", "target", "defaults"]
    header += ["memory: kept for backward", "all tensors", "target", "start of `fit`, in plain steps"]
    note = f"\n\nOne thread; medians of {document['rounds']} interleaved rounds."
    return table(header, lines) + note + environment(document)


def gpu() -> str:
    """Steps on a GPU beside eager and captured plain ones, memory, and what evaluation takes."""
    document = results.read("gpu")
    lines = []
    for row in document["costs"]:
        if "error" in row:
            lines.append([row["case"], *["-"] * 7, _short(row["error"])])
            continue
        for variant, step in row["variants"].items():
            first = variant == next(iter(row["variants"]))
            plain = [_with(row["plain"][kind], "{:.2f} ms") if first else "" for kind in ("eager", "captured")]
            if "error" in step:
                lines.append([row["case"] if first else "", variant, *plain, *["-"] * 4, _short(step["error"])])
                continue
            times = [
                step["milliseconds"] / row["plain"][kind] if row["plain"][kind] else None
                for kind in ("eager", "captured")
            ]
            lines.append(
                [
                    row["case"] if first else "",
                    variant,
                    *plain,
                    f"{step['milliseconds']:.2f} ms",
                    *(_with(value, "{:.2f}") for value in (*times, step["memory_ratio"])),
                    ", ".join(f"{name} {value:g}" for name, value in row["targets"].items()),
                ]
            )
    header = ["network", "settings a step", "plain, eager", "captured", "`fit`", "times eager", "times captured"]
    return table([*header, "memory", "target"], lines) + environment(document)


def gpu_right() -> str:
    """Gradients and outputs on a GPU against a CPU in float64."""
    document = results.read("gpu")
    lines = []
    for mapping in dict.fromkeys(row["mapping"] for row in document["correct"]):
        rows = [row for row in document["correct"] if row["mapping"] == mapping]
        known = [row for row in rows if "error" not in row]
        wrong = [f"{row['network']} ({row['head']})" for row in rows if not row.get("right")]
        lines.append(
            [
                mapping,
                f"{len(rows) - len(wrong)} of {len(rows)}",
                *(f"{max((row[key] for row in known), default=float('nan')):.1e}" for key in ("gradient", "output")),
                ", ".join(wrong) or "-",
            ]
        )
    header = ["mapping", "right", "largest error of gradients", "of outputs", "wrong"]
    return table(header, lines) + environment(document)


def _at_most(target: float | None, value: float) -> str:
    if target is None:
        return "-"
    return f"{target:g}" if value <= target else f"{target:g} (**missed**)"


def _with(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _short(error: Any) -> str:
    return str(error).splitlines()[0][:100]
