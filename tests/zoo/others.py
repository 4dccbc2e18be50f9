"""Graph networks, adapters beside frozen weights, and transformers of another make."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.architecture import Architecture, imported, tokens
from tests.zoo.language import bert, classified, logits, own_loss


class Pooled(nn.Module):
    """A graph's class from the sum over its nodes."""

    def __init__(self, inner: nn.Module, pool: Any) -> None:
        super().__init__()
        self.inner, self.out, self.pool = inner, nn.Linear(8, 3), pool

    def forward(self, data: Any) -> Tensor:
        nodes = self.inner(data.x, data.edge_index)
        return self.out(self.pool(nodes, data.batch, size=data.num_graphs))


def graph_network(m: ModuleType, *, kind: str, **options: Any) -> nn.Module:
    """Two layers with dropout between them, and inside where they have attention."""
    return Pooled(getattr(m.nn.models, kind)(4, 8, 2, dropout=0.1, **options), m.nn.global_add_pool)


def graphs(m: ModuleType, generator: torch.Generator) -> Any:
    """Four graphs of several sizes."""
    data = []
    for nodes in (3, 4, 5, 6):
        x = torch.randn(nodes, 4, generator=generator)
        edges = torch.randint(nodes, (2, 2 * nodes), generator=generator)
        data.append(m.data.Data(x=x, edge_index=edges, y=torch.randint(3, (1,), generator=generator)))
    return m.data.Batch.from_data_list(data)


def of_graphs(model: nn.Module, batch: Any) -> Tensor:
    return model(batch)


def graph_loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch), batch.y)


def adapted(m: ModuleType) -> nn.Module:
    """BERT, frozen but for adapters of rank two and the last layer."""
    options = {"r": 2, "target_modules": ["query", "value"], "lora_dropout": 0.1, "modules_to_save": ["classifier"]}
    return m.get_peft_model(bert(imported("transformers")), m.LoraConfig(task_type="SEQ_CLS", **options))


def decoder(m: ModuleType) -> nn.Module:
    layers = m.Decoder(dim=16, depth=1, heads=2, attn_dim_head=32, rotary_pos_emb=True, attn_flash=True, ff_dropout=0.1)
    return m.TransformerWrapper(num_tokens=20, max_seq_len=12, attn_layers=layers)


def next_tokens(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch[:, :-1]).transpose(1, 2)


Graph = partial(Architecture, "torch_geometric", batch=graphs, output=of_graphs, loss=graph_loss)

ROWS = {
    "GCN": Graph(partial(graph_network, kind="GCN")),
    "GAT": Graph(partial(graph_network, kind="GAT", heads=2)),
    "GIN": Graph(partial(graph_network, kind="GIN", norm="batch_norm")),
    "GraphSAGE": Graph(partial(graph_network, kind="GraphSAGE")),
    "LoRA": Architecture(
        "peft", adapted, lambda module, generator: classified(imported("transformers"), generator), logits, own_loss
    ),
    "x-transformers": Architecture(
        "x_transformers",
        decoder,
        lambda module, generator: tokens(generator, 4, 7),
        next_tokens,
        lambda model, batch: F.cross_entropy(next_tokens(model, batch), batch[:, 1:]),
    ),
}
