"""Saving and loading: what comes back, what is refused, and what a full disk leaves behind."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from optuna.distributions import FloatDistribution
from small_problem import CONFIG, SPACE, fit, hypernet, loss, network, plain_network, validation
from torch import nn

import hypertune_mip as ht
from hypertune_mip import storage
from hypertune_mip.folders import LOCK
from hypertune_mip.storage import load_tree, save_tree

HEADS = [ht.RankOne(), ht.LowRank(rank=2), ht.Dense()]


@pytest.fixture(scope="module")
def surrogate() -> ht.Surrogate:
    return fit(epochs=2, **validation())


@pytest.fixture
def saved(surrogate: ht.Surrogate, tmp_path: Path) -> Path:
    surrogate.save(tmp_path / "saved")
    return tmp_path / "saved"


def load(folder: Path, **options: Any) -> ht.Surrogate:
    return ht.Surrogate.load(folder, options.pop("network", network()), **{**validation(), **options})


def tensor_file(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOCK}


# There and back


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
@pytest.mark.parametrize("options", [{}, {"freeze_theta_0": True, "generate": ["0"], "mapping": "loop"}])
def test_what_is_loaded_evaluates_as_what_was_saved(head: ht.Head, options: dict[str, Any], tmp_path: Path) -> None:
    before = fit(hypernet(head=head, **options), epochs=2, **validation())
    before.save(tmp_path)
    after = load(tmp_path, loss=loss, space=SPACE)
    units = SPACE.sample(9, seed=5)
    expected, got = before.evaluate_units(units), after.evaluate_units(units)
    assert list(expected) == list(got)
    assert all(np.array_equal(expected[name], got[name]) for name in expected)
    assert after.history == before.history
    assert after.space == before.space
    assert after.hypernet.extra_repr() == before.hypernet.extra_repr()
    assert after.hypernet.generated == before.hypernet.generated
    x = torch.ones(2, 3)
    assert torch.equal(before.materialize(CONFIG)(x), after.materialize(CONFIG)(x))


def test_an_ablation_comes_back_as_one(tmp_path: Path) -> None:
    before = fit(hypernet(head=ht.Dense(), residual=False, encoding="none"), epochs=1, **validation())
    before.save(tmp_path)
    after = load(tmp_path)
    assert not after.hypernet.residual and after.hypernet.encoding == "none"
    assert after.evaluate(CONFIG) == before.evaluate(CONFIG)


def test_loading_leaves_the_given_network_alone(saved: Path) -> None:
    given = network()
    before = {name: value.clone() for name, value in given.state_dict().items()}
    load(saved, network=given)
    assert all(torch.equal(before[name], value) for name, value in given.state_dict().items())


def test_a_tree_comes_back_with_tuples_as_lists(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    tree = {
        "numbers": [1, 2.5, float("inf"), True, None, "text", (1, 2)],
        "by integer": {0: {"step": torch.tensor(3.0)}, 1: {}},
        "tied": [shared, shared.T, shared],
        "types": [torch.tensor(True), torch.tensor([1, 2]), torch.zeros(0, 2, dtype=torch.bfloat16)],
    }
    save_tree(tmp_path, "tree", tree, kind="test")
    got = load_tree(tmp_path, "tree", kind="test")
    assert got["numbers"] == [1, 2.5, float("inf"), True, None, "text", [1, 2]]
    assert list(got["by integer"]) == [0, 1] and got["by integer"][0]["step"] == 3.0
    assert all(torch.equal(a, b) for a, b in zip(got["tied"], tree["tied"], strict=True))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(got["types"], tree["types"], strict=True))


def test_tensors_whose_paths_read_alike_stay_apart(tmp_path: Path) -> None:
    one, two, three, four = (torch.tensor(float(k)) for k in range(4))
    tree = {"a": {"b": one}, "a/b": two, 0: three, "0": four, "a/b'": [one, two]}
    save_tree(tmp_path, "tree", tree, kind="test")
    assert load_tree(tmp_path, "tree", kind="test") == tree


def test_numbers_of_numpy_come_back_as_pythons(tmp_path: Path) -> None:
    tree = {
        np.int64(1): np.float32(0.5),
        "flag": np.bool_(True),
        "list": [np.int8(-3), np.float64("inf"), np.str_("a")],
    }
    save_tree(tmp_path, "tree", tree, kind="test")
    assert repr(load_tree(tmp_path, "tree", kind="test")) == "{1: 0.5, 'flag': True, 'list': [-3, inf, 'a']}"


@pytest.mark.parametrize("key", [1.5, None, (1, 2), np.float32(1.0)])
def test_a_key_that_is_neither_text_nor_a_whole_number(tmp_path: Path, key: Any) -> None:
    with pytest.raises(ht.StorageError, match=r"Cannot save 'tree/a': its key .* is neither a string nor a whole num"):
        save_tree(tmp_path, "tree", {"a": {key: 1}}, kind="test")


def test_what_is_neither_tensor_nor_plain_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ht.StorageError, match=r"Cannot save 'tree/a/0': object is neither a tensor nor a plain value"):
        save_tree(tmp_path, "tree", {"a": [object()]}, kind="test")
    assert contents(tmp_path) == {}


# What is refused


def truncate(folder: Path) -> None:
    path = tensor_file(folder)
    path.write_bytes(path.read_bytes()[:-7])


def flip(folder: Path) -> None:
    path = tensor_file(folder)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def empty(folder: Path) -> None:
    tensor_file(folder).write_bytes(b"")


def remove_tensors(folder: Path) -> None:
    tensor_file(folder).unlink()


def truncate_index(folder: Path) -> None:
    path = folder / "surrogate.json"
    path.write_text(path.read_text()[:-20])


def binary_index(folder: Path) -> None:
    (folder / "surrogate.json").write_bytes(b"\xff\xfe\x00\x80")


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "surrogate.json"
        document = json.loads(path.read_text())
        replaced = change(document)
        path.write_text(json.dumps(document if replaced is None else replaced))

    return edit


def replace_text(old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "surrogate.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return edit


CONTENT = r"surrogate\.json' was altered: its content does not match its SHA-256"
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "tensors truncated": (truncate, r"safetensors' is truncated or was altered: its SHA-256"),
    "a bit flipped": (flip, r"truncated or was altered"),
    "tensors emptied": (empty, r"truncated or was altered"),
    "tensors removed": (remove_tensors, r"safetensors' cannot be read: FileNotFoundError"),
    "index truncated": (truncate_index, r"surrogate\.json' is truncated, altered or not one of ours"),
    "index binary": (binary_index, r"truncated, altered or not one of ours"),
    "index another JSON": (edited(lambda document: [1, 2]), r"truncated, altered or not one of ours"),
    "entry removed": (edited(lambda document: document.pop("tensors") and None), r"truncated, altered or not one of"),
    "content replaced": (edited(lambda document: document.update(content=3)), CONTENT),
    "a key altered": (replace_text('"high"', '"hihg"'), CONTENT),
    "a range altered": (replace_text("0.0001", "0.0002"), CONTENT),  # which would shift every answer
    "a switch altered": (replace_text('"mip"', '"none"'), CONTENT),
    "other schema": (
        edited(lambda document: document.update(schema_version=99)),
        r"schema version 99, but this release reads version 1.*release that wrote it",
    ),
    "other kind": (edited(lambda document: document.update(kind="cake")), r"holds a 'cake', but a 'surrogate'"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder(saved: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    load(saved)
    damage(saved)
    with pytest.raises(ht.StorageError, match=f"(?s){message}"):
        load(saved)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ht.StorageError, match=r"There is no '.*surrogate\.json'. Is '.*none' a folder that `save` wro"):
        load(tmp_path / "none")


def test_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(ht.StorageError, match=r"Is '.*' a folder that `save` wrote"):
        load(tmp_path)
    (tmp_path / "surrogate.json").write_text('{"model": "of someone else"}')
    with pytest.raises(ht.StorageError, match=r"not one of ours: KeyError\('schema_version'\)"):
        load(tmp_path)


def test_a_checkpoint_is_no_surrogate(tmp_path: Path) -> None:
    fit(epochs=1, checkpoint=tmp_path)
    (tmp_path / "checkpoint.json").rename(tmp_path / "surrogate.json")
    with pytest.raises(ht.StorageError, match="holds a 'training checkpoint', but a 'surrogate' was expected"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)), r"other shapes \['0\.weight: \[5, 3\] saved, \[6"),
        (plain_network(), r"missing \['3\.weight', '3\.bias'\], extra \['2\.weight', '2\.bias'\]"),
        (nn.Linear(3, 5), r"another network: missing \['0\.weight'.*extra \['weight', 'bias'\]"),
    ],
    ids=["shapes", "names", "another"],
)
def test_another_network(saved: Path, other: nn.Module, message: str) -> None:
    with pytest.raises(ht.StorageError, match=message):
        load(saved, network=other)


@pytest.mark.parametrize(
    ("layer", "given"),
    [(nn.Identity(), r"\{\}"), (nn.Dropout(0.2), r"\{\}"), (ht.nn.Dropout("decay"), r"\{'2': 'decay'\}")],
    ids=["none", "plain", "another name"],
)
def test_another_binding(saved: Path, layer: nn.Module, given: str) -> None:
    first, middle, _, last = network()
    with pytest.raises(ht.StorageError, match=rf"bound to hyperparameters as \{{'2': 'dropout'\}}.* given are {given}"):
        load(saved, network=nn.Sequential(first, middle, layer, last))


def test_another_space(saved: Path) -> None:
    wider = ht.SearchSpace({**SPACE, "dropout": FloatDistribution(0.0, 0.6)})
    with pytest.raises(ht.StorageError, match=r"(?s)trained on another space:.*high=0\.5.*but got.*high=0\.6"):
        load(saved, space=wider)
    turned = ht.SearchSpace({name: SPACE[name] for name in reversed(SPACE.names)})
    with pytest.raises(ht.StorageError, match="trained on another space"):
        load(saved, space=turned)


class Explosive:
    """Leaves a trace if it is ever unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.trace,)


@pytest.mark.parametrize("with_digest", [False, True], ids=["dropped in", "digest forged"])
def test_nothing_is_unpickled(saved: Path, tmp_path: Path, with_digest: bool) -> None:
    trace = tmp_path / "trace"
    path = tensor_file(saved)
    path.write_bytes(pickle.dumps(Explosive(trace)))
    if with_digest:
        edited(lambda document: document["tensors"].update(sha256=storage._digest(path)))(saved)
    with pytest.raises(ht.StorageError, match=r"cannot be read: SafetensorError|was altered"):
        load(saved)
    assert not trace.exists()


def test_a_tensor_file_outside_the_folder_is_not_read(saved: Path, tmp_path: Path) -> None:
    path = tensor_file(saved)
    path.rename(tmp_path / path.name)
    edited(lambda document: document["tensors"].update(file=f"../{path.name}"))(saved)
    with pytest.raises(ht.StorageError, match="cannot be read"):
        load(saved)


# Writing


def test_overwriting_keeps_one_tensor_file_and_the_new_state(surrogate: ht.Surrogate, saved: Path) -> None:
    first = tensor_file(saved).name
    other = fit(epochs=2, seed=5, **validation())
    other.save(saved)
    assert tensor_file(saved).name != first
    assert sorted(path.suffix for path in saved.iterdir() if path.name != LOCK) == [".json", ".safetensors"]
    assert load(saved).evaluate(CONFIG) == other.evaluate(CONFIG)
    surrogate.save(saved)
    surrogate.save(saved)  # the same once more
    assert load(saved).evaluate(CONFIG) == surrogate.evaluate(CONFIG)
    assert tensor_file(saved).name == first


def test_two_names_in_one_folder_leave_each_other_alone(surrogate: ht.Surrogate, tmp_path: Path) -> None:
    fitted = fit(epochs=1, checkpoint=tmp_path, **validation())
    fitted.save(tmp_path)
    surrogate.save(tmp_path)
    assert load(tmp_path).evaluate(CONFIG) == surrogate.evaluate(CONFIG)
    fit(epochs=1, checkpoint=tmp_path, resume=True)


def test_files_are_as_readable_as_the_user_asks_for(saved: Path) -> None:
    plain = saved / "plain"
    plain.touch()
    assert {path.stat().st_mode for path in saved.iterdir()} == {plain.stat().st_mode}


def full(*args: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_half_way(tensors: Any, path: Path) -> None:
    path.write_bytes(b"half")
    full()


def full_for_index(source: Path, target: Path, replace: Callable[..., None] = os.replace) -> None:
    if str(target).endswith(".json"):
        full()
    replace(source, target)


FULL: dict[str, tuple[Any, str, Callable[..., None]]] = {
    "tensors": (storage, "save_file", full),
    "tensors half-way": (storage, "save_file", full_half_way),
    "index": (Path, "write_text", full),
    "flush": (os, "fsync", full),
    "first rename": (os, "replace", full),
    "second rename": (os, "replace", full_for_index),
}


@pytest.mark.parametrize("where", FULL)
def test_a_full_disk_leaves_the_old_state(
    surrogate: ht.Surrogate, saved: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = fit(epochs=2, seed=5, **validation())
    before = contents(saved)
    owner, name, failure = FULL[where]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, failure)
        with pytest.raises(
            ht.StorageError, match=r"Could not save to .*No space left.*saved there before is as it was"
        ):
            other.save(saved)
    assert contents(saved) == before
    assert load(saved).evaluate(CONFIG) == surrogate.evaluate(CONFIG)
    other.save(saved)  # once there is space again
    assert load(saved).evaluate(CONFIG) == other.evaluate(CONFIG)


def test_a_full_disk_while_the_same_is_saved_again(
    surrogate: ht.Surrogate, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(saved)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full_for_index)
        with pytest.raises(ht.StorageError, match="No space left"):
            surrogate.save(saved)
    assert contents(saved) == before


def test_a_full_disk_during_training_stops_it_with_the_last_checkpoint_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(epochs=3)

    def fill(record: dict[str, Any]) -> None:
        if record["epoch"] == 2:
            patched.setattr(storage, "save_file", full_half_way)

    with monkeypatch.context() as patched, pytest.raises(ht.StorageError, match="No space left"):
        fit(epochs=3, checkpoint=tmp_path, callbacks=[fill])
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.name != LOCK) == [".json", ".safetensors"]
    resumed = fit(epochs=3, checkpoint=tmp_path, resume=True)
    state = resumed.hypernet.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.hypernet.state_dict().items())


LIMITED = """
import resource, signal, sys
import torch
from hypertune_mip.errors import StorageError
from hypertune_mip.storage import save_tree
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    save_tree(sys.argv[1], "tree", {"a": torch.ones(5000), "b": ["text"] * 5000}, kind="test")
except StorageError as error:
    print("refused:", error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of POSIX")
@pytest.mark.parametrize("limit", [4096, 25000], ids=["tensors", "index"])
def test_a_file_system_that_refuses_leaves_the_old_state(tmp_path: Path, limit: int) -> None:
    folder = tmp_path / "folder"
    save_tree(folder, "tree", {"a": torch.zeros(3)}, kind="test")
    before = contents(folder)
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, folder, str(limit)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert run.stdout.startswith("refused: Could not save to"), run.stderr
    assert contents(folder) == before
    assert torch.equal(load_tree(folder, "tree", kind="test")["a"], torch.zeros(3))


def test_a_folder_that_is_a_file(surrogate: ht.Surrogate, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ht.StorageError, match=r"Could not save to .*file"):
        surrogate.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
