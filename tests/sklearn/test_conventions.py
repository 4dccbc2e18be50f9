"""scikit-learn's own checks of estimators."""

from __future__ import annotations

from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from hypertune_mip_sklearn import HyperTuneClassifier, HyperTuneRegressor, HyperTuneSearchCV

SMALL: dict[str, Any] = {"epochs": 10, "hidden_layer_sizes": (16,), "random_state": 0}
CLASSIFIER = HyperTuneClassifier(**SMALL)
REGRESSOR = HyperTuneRegressor(**SMALL)
OTHERS: dict[str, Any] = {"cv": 2, "n_candidates": 16, "random_state": 0}


def expected_failures(estimator: Any) -> dict[str, str]:
    """As with scikit-learn's own `MLPClassifier`: batches are drawn from rows, and rows are not weights."""
    if isinstance(estimator, HyperTuneSearchCV):
        return {}
    return {"check_sample_weight_equivalence_on_dense_data": "training in random batches"}


@pytest.mark.filterwarnings("ignore::UserWarning")  # networks this small may respond to nothing
@parametrize_with_checks(
    [CLASSIFIER, REGRESSOR, HyperTuneSearchCV(CLASSIFIER, **OTHERS), HyperTuneSearchCV(REGRESSOR, **OTHERS)],
    expected_failed_checks=expected_failures,
)
def test_conventions(estimator: Any, check: Any) -> None:
    check(estimator)
