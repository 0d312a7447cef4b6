"""In-place operators made functional, where that needs no more than following names.

Models write in place almost only onto a tensor they have just made (`relu_(bn(x))`). Then the functional operator can
stand in its place and later readers read its result. Masks and tables that no input reaches may be built in place (Swin
fills its attention mask window by window): no rule ever looks at them. Any other write that another view of the same
memory would see is left to `run_decompositions`, which knows how.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import fx

from omenn_fx.algebra.ruleset import RuleSet
from omenn_fx.capture.nodes import is_value, read_by
from omenn_fx.compat import OpOverload

aten = torch.ops.aten

# Operators that return their argument itself in inference, without saying so in their schema.
_DROPOUT = {
    op
    for name in ("dropout", "dropout_", "feature_dropout", "feature_dropout_", "alpha_dropout", "alpha_dropout_",
                 "feature_alpha_dropout", "feature_alpha_dropout_")
    for op in [getattr(aten, name).default]
}  # fmt: skip
_SILENT_ALIAS = {aten.type_as.default}


def input_dependent(graph: fx.Graph, inputs: Collection[str], rules: RuleSet) -> set[fx.Node]:
    """Nodes whose values (not only shapes) depend on the user's inputs, given by placeholder names."""
    live: set[fx.Node] = set()
    for node in graph.nodes:
        reached = is_value(node) and any(n in live for n in read_by(node, rules.get(node.target)))
        if reached or (node.op == "placeholder" and node.name in inputs):
            live.add(node)
    return live


def drop_inference_no_ops(graph: fx.Graph) -> None:
    """Remove dropout in inference: it returns its argument."""
    for node in list(graph.nodes):
        if node.target in _DROPOUT and not node.args[2]:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def functionalize(graph: fx.Graph, inputs: Collection[str], rules: RuleSet) -> bool:
    """Replace the in-place operators in order. False at the first that writes memory another name still reads."""
    live = input_dependent(graph, inputs, rules)
    order = {node: i for i, node in enumerate(graph.nodes)}
    memory: dict[fx.Node, int] = {}  # which storage a value lies in
    members: dict[int, list[fx.Node]] = {}

    def put(node: fx.Node, storage: int) -> None:
        memory[node] = storage
        members.setdefault(storage, []).append(node)

    for node in graph.nodes:
        written = _written(node)
        if not written:
            put(node, memory[base] if (base := _viewed(node)) is not None else order[node])
            continue
        base, functional = node.args[0], _functional(node)
        sharing = members[memory[base]]
        if node not in live and not any(m in live or m.op != "call_function" for m in sharing):
            put(node, memory[base])
            continue
        if any(m.op != "call_function" for m in sharing):  # an input, a parameter or a buffer
            return False
        if functional is None or len(written) > 1:
            return False
        if any(order[user] > order[node] for m in sharing if m is not base for user in m.users):
            return False
        base.replace_all_uses_with(node, lambda user, at=node: order[user] > order[at])
        node.target = functional
        put(node, memory[base])
    return True


def _written(node: fx.Node) -> list[str]:
    if not isinstance(node.target, OpOverload):
        return []
    return [a.name for a in node.target._schema.arguments if a.alias_info is not None and a.alias_info.is_write]


def _viewed(node: fx.Node) -> fx.Node | None:
    """The value whose memory the result of a node may share."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    if not isinstance(node.target, OpOverload):
        return node.args[0]  # getitem of a tuple of views
    aliases = any(r.alias_info is not None for r in node.target._schema.returns)
    return node.args[0] if aliases or node.target in _SILENT_ALIAS else None


def _functional(node: fx.Node) -> Any:
    """`aten.relu_.default` -> `aten.relu.default`, where both give a result of the same dtype."""
    op: Any = node.target
    namespace, name = op._schema.name.split("::")
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None) if name.endswith("_") else None
    functional = getattr(packet, op._overloadname, None) if packet is not None else None
    values = [n.meta.get("val") for n in node.all_input_nodes]
    dtypes = {v.dtype for v in values if isinstance(v, torch.Tensor) and v.ndim}
    return functional if len(dtypes) <= 1 else None
