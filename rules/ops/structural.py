"""Operators that only move values: every result position reads one operand position, or none.

The operator is its own W; a line names its transpose. Bias mass moves by the same transpose, except where result
positions read nothing (padding, the constants of a cat): there the rule says which operand positions take their mass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from omenn_fx.algebra.form import Call
from omenn_fx.algebra.linear import Diagonal, Linear, Moves
from omenn_fx.algebra.mass import Even, Mass, Shape, reshaped
from omenn_fx.algebra.rows import APART, PERMUTED, REPEATED, VIEW, Rows, along, last
from omenn_fx.rules.ops.forms import static

aten = torch.ops.aten
Tensor = torch.Tensor


def moves(*ops: Any, back: Callable[[Call, Tensor], Tensor], rows: Rows, **traits: Any) -> None:
    """Register operators that move values, with their transpose."""

    def form(call: Call) -> Linear:
        name = call.content[0].name
        return Moves(lambda u: call.replay(**{name: u}), lambda g: back(call, g), call.shape())

    static(*ops, passes_gate=True, rows=rows, **traits)(form)


def zeros(like: Tensor, shape: Shape) -> Tensor:
    """Zeros of a shape, of the dtype and device of another tensor."""
    return like.new_zeros(tuple(shape))


# The same values, in the same places ---------------------------------------------------------------------------------


@static(
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    aten.positive.default,
    # the registry promotes an operand of another dtype than the result, so a cast is the identity too
    aten._to_copy.default,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.expand.default,
    aten.broadcast_to.default,
    passes_gate=True,
    complex=True,
    sign="kept",
    rows=APART,
)
def _same(call: Call) -> Linear:
    return Diagonal(None, call.shape(), call.out.shape)


static(
    aten.to.other, aten.type_as.default, aten.expand_as.default,
    passes_gate=True, complex=True, sign="kept", unread=("other",), rows=APART,
)(_same)  # fmt: skip


@static(aten.copy.default, content="src", passes_gate=True, complex=True, unread=("self",), rows=APART)
def _copy(call: Call) -> Linear:
    """The values of `src` in the place of all those of `self`."""
    return Diagonal(None, call.shape(), call.out.shape)


@static(aten.tril.default, aten.triu.default, passes_gate=True, complex=True, rows=APART)
def _triangle(call: Call) -> Linear:
    return Diagonal(call.replay(self=torch.ones_like(call.x)), call.shape(), call.out.shape)


# The same values, in another shape -----------------------------------------------------------------------------------


class Reshape(Moves):
    """The same values in another shape; mass that is even over whole dimensions stays so."""

    def __init__(self, operand: Shape, result: Shape):
        super().__init__(lambda u: u.reshape(tuple(result)), lambda g: g.reshape(tuple(operand)), operand)
        self.result = result

    def carry(self, mass: Mass) -> Mass:
        total = Mass((), self.operand)
        for part in mass.parts:
            even = part if isinstance(part, Even) else Even(part.dense(mass.shape))
            total = total + Mass((reshaped(even, self.result, self.operand),), self.operand)
        return total


@static(
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.ravel.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    passes_gate=True,
    complex=True,
    sign="kept",
    rows=VIEW,
)
def _reshape(call: Call) -> Linear:
    return Reshape(call.shape(), call.out.shape)


static(
    aten.reshape_as.default,
    passes_gate=True, complex=True, sign="kept", unread=("other",), rows=VIEW,
)(_reshape)  # fmt: skip


class Permute(Moves):
    """A permutation of the dimensions; mass that is even over some of them stays so."""

    def __init__(self, dims: list[int], operand: Shape):
        self.inverse = [dims.index(d) for d in range(len(dims))]
        super().__init__(lambda u: u.permute(dims), lambda g: g.permute(self.inverse), operand)
        self.dims = dims

    def carry(self, mass: Mass) -> Mass:
        total = Mass((), self.operand)
        for part in mass.parts:
            if isinstance(part, Even):
                moved = Even(self.transpose(part.value), frozenset(self.dims[d] for d in part.even))
            else:
                moved = Even(self.transpose(part.dense(mass.shape)))
            total = total + Mass((moved,), self.operand)
        return total


@static(
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.movedim.int,
    aten.movedim.intlist,
    aten.mT.default,
    aten.numpy_T.default,
    passes_gate=True,
    complex=True,
    sign="kept",
    rows=PERMUTED,
)
def _permute(call: Call) -> Linear:
    """The operator itself says where the dimensions go, on a tensor of sizes 2, 3, 4, ..."""
    sizes = range(2, 2 + len(call.shape()))
    probe = call.replay(self=torch.empty(tuple(sizes), device="meta"))
    return Permute([sizes.index(s) for s in probe.shape], call.shape())


# of complex values these conjugate as well
static(aten.mH.default, aten.adjoint.default, passes_gate=True, sign="kept", rows=PERMUTED)(_permute)


moves(aten.flip.default, back=lambda call, g: g.flip(call["dims"]), rows=along("dims"), complex=True, sign="kept")
moves(
    aten.pixel_shuffle.default,
    back=lambda call, g: F.pixel_unshuffle(g, call["upscale_factor"]),
    rows=last(3),
    sign="kept",
)
moves(
    aten.pixel_unshuffle.default,
    back=lambda call, g: F.pixel_shuffle(g, call["downscale_factor"]),
    rows=last(3),
    sign="kept",
)


def _roll_back(call: Call, g: Tensor) -> Tensor:
    shifts, dims = ([v] if isinstance(v, int) else list(v) for v in (call["shifts"], call["dims"]))
    return torch.roll(g, [-s for s in shifts], dims)


moves(aten.roll.default, back=_roll_back, rows=along("dims"), complex=True, sign="kept")


# A part of the values ------------------------------------------------------------------------------------------------


def _slice_back(call: Call, g: Tensor) -> Tensor:
    start, end, size = call["start"], call["end"], call.shape()[call["dim"]]
    if call["step"] == 1 and (start is None or (isinstance(start, int) and start == 0)):  # any of them may be symbolic
        known = isinstance(end, int)
        if end is None or (known and (end == 2**63 - 1 or (isinstance(size, int) and end >= size))):
            return g
    start = 0 if start is None else start
    known = isinstance(start, int) and isinstance(size, int)
    if known and (call["step"] == 1 or isinstance(g.shape[call["dim"]], int)):
        dim, first = call["dim"] % len(call.shape()), max(start + size if start < 0 else start, 0)
        return _in_steps(g, dim, first, size, call["step"])
    return torch.slice_scatter(zeros(g, call.shape()), g, call["dim"], start, end, call["step"])


def _in_steps(g: Tensor, dim: int, start: int, size: int, step: int) -> Tensor:
    """g at every step-th position from the start on, zeros elsewhere."""
    count = g.shape[dim]
    if step == 1 or count < 2:
        return between_zeros(g, dim, start, size)
    apart = F.pad(g.unsqueeze(dim + 1), [0, 0] * (g.ndim - 1 - dim) + [0, step - 1]).flatten(dim, dim + 1)
    whole, here = start + count * step, start + min(size - start, count * step)
    if here < whole:
        apart = apart.narrow(dim, 0, here - start)
    return between_zeros(apart, dim, start, size) if here - start < size else apart


def _select_back(call: Call, g: Tensor) -> Tensor:
    index, size = call["index"], call.shape()[call["dim"]]
    if isinstance(index, int) and isinstance(size, int):
        dim = call["dim"] % len(call.shape())
        return between_zeros(g.unsqueeze(dim), dim, index % size, size)
    return torch.select_scatter(zeros(g, call.shape()), g, call["dim"], index)


def between_zeros(g: Tensor, dim: int, start: int, size: int) -> Tensor:
    """g from a position of a dimension on, zeros before and behind."""
    behind = len(g.shape) - 1 - dim % len(g.shape)
    return F.pad(g, [0, 0] * behind + [start, size - start - int(g.shape[dim])])


moves(aten.slice.Tensor, back=_slice_back, rows=APART, complex=True, sign="kept")
moves(aten.select.int, back=_select_back, rows=along("dim"), complex=True, sign="kept")


def piece(shape: Shape, dim: int, start: Any, length: Any) -> Moves:
    """The positions start .. start + length of dimension `dim`."""

    def back(g: Tensor) -> Tensor:
        if isinstance(start, int) and isinstance(shape[dim], int):
            return between_zeros(g, dim, start, shape[dim])
        return torch.slice_scatter(zeros(g, shape), g, dim, start, start + length, 1)

    return Moves(lambda u: u.narrow(dim, start, length), back, shape)


@static(aten.narrow.default, passes_gate=True, rows=APART, complex=True, sign="kept")
def _narrow(call: Call) -> Linear:
    start, dim = call["start"], call["dim"] % len(call.shape())
    if isinstance(start, int) and start < 0:
        start = start + call.shape()[dim]
    return piece(call.shape(), dim, start, call["length"])


@static(
    aten.split_with_sizes.default,
    aten.split.Tensor,
    aten.split.sizes,
    aten.unsafe_split.Tensor,
    aten.unsafe_split_with_sizes.default,
    aten.chunk.default,
    aten.unsafe_chunk.default,
    aten.tensor_split.indices,
    aten.tensor_split.sections,
    passes_gate=True,
    complex=True,
    sign="kept",
    rows=APART,
)
def _part(call: Call) -> Linear:
    """The operator itself says where its parts lie, on the list of positions; along a symbolic size arithmetic does."""
    shape = call.shape()
    dim = call["dim"] % len(shape)
    size, length, at = shape[dim], call.out.shape[dim], call.output or 0
    start: Any
    if isinstance(size, int):
        own = call.replay(self=torch.arange(size), dim=0)
        start = int(own[0]) if len(own) else 0
    elif "split_sizes" in call.operands:
        start = sum(call["split_sizes"][:at])
    else:
        start = at * (call["split_size"] if "split_size" in call.operands else -(-size // call["chunks"]))
    return piece(shape, dim, start, length)


def _unbind_back(call: Call, g: Tensor) -> Tensor:
    dim = call["dim"] % len(call.shape())
    return between_zeros(g.unsqueeze(dim), dim, call.output or 0, int(call.shape()[dim]))


moves(
    aten.unbind.int,
    back=_unbind_back,
    rows=APART,
    complex=True,
    sign="kept",
)


def _diagonal_back(call: Call, g: Tensor) -> Tensor:
    shape = list(call.shape())
    ndim, offset = len(shape), call["offset"]
    one, two = call["dim1"] % ndim, call["dim2"] % ndim
    rows, columns = shape[one], shape[two]
    at = torch.arange(g.shape[-1], device=g.device)
    index = (at + max(-offset, 0)) * columns + at + max(offset, 0)
    rest = [s for d, s in enumerate(shape) if d not in (one, two)]
    flat = torch.index_add(zeros(g, [*rest, rows * columns]), -1, index, g)
    return torch.movedim(flat.reshape([*rest, rows, columns]), (-2, -1), (one, two))


moves(aten.diagonal.default, back=_diagonal_back, rows=APART, complex=True)


# Values read more than once ------------------------------------------------------------------------------------------


def _repeat_back(call: Call, g: Tensor) -> Tensor:
    repeats, shape = list(call["repeats"]), list(call.shape())
    shape = [1] * (len(repeats) - len(shape)) + shape
    g = g.reshape([s for pair in zip(repeats, shape, strict=True) for s in pair])
    return g.sum(tuple(range(0, 2 * len(shape), 2))).reshape(call.shape())


def _interleave_back(call: Call, g: Tensor) -> Tensor:
    shape = list(call.shape())
    if call["dim"] is None:
        return g.reshape([*shape, call["repeats"]]).sum(-1)
    dim = call["dim"] % len(shape)
    return g.reshape([*shape[: dim + 1], call["repeats"], *shape[dim + 1 :]]).sum(dim + 1)


def _unfold_back(call: Call, g: Tensor) -> Tensor:
    """Windows of a dimension, the place in the window the last dimension: overlaps add up."""
    shape = list(call.shape())
    dim = call["dimension"] % len(shape)
    windows, size = g.shape[dim], call["size"]
    index = torch.arange(windows)[:, None] * call["step"] + torch.arange(size)
    g = torch.movedim(g, -1, dim + 1).reshape([*shape[:dim], windows * size, *shape[dim + 1 :]])
    return torch.index_add(zeros(g, shape), dim, index.flatten().to(g.device), g)


moves(aten.repeat.default, back=_repeat_back, rows=APART, complex=True)
moves(aten.repeat_interleave.self_int, back=_interleave_back, rows=REPEATED, complex=True)
moves(aten.unfold.default, back=_unfold_back, rows=along("dimension"), complex=True)
