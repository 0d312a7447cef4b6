"""Integer inputs that a model reads as numbers (uint8 images, codes in a table): one cast to floating point, in front.

Explained is the result of that cast. It stands right behind the input, so that views before the model's own cast are
views of it, and two casts are one explained value.
"""

from __future__ import annotations

import operator
from functools import reduce

import torch
import torch.utils._pytree as pytree
from torch import fx

from omenn_fx.algebra.ruleset import RuleSet
from omenn_fx.capture.captured import Captured
from omenn_fx.capture.editor import Editor
from omenn_fx.capture.nodes import slots_of, value_of

aten = torch.ops.aten


def as_numbers(captured: Captured, source: fx.Node, rules: RuleSet) -> fx.Node | None:
    """The cast of an integer or boolean input to floating point; None where nothing reads it as numbers."""
    views, readers = _paths(captured.graph, source, rules)
    if not readers:
        return None
    editor = Editor(captured.module)
    first = next(n for n in captured.graph.nodes if n.op not in ("placeholder", "get_attr"))
    with editor.before(first):
        dtype = reduce(torch.promote_types, (value_of(n).dtype for n in readers))
        cast: fx.Node = editor.call(aten.to.dtype, source, dtype)
    moved = {source: cast}
    for node in views:
        with editor.before(node):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: moved.get(n, n))
            moved[node] = editor.call(node.target, *args, **kwargs)
    for node in readers:
        for old, new in moved.items():
            node.replace_input_with(old, new)
    for node in reversed([*views, *moved.values()]):  # the views that nothing reads any more, or never did
        if not node.users and node is not cast and node.op != "placeholder":
            editor.erase(node)
    captured.graph.lint()
    captured.module.recompile()
    return cast


def _paths(graph: fx.Graph, source: fx.Node, rules: RuleSet) -> tuple[list[fx.Node], list[fx.Node]]:
    """The views of an input, and the operators that make floating-point content of the input or of a view."""
    views: list[fx.Node] = []
    readers: list[fx.Node] = []
    for node in graph.nodes:
        if node.target is operator.getitem:  # one piece of a split
            views += [node] if node.args[0] in views else []
            continue
        rule = rules.get(node.target)
        if rule is None or rule.form is None:
            continue
        content = [operand for _, operand in slots_of(node, rule)]
        if not any(operand is source or operand in views for operand in content):
            continue
        if any(t.is_floating_point() for t in pytree.tree_leaves(value_of(node)) if isinstance(t, torch.Tensor)):
            readers.append(node)
        elif rule.sign == "kept" and all(n is source or n in views for n in node.all_input_nodes):
            views.append(node)  # the same values, so the same ones in a float
    return views, readers
