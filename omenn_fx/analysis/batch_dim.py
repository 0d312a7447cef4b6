"""Where the batch lies in every content value, so that a sum over one node's bias can be taken sample by sample.

Windows, heads and time steps are often folded into the dimension of the batch ([B * windows, T, C], [T, B * heads, C]).
Views tell where it went: the stride of the batch in the flattened index does not change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from omenn_fx.algebra.form import Slot
from omenn_fx.algebra.mass import Mass, Product
from omenn_fx.algebra.rows import APART, INDEXED, LETTERS, PERMUTED, REPEATED, VIEW, Rows
from omenn_fx.algebra.ruleset import RuleSet
from omenn_fx.analysis.probe import rows_meet
from omenn_fx.analysis.roles import Tagged
from omenn_fx.capture.nodes import bind, place_of, producer, slots_of, value_of
from omenn_fx.capture.sizes import hint, known, symbols
from omenn_fx.errors import CaptureError, FoldedBatchError, InputError, MixedBatchError

aten = torch.ops.aten


@dataclass(frozen=True)
class Layout:
    """The batch is dimension `dim`, whose size is outer * N * inner."""

    dim: int
    outer: int = 1
    inner: int = 1

    def per_sample(self, mass: Mass) -> Any:
        """The sum of a mass over everything but the batch: shape [N]."""
        total: Any = None
        for part in mass.parts:
            if isinstance(part, Product) and part.dim is not None and part.dim != self.dim:
                value = part.collapsed(part.dim).value
            else:
                value = part.dense(mass.shape) if isinstance(part, Product) else part.value
            others = tuple(d for d in range(len(mass.shape)) if d != self.dim)
            value = value.sum(others) if others else value
            total = value if total is None else total + value
        if self.outer == 1 and self.inner == 1:
            return total
        return total.reshape(self.outer, -1, self.inner).sum((0, 2))


class Whole:
    """All there is belongs to one sample."""

    def per_sample(self, mass: Mass) -> Any:
        """The sum of a mass over everything: shape [1]."""
        total: Any = None
        for part in mass.parts:
            value = (part.dense(mass.shape) if isinstance(part, Product) else part.value).sum()
            total = value if total is None else total + value
        return total.reshape(1)


Layouts = Mapping[fx.Node, Layout | Whole]


def layouts(tagged: Tagged) -> Layouts:
    """The layout of the batch in every content value. Raises OmennError where the samples of a batch are mixed."""
    if tagged.captured.batch is None:
        return dict.fromkeys(tagged.content, Whole())
    size = hint(tagged.captured.batch)
    for source in tagged.sources.values():
        if _hints(value_of(source).shape)[:1] != [size]:
            raise InputError(
                f"dimension 0 of the explained value '{source.name}' {_sizes(source)} is not the batch of {size}: "
                "transform with batched=False, which takes the inputs for one sample, or explain= another value"
            )
    if size == 1:
        return dict.fromkeys(tagged.content, Whole())
    if size == 0:
        raise InputError("the model fixes its batch, at the empty one of the example inputs: capture it at a sample")
    inputs = [v for n in tagged.captured.inputs if isinstance(v := value_of(n), torch.Tensor)]
    others = {symbol for v in inputs for size in v.shape[1:] for symbol in symbols(size)}  # tokens, say
    found: dict[fx.Node, Layout] = {}
    for node in tagged.content:
        if not known(value_of(node).shape):  # x[mask]: which samples are left depends on data
            raise MixedBatchError(place_of(producer(node)[0]))
        shape = _hints(value_of(node).shape)
        symbolic = [bool(symbols(s) - others) for s in value_of(node).shape]
        if node in tagged.sources.values():
            found[node] = Layout(0)
            continue
        call, _ = producer(node)
        rule = tagged.rules[call.target]
        slots = dict(slots_of(call, rule))
        layout: Layout | None = None
        for slot in tagged.slots[node]:
            at, before = found[slots[slot]], _hints(value_of(slots[slot]).shape)
            following = _next(rule.rows, call, at, before, shape, symbolic, size)
            # a gather of constant rows; rows times columns
            fixed = any(symbols(s) - others for s in value_of(slots[slot]).shape) and not any(symbolic)
            apart = following is None or (layout is not None and layout.dim != following.dim)
            if apart or fixed or _meet(tagged.rules, rule.rows, node, slot, at.dim, len(before)):
                folded = _in_groups(call, slots[slot], at, size)
                raise (FoldedBatchError if folded else MixedBatchError)(place_of(node))
            layout = layout or following
        if layout is None or layout.outer * layout.inner * size != shape[layout.dim]:
            raise MixedBatchError(place_of(node))
        if symbols(value_of(node).shape[layout.dim]) & others:
            raise CaptureError(_FOLDED, place_of(node), _ONE_ROW)
        found[node] = layout
    return found


_FOLDED = "a size cannot stay free: the model folds it into the dimension of the batch, as nn.MultiheadAttention does"

_ONE_ROW = "leave that size fixed, or fix the batch at one sample"


def _sizes(node: fx.Node) -> str:
    return f"[{', '.join(map(str, value_of(node).shape))}]"


def _hints(shape: Sequence[Any]) -> list[int]:
    return [hint(s) for s in shape]


def _next(
    rows: Rows | None, call: fx.Node, at: Layout, before: list[int], shape: list[int], symbolic: list[bool], size: int
) -> Layout | None:
    if not shape:
        return None
    if rows is VIEW:
        return _reshaped(at, before, shape, size)
    if rows is PERMUTED:
        return Layout(_permuted(call, at.dim, len(before)), at.outer, at.inner)
    if rows is REPEATED and shape[at.dim : at.dim + 1] != before[at.dim : at.dim + 1]:
        return Layout(at.dim, at.outer, shape[at.dim] // (size * at.outer))  # the copies are innermost
    if any(symbolic):
        candidates = [d for d, s in enumerate(symbolic) if s]
    else:
        candidates = [d for d, s in enumerate(shape) if s % size == 0 and s]
    if len(shape) == len(before) and at.dim in candidates and rows is not LETTERS:
        return Layout(at.dim, shape[at.dim] // (size * at.inner), at.inner)  # a cat puts the copies outermost
    same = [d for d in candidates if shape[d] == before[at.dim]]
    aligned = at.dim + len(shape) - len(before)
    for dim in (at.dim if len(shape) == len(before) else aligned, at.dim, aligned):
        if dim in same:
            return Layout(dim, at.outer, at.inner)
    if same:
        return Layout(same[0], at.outer, at.inner)
    if len(candidates) == 1:
        return Layout(candidates[0], shape[candidates[0]] // (size * at.inner), at.inner)
    return None


def mixed(forward: Callable[..., Any], each: Callable[..., Any], leaves: Sequence[Any]) -> bool:
    """Whether rows of the output read rows of the content that are not their own, found by explaining some of them.

    A graph with a fixed batch may mix its samples by constants of that size, which no shape tells. For each bit of the
    rows' numbers the rows with that bit are explained, and those without it: two rows are told apart by one bit.
    """
    outputs, residuals = forward(*leaves)
    rows = torch.arange(outputs.shape[0], device=outputs.device)
    for bit in range(max(outputs.shape[0] - 1, 0).bit_length()):
        for side in (0, 1):
            explained = (rows >> bit & 1) == side
            shape = (-1,) + (1,) * (outputs.ndim - 1)
            cotangent = torch.ones_like(outputs) * explained.to(outputs.dtype).reshape(shape)
            if any(bool((g[~explained] != 0).any()) for g in each([cotangent], tuple(residuals))[0]["C_w"]):
                return True
    return False


def _meet(rules: RuleSet, rows: Rows | None, node: fx.Node, slot: Slot, batch: int, ndim: int) -> bool:
    """Whether an operator works along the dimension of the batch of one of its operands."""
    if rows is None:
        return rows_meet(node, slot, batch)
    operands = bind(producer(node)[0])
    if rows is INDEXED:
        index = operands["indices"][batch] if batch < len(operands["indices"]) else None
        return index is not None and not _every_row(rules, index)
    return rows.meet(operands, slot, batch, ndim)


def _in_groups(call: fx.Node, operand: fx.Node, at: Layout, size: int) -> bool:
    """Whether the samples lie behind each other in the channels, and each has groups of its own there."""
    groups = value_of(bind(call).get("groups"))
    free = bool(symbols(value_of(operand).shape[at.dim]))
    if at.dim != 1 or at.outer != 1 or not isinstance(groups, (int, torch.SymInt)) or (free and not symbols(groups)):
        return False
    return hint(groups) % size == 0


def _every_row(rules: RuleSet, index: fx.Node) -> bool:
    """Whether an index leaves each row its own: 0, 1, 2, ... in x[arange(N), labels], or a mask that is written to."""
    if value_of(index).dtype == torch.bool:
        return True
    starts = {aten.arange.default: (), aten.arange.start: (0,), aten.arange.start_step: (0,)}
    rule = rules.get(index.target)
    while rule is not None and rule.sign == "kept" and rule.rows in (VIEW, APART) and len(index.all_input_nodes) == 1:
        index = index.all_input_nodes[0]  # views, casts and slices
        rule = rules.get(index.target)
    return (
        index.target in starts
        and index.args[: len(starts[index.target])] == starts[index.target]
        and len(index.args) < 3
    )


def _reshaped(at: Layout, before: list[int], shape: list[int], size: int) -> Layout | None:
    stride = at.inner * math.prod(before[at.dim + 1 :])
    for dim in range(len(shape)):
        suffix = math.prod(shape[dim + 1 :])
        if suffix and suffix <= stride and stride * size <= suffix * shape[dim] and stride % suffix == 0:
            inner = stride // suffix
            if shape[dim] % (inner * size) == 0:
                return Layout(dim, shape[dim] // (inner * size), inner)
    return None


def _permuted(call: fx.Node, dim: int, ndim: int) -> int:
    """Where a permutation moves a dimension: the operator itself says, on a tensor of sizes 2, 3, 4, ..."""
    sizes = range(2, 2 + ndim)
    op: Any = call.target
    probe = op(torch.empty(tuple(sizes), device="meta"), *call.args[1:], **call.kwargs)
    return probe.shape.index(sizes[dim])
