"""The reference: a rule set may compare every node with its value at another input, which the graph computes as well.

The captured graph gets a second forward on the reference, node by node beside the first, as far as the set's own rules
read it. What no explained input reaches is the same in both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from omenn_fx.algebra.ruleset import Reference
from omenn_fx.analysis.roles import Role, Tagged
from omenn_fx.capture.nodes import free_name, producer, value_of
from omenn_fx.capture.sizes import hint
from omenn_fx.compat import fake_mode_of
from omenn_fx.errors import InputError

aten = torch.ops.aten


def with_reference(tagged: Tagged) -> Tagged:
    """A tagged graph with the forward on the set's reference; its `reference` tells what stands where.

    Takes over the graph that it is given: new nodes stand between those that roles and layouts are known of, so that a
    copy would need all of them anew. Raises InputError where the reference does not fit an explained input.
    """
    graph, wanted, copies = tagged.captured.graph, _wanted(tagged), dict[fx.Node, fx.Node]()
    last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    for source in tagged.sources.values():
        with graph.inserting_after(last if source.op == "placeholder" else source):
            if source in wanted:
                copies[source] = _input(tagged, source)
    for node in [n for n in graph.nodes if n in wanted and n not in copies]:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: copies.get(n, n))
        with graph.inserting_before(node):
            copies[node] = graph.create_node(node.op, node.target, args, kwargs, f"{node.name}_reference")
        copies[node].meta = dict(node.meta)
    graph.lint()
    tagged.captured.module.recompile()
    role = dict.fromkeys(graph.nodes, Role.CONSTANT) | dict(tagged.role)
    return replace(tagged, role=role, reference=copies)


def _wanted(tagged: Tagged) -> set[fx.Node]:
    """The nodes that an explained input reaches and whose reference a rule reads, and what those are made of."""
    sources = set(tagged.sources.values())
    wanted: set[fx.Node] = set()
    for node in reversed(tagged.captured.graph.nodes):
        call, _ = producer(node)
        reads = tagged.role.get(node) is Role.CONTENT and node not in sources and tagged.rules.says(call.target)
        if reads:
            wanted |= {node, *call.all_input_nodes}
        if tagged.role.get(node, Role.CONSTANT) is Role.CONSTANT:
            wanted.discard(node)
        elif node in wanted and node not in sources:
            wanted |= set(node.all_input_nodes)
    return wanted


def _input(tagged: Tagged, source: fx.Node) -> fx.Node:
    """The reference of an explained input, of its shape."""
    graph, reference = tagged.captured.graph, tagged.rules.reference
    assert reference is not None
    name = f"{source.name}_reference"
    if isinstance(reference, (int, float)):
        node = graph.create_node("call_function", aten.full_like.default, (source, reference), {}, name)
        node.meta = dict(source.meta)
        return node
    value, own = _constant(tagged, source, reference), free_name(tagged.captured.module, name)
    tagged.captured.module.register_buffer(own, value)
    constant = graph.get_attr(own)
    fake = fake_mode_of(value_of(source))
    constant.meta["val"] = value if fake is None else fake.from_tensor(value, static_shapes=True)
    with graph.inserting_after(constant):
        node = graph.create_node("call_function", aten.expand_as.default, (constant, source), {}, name)
    node.meta = dict(source.meta)
    return node


def _constant(tagged: Tagged, source: fx.Node, reference: Reference) -> torch.Tensor:
    """A reference as a tensor that broadcasts to the explained input. Raises InputError where it does not."""
    like = value_of(source)
    value: Any = torch.as_tensor(reference, dtype=like.dtype, device=like.device)
    if not isinstance(reference, torch.Tensor):
        value = value.reshape(-1, *[1] * (like.ndim - 2))
    size = [hint(s) for s in like.shape]
    sample = size if tagged.captured.batch is None else [1, *size[1:]]
    fits = value.ndim <= len(sample) and all(
        have in (1, want) for have, want in zip(value.shape[::-1], sample[::-1], strict=False)
    )
    if not fits:
        raise InputError(
            f"the reference, {tuple(value.shape)}, does not fit the explained input '{source.name}' {tuple(size)}: "
            "give a number, one for each channel, or a tensor that broadcasts to one sample"
        )
    return value
