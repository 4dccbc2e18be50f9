"""A scikit-learn pipeline with mixed columns that tunes itself, beside its peers.

    python examples/sklearn_pipeline.py

Patients of scikit-learn's diabetes data, with the sex and an age group as text and a tenth of the blood values missing.
The script searches a thousand settings of the regularisation by cross-validation, for the price of one hypernetwork a
fold, and compares the network that comes out with peers on rows that took no part.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import loguniform
from sklearn.base import clone
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.datasets import load_diabetes
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import RandomizedSearchCV, train_test_split
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from hypertune_mip_sklearn import HyperTuneRegressor, HyperTuneSearchCV

WIDTHS = (64, 64)


def load_patients() -> tuple[pd.DataFrame, np.ndarray]:
    """442 patients with numbers, text and missing values, and how their disease went on."""
    frame, target = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
    frame["sex"] = frame["sex"].map({1.0: "one", 2.0: "other"})
    frame["age"] = pd.cut(frame["age"], [0, 35, 50, 65, 100], labels=["young", "middle", "older", "old"])
    values = [f"s{i}" for i in range(1, 7)]
    frame[values] = frame[values].mask(np.random.default_rng(0).random((len(frame), 6)) < 0.1)
    return frame, target.to_numpy()


def encoded(estimator: Any) -> Any:
    """A peer that does not read text and missing values by itself."""
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    text = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    is_number = make_column_selector(dtype_include=np.number)
    return make_pipeline(make_column_transformer((numbers, is_number), remainder=text), estimator)


def peers(seed: int) -> dict[str, Any]:
    network = encoded(MLPRegressor(hidden_layer_sizes=WIDTHS, max_iter=300, early_stopping=True, random_state=seed))
    rates = {"mlpregressor__alpha": loguniform(1e-5, 10), "mlpregressor__learning_rate_init": loguniform(1e-4, 1e-1)}
    return {
        "ridge": encoded(RidgeCV(np.logspace(-3, 3, 13))),
        "MLPRegressor, 20 settings at random": RandomizedSearchCV(network, rates, n_iter=20, random_state=seed),
        "gradient boosting": HistGradientBoostingRegressor(categorical_features="from_dtype", random_state=seed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, help="of each training (default: about 750 steps)")
    parser.add_argument("--candidates", type=int, default=1000, help="settings to judge (default: %(default)s)")
    parser.add_argument("--folds", type=int, default=5, help="of cross-validation (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/sklearn"), help="folder (default: %(default)s)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    frame, target = load_patients()
    parts = train_test_split(frame, target, test_size=0.3, random_state=options.seed)
    x, x_test, y, y_test = parts
    network = HyperTuneRegressor(hidden_layer_sizes=WIDTHS, epochs=options.epochs or "auto", random_state=options.seed)
    search = HyperTuneSearchCV(network, n_candidates=options.candidates, cv=options.folds, random_state=options.seed)
    rows = []
    for name, model in {"HyperTuneSearchCV": search, **peers(options.seed)}.items():
        as_categories = name == "gradient boosting"
        shown = [part.astype({"sex": "category"}) if as_categories else part for part in (x, x_test)]
        start = time.perf_counter()
        model.fit(shown[0], y)
        rows.append(f"| {name} | {model.score(shown[1], y_test):.3f} | {time.perf_counter() - start:.1f} |")
    table = "\n".join(["| model | R² on test rows | seconds |", "| --- | --- | --- |", *rows]) + "\n"
    (options.output / "comparison.md").write_text(table)
    print(table)
    print(f"The best of {options.candidates:,} settings:", search.best_config_)

    tuned = clone(network).fit(x, y)
    names = list(tuned.best_config_)
    figure, axes = plt.subplots(1, len(names), figsize=(3 * len(names), 2.8), sharey=True, layout="constrained")
    for name, ax in zip(names, axes, strict=True):
        curve = tuned.response_curve(name)
        ax.plot(curve[name], curve["loss"])
        ax.axvline(tuned.best_config_[name], color="grey", linewidth=1, linestyle=":")
        ax.set(xlabel=name, xscale="log" if name == "weight_decay" else "linear")
    axes[0].set_ylabel("validation loss")
    figure.savefig(options.output / "response_curves.png", dpi=150)
    print(f"Wrote {options.output}/comparison.md and response_curves.png.")


if __name__ == "__main__":
    main()
