"""Search spaces as Ray's domains: the same values, end points included, or a refusal."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

import hypertune_mip as ht

tune = pytest.importorskip("ray.tune")

from hypertune_mip_ray import param_space, search_space  # noqa: E402

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "float": FloatDistribution(-1.0, 2.0),
    "log_float": FloatDistribution(1e-5, 1e-1, log=True),
    "stepped_float": FloatDistribution(0.1, 0.7, step=0.1),
    "int": IntDistribution(-2, 3),
    "log_int": IntDistribution(1, 7, log=True),
    "stepped_int": IntDistribution(4, 12, step=4),
    "choice": CategoricalDistribution(["l1", None, 3]),
}


def values(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    step = distribution.step or 1
    count = round((distribution.high - distribution.low) / step) + 1
    return [round(distribution.low + i * step, 9) for i in range(count)]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_there_and_back_is_the_same(name: str) -> None:
    space = ht.SearchSpace({name: DISTRIBUTIONS[name]})
    assert search_space(param_space(space)) == space


@pytest.mark.parametrize("name", ["stepped_float", "int", "log_int", "stepped_int", "choice"])
def test_ray_draws_every_value_and_no_other(name: str) -> None:
    domain = param_space(ht.SearchSpace({name: DISTRIBUTIONS[name]}))[name]
    drawn = domain.sample(size=2000)
    rounded = {round(v, 9) if isinstance(v, float) else v for v in drawn}
    assert rounded == set(values(DISTRIBUTIONS[name]))


@pytest.mark.parametrize("name", ["float", "log_float"])
def test_ranges_are_filled_from_end_to_end(name: str) -> None:
    distribution: Any = DISTRIBUTIONS[name]
    domain = param_space(ht.SearchSpace({name: distribution}))[name]
    drawn = domain.sample(size=2000)
    assert min(drawn) >= distribution.low * (1 - 1e-9) if distribution.log else min(drawn) >= distribution.low
    assert (domain.lower, domain.upper) == (distribution.low, distribution.high)


@pytest.mark.parametrize("distribution", [FloatDistribution(0.05, 0.65, step=0.1), IntDistribution(1, 9, step=4)])
def test_steps_that_ray_cannot_express_are_refused(distribution: BaseDistribution) -> None:
    with pytest.raises(ht.SpaceError, match=r"'amount' .* Ray's quantised domains hold multiples"):
        param_space(ht.SearchSpace({"amount": distribution}))


@pytest.mark.parametrize(
    ("domain", "match"),
    [
        (0.5, "bounded domain"),
        (tune.grid_search([1, 2]), "bounded domain"),
        (tune.sample_from(lambda: 1), "bounded domain"),
        (tune.randn(0, 1), "uniform or log-uniform"),
        (tune.qloguniform(0.1, 1.0, 0.1), "log-uniform with steps"),
    ],
)
def test_domains_that_optuna_cannot_express_are_refused(domain: Any, match: str) -> None:
    with pytest.raises(ht.SpaceError, match=f"'amount' .*{match}"):
        search_space({"amount": domain})


def test_what_cannot_be_amortised_is_refused() -> None:
    with pytest.raises(ht.SpaceError, match="learning_rate"):
        search_space({"learning_rate": tune.loguniform(1e-4, 1e-1)})


def test_one_value_becomes_a_choice() -> None:
    assert param_space(ht.SearchSpace({"amount": FloatDistribution(0.5, 0.5)}))["amount"].categories == [0.5]
