"""Fill the tables of the documents: `python -m benchmarks.tables`.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.tables import compatibility, delivery, fitting, kernel, plans, ray, sklearn, trust

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("benchmarks", "cluster", "compatibility")))
_ALL = (fitting.summary, fitting.right, fitting.cheap, fitting.steady, fitting.defaults, fitting.instant)
_ALL += (fitting.optuna_rate, trust.exact, trust.rates, trust.cost, trust.trust, trust.trust_summary)
_ALL += (
    trust.fronts,
    trust.controls,
    trust.responses,
    trust.search,
    trust.search_summary,
    trust.search_clock,
    delivery.branches,
    delivery.delivery,
    delivery.delivery_large,
    delivery.delivery_summary,
    ray.ray_kills,
    ray.ray_delivery_kills,
    ray.ray_steps,
    ray.ray_tune,
    sklearn.sklearn_targets,
    sklearn.peers_summary,
    sklearn.peers_by_set,
    sklearn.peers_loss_by_set,
    sklearn.refit,
    sklearn.refit_steps,
    sklearn.sklearn_cost,
    kernel.steps,
    kernel.gpu,
    kernel.gpu_right,
    plans.plans,
    compatibility.compatibility_own,
    compatibility.compatibility_zoo,
    compatibility.compatibility_why,
)
TABLES: dict[str, Callable[[], str]] = {function.__name__: function for function in _ALL}


def filled(text: str) -> str:
    """The document with every table made anew."""

    def replacement(match: re.Match[str]) -> str:
        name = match.group(1)
        return f"<!-- table: {name} -->\n{TABLES[name]()}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", replacement, text, flags=re.DOTALL)


def main() -> None:
    for document in DOCUMENTS:
        document.write_text(filled(document.read_text()))
        print(f"filled {document.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
