"""Lookups: where the integers of an input become rows of a table, which are the values that are explained.

The integers may be computed on the way, by any operators: column offsets, masks, padding, a [CLS] id in front, hashes,
codes in columns of floats. What a comparison decides is no id: positions counted from a mask belong to no token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import fx

from omenn_fx.algebra.rows import PERMUTED, VIEW
from omenn_fx.algebra.ruleset import Rule, RuleSet
from omenn_fx.analysis.batch_dim import permuted
from omenn_fx.capture.captured import Captured
from omenn_fx.capture.editor import Editor
from omenn_fx.capture.functionalize import input_dependent
from omenn_fx.capture.nodes import bind, is_value, producer, read_by, slots_of, value_of
from omenn_fx.capture.sizes import hint, is_symbolic
from omenn_fx.compat import always

aten = torch.ops.aten


@dataclass(frozen=True)
class Lookup:
    """A value that the integers of an input select.

    Attributes:
        node: the floating-point value that is looked up.
        counted: the integers come out of a running sum: positions, probably.
        in_order: dimension 0 is that of the input, or folded with others by views alone.
    """

    node: fx.Node
    counted: bool
    in_order: bool


@dataclass
class _Handed:
    """What hands on the values of an input: all such nodes, and those of them that are one of three things besides."""

    nodes: set[fx.Node]
    encoded: set[fx.Node] = field(default_factory=set)  # one-hot codes that are still integers
    counted: set[fx.Node] = field(default_factory=set)
    moved: set[fx.Node] = field(default_factory=set)  # dimension 0 is not in the order of the input's

    def among(self, nodes: list[fx.Node]) -> list[fx.Node]:
        return [node for node in nodes if node in self.nodes]


def lookups(captured: Captured, rules: RuleSet, source: fx.Node) -> list[Lookup]:
    """The values that an input's integers look up, in the order of the graph."""
    live = input_dependent(captured.graph, [n.name for n in captured.inputs], rules)
    handed, found = _Handed({source}), list[Lookup]()
    for node in captured.graph.nodes:
        if node.op != "call_function" or not is_value(node) or _is(node, torch.bool):
            continue
        call, _ = producer(node)
        rule = rules.get(call.target)
        table = rule is not None and rule.source and not (rule.form and _reads(call, rule, live))
        read = handed.among(_ids(call, rule) if table else _values(call, rule))
        if not read:
            continue
        if _floats(node) and (table or any(o in handed.encoded for o in read)):
            found.append(Lookup(node, not handed.counted.isdisjoint(read), handed.moved.isdisjoint(read)))
        else:
            _hand_on(handed, node, call, rule, read)
    return found


def _hand_on(handed: _Handed, node: fx.Node, call: fx.Node, rule: Rule | None, read: list[fx.Node]) -> None:
    handed.nodes.add(node)
    kind = rule.kind if rule is not None else ""
    if kind == "one hot" or (rule is not None and rule.content and not handed.encoded.isdisjoint(read)):
        handed.encoded.add(node)
    if kind == "running sum" or not handed.counted.isdisjoint(read):
        handed.counted.add(node)
    if not handed.moved.isdisjoint(read) or any(_moves(call, rule, o, node) for o in read):
        handed.moved.add(node)


def _ids(call: fx.Node, rule: Rule | None) -> list[fx.Node]:
    """The operands that index a table."""
    found: list[fx.Node] = []
    fx.map_arg(bind(call)[rule.source] if rule is not None else (), found.append)
    return found


def _values(call: fx.Node, rule: Rule | None) -> list[fx.Node]:
    """The operands whose values a result holds, or is computed from: not what indexes or chooses among others."""
    if rule is not None and rule.content:
        return [operand for _, operand in slots_of(call, rule)]
    return read_by(call, rule)


def _reads(call: fx.Node, rule: Rule, live: set[fx.Node]) -> bool:
    """Whether the table depends on the inputs itself."""
    return any(o in live for o in read_by(call, rule, besides=(rule.source,)))


def _moves(call: fx.Node, rule: Rule | None, before: fx.Node, after: fx.Node) -> bool:
    """Whether dimension 0 of a result is another one, or a longer one, than that of an operand; views may fold it."""
    one, other = value_of(before), value_of(after)
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor) or not one.ndim:
        return False
    if rule is not None and rule.rows is PERMUTED:
        return permuted(call, 0, one.ndim) != 0
    if rule is not None and rule.rows is VIEW:
        return False
    return not other.ndim or hint(one.shape[0]) != hint(other.shape[0])


def carries(captured: Captured, rules: RuleSet, source: fx.Node) -> bool:
    """Whether a floating-point input reaches what the model returns through floating-point values."""
    reached = {source}
    for node in captured.graph.nodes:
        several = isinstance(value_of(node), (tuple, list))
        reads = node.op == "call_function" and any(o in reached for o in read_by(node, rules.get(node.target)))
        if reads and (several or _floats(node)):
            reached.add(node)
    return any(leaf in reached for leaf in captured.outputs)


def by_sample(captured: Captured, lookup: Lookup) -> fx.Node:
    """The looked-up values with a row for each sample, where views had folded others into dimension 0: [N * k, ...]
    becomes [N, k, ...], and whatever reads them reads them folded again. Other values stay as they are.

    Takes over the graph that it is given.
    """
    node, batch = lookup.node, captured.batch
    shape = value_of(node).shape
    if batch is None or not lookup.in_order or not hint(batch) or any(map(is_symbolic, shape[1:])):
        return node
    count = hint(shape[0]) // hint(batch)
    if count < 2 or not always(shape[0] == count * batch):
        return node
    editor, rest = Editor(captured.module), [int(size) for size in shape[1:]]
    with editor.before(node.next):
        editor.like(node)
        rows = editor.call(aten.reshape.default, node, [-1, count, *rest])
        folded = editor.call(aten.reshape.default, rows, [-1, *rest])
    editor.redirect(node, folded, lambda user: user is not rows)
    captured.module.recompile()
    return rows


def _is(node: fx.Node, dtype: torch.dtype) -> bool:
    value = value_of(node)
    return isinstance(value, torch.Tensor) and value.dtype is dtype


def _floats(node: fx.Node) -> bool:
    value = value_of(node)
    return isinstance(value, torch.Tensor) and value.is_floating_point()
