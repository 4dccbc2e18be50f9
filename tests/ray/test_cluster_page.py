"""What docs/cluster.md shows can be used: its script runs, its cluster and its job have the form that Ray asks for."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("ray")
jsonschema = pytest.importorskip("jsonschema")

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "cluster.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def cluster_file() -> Any:
    return yaml.safe_load(next(block for block in blocks("yaml") if "cluster_name" in block))


@pytest.fixture
def job_file() -> Any:
    return yaml.safe_load(next(block for block in blocks("yaml") if "RayJob" in block))


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore:The surrogate (is not to be trusted|takes no part):hypertune_mip.HypertuneWarning")
def test_the_script_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "cluster"}
    for code in blocks("python"):
        exec(compile(code, str(PAGE), "exec"), namespace)
    assert len(namespace["surrogate"].history) == 10
    assert len(namespace["values"]["loss"]) == 10_000
    assert namespace["best"].keys() == namespace["space"].keys()
    assert set(namespace["config"]) == {"weight_decay", "dropout", "learning_rate"}
    assert namespace["report"].true["loss"].shape == (4, 1)


def checked_by_ray(config: Any) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


def checked_as_job(config: Any) -> None:
    jsonschema.validate(config, json.loads((HERE / "rayjob_schema.json").read_text()))


def test_the_cluster_file_is_what_ray_reads(cluster_file: Any) -> None:
    checked_by_ray(cluster_file)


def test_the_job_file_is_what_kuberay_reads(job_file: Any) -> None:
    checked_as_job(job_file)
    (group,) = job_file["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


CLUSTER_MISTAKES: dict[str, Callable[[Any], Any]] = {
    "unknown key": lambda c: c.update(workers=2),
    "unknown head": lambda c: c.update(head_node_type="main"),
    "text for a number": lambda c: c.update(max_workers="four"),
    "no provider": lambda c: c.pop("provider"),
}
JOB_MISTAKES: dict[str, Callable[[Any], Any]] = {
    "unknown key": lambda c: c["spec"].update(entrypoints="x"),
    "number for text": lambda c: c["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
    "no head": lambda c: c["spec"]["rayClusterSpec"].pop("headGroupSpec"),
    "no container": lambda c: c["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"].update(containers=[]),
    "no group name": lambda c: c["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName"),
}


@pytest.mark.parametrize("name", CLUSTER_MISTAKES)
def test_mistakes_in_a_cluster_file_are_found(name: str, cluster_file: Any) -> None:
    CLUSTER_MISTAKES[name](cluster_file)
    with pytest.raises((ValueError, KeyError, jsonschema.ValidationError)):
        checked_by_ray(cluster_file)


@pytest.mark.parametrize("name", JOB_MISTAKES)
def test_mistakes_in_a_job_file_are_found(name: str, job_file: Any) -> None:
    JOB_MISTAKES[name](job_file)
    with pytest.raises(jsonschema.ValidationError):
        checked_as_job(job_file)
