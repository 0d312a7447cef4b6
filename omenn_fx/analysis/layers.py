"""Composites: what the layers of a tagged graph are, and how its rule set treats each of them.

A treatment turns the exact affine form that the rule table has for a layer into another one of the same value.
"""

from __future__ import annotations

import torch
from torch import fx

from omenn_fx.algebra.layer import Layer, Treated
from omenn_fx.analysis.roles import Role, Tagged
from omenn_fx.capture.nodes import bind, place_of, producer, read_by, slots_of, value_of


def treatments(tagged: Tagged) -> dict[fx.Node, Treated]:
    """The treatment of each layer that the rule set has a line for."""
    found: dict[fx.Node, Treated] = {}
    for node, layer in layers(tagged).items() if tagged.rules.lines else ():
        treatment = next((t for where, t in tagged.rules.lines if where(layer)), None)
        if treatment is not None:
            found[node] = Treated(treatment, layer)
    return found


def stand_ins(tagged: Tagged) -> dict[str, list[fx.Node]]:
    """Operator -> its nodes for which a set of lines, or with a reference, says nothing: the base's form stands in.

    Operators whose W is the same in every set (views, sums, averages) are not among them. A rule of the set's own says
    nothing of an operand that is held fixed.
    """
    found: dict[str, list[fx.Node]] = {}
    rules = tagged.rules
    for node in tagged.content if rules.lines or rules.reference is not None else ():
        rule, op = tagged.rule(node), producer(node)[0].target
        if rule is None or node in tagged.treatments or rules.speaks_of(rule):
            continue
        held = any(_live(tagged, n) for n in _others(tagged, node))
        several = len(tagged.slots[node]) > 1 and rule.product
        untreated = rule.layer if rules.lines else None
        if held or (not rules.says(op) and (several or untreated or tagged.is_dynamic(node))):
            found.setdefault(str(op), []).append(node)
    return found


def layers(tagged: Tagged) -> dict[fx.Node, Layer]:
    """The layers of a graph, in order."""
    kinds, positive = _kinds(tagged), _positive(tagged)
    before, behind = _longest(tagged, kinds), _longest(tagged, kinds, backwards=True)
    longest = max((before[n] + behind[n] for n in kinds), default=0)
    found = {}
    for node, kind in kinds.items():
        (operand,) = operands(tagged, node)
        depth = before[node] / longest if longest else 0.0
        found[node] = Layer(
            kind=kind,
            name=node.name,
            module=place_of(producer(node)[0]).module,
            first=before[node] == 0,
            last=behind[node] == 0,
            depth=depth,
            positive=operand in positive,
            rectified=all(_sign(tagged, user) == "rectified" for user in node.users),
        )
    return found


def _kinds(tagged: Tagged) -> dict[fx.Node, str]:
    """The content nodes with constant weights, and what they are."""
    found = {}
    for node in tagged.content:
        rule = tagged.rule(node)
        constant = not any(_live(tagged, n) for n in _others(tagged, node))
        real = not value_of(node).dtype.is_complex  # treatments tell positive weights from negative ones
        if rule is not None and rule.layer and len(tagged.slots[node]) == 1 and constant and real:
            found[node] = rule.layer
    return found


def operands(tagged: Tagged, node: fx.Node) -> list[fx.Node]:
    """The content operands of a node."""
    rule = tagged.rule(node)
    if rule is None:
        return []
    slots = dict(slots_of(producer(node)[0], rule))
    return [slots[slot] for slot in tagged.slots[node]]


def _others(tagged: Tagged, node: fx.Node) -> list[fx.Node]:
    """The operands of a node that it reads and that carry no content into it."""
    content = operands(tagged, node)
    return [n for n in read_by(producer(node)[0], tagged.rule(node)) if n not in content]


def _live(tagged: Tagged, node: fx.Node) -> bool:
    """Whether an explained input reaches a value."""
    return tagged.role.get(node, Role.CONSTANT) is not Role.CONSTANT


def _longest(tagged: Tagged, kinds: dict[fx.Node, str], backwards: bool = False) -> dict[fx.Node, int]:
    """Content node -> how many layers lie before (behind) it on the longest way."""
    reached = dict.fromkeys(tagged.content, 0)
    for node in reversed(tagged.content) if backwards else tagged.content:
        for operand in operands(tagged, node):
            source, goal = (node, operand) if backwards else (operand, node)
            reached[goal] = max(reached[goal], reached[source] + (source in kinds))
    return reached


def _positive(tagged: Tagged) -> set[fx.Node]:
    """Values that are known to have no negative entry."""
    found: set[fx.Node] = set()
    for node in tagged.content:
        sign = _sign(tagged, node)
        read = [n for n in producer(node)[0].all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
        if sign in ("positive", "rectified") or (sign == "kept" and all(n in found for n in read)):
            found.add(node)
    return found


def _sign(tagged: Tagged, node: fx.Node) -> str | None:
    """What the rule set knows of the sign of a node's result."""
    rule = tagged.rule(node) if node in tagged.role else None
    if rule is None:
        return None
    return rule.sign(bind(producer(node)[0])) if callable(rule.sign) else rule.sign
