"""Bags of embeddings taken apart: a lookup of every id, then the sum, mean or maximum of each bag.

The embedding of every token is then a value of the graph, which can be explained. A bag for each row of ids [N, K] is a
reduction of that row, so that samples stay apart; bags that begin at given offsets are sums by index.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from omenn_fx.algebra.ruleset import RuleSet
from omenn_fx.capture.captured import Captured
from omenn_fx.capture.editor import Editor, shape
from omenn_fx.capture.nodes import bind
from omenn_fx.compat import always

aten = torch.ops.aten


def take_bags_apart(captured: Captured, rules: RuleSet) -> Captured:
    """A graph without bags, but those whose other results are read. Takes over the graph that it is given."""
    outputs = captured.outputs
    for bag in [n for n in captured.graph.nodes if (rule := rules.get(n.target)) is not None and rule.parts]:
        results = [n for n in bag.users if n.users]
        if len(results) != 1 or results[0].args[1] != 0:
            continue
        pooled = _inserted(Editor(captured.module), bag, rules[bag.target].parts)
        outputs = tuple(pooled if node is results[0] else node for node in outputs)
        results[0].replace_all_uses_with(pooled)
        captured.graph.eliminate_dead_code()
        captured.graph.lint()
        captured.module.recompile()
    return replace(captured, outputs=outputs)


def _inserted(editor: Editor, bag: fx.Node, parts: Any) -> fx.Node:
    """The operators that a bag is made of, in front of it."""
    operands = bind(bag)
    fixed = {name: value for name, value in operands.items() if not isinstance(value, fx.Node)}
    nodes = {name: value for name, value in operands.items() if isinstance(value, fx.Node)}
    width = _width(nodes["offsets"], nodes["indices"])

    def pooled(*values: Any) -> Any:
        return parts(dict(zip(nodes, values, strict=True)) | fixed | {"width": width})

    with editor.before(bag):
        return editor.inline(pooled, *nodes.values())


def _width(offsets: fx.Node, ids: fx.Node) -> int | None:
    """The length of every bag, where bags are the rows of a matrix: torch makes the offsets 0, K, 2 K, ... then."""
    steps = offsets.args if offsets.target is aten.arange.start_step else ()
    if len(steps) != 3 or steps[0] != 0 or not isinstance(steps[2], int):
        return None
    return steps[2] if always(shape(offsets)[0] * steps[2] == shape(ids)[0]) else None
