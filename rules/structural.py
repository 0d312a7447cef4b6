"""Operators that only move values: every result position reads one operand position, or none.

The operator is its own W; a line names its transpose. Bias mass moves by the same transpose, except where result
positions read nothing (padding, the constants of a cat): there the rule says which operand positions take their mass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from omenn_fx.linear import Diagonal, Linear, Moves
from omenn_fx.mass import Even, Mass, Shape
from omenn_fx.registry import Affine, Bias, Call, rule

aten = torch.ops.aten
Tensor = torch.Tensor


def moves(*ops: Any, back: Callable[[Call, Tensor], Tensor]) -> None:
    """Register operators that move values, with their transpose."""

    def form(call: Call) -> Linear:
        name = call.content[0].name
        return Moves(lambda u: call.replay(**{name: u}), lambda g: back(call, g), call.shape())

    rule(*ops, passes_gate=True)(form)


# The same values, in the same places ----------------------------------------------------------------------------


@rule(
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    passes_gate=True,
)
def _same(call: Call) -> Linear:
    return Diagonal(None, call.shape(), call.out.shape)


class Cast(Diagonal):
    """The identity between two dtypes."""

    def __init__(self, shape: Shape, source: torch.dtype, result: torch.dtype):
        super().__init__(None, shape, shape)
        self.source_dtype, self.result_dtype = source, result

    def apply(self, u: Tensor) -> Tensor:
        return u.to(self.result_dtype)

    def transpose(self, g: Tensor) -> Tensor:
        return g.to(self.source_dtype)


@rule(
    aten._to_copy.default,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.to.other,
    aten.type_as.default,
    passes_gate=True,
)
def _cast(call: Call) -> Linear:
    if call.x.dtype == call.out.dtype:
        return Diagonal(None, call.shape(), call.out.shape)
    return Cast(call.shape(), call.x.dtype, call.out.dtype)


# The same values, in another shape -------------------------------------------------------------------------------

moves(
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.reshape_as.default,
    aten.view_as.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    back=lambda call, g: g.reshape(call.shape()),
)


class Permute(Moves):
    """A permutation of the dimensions; mass that is even over some of them stays so."""

    def __init__(self, dims: list[int], operand: Shape):
        self.inverse = [dims.index(d) for d in range(len(dims))]
        super().__init__(lambda u: u.permute(dims), lambda g: g.permute(self.inverse), operand)
        self.dims = dims

    def carry(self, mass: Mass) -> Mass:
        parts = []
        for part in mass.parts:
            if isinstance(part, Even):
                parts.append(Even(self.transpose(part.value), frozenset(self.dims[d] for d in part.even)))
            else:
                parts.append(Even(self.transpose(part.dense(mass.shape))))
        return Mass(tuple(parts[:1]), self.operand) if len(parts) == 1 else _sum(parts, self.operand)


def _sum(parts: list[Even], shape: Shape) -> Mass:
    total = Mass((parts[0],), shape)
    for part in parts[1:]:
        total = total + Mass((part,), shape)
    return total


@rule(aten.permute.default, passes_gate=True)
def _permute(call: Call) -> Linear:
    ndim = len(call.shape())
    return Permute([d % ndim for d in call["dims"]], call.shape())


@rule(aten.transpose.int, aten.t.default, aten.swapaxes.default, passes_gate=True)
def _transpose(call: Call) -> Linear:
    dims = list(range(len(call.shape())))
    if len(dims) > 1:
        a = call.operands.get("dim0", call.operands.get("axis0", 0))
        b = call.operands.get("dim1", call.operands.get("axis1", 1))
        dims[a], dims[b] = dims[b], dims[a]
    return Permute(dims, call.shape())


moves(aten.flip.default, back=lambda call, g: g.flip(call["dims"]))
moves(
    aten.roll.default,
    back=lambda call, g: torch.roll(g, [-s for s in _ints(call["shifts"])], tuple(_ints(call["dims"]))),
)
moves(aten.pixel_shuffle.default, back=lambda call, g: F.pixel_unshuffle(g, call["upscale_factor"]))
moves(aten.pixel_unshuffle.default, back=lambda call, g: F.pixel_shuffle(g, call["downscale_factor"]))


def _ints(value: Any) -> list[int]:
    return [value] if isinstance(value, int) else list(value)


# A part of the values ----------------------------------------------------------------------------------------------


def zeros(like: Tensor, shape: Shape) -> Tensor:
    """Zeros of a shape, of the dtype and device of another tensor."""
    return like.new_zeros(tuple(shape))


def _slice_back(call: Call, g: Tensor) -> Tensor:
    start, end = call["start"] or 0, call["end"]
    size = call.shape()[call["dim"]]
    if call["step"] == 1 and start == 0 and isinstance(end, int) and isinstance(size, int) and end >= size:
        return g
    if start == 0 and end == 2**63 - 1 and call["step"] == 1:
        return g
    return torch.slice_scatter(zeros(g, call.shape()), g, call["dim"], call["start"], call["end"], call["step"])


moves(aten.slice.Tensor, back=_slice_back)
moves(
    aten.select.int,
    back=lambda call, g: torch.select_scatter(zeros(g, call.shape()), g, call["dim"], call["index"]),
)
moves(
    aten.index_select.default,
    back=lambda call, g: torch.index_add(zeros(g, call.shape()), call["dim"], call["index"], g),
)
moves(
    aten.gather.default,
    back=lambda call, g: torch.scatter_add(zeros(g, call.shape()), call["dim"], call["index"], g),
)


@rule(aten.index.Tensor, passes_gate=True)
def _index(call: Call) -> Linear:
    def back(g: Tensor) -> Tensor:
        return torch.ops.aten.index_put.default(zeros(g, call.shape()), call["indices"], g, True)

    return Moves(lambda u: call.replay(self=u), back, call.shape())


def _offsets(call: Call) -> tuple[int, list[int]]:
    """Dimension and piece sizes of the operators that cut a tensor in pieces."""
    dim = call["dim"] % len(call.shape())
    size = call.shape()[dim]
    if "split_sizes" in call.operands:
        return dim, list(call["split_sizes"])
    if "chunks" in call.operands:
        step = -(-size // call["chunks"])
    elif "split_size" in call.operands:
        step = call["split_size"]
    else:
        cuts = [0, *(min(i, size) for i in call["indices"]), size]
        return dim, [b - a for a, b in zip(cuts, cuts[1:], strict=False)]
    return dim, [min(step, size - at) for at in range(0, size, step)]


def _piece_back(call: Call, g: Tensor) -> Tensor:
    dim, sizes = _offsets(call)
    assert call.output is not None
    start = sum(sizes[: call.output])
    return torch.slice_scatter(zeros(g, call.shape()), g, dim, start, start + sizes[call.output], 1)


moves(
    aten.split_with_sizes.default,
    aten.split.Tensor,
    aten.chunk.default,
    aten.tensor_split.indices,
    back=_piece_back,
)
moves(
    aten.unbind.int,
    back=lambda call, g: torch.select_scatter(zeros(g, call.shape()), g, call["dim"], call.output),
)


# Values read more than once ----------------------------------------------------------------------------------------


@rule(aten.expand.default, aten.expand_as.default, aten.broadcast_to.default, passes_gate=True)
def _expand(call: Call) -> Linear:
    return Diagonal(None, call.shape(), call.out.shape)


def _repeat_back(call: Call, g: Tensor) -> Tensor:
    repeats, shape = list(call["repeats"]), list(call.shape())
    shape = [1] * (len(repeats) - len(shape)) + shape
    g = g.reshape([s for pair in zip(repeats, shape, strict=True) for s in pair])
    return g.sum(tuple(range(0, 2 * len(shape), 2))).reshape(call.shape())


moves(aten.repeat.default, back=_repeat_back)


def _interleave_back(call: Call, g: Tensor) -> Tensor:
    shape = list(call.shape())
    dim = call["dim"] % len(shape)
    return g.reshape([*shape[:dim], shape[dim], call["repeats"], *shape[dim + 1 :]]).sum(dim + 1)


moves(aten.repeat_interleave.self_int, back=_interleave_back)


# Padding -----------------------------------------------------------------------------------------------------------


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
    inside = F.pad(torch.ones_like(call.x), pad)
    return linear, Bias((1 - inside) * value)


# Several operands side by side ---------------------------------------------------------------------------------------


class Piece(Moves):
    """One operand of a concatenation: positions start .. start + length of dimension `dim`.

    The mass of the constants in a cat has no operand: all operands' positions along `dim` share it evenly.
    """

    def __init__(self, dim: int, start: int, operand: Shape, result: Shape, constant: list[tuple[int, int]], total: int):
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


@rule(aten.cat.default, content="tensors")
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


