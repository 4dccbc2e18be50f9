"""What verification, calibration and search give."""

from __future__ import annotations

import math
from statistics import median

from benchmarks import results
from benchmarks.regret import regrets
from benchmarks.tables.markdown import environment, group, spread, table

NO_TAU = 0.3  # below this, the seeds of the truth do not agree on an order themselves


def exact() -> str:
    """Weights of the hypernetwork against those that solve the problem."""
    document = results.read("exact")
    lines = [
        [
            case,
            fit,
            head,
            spread([100 * r["weight_error"] for r in rows], 2) + " %",
            spread([r["spearman"] for r in rows], 4),
        ]
        for (case, fit, head), rows in group(document["rows"], "case", "fit", "head").items()
    ]
    return table(["problem", "fit", "head", "relative error of the weights", "Spearman"], lines) + environment(document)


def rates() -> str:
    """Validation loss of real training by learning rate."""
    document = results.read("rates")
    lines = [
        [row["task"], *(f"{loss:.4g}" for loss in row["losses"].values()), row["best"], row["stated"]]
        for row in document["rows"]
    ]
    columns = [float(rate) for rate in document["rows"][0]["losses"]]
    return table(["task", *(f"at {rate:g}" for rate in columns), "best", "taken"], lines) + environment(document)


def cost() -> str:
    """What `fit` costs on each task of `trust`, in plain trainings."""
    document = results.read("cost")
    lines = [
        [row["task"], f"{row['parameters']:,}", f"{row['auto']:.2f}", f"{row['split']:.2f}"] for row in document["rows"]
    ]
    header = ["task", "parameters", "`fit` in plain trainings", '`batching="split"`']
    return table(header, lines) + environment(document)


def trust() -> str:
    """Rank correlation as a share of its noise ceiling, before and after calibration by six trainings."""
    document = results.read("trust")
    lines = []
    for (task, metric), rows in group(document["rows"], "task", "metric").items():
        ceiling = rows[0]["ceiling"]
        share = lambda key: spread([r[key] / ceiling for r in rows], 2)  # noqa: B023, E731
        lines.append(
            [
                task,
                metric,
                f"{ceiling:.2f}",
                *(share(key) if ceiling > NO_TAU else "-" for key in ("tau", "calibrated", "process")),
                *(
                    f"{100 * median([r[key] for r in rows]):.1f} %"
                    for key in ("regret", "calibrated_regret", "process_regret")
                ),
                f"{100 * median([r['coverage'] for r in rows]):.0f} %",
                f"{median([r['width'] for r in rows]):.2f}",
                sum(r["trusted"] for r in rows),
            ]
        )
    header = [
        "task", "metric", "tau, seed to seed", "surrogate", "calibrated", "GP alone",
        "regret", "calibrated", "GP alone", "coverage", "width", "trusted, of 5",
    ]  # fmt: skip
    return table(header, lines) + environment(document)


def trust_summary() -> str:
    """How many tasks meet the targets for rank correlation and regret, by metric."""
    document = results.read("trust")
    lines = []
    for metric, target in (("loss", 0.88), ("error", 0.82)):
        kept = [
            rows
            for (_, name), rows in group(document["rows"], "task", "metric").items()
            if name == metric and rows[0]["ceiling"] > NO_TAU
        ]
        for name, tau, regret in (
            ("surrogate", "tau", "regret"),
            ("calibrated", "calibrated", "calibrated_regret"),
            ("GP alone", "process", "process_regret"),
        ):
            shares = [median([r[tau] for r in rows]) / rows[0]["ceiling"] for rows in kept]
            medians = [100 * median([r[regret] for r in rows]) for rows in kept]
            lines.append(
                [
                    metric if name == "surrogate" else "",
                    name,
                    f"{median(shares):.2f}",
                    f"{sum(share >= target for share in shares)} of {len(kept)} (target {target})",
                    f"{median(medians):.1f} %",
                    f"{sum(regret <= 1 for regret in medians)} of {len(kept)}",
                ]
            )
    header = ["metric", "", "tau / ceiling, median task", "tasks that reach the target", "regret, median task", "1 %"]
    return table(header, lines)


def fronts() -> str:
    """Hypervolume of what the hypernetwork makes against networks that were trained for real."""
    document = results.read("trust")
    lines = [
        [task, *(spread([r[key] for r in rows], 3) for key in ("made", "trained", "trained_at_equal_cost"))]
        for (task,), rows in group(document["fronts"], "task").items()
    ]
    settings, cost = document["settings"], document["cost_of_fit"]
    header = ["task", f"{settings} made by one hypernetwork", f"{settings} trained for real"]
    header.append(f"{cost} trained for real (cost of `fit`)")
    return table(header, lines)


def controls() -> str:
    """Broken surrogates, and whether their reports say so."""
    lines = [
        [
            case,
            f"{sum(r['flagged'] for r in rows)} of {len(rows)}",
            spread([r["tau"] for r in rows], 2),
            spread([100 * r["regret"] for r in rows], 0) + " %",
        ]
        for (case,), rows in group(results.read("trust")["controls"], "case").items()
    ]
    return table(["surrogate", "flagged", "tau", "regret"], lines)


def search() -> str:
    """Regret on test data after as many trainings, that of the hypernetwork included, and how many reach TPE's."""
    document = results.read("search")
    cost, trials = document["cost_of_fit"], document["trials"]
    counts = (8, 16, 32)
    lines = []
    for (case,), rows in group(document["rows"], "case").items():
        curves = [regrets(parts) for parts in group(rows, "seed").values()]
        target = median([curve["tpe"][-1] for curve in curves])
        for method in curves[0]:
            middle = _middle([curve[method] for curve in curves], before=cost if method == "surrogate" else 0)
            reached = next((n for n, value in enumerate(middle, 1) if value <= target), None)
            reached_by = [middle[min(n, len(middle)) - 1] for n in counts]  # ASHA may end earlier
            at = [f"{100 * value:.1f}" if value < math.inf else "-" for value in reached_by]
            lines.append(
                [case if method == "random" else "", method, *at, f"{100 * middle[-1]:.1f} ({len(middle)})",
                 "-" if reached is None else reached]
            )  # fmt: skip
    header = ["task", "method", *(f"after {n}" for n in counts), "at the end (trainings)", f"reaches TPE's at {trials}"]
    note = f"\n\nRegret in percent, median of five seeds. Training the hypernetwork counts as {cost} trainings."
    return table(header, lines) + note + environment(document)


def _middle(curves: list[list[float]], *, before: int) -> list[float]:
    """Median over seeds after each training; infinite before any setting was tried."""
    return [math.inf] * before + [median(values) for values in zip(*curves, strict=False)]
