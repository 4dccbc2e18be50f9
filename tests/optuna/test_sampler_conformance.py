"""Optuna's own conformance tests for samplers, on `SurrogateSampler` with and without parameters that it knows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase

import hypertune_mip as ht
from hypertune_mip_optuna import SurrogateSampler
from tests.optuna.tiny_surrogate import SPACE, make_surrogate

pytestmark = pytest.mark.filterwarnings(
    "ignore:The surrogate takes no part:hypertune_mip.HypertuneWarning",  # in studies of other parameters
    "ignore::optuna.exceptions.ExperimentalWarning",
)

SHARED = ht.SearchSpace({"x": FloatDistribution(-1.0, 1.0), "y": FloatDistribution(-1.0, 1.0)})


class Conformance(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    pass


class TestParametersOfItsOwn(Conformance):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: SurrogateSampler(make_surrogate(SPACE), "loss", candidates=16)


class TestParametersThatTheTestsUse(Conformance):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: SurrogateSampler(make_surrogate(SHARED), "loss", candidates=16)
