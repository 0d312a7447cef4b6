"""Skip zeros: an adjoint that is zero outside of one block moves on as that block alone.

So is that of a class token, or of a part of a packed projection. What reads a block and some matrix needs that part of
the matrix only; what multiplies it with a value of the forward needs that part of the forward. A part of the forward is
then taken as early as the operators allow: the last block of a transformer is computed for the class token alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from omenn_fx.capture.editor import Editor, shape
from omenn_fx.compat import always

aten, omenn = torch.ops.aten, torch.ops.omenn
_PADS = (aten.pad.default, aten.constant_pad_nd.default)
_PRODUCTS = (aten.mul.Tensor, aten.div.Tensor)
_SUMS = (aten.add.Tensor, aten.sub.Tensor)
_REDUCTIONS = (aten.sum.dim_IntList, aten.mean.dim)


@dataclass(frozen=True)
class Block:
    """A value that is `inner` at positions start .. start + length of one dimension of `size`, and zero elsewhere."""

    inner: Any  # the node
    dim: int
    start: int
    length: int
    size: int

    @property
    def range(self) -> tuple[int, int, int]:
        return self.start, self.length, self.size


def skip_zeros(editor: Editor) -> None:
    """Compute with blocks where that is the same. Whatever does not know blocks reads them padded, as before."""
    blocks: dict[Any, Block] = {}
    for node in editor.nodes(*_PADS, *_STEPS):
        if node.target in _PADS:
            block = _padded(node)
            if block is not None:
                blocks[node] = block
            continue
        if not any(isinstance(a, fx.Node) and a in blocks for a in node.args):
            continue
        with editor.before(node):
            found = _STEPS[node.target](editor, node, blocks)
            if isinstance(found, Block):
                padded = _pad(editor, found, len(shape(node)))
                blocks[padded] = found
                editor.replace(node, padded)
            elif found is not None:
                editor.replace(node, found)


def _padded(node: Any) -> Block | None:
    """The block of a padding with zeros along one dimension."""
    x, pads, *rest = node.args
    if rest and (rest[0] not in ("constant", 0, 0.0) or any(rest[1:])):
        return None
    wide = [d for d in range(len(pads) // 2) if pads[2 * d] or pads[2 * d + 1]]
    if len(wide) != 1 or not all(isinstance(n, int) and n >= 0 for n in pads):  # a pad may depend on a free size
        return None
    dim = len(shape(node)) - 1 - wide[0]
    size = shape(x)[dim]
    return Block(x, dim, pads[2 * wide[0]], size, shape(node)[dim]) if isinstance(size, int) else None


def _pad(editor: Editor, block: Block, ndim: int) -> Any:
    pads = [0, 0] * (ndim - 1 - block.dim) + [block.start, block.size - block.start - block.length]
    return editor.call(aten.pad.default, block.inner, pads)


def _part(editor: Editor, value: Any, block: Block, ndim: int) -> Any:
    """What a value that is multiplied with a block holds at its positions."""
    if not isinstance(value, fx.Node):
        return value
    dim = block.dim - ndim + len(shape(value))
    if dim < 0 or _same(shape(value)[dim], 1):
        return value
    constant = editor.constant(value)
    if constant is not None:
        return editor.add_constant(constant.narrow(dim, block.start, block.length))
    return editor.call(aten.narrow.default, value, dim, block.start, block.length)


# One step for each operator: the block of its result, a value without zeros, or None where it needs them -------------


def _reshaped(editor: Editor, node: Any, blocks: dict[Any, Block]) -> Block | None:
    """A view in which the dimension of the block stands alone or becomes the outer part of a larger one."""
    block = blocks[node.args[0]]
    before, after, sizes = shape(node.args[0]), shape(node), list(node.args[1])
    for d, size in enumerate(after):
        rest, inside = _product(after[d + 1 :]), 1
        for end in range(block.dim + 1, len(before) + 1):
            whole = block.size * inside
            if type(whole) is int and _same(size, whole) and _same(rest, _product(before[end:])):
                sizes[d] = block.length * inside
                inner = editor.call(node.target, block.inner, sizes)
                return Block(inner, d, block.start * inside, block.length * inside, whole)
            inside = inside * before[end] if end < len(before) else inside
    return None


def _unsqueezed(editor: Editor, node: Any, blocks: dict[Any, Block]) -> Block:
    block, at = blocks[node.args[0]], node.args[1] % len(shape(node))
    return Block(editor.call(node.target, block.inner, at), block.dim + (at <= block.dim), *block.range)


def _permuted(editor: Editor, node: Any, blocks: dict[Any, Block]) -> Block:
    block, dims = blocks[node.args[0]], [d % len(shape(node)) for d in node.args[1]]
    return Block(editor.call(node.target, block.inner, dims), dims.index(block.dim), *block.range)


def _transposed(editor: Editor, node: Any, blocks: dict[Any, Block]) -> Block:
    block = blocks[node.args[0]]
    first, second = (d % len(shape(node)) for d in node.args[1:])
    dim = {first: second, second: first}.get(block.dim, block.dim)
    return Block(editor.call(node.target, block.inner, first, second), dim, *block.range)


def _scaled(editor: Editor, node: Any, blocks: dict[Any, Block]) -> Block | None:
    """A product or quotient of a block: only that part of the other operand is read."""
    first, second = node.args
    ndim = len(shape(node))
    if first not in blocks and node.target is aten.div.Tensor:
        return None
    block, other = (blocks[first], second) if first in blocks else (blocks[second], first)
    if len(shape(block.inner)) != ndim or (isinstance(other, fx.Node) and other in blocks):
        return None
    part = _part(editor, other, block, ndim)
    args = (block.inner, part) if first in blocks else (part, block.inner)
    return Block(editor.call(node.target, *args), block.dim, *block.range)


def _added(editor: Editor, node: Any, blocks: dict[Any, Block]) -> Block | None:
    """The sum of two blocks at the same place."""
    first, second = (blocks.get(a) if isinstance(a, fx.Node) else None for a in node.args)
    if first is None or second is None or node.kwargs:
        return None
    same = (first.dim, *first.range) == (second.dim, *second.range)
    ndim = len(shape(node))
    if not same or len(shape(first.inner)) != ndim or len(shape(second.inner)) != ndim:
        return None
    return Block(editor.call(node.target, first.inner, second.inner), first.dim, *first.range)


def _reduced(editor: Editor, node: Any, blocks: dict[Any, Block]) -> Any:
    """A sum over the block's dimension has no zeros left; one over others keeps them."""
    x, dims, *rest = node.args
    block, ndim = blocks[x], len(shape(x))
    dims = [d % ndim for d in dims]
    if block.dim in dims:
        return editor.call(node.target, block.inner, dims, *rest) if node.target is aten.sum.dim_IntList else None
    keep = bool(rest and rest[0])
    dim = block.dim if keep else block.dim - sum(d < block.dim for d in dims)
    return Block(editor.call(node.target, block.inner, dims, *rest), dim, *block.range)


def _multiplied(editor: Editor, node: Any, blocks: dict[Any, Block]) -> Any:
    """A constant matrix behind a block: part of its rows, or the same for each position of the block."""
    block, matrix = blocks.get(node.args[0]), editor.constant(node.args[1])
    if block is None or matrix is None or matrix.ndim > 2:
        return None
    last = len(shape(node.args[0])) - 1
    if block.dim == last:
        part = editor.add_constant(matrix.narrow(0, block.start, block.length))
        return editor.call(node.target, block.inner, part)
    return Block(editor.call(node.target, block.inner, node.args[1]), block.dim, *block.range)


Step = Callable[[Editor, Any, dict[Any, Block]], Any]
_STEPS: dict[Any, Step] = {
    aten.reshape.default: _reshaped, aten.view.default: _reshaped, aten.permute.default: _permuted,
    aten.transpose.int: _transposed, aten.unsqueeze.default: _unsqueezed, aten.matmul.default: _multiplied,
    **dict.fromkeys(_PRODUCTS, _scaled), **dict.fromkeys(_SUMS, _added), **dict.fromkeys(_REDUCTIONS, _reduced),
}  # fmt: skip


def _product(sizes: Any) -> Any:
    total: Any = 1
    for size in sizes:
        total = total * size
    return total


def _same(a: Any, b: Any) -> bool:
    return always(a == b)


# Parts of the forward ------------------------------------------------------------------------------------------------

_ELEMENTWISE = (
    *_PRODUCTS, *_SUMS, aten.gelu.default, aten.relu.default, aten.erf.default, aten.tanh.default, aten.silu.default,
    aten.sigmoid.default, aten.add_.Tensor, aten.to.dtype, omenn.relu_mask.default, omenn.saturation.default,
    omenn.gelu_ratio.default, omenn.repaired_quotient.default,
)  # fmt: skip


def parts_early(editor: Editor) -> None:
    """Take a part of a value before it is computed, where all that read it take the same part."""
    for node in editor.nodes(aten.slice.Tensor):
        if _same(node.args[2], 0) and isinstance(node.args[3], int) and node.args[3] >= 2**62 and len(node.args) < 5:
            editor.replace(node, node.args[0])  # x[:, ...] before x[:, 0]
    for node in reversed(list(editor.graph.nodes)):
        if not node.users:
            continue
        reads = {_reads(user, node) for user in node.users}
        if len(reads) != 1 or None in reads:
            continue
        (where,) = reads
        assert where is not None
        taken = _taken(editor, node, *where)
        if taken is None:
            continue
        for user in list(node.users):
            with editor.before(user):
                one = user.target is aten.select.int
                editor.replace(user, editor.call(aten.squeeze.dim, taken, where[0]) if one else taken)
        _drop(editor, node)  # now, so that it reads nothing whole


def _drop(editor: Editor, node: Any) -> None:
    """Erase a node that nothing reads, and what only it read."""
    if node.op == "call_function" and not node.users:
        before = node.all_input_nodes
        editor.graph.erase_node(node)
        for source in before:
            _drop(editor, source)


def _reads(user: Any, node: Any) -> tuple[int, int, int] | None:
    """The part of a node's value that a user takes: dimension, start, length."""
    if user.target not in (aten.narrow.default, aten.select.int) or user.args[0] is not node:
        return None
    dim = user.args[1] % len(shape(node))
    size, start = shape(node)[dim], user.args[2]
    if not isinstance(size, int) or not isinstance(start, int):
        return None
    return dim, start % size, 1 if user.target is aten.select.int else user.args[3]


def _taken(editor: Editor, node: Any, dim: int, start: int, length: int) -> Any:
    """The part of an operator's value from the parts of its operands; None where it works along the dimension."""
    if not isinstance(node.meta.get("val"), torch.Tensor):
        return None
    ndim = len(shape(node))
    if node.target is operator.getitem and node.args[0].target is aten.native_layer_norm.default:
        return _taken_statistic(editor, node, dim, start, length)
    along = _works_along(node)
    if along is None or dim >= ndim - along:
        return None
    block = Block(None, dim, start, length, shape(node)[dim])
    with editor.before(node):
        args = [
            _part(editor, a, block, ndim) if isinstance(a, fx.Node) and (along == 0 or i == 0) else a
            for i, a in enumerate(node.args)
        ]
        return editor.call(node.target, *args, **node.kwargs)


def _works_along(node: Any) -> int | None:
    """How many of the last dimensions an operator works along; None for one that is not known here."""
    if node.target in _ELEMENTWISE:
        return 0
    if node.target is aten.layer_norm.default:
        return len(node.args[1])
    return 1 if node.target is aten.linear.default else None


def _taken_statistic(editor: Editor, node: Any, dim: int, start: int, length: int) -> Any:
    """The mean or deviation of a layer norm for some positions."""
    norm, which = node.args
    x, sizes, *rest = norm.args
    if dim >= len(shape(x)) - len(sizes):
        return None
    with editor.before(norm):
        part = editor.call(aten.narrow.default, x, dim, start, length)
        return editor.call(operator.getitem, editor.call(norm.target, part, sizes, *rest), which)
