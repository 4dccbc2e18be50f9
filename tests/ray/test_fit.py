"""`fit` on the workers of Ray Train: the same result as in one process, failures, resuming."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_problem as problem
import torch
from optuna.distributions import FloatDistribution
from torch import nn

import hypertune_mip as ht

pytest.importorskip("ray")

import fsspec
import pyarrow.fs
import ray.data
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

import hypertune_mip_ray as ht_ray
from hypertune_mip_ray.checkpoints import mend, newest, run_folder, with_absolute_path
from hypertune_mip_ray.cluster import check_resources
from hypertune_mip_ray.data import own_loader

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

SPACE = ht.SearchSpace({"decay": FloatDistribution(1e-4, 1.0, log=True), "sparsity": FloatDistribution(0.0, 0.1)})
BATCH, SETTINGS = 16, 8


def here(tmp_path: Path, name: str = "run", **options: Any) -> RunConfig:
    return RunConfig(name=name, storage_path=str(tmp_path), **options)


def workers(count: int) -> ScalingConfig:
    return ScalingConfig(num_workers=count, resources_per_worker={"CPU": 1} if count else None)


def loss(model: nn.Module, batch: Any, config: Any) -> torch.Tensor:
    x, y = batch
    penalties = config["decay"] * ht.losses.l2(model) + config["sparsity"] * ht.losses.l1(model)
    return ht.losses.mean_squared_error(model(x), y) + penalties


def hypernet() -> ht.HyperNetwork:
    return ht.HyperNetwork(problem.plain_network(), SPACE, trunk=(6,), seed=0).double()


def batches() -> list[Any]:
    x, y = problem.data(5 * BATCH).tensors
    return list(zip(x.double().split(BATCH), y.double().split(BATCH), strict=True))


def part_of_batches() -> list[Any]:
    """This worker's part of each batch."""
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    return [tuple(t.chunk(size)[rank] for t in batch) for batch in batches()]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


OPTIONS: dict[str, Any] = {"checkpoint_every": 1, "epochs": 10, "optimizer": sgd, "progress": False, "seed": 3}


def same(first: nn.Module, second: nn.Module, **tolerance: float) -> None:
    torch.testing.assert_close(first.state_dict(), second.state_dict(), **tolerance)


def alone(**options: Any) -> ht.Surrogate:
    return ht.fit(hypernet(), loss, batches(), device="cpu", **({"settings_per_step": SETTINGS} | OPTIONS | options))


def many(count: int, folder: Path, **options: Any) -> ht.Surrogate:
    """The same with `count` workers."""
    chosen = {"run_config": here(folder), "settings_per_step": SETTINGS // max(1, count)} | OPTIONS | options
    return ht_ray.fit(hypernet(), loss, part_of_batches, scaling_config=workers(count), **chosen)


def dies_once(flag: Path) -> Callable[[dict[str, Any]], None]:
    """A callback that kills its process in the second epoch, while heads still hold back, the first time."""

    def callback(record: dict[str, Any]) -> None:
        if record["epoch"] == 2 and not flag.exists():
            flag.touch()
            os._exit(1)

    return callback


def test_workers_do_what_one_process_does_though_one_of_them_dies(tmp_path: Path) -> None:
    """50 steps: W workers with batches of B / W and K / W settings, one process with B and K."""
    flag = tmp_path / "died"
    failures = here(tmp_path, failure_config=FailureConfig(max_failures=1))
    two, one = many(2, tmp_path, run_config=failures, callbacks=[dies_once(flag)]), alone()
    assert flag.exists()
    same(one.hypernet, two.hypernet, rtol=1e-9, atol=1e-9)
    assert [r["loss"] for r in two.history] == pytest.approx([r["loss"] for r in one.history], rel=1e-9)
    assert [r["epoch"] for r in two.history] == list(range(1, 11))


def test_a_callback_stops_all_workers_and_what_is_left_is_that_of_one_process(tmp_path: Path) -> None:
    """With the state after a quarter of the epochs, and no checkpoint due at what turns out to be the last epoch."""
    options: dict[str, Any] = {"callbacks": [lambda record: record["epoch"] == 4], "checkpoint_every": 3}
    two, one = many(2, tmp_path, **options), alone(**options)
    same(one.hypernet, two.hypernet, rtol=1e-9, atol=1e-9)
    assert [r["epoch"] for r in two.history] == [1, 2, 3, 4]
    assert one.early is not None and two.early is not None
    torch.testing.assert_close(two.early, one.early, rtol=1e-9, atol=1e-9)
    again = many(2, tmp_path, resume=True, **options)  # nothing is left to do
    same(two.hypernet, again.hypernet, rtol=0.0, atol=0.0)
    torch.testing.assert_close(again.early, two.early, rtol=0.0, atol=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "options"), [(1, {}), (4, {}), (2, {"normalize": False}), (2, {"accumulate": 2, "gradient_clip": 0.5})]
)
def test_any_number_of_workers_does_what_one_process_does(count: int, options: dict[str, Any], tmp_path: Path) -> None:
    same(alone(**options).hypernet, many(count, tmp_path, **options).hypernet, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_mixed_precision_on_workers(tmp_path: Path) -> None:
    """Nearer to the same precision in one process than to where training started."""
    options = {**OPTIONS, "precision": "bfloat16", "settings_per_step": 4}
    hypernets = [ht.HyperNetwork(problem.plain_network(), SPACE, trunk=(6,), seed=0) for _ in range(3)]
    in_float = [(x.float(), y.float()) for x, y in batches()]

    def part() -> list[Any]:
        return [(x.float(), y.float()) for x, y in part_of_batches()]

    ht.fit(hypernets[0], loss, in_float, device="cpu", **{**options, "settings_per_step": 8, "checkpoint_every": 1})
    ht_ray.fit(hypernets[1], loss, part, scaling_config=workers(2), run_config=here(tmp_path), **options)
    alone, two, before = (torch.cat([p.detach().flatten() for p in each.parameters()]) for each in hypernets)
    assert 0.0 < torch.dist(alone, two) < 0.2 * torch.dist(alone, before)


def test_in_this_process_it_is_fit_bit_for_bit(tmp_path: Path) -> None:
    """With dropout, a shuffled loader and validation."""
    options = {"epochs": 6, "progress": False, "seed": 1, **problem.validation()}
    alone = ht.fit(problem.hypernet(seed=0), problem.loss, problem.loader(), device="cpu", **options)
    inside = ht_ray.fit(
        problem.hypernet(seed=0), problem.loss, problem.loader(), scaling_config=workers(0),
        run_config=here(tmp_path), **options,
    )  # fmt: skip
    same(alone.hypernet, inside.hypernet, rtol=0.0, atol=0.0)
    assert inside.evaluate(problem.CONFIG) == alone.evaluate(problem.CONFIG)
    assert len(inside.history) == 6
    assert "validation/error/best" in inside.history[-1]


@pytest.mark.parametrize("count", [0, 1])
def test_a_task_brings_loss_metric_and_directions(count: int, tmp_path: Path) -> None:
    space = ht.SearchSpace({"weight_decay": FloatDistribution(1e-4, 1.0, log=True)})
    options = {"space": space, "val_loader": problem.loader(shuffle=False), "epochs": 10, "progress": False}
    one = ht.fit(problem.plain_network(), ht.Regression(), problem.loader(shuffle=False), device="cpu", **options)
    trained = ht_ray.fit(
        problem.plain_network(), ht.Regression(), problem.loader(shuffle=False), scaling_config=workers(count),
        run_config=here(tmp_path), **options,
    )  # fmt: skip
    assert trained.stated_directions == {"loss": "minimize"}
    assert trained.evaluate({"weight_decay": 0.01}) == pytest.approx(one.evaluate({"weight_decay": 0.01}), rel=1e-4)
    with pytest.raises(ht.SpaceError, match="'accuracy' in `directions` is unknown"):
        ht_ray.fit(
            problem.plain_network(), ht.Regression(), problem.loader(), directions={"accuracy": "maximize"},
            scaling_config=workers(count), run_config=here(tmp_path, "refused"), **options,
        )  # fmt: skip


def by_column() -> ray.data.Dataset:
    x, y = problem.data().tensors
    return ray.data.from_items([{"x": a.numpy(), "y": b.numpy()} for a, b in zip(x, y, strict=True)])


def loss_by_column(model: nn.Module, batch: Any, config: Any) -> torch.Tensor:
    return problem.loss(model, (batch["x"], batch["y"]), config)


def test_a_ray_dataset_gives_the_batches_that_a_loader_gives(tmp_path: Path) -> None:
    x, y = problem.data().tensors
    lists = [{"x": a, "y": b} for a, b in zip(x.split(8), y.split(8), strict=True)]
    options = {"epochs": 2, "settings_per_step": 2, "progress": False}
    listed = ht.fit(problem.hypernet(seed=0), loss_by_column, lists, device="cpu", **options)
    read = ht_ray.fit(
        problem.hypernet(seed=0), loss_by_column, by_column(), batch_size=8, scaling_config=workers(0),
        run_config=here(tmp_path), **options,
    )  # fmt: skip
    same(listed.hypernet, read.hypernet, rtol=1e-5, atol=1e-6)
    assert read.train_loader is not None
    assert [len(batch["x"]) for batch in read.train_loader] == [8, 8, 4]  # also for real training in the driver


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loader", "dataset"])
def test_data_is_divided_among_workers(kind: str, tmp_path: Path) -> None:
    data: Any = problem.loader(batch_size=4) if kind == "loader" else by_column()
    options = {} if kind == "loader" else {"batch_size": 4, "shuffle_buffer": 10}
    surrogate = ht_ray.fit(
        problem.hypernet(), problem.loss if kind == "loader" else loss_by_column, data, scaling_config=workers(2),
        run_config=here(tmp_path), epochs=2, settings_per_step=2, progress=False, **options,
    )  # fmt: skip
    assert surrogate.history[-1]["step"] == 2 * 3  # 20 examples, 10 a worker, in batches of 4, 4 and 2


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_epoch_every_example_is_seen_by_one_worker(shuffle: bool) -> None:
    loaders: list[Any] = [
        own_loader(problem.loader(batch_size=4, shuffle=shuffle), rank, 2, seed=0) for rank in range(2)
    ]
    orders = []
    for epoch in (1, 2):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        seen = torch.cat([x for loader in loaders for x, _ in loader])
        assert len(seen) == problem.EXAMPLES
        assert len(seen.unique(dim=0)) == problem.EXAMPLES
        orders.append(seen)
    assert torch.equal(*orders) != shuffle


def stops_at(epoch: int) -> Callable[[dict[str, Any]], None]:
    def callback(record: dict[str, Any]) -> None:
        if record["epoch"] == epoch:
            raise ht.TrainingError("stopped on purpose")

    return callback


def test_a_run_is_resumed_though_its_last_checkpoint_is_damaged(tmp_path: Path) -> None:
    """In a storage that is not a plain folder: as if in a bucket, through fsspec."""
    storage = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fsspec.filesystem("file")))
    kept = {"storage_filesystem": storage, "checkpoint_config": CheckpointConfig(num_to_keep=3)}
    with pytest.raises(ht.TrainingError, match="stopped on purpose"):
        many(1, tmp_path, run_config=here(tmp_path, **kept), callbacks=[stops_at(6)])
    checkpoints = sorted((tmp_path / "run").glob("checkpoint_2*"))
    assert len(checkpoints) == 3
    next(checkpoints[-1].glob("*.safetensors")).write_bytes(b"cut off")
    with pytest.warns(ht.HypertuneWarning, match="Training goes on from .* because: .*"):
        again = many(1, tmp_path, run_config=here(tmp_path, **kept), resume=True)
    same(alone().hypernet, again.hypernet, rtol=1e-9, atol=1e-9)
    assert [r["epoch"] for r in again.history] == list(range(1, 11))
    (tmp_path / "run" / "checkpoint_manager_snapshot.json").unlink()  # as if Ray had not learned of the last one
    found = many(1, tmp_path, run_config=here(tmp_path, **kept), resume=True)
    same(again.hypernet, found.hypernet, rtol=0.0, atol=0.0)


@pytest.mark.slow
def test_what_a_run_can_be_resumed_with(tmp_path: Path) -> None:
    with pytest.raises(ht.TrainingError):
        many(1, tmp_path, callbacks=[stops_at(3)])
    space = ht.SearchSpace({"decay": FloatDistribution(1e-3, 1.0, log=True), "sparsity": SPACE["sparsity"]})
    other = ht.HyperNetwork(problem.plain_network(), space, trunk=(6,), seed=0).double()
    options = {"run_config": here(tmp_path), "resume": True, "settings_per_step": SETTINGS, **OPTIONS}
    with pytest.raises(
        ht.StorageError, match=r"belongs to another run: space\.decay\.attributes\.low was 0\.0001, is 0\.001"
    ):
        ht_ray.fit(other, loss, part_of_batches, **options)
    finished = many(1, tmp_path, resume=True)
    same(alone().hypernet, finished.hypernet, rtol=1e-9, atol=1e-9)
    same(finished.hypernet, many(1, tmp_path, resume=True).hypernet, rtol=0.0, atol=0.0)  # nothing is left to do
    for file in (tmp_path / "run").glob("checkpoint_2*/*.safetensors"):
        file.write_bytes(b"cut off")
    with pytest.raises(ht.StorageError, match=r"No checkpoint in '.*' can be read"):
        many(1, tmp_path, resume=True)


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parent, tmp_path / "run")
    with pytest.raises(ht.OptionError, match=r"The run 'run' exists .* resume=True"):
        ht_ray.fit(hypernet(), loss, batches, run_config=here(tmp_path), **OPTIONS)
    with pytest.raises(ht.OptionError, match="There is no run 'other'"):
        ht_ray.fit(hypernet(), loss, batches, run_config=here(tmp_path, "other"), resume=True, **OPTIONS)


def test_a_loss_that_is_not_finite_on_one_worker_stops_all(tmp_path: Path) -> None:
    """However many failures Ray may repair: this one would come again."""
    starts = tmp_path / "starts"
    starts.mkdir()

    def poisoned() -> list[Any]:
        (starts / f"{os.getpid()}").touch()
        own = part_of_batches()
        if ray.train.get_context().get_world_rank() == 1:
            own[2] = (own[2][0] * float("nan"), own[2][1])
        return own

    with pytest.raises(ht.TrainingError, match=r"The loss is nan in epoch 1 at the setting \{'decay'"):
        ht_ray.fit(
            hypernet(), loss, poisoned, run_config=here(tmp_path, failure_config=FailureConfig(max_failures=-1)),
            scaling_config=workers(2), settings_per_step=4, **OPTIONS,
        )  # fmt: skip
    assert len(list(starts.iterdir())) == 2


class Unpicklable:
    """As data sets with an open file or a lock are."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("it is refused before it is read")


def test_bad_input(tmp_path: Path) -> None:
    fit = lambda loader, **options: ht_ray.fit(  # noqa: E731
        hypernet(), loss, loader, run_config=here(tmp_path), **(OPTIONS | options)
    )
    with pytest.raises(ht.DataError, match="30 workers cannot share 20 examples"):
        fit(problem.loader(), scaling_config=workers(30))
    with pytest.raises(ht.DataError, match="30 workers cannot share 20 examples"):
        fit(by_column(), batch_size=1, scaling_config=workers(30))
    with pytest.raises(ht.DataError, match=r"`train_loader`\.dataset\.lock cannot be sent"):
        fit(torch.utils.data.DataLoader(Unpicklable()))  # type: ignore[arg-type]
    with pytest.raises(ht.DataError, match=r"must be a DataLoader, a ray\.data\.Dataset or a function"):
        fit(batches())
    with pytest.raises(ht.DataError, match="An IterableDataset cannot be divided"):
        fit(torch.utils.data.DataLoader(Endless()), scaling_config=workers(2))
    weighted = torch.utils.data.WeightedRandomSampler([1.0] * problem.EXAMPLES, 4)
    repeated = torch.utils.data.RandomSampler(problem.data(), replacement=True, num_samples=4)
    for sampler, name in ((weighted, "WeightedRandomSampler"), (repeated, "RandomSampler")):
        with pytest.raises(ht.DataError, match=f"A loader with a {name} of its own cannot be divided"):
            fit(problem.loader(shuffle=False, sampler=sampler), scaling_config=workers(2))
    with pytest.raises(ht.DataError, match="A loader with a list of its own cannot be divided"):
        fit(torch.utils.data.DataLoader(problem.data(), batch_sampler=[[0, 1], [2, 3]]), scaling_config=workers(2))
    with pytest.raises(ht.OptionError, match="needs `batch_size`"):
        fit(by_column())
    with pytest.raises(ht.OptionError, match=r"are for a ray\.data\.Dataset"):
        fit(batches, batch_size=4)
    with pytest.raises(ht.OptionError, match="`epochs` must be"):
        fit(batches, epochs=0)
    with pytest.raises(ht.OptionError, match="`checkpoint_every` must be"):
        fit(batches, checkpoint_every=0)
    with pytest.raises(
        ht.OptionError, match=r"`device` is no option of `hypertune_mip_ray\.fit`: `scaling_config` says"
    ):
        fit(batches, device="cpu")
    with pytest.raises(ht.OptionError, match=r"`checkpoint` is no option .*: `run_config` says where"):
        fit(batches, checkpoint=tmp_path)
    assert not (tmp_path / "run").exists()


def test_it_says_when_the_cluster_is_too_small() -> None:
    with pytest.warns(ht.HypertuneWarning, match="asks for 6 CPU of which there are 4: training starts when"):
        check_resources(ScalingConfig(num_workers=3, resources_per_worker={"CPU": 2}), own=True)
    gpu = ScalingConfig(num_workers=1, use_gpu=True)
    with pytest.raises(ht.OptionError, match="asks for GPUs, but this machine has none"):
        check_resources(gpu, own=True)
    with pytest.warns(ht.HypertuneWarning, match="asks for 1 GPU of which there are 0"):  # whose nodes may be starting
        check_resources(gpu, own=False)


def checkpoints(folder: Path, *epochs: int) -> list[Path]:
    """Checkpoints as a run leaves them, after so many epochs each."""
    made = []
    for index, count in enumerate(epochs, start=1):
        made.append(folder / f"checkpoint_2026-01-0{index}")
        alone(epochs=count, checkpoint=made[-1])
    return made


def test_the_newest_checkpoint_that_can_be_read(tmp_path: Path) -> None:
    folder = run_folder(here(tmp_path), resume="auto")
    assert newest(folder, expected=False) is None
    first, second = checkpoints(tmp_path / "run", 1, 2)
    assert newest(folder, expected=True) == second.name
    shutil.copytree(first, tmp_path / "run" / "checkpoint_best")  # a user's copies are no checkpoints of the run
    shutil.copytree(first, tmp_path / "run" / f"{second.name}-copy")
    (tmp_path / "run" / "checkpoint_notes").mkdir()
    assert newest(folder, expected=True) == second.name
    next(second.glob("*.safetensors")).write_bytes(b"cut off")
    with pytest.warns(ht.HypertuneWarning, match=f"goes on from '.*{first.name}', because"):
        assert newest(folder, expected=True) == first.name
    next(first.glob("*.safetensors")).unlink()
    with pytest.warns(ht.HypertuneWarning, match="goes on from its start, because"):
        assert newest(folder, expected=False) is None
    with pytest.raises(ht.StorageError, match="No checkpoint in"):
        newest(folder, expected=True)


def test_rays_own_list_of_checkpoints_does_not_stop_a_run(tmp_path: Path) -> None:
    folder = run_folder(here(tmp_path), resume="auto")
    mend(folder)  # there is none
    (first,) = checkpoints(tmp_path / "run", 1)
    listed = tmp_path / "run" / "checkpoint_manager_snapshot.json"
    good = json.dumps({"checkpoint_results": [{"checkpoint_dir_name": first.name}]})
    listed.write_text(good)
    mend(folder)
    assert listed.read_text() == good
    for content, reason in ((good[:20], "cannot be read"), (good.replace("01-01", "01-09"), "which are gone")):
        listed.write_text(content)
        with pytest.warns(ht.HypertuneWarning, match=f"was set aside, because .*{reason}"):
            mend(folder)
        assert not listed.exists()


def test_what_workers_began_is_not_finished_in_this_process(tmp_path: Path) -> None:
    checkpoints(tmp_path / "run", 1)
    with pytest.raises(ht.OptionError, match="The run 'run' was trained by workers"):
        many(0, tmp_path, resume=True)


def test_a_relative_path_is_one_below_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = with_absolute_path(RunConfig(name="run", storage_path="runs"))
    assert config.storage_path == str(tmp_path / "runs")
    assert run_folder(config, resume=False).path == str(tmp_path / "runs" / "run")
    bucket = RunConfig(name="run", storage_path="s3://bucket/runs")
    assert with_absolute_path(bucket) is bucket


class Endless(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        raise AssertionError("it is refused before it is read")
