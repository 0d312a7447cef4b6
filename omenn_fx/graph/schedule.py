"""Schedule: the order of an explainer graph, which decides what is in memory at the same time.

The adjoint reads coefficients, not activations: a coefficient that is computed beside its operator lets the activation
go, as the model's own forward does. A bias share that is computed beside its adjoint lets the adjoint go.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection

from torch import fx

from omenn_fx.compat import OpOverload


def hoist(graph: fx.Graph, early: Callable[[fx.Node], bool]) -> None:
    """Move the nodes for which `early` is true to where their last operand is made; all others keep their order."""
    order: dict[fx.Node, None] = {}
    for node in graph.nodes:
        ahead = [node]
        while ahead:
            at = ahead.pop()
            if at in order:
                continue
            operands = at.all_input_nodes
            order.update(dict.fromkeys([*(n for n in operands if _constant(n)), at]))
            changed = operands if writes(at) else []
            readers = dict.fromkeys(u for n in (at, *changed) for u in n.users)
            ahead += [u for u in reversed(readers) if early(u) and _ready(u, order)]
    for before, node in itertools.pairwise(order):
        before.append(node)


def _ready(node: fx.Node, done: Collection[fx.Node]) -> bool:
    """Whether all that it reads is made, and written to for the last time."""
    return all(
        (n in done or _constant(n)) and all(u in done for u in n.users if writes(u)) for n in node.all_input_nodes
    )


def _constant(node: fx.Node) -> bool:
    """A parameter, or what is made of nothing: it stands before whoever reads it first."""
    return not node.all_input_nodes and node.op != "placeholder"


def writes(node: fx.Node) -> bool:
    """Whether an operator changes an operand in place."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable
