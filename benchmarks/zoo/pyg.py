"""Graph networks of torch_geometric on one small fixed graph: a class for each node, or with "/pool" for the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import Example

PATH = [[0, 1, 1, 2, 2, 3, 3, 4, 4, 5], [1, 0, 2, 1, 3, 2, 4, 3, 5, 4]]  # six nodes in a row
NODES, FEATURES, WIDTH = 6, 8, 16
Convolution = Callable[[Any, int, int], nn.Module]

CONVOLUTIONS: dict[str, Convolution] = {
    "GCN": lambda g, i, o: g.GCNConv(i, o),
    "GCN_cached": lambda g, i, o: g.GCNConv(i, o, normalize=False),
    "GAT": lambda g, i, o: g.GATConv(i, o // 2, heads=2),
    "GATv2": lambda g, i, o: g.GATv2Conv(i, o // 2, heads=2),
    "GIN": lambda g, i, o: g.GINConv(nn.Sequential(nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU(), nn.Linear(o, o))),
    "SAGE": lambda g, i, o: g.SAGEConv(i, o),
    "SAGE_max": lambda g, i, o: g.SAGEConv(i, o, aggr="max"),
    "ChebConv": lambda g, i, o: g.ChebConv(i, o, K=2),
    "TransformerConv": lambda g, i, o: g.TransformerConv(i, o // 2, heads=2),
    "GraphConv": lambda g, i, o: g.GraphConv(i, o),
    "PNA": lambda g, i, o: g.PNAConv(
        i, o, ["mean", "max", "std"], ["identity", "amplification"], deg=torch.tensor([0, 2, 4])
    ),
}


class GraphNetwork(nn.Module):
    """Two convolutions and a linear layer; `pool` is a global pooling over the nodes, or None.

    The sample is the graph, [1, nodes, features]: nodes exchange messages, so a node's row is no sample of a batch.
    """

    def __init__(self, conv: Callable[[int, int], nn.Module], activation: Callable[[Tensor], Tensor], pool: Any):
        super().__init__()
        self.convs = nn.ModuleList([conv(FEATURES, WIDTH), conv(WIDTH, WIDTH)])
        self.activation, self.pool, self.head = activation, pool, nn.Linear(WIDTH, 3)
        self.register_buffer("edges", torch.tensor(PATH))
        self.register_buffer("graph_of_node", torch.zeros(NODES, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(NODES, FEATURES)
        for conv in self.convs:
            x = self.activation(conv(x, self.edges))
        if self.pool is not None:
            x = self.pool(x, self.graph_of_node, 1).squeeze(0)
        return F.log_softmax(self.head(F.dropout(x, 0.5, self.training)), -1).unsqueeze(0)


def build(name: str) -> Example:
    """A network by the name of its convolution, "/mean", "/max" or "/add" after it."""
    import torch_geometric.nn as g

    conv, _, pool = name.partition("/")
    pools = {"": None, "mean": g.global_mean_pool, "max": g.global_max_pool, "add": g.global_add_pool}
    activation = F.elu if conv.startswith("GAT") else F.relu
    model = GraphNetwork(lambda i, o: CONVOLUTIONS[conv](g, i, o), activation, pools[pool])
    return model, (torch.randn(1, NODES, FEATURES),), {}
