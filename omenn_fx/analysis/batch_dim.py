"""Where the batch lies in every content value, so that a sum over one node's bias can be taken sample by sample.

Windows, heads and time steps are often folded into the dimension of the batch ([B * windows, T, C], [T, B * heads, C]).
Views tell where it went: the stride of the batch in the flattened index does not change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from omenn_fx.algebra.form import Slot
from omenn_fx.algebra.mass import Mass, Product
from omenn_fx.algebra.rows import APART, INDEXED, LETTERS, PERMUTED, REPEATED, VIEW, Rows
from omenn_fx.algebra.ruleset import RuleSet
from omenn_fx.analysis.parts import Part, joined, taken
from omenn_fx.analysis.probe import rows_meet
from omenn_fx.analysis.roles import Tagged
from omenn_fx.capture.nodes import bind, place_of, producer, slots_of, value_of
from omenn_fx.capture.sizes import hint, known, symbols
from omenn_fx.compat import always
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


Layouts = Mapping[fx.Node, Layout | Whole | Part]


def layouts(tagged: Tagged) -> Layouts:
    """The layout of the batch in every content value. Raises OmennError where the samples of a batch are mixed."""
    if tagged.captured.batch is None:
        return dict.fromkeys(tagged.content, Whole())
    size = hint(tagged.captured.batch)
    _require_rows(tagged, size)
    if size == 1:
        return dict.fromkeys(tagged.content, Whole())
    inputs = [v for n in tagged.captured.inputs if isinstance(v := value_of(n), torch.Tensor)]
    others = {symbol for v in inputs for size in v.shape[1:] for symbol in symbols(size)}  # tokens, say
    found: dict[fx.Node, Layout | Part] = {}
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
        part = _apart(tagged, node, [found[slots[slot]] for slot in tagged.slots[node]], size)
        if part is not None and (not isinstance(part, Part) or part.inner is not None):
            found[node] = part
            continue
        count = size if part is None else part.count
        layout: Layout | None = None
        for slot in tagged.slots[node]:
            at, before = _inner(found[slots[slot]]), _hints(value_of(slots[slot]).shape)
            following = _next(rule.rows, call, at, before, shape, symbolic, count)
            # a gather of constant rows; rows times columns
            fixed = any(symbols(s) - others for s in value_of(slots[slot]).shape) and not any(symbolic)
            apart = following is None or (layout is not None and layout.dim != following.dim)
            apart = apart or not _in_step(call, at, tagged.captured.batch)
            if apart or fixed or _meet(tagged.rules, rule.rows, node, slot, at.dim, len(before)):
                folded = _in_groups(call, slots[slot], at, size)
                raise (FoldedBatchError if folded else MixedBatchError)(place_of(call))
            layout = layout or following
        if layout is None or layout.outer * layout.inner * count != shape[layout.dim]:
            raise MixedBatchError(place_of(call))
        if symbols(value_of(node).shape[layout.dim]) & others:
            raise CaptureError(_FOLDED, place_of(node), _ONE_ROW)
        found[node] = layout if part is None else replace(part, inner=layout)
    return found


def _require_rows(tagged: Tagged, size: int) -> None:
    """Raise InputError where an explained value has no row for each sample."""
    for source in tagged.sources.values():
        if _hints(value_of(source).shape)[:1] != [size]:
            raise InputError(
                f"dimension 0 of the explained value '{source.name}' {_sizes(source)} is not the batch of {size}: "
                "transform with batched=False, which takes the inputs for one sample, or explain= another value"
            )
    if size == 0:
        raise InputError("the model fixes its batch, at the empty one of the example inputs: capture it at a sample")


def _apart(tagged: Tagged, node: fx.Node, operands: Sequence[Layout | Part], size: int) -> Layout | Part | None:
    """What a value of a fixed batch is where rows are taken out of it, or were; None where nothing of that is so.

    A part whose `inner` is None: its operands are the same rows, and it follows from them as from a whole batch.
    """
    parts = [at for at in operands if isinstance(at, Part)]
    rows = tagged.rules[producer(node)[0].target].rows
    if not parts:
        at = operands[0]
        free = tagged.captured.dynamic_batch or rows is not APART or len(producer(node)[0].all_input_nodes) != 1
        if free or not isinstance(at, Layout) or (at.outer, at.inner) != (1, 1):
            return None
        cut = taken(node, at.dim, size)
        return None if cut is None else Part(Whole() if cut[1] == 1 else Layout(at.dim), *cut, size)
    if len(parts) == len(operands) and all(parts[0].same(other) for other in parts):
        return Part(Whole() if parts[0].count == 1 else None, parts[0].start, parts[0].count, size)
    put = joined(node, parts) if rows is APART and len(parts) == len(operands) else None
    if put is None:
        raise MixedBatchError(place_of(node))
    dim, start, count = put
    return Layout(dim) if count == size else Part(Layout(dim), start, count, size)


def _inner(at: Layout | Part) -> Layout:
    inner: Layout = at.inner if isinstance(at, Part) else at
    return inner


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
        return Layout(permuted(call, at.dim, len(before)), at.outer, at.inner)
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


def _meet(rules: RuleSet, rows: Rows | None, node: fx.Node, slot: Slot, batch: int, ndim: int) -> bool:
    """Whether an operator works along the dimension of the batch of one of its operands."""
    if rows is None:
        return rows_meet(node, slot, batch)
    operands = bind(producer(node)[0])
    if rows is INDEXED:
        index = operands["indices"][batch] if batch < len(operands["indices"]) else None
        return index is not None and not _every_row(rules, index)
    return rows.meet(operands, slot, batch, ndim)


def _in_step(call: fx.Node, at: Layout, batch: Any) -> bool:
    """Whether a piece that is cut out of the dimension of the batch begins with a first sample."""
    operands = bind(call)
    start, before = value_of(operands.get("start")), value_of(operands.get("self"))
    if not {"dim", "start"} <= set(operands) or start is None or operands.get("step", 1) != 1:
        return True
    if operands["dim"] % before.ndim != at.dim:
        return True
    start = start + before.shape[at.dim] if hint(start) < 0 else start
    copies = batch * at.inner
    return always(start == hint(start) // hint(copies) * copies)


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


def permuted(call: fx.Node, dim: int, ndim: int) -> int:
    """Where a permutation moves a dimension: the operator itself says, on a tensor of sizes 2, 3, 4, ..."""
    sizes = range(2, 2 + ndim)
    op: Any = call.target
    probe = op(torch.empty(tuple(sizes), device="meta"), *call.args[1:], **call.kwargs)
    return probe.shape.index(sizes[dim])
