"""Invariants 2 and 4 at the nodes of a large graph: one walk that keeps no more values than the model itself does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from omenn_fx.explainer import Explainer
from omenn_fx.roles import Tagged, producer
from omenn_fx.twin import Twin

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
import invariants

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
        twin = Twin(self.tagged, self.env)
        call, form = twin.form(node)
        rebuilt, size = torch.zeros_like(call.out), torch.zeros_like(call.out)
        for slot, operand in twin.operands(node).items():
            linear, h = form.terms[slot], self.env[operand]
            rebuilt = rebuilt + linear.apply(h)
            size = size + linear.magnitude().apply(h.abs()).abs()
            if node in self.sample:
                self.report.add("transpose", _dot_test(linear, h, call.out, self.generator), where)
        if form.bias is not None:
            bias = form.bias.dense(call.out)
            rebuilt, size = rebuilt + bias, size + bias.abs()
        if call.out.numel():
            masked = call.out.isinf()  # a mask's -inf has no finite form, and no share in the output
            rebuilt, out, size = (torch.where(masked, 0, t) for t in (rebuilt, call.out, size))
            self.report.add("node", invariants.elementwise(rebuilt, out, size), where)


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


def _dot_test(linear: Any, h: Tensor, out: Tensor, generator: torch.Generator) -> Tensor:
    u, v = (torch.randn(like.shape, generator=generator, dtype=h.dtype) for like in (h, out))
    forward, back = linear.apply(u), linear.transpose(v)
    assert forward.shape == out.shape, f"W u has shape {tuple(forward.shape)}, not {tuple(out.shape)}"
    assert back.shape == h.shape, f"W^T v has shape {tuple(back.shape)}, not {tuple(h.shape)}"
    return invariants.dot_error(forward, v, u, back)
