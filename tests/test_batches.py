"""Batches of every kind that loaders make: moved, counted, divided among settings, and joined."""

from __future__ import annotations

from collections import OrderedDict, UserDict, deque, namedtuple
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_problem import CONFIG, SPACE
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import hypertune_mip as ht
from hypertune_mip.evaluation.data import ValidationData, _bytes, batch_size, to_device
from hypertune_mip.trees import leaves, mapped, structure, tensors_of, with_tensors

CPU = torch.device("cpu")
Pair = namedtuple("Pair", ["x", "y"])


class Encoding(UserDict):
    """A batch as tokenizers make it: a mapping that is no dict."""


@dataclass(frozen=True)
class Example:
    """A batch of fields."""

    x: Tensor
    y: Tensor
    name: str | None = None


class Frozen(Mapping[str, Any]):
    """A mapping that is made of its items and cannot be changed."""

    def __init__(self, items: Mapping[str, Any]) -> None:
        self._items = dict(items)

    def __getitem__(self, name: str) -> Any:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class Graphs:
    """A batch that is no container: it moves itself, and says how many graphs it holds."""

    def __init__(self, x: Tensor, y: Tensor, edges: Tensor) -> None:
        self.x, self.y, self.edges = x, y, edges
        self.num_graphs = len(y)
        self.moved = 0

    def to(self, device: Any) -> Graphs:
        made = Graphs(self.x.to(device), self.y.to(device), self.edges.to(device))
        made.moved = self.moved + 1
        return made


X, Y = torch.arange(24.0).reshape(8, 3), torch.arange(8.0).reshape(8, 1)
TREES: dict[str, Any] = {
    "tensor": X,
    "tuple": (X, Y),
    "list": [X, [Y, None]],
    "dict": {"x": X, "y": Y},
    "ordered dict": OrderedDict(x=X, y=Y),
    "named tuple": Pair(X, Y),
    "mapping": Encoding(x=X, y=Y),
    "frozen mapping": Frozen({"x": X, "y": Y}),
    "dataclass": Example(X, Y),
    "deque": deque([X, Y], maxlen=3),
    "nested": {"a": (X, {"b": [Y, "name", 3]}), "c": Encoding(d=X)},
}


@pytest.mark.parametrize("name", TREES)
def test_a_mapped_tree_has_the_same_containers(name: str) -> None:
    tree = TREES[name]
    doubled = mapped(lambda leaf: 2 * leaf if isinstance(leaf, Tensor) else leaf, tree)
    assert structure(doubled) == structure(tree)
    for before, after in zip(leaves(tree), leaves(doubled), strict=True):
        assert torch.equal(after, 2 * before) if isinstance(before, Tensor) else after is before
    assert torch.equal(tensors_of(tree)[0], X)  # the tree itself is as it was
    assert with_tensors(tree, tensors_of(tree)) is tree


def test_a_container_that_cannot_be_made_anew_is_named_if_it_has_to_be() -> None:
    class Strange(Frozen):
        def __init__(self) -> None:
            super().__init__({"x": X})

    strange = Strange()
    assert to_device(strange, CPU) is strange  # nothing to move
    with pytest.raises(ht.DataError, match="Strange, which cannot be made anew"):
        mapped(lambda leaf: leaf + 1, strange)


@pytest.mark.parametrize(
    ("first", "second"),
    [({"a": X, "b": Y}, {"b": X, "a": Y}), ((X, Y), [X, Y]), ({"a": (X,)}, {"a": X})],
)
def test_structure_tells_trees_apart(first: Any, second: Any) -> None:
    assert structure(first) != structure(second)


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        ((X, Y), 8),
        ({"x": X, "edges": torch.zeros(2, 30), "scale": torch.tensor(1.0), "batch_size": 4}, 4),
        ([X, None, "name"], 8),
        (Graphs(torch.zeros(20, 3), Y, torch.zeros(2, 30)), 8),
        ({"graphs": Graphs(torch.zeros(20, 3), Y, torch.zeros(2, 30)), "x": torch.zeros(20, 3)}, 8),
        ((pack_sequence([torch.zeros(3, 2), torch.zeros(2, 2)]), torch.zeros(2)), 2),
        ({"adjacency": torch.eye(8).to_sparse(), "x": X}, 8),
    ],
)
def test_examples_of_a_batch(batch: Any, size: int) -> None:
    assert batch_size(batch) == size


def test_a_sparse_tensor_is_kept_like_any_other() -> None:
    (batch,) = ValidationData([{"adjacency": torch.eye(8).to_sparse(), "x": X}], CPU)
    assert batch["adjacency"].is_sparse


def test_what_a_packed_sequence_takes_is_seen() -> None:
    packed = pack_sequence([torch.zeros(300, 20), torch.zeros(200, 20)])
    assert _bytes([packed]) >= 500 * 20 * 4


def test_a_batch_that_leaves_open_how_many_examples_it_holds_is_warned_of() -> None:
    for batch in ((X, torch.zeros(2, 30)), {"x": X, "y": Y, "edges": torch.zeros(2, 30)}):
        with pytest.warns(ht.HypertuneWarning, match=r"taken for 8.*`batch_size`"):
            assert batch_size(batch) == 8


class Net(nn.Module):
    """Takes what a batch holds by keyword."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.inner, self.out = nn.Linear(3, 5), nn.Linear(5, 1)

    def forward(self, x: Tensor, edges: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.inner(x))
        if edges is not None:
            h = h.index_add(0, edges[1], h[edges[0]])
        return self.out(h)


def error_of_dict(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch["x"], batch.get("edges")), batch["y"])


def error_of_object(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch.x), batch.y)


EDGES = torch.randint(8, (2, 30), generator=torch.Generator().manual_seed(0))
KINDS: dict[str, tuple[Any, Callable[..., Tensor], str]] = {
    "mapping": (Encoding(x=X, y=Y), error_of_dict, "auto"),
    "mapping, divided": (Encoding(x=X, y=Y), error_of_dict, "split"),
    "none, divided": ({"x": X, "y": Y, "edges": None}, error_of_dict, "split"),
    "scalars, divided": ({"x": X, "y": Y, "scale": torch.tensor(2.0), "temperature": 0.5}, error_of_dict, "split"),
    "names": ({"x": X, "y": Y, "names": ["a"] * 8}, error_of_dict, "full"),
    "edges": ({"x": X, "y": Y, "edges": EDGES, "batch_size": 8}, error_of_dict, "full"),
    "dataclass, divided": (Example(X, Y), error_of_object, "split"),
    "graphs": (Graphs(X, Y, EDGES), error_of_object, "auto"),
}


@pytest.mark.parametrize("mapping", ["vmap", "loop"])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_trained_on_and_evaluated(name: str, mapping: Any) -> None:
    batch, error, batching = KINDS[name]
    surrogate = ht.fit(
        ht.HyperNetwork(Net(), SPACE, head=ht.RankOne(initialization="fan_out"), mapping=mapping),
        lambda m, b, c: error(m, b) + (c["decay"] + c["dropout"]) * ht.losses.l2(m),
        [batch] * 2,
        metric=lambda m, b: {"error": error(m, b)},
        val_loader=[batch] * 2,
        epochs=1,
        settings_per_step=2 if batching == "split" else "auto",
        batching=batching,
        device="cpu",
        progress=False,
    )
    with torch.no_grad():
        expected = float(error(surrogate.materialize(CONFIG), batch))
    assert surrogate.evaluate(CONFIG)["error"] == pytest.approx(expected, rel=1e-4)
    assert surrogate.gradient(CONFIG, "error")["decay"] != 0


def test_settings_have_their_own_part_of_a_divided_mapping() -> None:
    hypernet = ht.HyperNetwork(Net(), SPACE)
    seen: list[Tensor] = []

    def loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
        assert isinstance(batch, Encoding) and batch["scale"].ndim == 0
        seen.append(batch["x"])
        return error_of_dict(model, batch) + config["decay"] + config["dropout"]

    batch = Encoding(x=X, y=Y, scale=torch.tensor(2.0))
    options: dict[str, Any] = {"settings_per_step": 4, "execution": ht.Execution(mapping="loop")}
    ht.fit(hypernet, loss, [batch], epochs=1, device="cpu", progress=False, **options)
    assert torch.equal(torch.cat(seen[-4:]), X)


# Networks whose answers depend on who else is in the batch.


def with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))


def error_of_pair(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


@pytest.mark.parametrize("last", range(2, 8))
def test_a_small_last_batch_is_divided_among_so_few_that_each_part_has_a_variance(last: int) -> None:
    x, y = torch.randn(16 + last, 3), torch.randn(16 + last, 1)
    seen = []

    def loss(model: nn.Module, batch: Any, config: Any) -> Tensor:
        seen.append(len(batch[0]))
        return error_of_pair(model, batch) + (config["decay"] + config["dropout"]) * ht.losses.l2(model)

    ht.fit(
        ht.HyperNetwork(with_batch_norm(), SPACE, mapping="loop"),
        loss,
        list(zip(x.split(16), y.split(16), strict=True)),
        epochs=1,
        settings_per_step=8,
        batching="split",
        device="cpu",
        progress=False,
    )
    assert min(seen) >= 2 and max(seen[-(last // 2) :]) == last // max(1, last // 2)


def test_a_small_last_batch_of_validation_joins_the_one_before() -> None:
    x, y = torch.randn(17, 3), torch.randn(17, 1)
    batches = [{"x": a, "y": b, "tag": "mine"} for a, b in zip(x.split(8), y.split(8), strict=True)]
    sizes = [batch_size(batch) for batch in ValidationData(batches, CPU, join_last=True)]
    assert sizes == [8, 9]
    assert [batch_size(batch) for batch in ValidationData(batches, CPU)] == [8, 8, 1]
    last = list(ValidationData(batches, CPU, join_last=True))[-1]
    assert torch.equal(last["x"], x[8:]) and last["tag"] == "mine"
    constant = torch.ones(8)  # of classes, say, for all batches
    with_constant = [batch | {"weights": constant} for batch in batches]
    with pytest.warns(ht.HypertuneWarning, match="taken for"):  # the last one has first dimensions 1 and 8
        last = list(ValidationData(with_constant, CPU, join_last=True))[-1]
    assert torch.equal(last["x"], x[8:]) and last["weights"] is constant
    named = [batch | {"tag": [str(i)]} for i, batch in enumerate(batches)]  # which cannot be joined
    assert len(list(ValidationData(named, CPU, join_last=True))) == 3
    larger = [{"x": a} for a in torch.randn(12, 3).split(8)]  # 8 and 4: large enough to stand alone
    assert len(list(ValidationData(larger, CPU, join_last=True))) == 2


def test_metrics_of_a_network_with_batch_norm_do_not_fail_on_a_last_example() -> None:
    x, y = torch.randn(17, 3), torch.randn(17, 1)
    surrogate = ht.Surrogate(
        ht.HyperNetwork(with_batch_norm(), SPACE),
        metric=lambda m, b: {"error": error_of_pair(m, b)},
        val_loader=list(zip(x.split(8), y.split(8), strict=True)),
    )
    with pytest.warns(ht.HypertuneWarning, match="recalibrate"):
        network = surrogate.materialize(CONFIG)
    with torch.no_grad():
        parts = [float(error_of_pair(network, (x[rows], y[rows]))) for rows in (slice(0, 8), slice(8, 17))]
    assert surrogate.evaluate(CONFIG)["error"] == pytest.approx((8 * parts[0] + 9 * parts[1]) / 17, rel=1e-5)
