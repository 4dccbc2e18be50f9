"""Options of `fit`: one declaration, which every function that takes them shows, and names that it does not know."""

from __future__ import annotations

import dataclasses
import inspect
import pydoc
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest
import torch
from small_problem import fit, hypernet, loader, loss
from torch import nn

import hypertune_mip as ht
from hypertune_mip.training import Options
from hypertune_mip.training.keywords import FitKeywords, TrainingKeywords

DECLARED = {field.name: field for field in dataclasses.fields(Options)}


def core_fit() -> Callable[..., Any]:
    return ht.fit


def ray_fit() -> Callable[..., Any]:
    pytest.importorskip("ray")
    import hypertune_mip_ray

    return hypertune_mip_ray.fit


TAKING = [(core_fit, FitKeywords), (ray_fit, TrainingKeywords)]


def test_type_checkers_know_what_is_declared() -> None:
    assert get_type_hints(FitKeywords) == get_type_hints(Options)
    assert not FitKeywords.__required_keys__
    served_by_the_core_alone = set(get_type_hints(FitKeywords)) - set(get_type_hints(TrainingKeywords))
    assert served_by_the_core_alone == {"device", "checkpoint", "checkpoint_every", "resume"}


@pytest.mark.parametrize(("function", "keywords"), TAKING)
def test_signature_and_help_show_every_option(function: Callable[[], Callable[..., Any]], keywords: type) -> None:
    taking = function()
    signature, text = inspect.signature(taking), " ".join(pydoc.render_doc(taking, renderer=pydoc.plaintext).split())
    taken = [name for name in DECLARED if name in get_type_hints(keywords)]
    assert [name for name in signature.parameters if name in taken] == taken
    for name in taken:
        parameter, field = signature.parameters[name], DECLARED[name]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default == field.default
        assert parameter.annotation == get_type_hints(Options)[name]
        assert f" {name}: {field.metadata['description']}" in text
    assert "options" not in signature.parameters and "**options" not in text
    assert list(signature.parameters)[:3] == ["network", "loss", "train_loader"]


def test_each_option_is_described_in_a_sentence() -> None:
    for name, field in DECLARED.items():
        assert field.metadata["description"].endswith("."), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("epoch", r"`fit` has no option `epoch`\. Did you mean `epochs`\?"),
        ("metrics", r"Did you mean `metric`\?"),
        ("learning_rate", r"`fit` has no option `learning_rate`\. It takes `network`, .*`optimizer`, .*`resume`\."),
    ],
)
def test_an_unknown_option_is_refused_with_the_closest_name(name: str, message: str) -> None:
    with pytest.raises(ht.OptionError, match=message) as caught:
        fit(**{name: 3})
    assert isinstance(caught.value, TypeError)


OPTIMISERS: dict[str, tuple[Any, str]] = {
    "of a config": (lambda p, config: torch.optim.SGD(p), r"must be a function of \(parameters\), but got <function"),
    "nothing": (None, r"must be a function of \(parameters\), but got None"),
    "no optimiser": (lambda p: "adam", "must return a torch optimiser, but gave 'adam'"),
    "other parameters": (lambda p: torch.optim.SGD(nn.Linear(1, 1).parameters()), "holds 0 of them and 2 others"),
    "some parameters": (lambda p: torch.optim.SGD(list(p)[:1]), "holds 1 of them and 0 others: the rest would stay"),
    "a closure": (torch.optim.LBFGS, "is LBFGS, which evaluates the loss several times a step"),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_optimiser_that_could_not_train_is_refused(name: str) -> None:
    optimizer, message = OPTIMISERS[name]
    with pytest.raises(ht.OptionError, match=message):
        fit(optimizer=optimizer)


def test_data_may_be_given_by_position_or_by_name() -> None:
    options: dict[str, Any] = {"epochs": 1, "device": "cpu", "progress": False}
    ht.fit(hypernet(), loss, loader(), **options)
    ht.fit(network=hypernet(), loss=loss, train_loader=loader(), **options)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'train_loader'"):
        ht.fit(hypernet(), loss, **options)  # type: ignore[call-arg]


OTHER_IN_SKLEARN = {
    "epochs": "the number of rows is known: as many as make about 750 steps",
    "device": "an estimator stays on the CPU, where its arrays are, unless it is told",
}


@pytest.mark.parametrize("name", ["HyperTuneClassifier", "HyperTuneRegressor"])
def test_estimators_have_the_same_defaults_or_a_reason(name: str) -> None:
    pytest.importorskip("sklearn")
    import hypertune_mip_sklearn

    estimator = getattr(hypertune_mip_sklearn, name)()
    other = {
        option
        for option, value in estimator.get_params(deep=False).items()
        if option in DECLARED and value != DECLARED[option].default
    }
    assert other == set(OTHER_IN_SKLEARN)
    rate = DECLARED["optimizer"].default([hypernet().network[0].weight]).param_groups[0]["lr"]
    assert estimator.learning_rate == rate
