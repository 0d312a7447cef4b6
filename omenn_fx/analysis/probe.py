"""Probes: what a rule does not state of itself is found by trying it, on random values of a call's shapes.

A probe that cannot be made (an operator without a kernel here, a value outside its domain) answers in the cautious
direction: W depends on the content, samples meet.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from omenn_fx.algebra.form import Affine, Call, Slot
from omenn_fx.algebra.ruleset import Rule
from omenn_fx.capture.nodes import bind, producer, value_of
from omenn_fx.capture.sizes import hint

Tensor = torch.Tensor


def depends_on_content(node: fx.Node, rule: Rule, content: tuple[Slot, ...]) -> bool:
    """Whether W or b of a node depends on the content, where the rule does not state it."""
    if rule.dynamic is not None:
        return rule.dynamic
    try:
        first, second = (_form(node, rule, content, seed) for seed in (0, 1))
        return not all(_alike(first, second, slot) for slot in content) or not _same_bias(first, second)
    except Exception:  # whatever a user's rule or operator raises: nothing is known of it
        return True


def rows_meet(node: fx.Node, slot: Slot, dim: int) -> bool:
    """Whether a change at one end of a dimension of an operand reaches what the other positions make.

    Both ends are tried, for an operator may read forwards or backwards alone. A result without that dimension counts as
    met.
    """
    try:
        return any(_reaches_others(node, slot, dim, end) for end in (0, -1))
    except Exception:
        return True


def _reaches_others(node: fx.Node, slot: Slot, dim: int, end: int) -> bool:
    call = _call(node, (slot,), seed=0)
    value, before = call.at(slot), call.out
    size = value.shape[dim]
    if before.ndim <= dim or before.shape[dim] != size or size < 2:
        return True
    changed = value.select(dim, end)
    generator = torch.Generator().manual_seed(3)  # the user's random numbers stay as they are
    changed += 1.0 + torch.rand(changed.shape, generator=generator).to(changed.dtype)
    with torch.no_grad():
        after = call.replay()
    differs = (before != after) & ~(before.isnan() & after.isnan())
    return bool(differs.narrow(dim, 1 + end, size - 1).any())  # all positions but that one


def _call(node: fx.Node, content: tuple[Slot, ...], seed: int) -> Call:
    """A node's call at random content; all else is the same for every seed."""
    origin, output = producer(node)
    call = Call(origin.target, _operands(origin, content, seed), None, content, output)
    with torch.no_grad():
        return replace(call, out=call.replay())


def _form(node: fx.Node, rule: Rule, content: tuple[Slot, ...], seed: int) -> tuple[Call, Affine]:
    call = _call(node, content, seed)
    return call, rule.affine(call)


def _alike(first: tuple[Call, Affine], second: tuple[Call, Affine], slot: Slot) -> bool:
    (call, one), (_, other) = first, second
    generator = torch.Generator().manual_seed(2)
    u = torch.randn(call.at(slot).shape, generator=generator).to(call.at(slot).dtype)
    return torch.equal(one.terms[slot].apply(u), other.terms[slot].apply(u))


def _same_bias(first: tuple[Call, Affine], second: tuple[Call, Affine]) -> bool:
    dense = [None if form.bias is None else form.bias.dense(call.out) for call, form in (first, second)]
    if dense[0] is None or dense[1] is None:
        return dense[0] is dense[1]
    return torch.equal(dense[0], dense[1])


def _operands(origin: fx.Node, content: tuple[Slot, ...], seed: int) -> dict[str, Any]:
    """Random values of the operands' shapes; those of the content are other ones for every seed."""
    nodes: dict[fx.Node, Tensor] = {}
    varying = {_at(bind(origin), slot) for slot in content}

    def value(node: fx.Node) -> Any:
        if node not in nodes:
            own = seed if node in varying else 0
            generator = torch.Generator().manual_seed(100 * own + len(nodes))
            nodes[node] = _random(value_of(node), generator, signed=node in varying)
        return nodes[node]

    operands: dict[str, Any] = fx.map_arg(bind(origin), value)
    return operands


def _random(fake: Any, generator: torch.Generator, signed: bool) -> Any:
    """Normal values of the content; positive ones of all else, for there may be a variance among them."""
    if not isinstance(fake, Tensor):
        return hint(fake)
    shape = [hint(size) for size in fake.shape]
    if fake.dtype == torch.bool:
        return torch.rand(shape, generator=generator) > 0.5
    if not fake.is_floating_point() and not fake.is_complex():
        return torch.zeros(shape, dtype=fake.dtype)
    value = torch.randn(shape, generator=generator) if signed else torch.rand(shape, generator=generator) + 0.5
    return value.to(fake.dtype)


def _at(operands: Any, slot: Slot) -> Any:
    return operands[slot.name] if slot.index is None else operands[slot.name][slot.index]
