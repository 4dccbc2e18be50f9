"""hypertune-mip for scikit-learn: estimators whose regularisation is tuned by one training."""

from hypertune_mip import MissingExtraError

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise MissingExtraError("hypertune_mip_sklearn", "sklearn") from error

from hypertune_mip_sklearn.estimators import HyperTuneClassifier, HyperTuneRegressor
from hypertune_mip_sklearn.search_cv import HyperTuneSearchCV

__all__ = ["HyperTuneClassifier", "HyperTuneRegressor", "HyperTuneSearchCV"]
