"""Search spaces as Ray Tune declares them, and back: the same values, end points included.

Ray leaves out the upper bound of integers, which Optuna includes, and its quantised domains hold multiples of the step
only, where Optuna's start at the lower bound. What the other side cannot hold exactly is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from ray import tune
from ray.tune.search.sample import Categorical, Domain, Float, Integer, LogUniform, Quantized, Uniform

from hypertune_mip import SearchSpace, SpaceError


def param_space(space: SearchSpace) -> dict[str, Domain]:
    """Ray Tune's domains for a search space, by name, to pass as `Tuner(param_space=...)`.

    Raises:
        SpaceError: If a hyperparameter's steps do not start at a multiple of the step, which Ray cannot express.

    Example:
        >>> import hypertune_mip as ht
        >>> space = ht.SearchSpace({"layers": IntDistribution(1, 4)})
        >>> param_space(space)["layers"].upper  # Ray leaves it out
        5
    """
    return {name: _domain(name, own) for name, own in space.items()}


def search_space(domains: Mapping[str, Any]) -> SearchSpace:
    """The search space that holds the same values as Ray Tune's domains.

    Raises:
        SpaceError: If one is no domain (a constant, a grid), is unbounded (normal, `sample_from`) or logarithmic with
            steps, which Optuna cannot express; or if it cannot be amortised, as in `SearchSpace`.
    """
    return SearchSpace({name: distribution(name, domain) for name, domain in domains.items()})


def _domain(name: str, distribution: BaseDistribution) -> Domain:
    if isinstance(distribution, CategoricalDistribution):
        domain: Domain = tune.choice(list(distribution.choices))
        return domain
    if not isinstance(distribution, (FloatDistribution, IntDistribution)):
        raise SpaceError(f"'{name}' must be one of Optuna's distributions, but got {distribution!r}.")
    low, high, step = distribution.low, distribution.high, distribution.step
    if distribution.single():
        return tune.choice([low])
    if isinstance(distribution, IntDistribution):
        if distribution.log:
            return tune.lograndint(low, high + 1)
        return tune.randint(low, high + 1) if step == 1 else tune.qrandint(*_multiples(name, low, high, step), step)
    if step is not None:
        return tune.quniform(*_multiples(name, low, high, step), step)
    return tune.loguniform(low, high) if distribution.log else tune.uniform(low, high)


def _multiples(name: str, low: Any, high: Any, step: Any) -> tuple[Any, Any]:
    if not _multiple(low, step):
        raise SpaceError(
            f"'{name}' has the values {low:g}, {low + step:g}, ..., {high:g}, but Ray's quantised domains hold"
            f" multiples of {step:g} only. Let the range start at one, or use CategoricalDistribution."
        )
    return low, high


def _multiple(value: float, step: float) -> bool:
    return math.isclose(value / step, round(value / step), rel_tol=1e-9, abs_tol=1e-9)


def distribution(name: str, domain: Any) -> BaseDistribution:
    """Optuna's distribution that holds the same values as one domain; errors as in `search_space`."""
    if isinstance(domain, Categorical) and not domain.is_grid():
        return CategoricalDistribution(domain.categories)
    if not isinstance(domain, (Float, Integer)):
        raise SpaceError(
            f"'{name}' must be a bounded domain such as tune.uniform, tune.loguniform, tune.randint or tune.choice, but"
            f" got {domain!r}."
        )
    sampler = domain.get_sampler()
    step = sampler.q if isinstance(sampler, Quantized) else None
    inner = sampler.get_sampler() if isinstance(sampler, Quantized) else sampler
    log = isinstance(inner, LogUniform)
    if not log and not isinstance(inner, Uniform):
        raise SpaceError(f"'{name}' must be uniform or log-uniform in a range, but its domain is {inner}.")
    if log and step is not None:
        raise SpaceError(f"'{name}' is log-uniform with steps of {step}, which Optuna cannot express. Drop the steps.")
    if isinstance(domain, Float):
        return FloatDistribution(domain.lower, domain.upper, log=log, step=step)
    if step is None:
        return IntDistribution(domain.lower, domain.upper - 1, log=log)
    low, high = math.ceil(domain.lower / step) * step, math.floor(domain.upper / step) * step
    return IntDistribution(low, high - (step == 1), step=step)
