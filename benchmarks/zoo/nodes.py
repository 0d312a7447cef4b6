"""Invariants 2 and 4 at the nodes of a large graph: one walk that keeps no more values than the model itself does."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from omenn_fx import invariants
from omenn_fx.explainer import Explainer
from omenn_fx.roles import Tagged, producer
from omenn_fx.twin import Twin

TRANSPOSED = 200  # the dot test is taken at no more nodes than this


@torch.no_grad()
def measure_nodes(report: invariants.Report, explainer: Explainer, args: Any, kwargs: Any) -> None:
    """Invariant 2, W h + b == h, at every content node; 4, the dot test, at a sample of them."""
    program, leaves = explainer.program_for(args, kwargs)
    Walk(program.captured.module, program.tagged, report).run(*leaves, enable_io_processing=False)


class Walk(fx.Interpreter):
    """Runs a captured graph and measures each content node while its operands are still there."""

    def __init__(self, module: fx.GraphModule, tagged: Tagged, report: invariants.Report):
        super().__init__(module)
        self.user_to_last_uses = _last_uses(module.graph)
        self.tagged, self.report, self.generator = tagged, report, torch.Generator().manual_seed(0)
        content = [n for n in tagged.content if n not in tagged.sources.values()]
        every = max(1, -(-len(content) // TRANSPOSED))
        self.content, self.sample = set(content), set(content[::every])

    def run_node(self, n: fx.Node) -> Any:
        self.env[n] = super().run_node(n)
        if n in self.content:
            where = f"{n.name} [{producer(n)[0].target}]"
            try:
                self.measure(n, where)
            except Exception as error:
                raise NodeError(f"at node {where}: {type(error).__name__}: {error}") from error
        return self.env[n]

    def measure(self, node: fx.Node, where: str) -> None:
        call, form = Twin(self.tagged, self.env).form(node)
        self.report.add("node", invariants.node(call, form), where)
        if node in self.sample:
            self.report.add("transpose", invariants.transpose(call, form, self.generator), where)


class NodeError(Exception):
    """A rule that raises at one node."""


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Node -> the values that nothing after it needs. A result of several needs the operands of its operator."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        for needed in (*node.all_input_nodes, *producer(node)[0].all_input_nodes):
            last[needed] = node
    uses: dict[fx.Node, list[fx.Node]] = {}
    for needed, node in last.items():
        uses.setdefault(node, []).append(needed)
    return uses
