"""Operators that only move values: every result position reads one operand position, or none.

The operator is its own W; a line names its transpose. Bias mass moves by the same transpose, except where result
positions read nothing (padding, the constants of a cat): there the rule says which operand positions take their mass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from omenn_fx.algebra.form import Affine, Bias, Call
from omenn_fx.algebra.linear import Diagonal, Linear, Moves
from omenn_fx.algebra.mass import Even, Mass, Shape, reshaped
from omenn_fx.algebra.ruleset import omenn, rule

aten = torch.ops.aten
Tensor = torch.Tensor


def moves(*ops: Any, back: Callable[[Call, Tensor], Tensor]) -> None:
    """Register operators that move values, with their transpose."""

    def form(call: Call) -> Linear:
        name = call.content[0].name
        return Moves(lambda u: call.replay(**{name: u}), lambda g: back(call, g), call.shape())

    rule(*ops, passes_gate=True)(form)


def zeros(like: Tensor, shape: Shape) -> Tensor:
    """Zeros of a shape, of the dtype and device of another tensor."""
    return like.new_zeros(tuple(shape))


# The same values, in the same places ---------------------------------------------------------------------------------


@rule(
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
    aten.to.other,
    aten.type_as.default,
    aten.expand.default,
    aten.expand_as.default,
    aten.broadcast_to.default,
    passes_gate=True,
)
def _same(call: Call) -> Linear:
    return Diagonal(None, call.shape(), call.out.shape)


@rule(aten.copy.default, content="src", passes_gate=True, unread=("self",))
def _copy(call: Call) -> Linear:
    """The values of `src` in the place of all those of `self`."""
    return Diagonal(None, call.shape(), call.out.shape)


@rule(aten.tril.default, aten.triu.default, passes_gate=True)
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


@rule(
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.reshape_as.default,
    aten.view_as.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.ravel.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    passes_gate=True,
)
def _reshape(call: Call) -> Linear:
    return Reshape(call.shape(), call.out.shape)


omenn.mark(
    aten.to.other, aten.type_as.default, aten.expand_as.default, aten.reshape_as.default, aten.view_as.default,
    unread=("other",),
)  # fmt: skip


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


@rule(
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.swapaxes.default,
    aten.swapdims.default,
    aten.movedim.int,
    aten.movedim.intlist,
    aten.moveaxis.int,
    aten.moveaxis.intlist,
    aten.mT.default,
    aten.mH.default,
    aten.adjoint.default,
    aten.numpy_T.default,
    passes_gate=True,
)
def _permute(call: Call) -> Linear:
    """The operator itself says where the dimensions go, on a tensor of sizes 2, 3, 4, ..."""
    sizes = range(2, 2 + len(call.shape()))
    probe = call.replay(self=torch.empty(tuple(sizes), device="meta"))
    return Permute([sizes.index(s) for s in probe.shape], call.shape())


moves(aten.flip.default, back=lambda call, g: g.flip(call["dims"]))
moves(aten.pixel_shuffle.default, back=lambda call, g: F.pixel_unshuffle(g, call["upscale_factor"]))
moves(aten.pixel_unshuffle.default, back=lambda call, g: F.pixel_shuffle(g, call["downscale_factor"]))


def _roll_back(call: Call, g: Tensor) -> Tensor:
    shifts, dims = ([v] if isinstance(v, int) else list(v) for v in (call["shifts"], call["dims"]))
    return torch.roll(g, [-s for s in shifts], dims)


moves(aten.roll.default, back=_roll_back)


# A part of the values ------------------------------------------------------------------------------------------------


def _slice_back(call: Call, g: Tensor) -> Tensor:
    start, end, size = call["start"], call["end"], call.shape()[call["dim"]]
    if call["step"] == 1 and (start is None or (isinstance(start, int) and start == 0)):  # any of them may be symbolic
        known = isinstance(end, int)
        if end is None or (known and (end == 2**63 - 1 or (isinstance(size, int) and end >= size))):
            return g
    start = 0 if start is None else start
    if call["step"] == 1 and isinstance(start, int) and isinstance(size, int):
        return _between_zeros(g, call["dim"], max(start + size if start < 0 else start, 0), size)
    return torch.slice_scatter(zeros(g, call.shape()), g, call["dim"], start, end, call["step"])


def _select_back(call: Call, g: Tensor) -> Tensor:
    index, size = call["index"], call.shape()[call["dim"]]
    if isinstance(index, int) and isinstance(size, int):
        dim = call["dim"] % len(call.shape())
        return _between_zeros(g.unsqueeze(dim), dim, index % size, size)
    return torch.select_scatter(zeros(g, call.shape()), g, call["dim"], index)


def _between_zeros(g: Tensor, dim: int, start: int, size: int) -> Tensor:
    """g from a position of a dimension on, zeros before and behind."""
    behind = len(g.shape) - 1 - dim % len(g.shape)
    return F.pad(g, [0, 0] * behind + [start, size - start - int(g.shape[dim])])


moves(aten.slice.Tensor, back=_slice_back)
moves(aten.select.int, back=_select_back)


def piece(shape: Shape, dim: int, start: Any, length: Any) -> Moves:
    """The positions start .. start + length of dimension `dim`."""

    def back(g: Tensor) -> Tensor:
        if isinstance(start, int) and isinstance(shape[dim], int):
            return _between_zeros(g, dim, start, shape[dim])
        return torch.slice_scatter(zeros(g, shape), g, dim, start, start + length, 1)

    return Moves(lambda u: u.narrow(dim, start, length), back, shape)


@rule(aten.narrow.default, passes_gate=True)
def _narrow(call: Call) -> Linear:
    start, dim = call["start"], call["dim"] % len(call.shape())
    if isinstance(start, int) and start < 0:
        start = start + call.shape()[dim]
    return piece(call.shape(), dim, start, call["length"])


@rule(
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


moves(
    aten.unbind.int,
    back=lambda call, g: torch.select_scatter(zeros(g, call.shape()), g, call["dim"], call.output or 0),
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


moves(aten.diagonal.default, back=_diagonal_back)


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


moves(aten.repeat.default, back=_repeat_back)
moves(aten.repeat_interleave.self_int, back=_interleave_back)
moves(aten.unfold.default, back=_unfold_back)


# Padding -------------------------------------------------------------------------------------------------------------


class Pad(Moves):
    """Padding over the last dimensions. `reads[d]` lists the operand position that each result position reads.

    Constant padding reads nothing there; its bias mass goes to the nearest edge.
    """

    def __init__(self, pad: list[int], mode: str, operand: Shape, device: torch.device):
        self.pad, self.mode, self.operand, self.device = pad, mode, operand, device

    def apply(self, u: Tensor) -> Tensor:
        return F.pad(u, self.pad, self.mode)

    def transpose(self, g: Tensor) -> Tensor:
        if self.mode == "constant":
            return F.pad(g, [-p for p in self.pad])
        return self._fold(g, self.mode)

    def carry(self, mass: Mass) -> Mass:
        mode = "replicate" if self.mode == "constant" else self.mode
        return Mass((Even(self._fold(mass.dense(), mode)),), self.operand)

    def _fold(self, value: Tensor, mode: str) -> Tensor:
        shape = list(self.operand)
        ends = [(len(shape) - 1 - i, self.pad[2 * i], self.pad[2 * i + 1]) for i in range(len(self.pad) // 2)]
        for dim, left, right in ends:
            shape[dim] = shape[dim] + left + right
        for dim, left, right in ends:
            if left or right:
                size = self.operand[dim]
                index = torch.tensor(_reads(size, left, right, mode), device=self.device)
                shape[dim] = size
                value = torch.index_add(zeros(value, shape), dim, index, value)
        return value


def _reads(size: int, left: int, right: int, mode: str) -> list[int]:
    positions = range(-left, size + right)
    if mode == "circular":
        return [p % size for p in positions]
    if mode == "reflect":
        return [-p if p < 0 else 2 * (size - 1) - p if p >= size else p for p in positions]
    return [min(max(p, 0), size - 1) for p in positions]


@rule(aten.pad.default, aten.constant_pad_nd.default)
def _pad(call: Call) -> tuple[Linear, Bias | None]:
    pad, mode = list(call["pad"]), call.operands.get("mode", "constant")
    value = call["value"] or 0.0
    linear = Pad(pad, mode, call.shape(), call.x.device)
    if mode != "constant" or value == 0:
        return linear, None
    return linear, Bias(F.pad(torch.zeros_like(call.x), pad, value=value)).finite()


# Several operands side by side ---------------------------------------------------------------------------------------


class Piece(Moves):
    """One operand of a concatenation: positions start .. start + length of dimension `dim`.

    The mass of the constants in a cat has no operand: all operands' positions along `dim` share it evenly.
    """

    def __init__(
        self, dim: int, start: int, operand: Shape, result: Shape, constant: list[tuple[int, int]], total: int
    ):
        self.dim, self.start, self.operand, self.result = dim, start, operand, result
        self.constant, self.total = constant, total

    def apply(self, u: Tensor) -> Tensor:
        return torch.slice_scatter(zeros(u, self.result), u, self.dim, self.start, self._end, 1)

    @property
    def _end(self) -> int:
        return self.start + self.operand[self.dim]

    def transpose(self, g: Tensor) -> Tensor:
        return g.narrow(self.dim, self.start, self.operand[self.dim])

    def carry(self, mass: Mass) -> Mass:
        dense = mass.dense()
        own = self.transpose(dense)
        for start, length in self.constant:
            own = own + dense.narrow(self.dim, start, length).sum(self.dim, keepdim=True) / self.total
        return Mass((Even(own),), self.operand)


@rule(aten.cat.default, aten.concat.default, aten.concatenate.default, content="tensors")
def _cat(call: Call) -> Affine:
    tensors, ndim = call["tensors"], len(call.out.shape)
    dim = call["dim"] % ndim
    content = {slot.index for slot in call.content}
    starts, constant, at = {}, [], 0
    for i, t in enumerate(tensors):
        size = t.shape[dim] if len(t.shape) == ndim else 0  # cat skips the legacy empty tensor of one dimension
        starts[i] = at
        if i not in content and size:
            constant.append((at, size))
        at = at + size
    total = sum(tensors[i].shape[dim] for i in content if i is not None)
    terms = {
        slot: Piece(dim, starts[slot.index], call.shape(slot), call.out.shape, constant, total)
        for slot in call.content
        if slot.index is not None
    }
    bias = None
    if constant:
        kept = [t if i not in content else torch.zeros_like(t) for i, t in enumerate(tensors)]
        bias = Bias(torch.cat(kept, dim))
    return Affine(terms, bias, disjoint=True)


@rule(aten.stack.default, content="tensors")
def _stack(call: Call) -> Affine:
    """A cat of operands with a new dimension."""
    dim = call["dim"] % len(call.out.shape)
    content = {slot.index for slot in call.content}
    constant = [(i, 1) for i in range(len(call["tensors"])) if i not in content]
    terms: dict[Any, Linear] = {}
    for slot in call.content:
        assert slot.index is not None
        wide = list(call.shape(slot))
        wide.insert(dim, 1)
        terms[slot] = _Stacked(Piece(dim, slot.index, wide, call.out.shape, constant, len(content)), call.shape(slot))
    bias = None
    if constant:
        kept = [t if i not in content else torch.zeros_like(t) for i, t in enumerate(call["tensors"])]
        bias = Bias(torch.stack(kept, dim))
    return Affine(terms, bias, disjoint=True)


class _Stacked(Moves):
    def __init__(self, piece: Piece, operand: Shape):
        self.piece, self.operand = piece, operand

    def apply(self, u: Tensor) -> Tensor:
        return self.piece.apply(u.unsqueeze(self.piece.dim))

    def transpose(self, g: Tensor) -> Tensor:
        return self.piece.transpose(g).squeeze(self.piece.dim)

    def carry(self, mass: Mass) -> Mass:
        inner = self.piece.carry(mass)
        return Mass((Even(inner.dense().squeeze(self.piece.dim)),), self.operand)
