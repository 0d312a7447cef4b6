"""Skip zeros: an adjoint that is zero outside of one block, as that of a part of a packed projection is, moves on as
that block alone, until a matrix or a sum reads it: then only that part of the matrix is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from omenn_fx.editor import Editor, shape

aten = torch.ops.aten


@dataclass(frozen=True)
class Block:
    """A value that is `inner` at positions start .. start + length of one dimension, and zero elsewhere."""

    inner: Any  # the node
    dim: int
    start: int
    length: int


def skip_zeros(editor: Editor) -> None:
    """Matrices and sums that read a block between zeros read the block."""
    blocks: dict[Any, Block] = {}
    for node in editor.nodes(aten.pad.default, aten.constant_pad_nd.default, *_MOVES, aten.matmul.default, _SUM):
        if node.target in (aten.pad.default, aten.constant_pad_nd.default):
            block = _padded(node)
        else:
            source = blocks.get(node.args[0])
            if source is None:
                continue
            with editor.before(node):
                if node.target in (aten.matmul.default, _SUM):
                    read = _read(editor, node, source)
                    if read is not None:
                        editor.replace(node, read)
                    continue
                block = _MOVES[node.target](editor, node, source)
        if block is not None:
            blocks[node] = block


def _padded(node: Any) -> Block | None:
    """The block of a padding with zeros along one dimension."""
    x, pads, *rest = node.args
    if rest and (rest[0] not in ("constant", 0, 0.0) or any(rest[1:])):
        return None
    wide = [d for d in range(len(pads) // 2) if pads[2 * d] or pads[2 * d + 1]]
    if len(wide) != 1 or min(pads) < 0:
        return None
    dim = len(shape(node)) - 1 - wide[0]
    size = shape(x)[dim]
    return Block(x, dim, pads[2 * wide[0]], size) if isinstance(size, int) else None


def _reshaped(editor: Editor, node: Any, block: Block) -> Block | None:
    """Through a view in which the dimension of the block stands alone or becomes the outer part of a larger one."""
    before, after, sizes = shape(node.args[0]), shape(node), list(node.args[1])
    for d, size in enumerate(after):
        rest, inside = _product(after[d + 1 :]), 1
        for end in range(block.dim + 1, len(before) + 1):
            whole = before[block.dim] * inside
            if _same(size, whole) and _same(rest, _product(before[end:])) and isinstance(whole, int):
                sizes[d] = block.length * inside
                inner = editor.call(node.target, block.inner, sizes)
                return Block(inner, d, block.start * inside, block.length * inside)
            inside = inside * before[end] if end < len(before) else inside
    return None


def _permuted(editor: Editor, node: Any, block: Block) -> Block:
    dims = [d % len(shape(node)) for d in node.args[1]]
    inner = editor.call(node.target, block.inner, node.args[1])
    return Block(inner, dims.index(block.dim), block.start, block.length)


def _transposed(editor: Editor, node: Any, block: Block) -> Block:
    first, second = (d % len(shape(node)) for d in node.args[1:])
    dim = {first: second, second: first}.get(block.dim, block.dim)
    return Block(editor.call(node.target, block.inner, *node.args[1:]), dim, block.start, block.length)


def _read(editor: Editor, node: Any, block: Block) -> Any:
    """The matrix product or sum over the block alone; None where it does not sum over its dimension."""
    last = len(shape(node.args[0])) - 1
    if node.target is _SUM:
        dims = [d % (last + 1) for d in node.args[1]]
        return editor.call(node.target, block.inner, *node.args[1:]) if block.dim in dims else None
    matrix = editor.constant(node.args[1])
    if matrix is None or block.dim != last:
        return None
    part = editor.add_constant(matrix.narrow(0, block.start, block.length))
    return editor.call(node.target, block.inner, part)


_SUM = aten.sum.dim_IntList
_MOVES = {
    aten.reshape.default: _reshaped, aten.view.default: _reshaped, aten.permute.default: _permuted,
    aten.transpose.int: _transposed,
}  # fmt: skip


def _product(sizes: Any) -> Any:
    total: Any = 1
    for size in sizes:
        total = total * size
    return total


def _same(a: Any, b: Any) -> bool:
    return statically_known_true(a == b)
