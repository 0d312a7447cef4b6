"""Passes for onnxruntime's CPU kernels, which keep the values between convolutions in blocks of channels.

Whatever is not a convolution, a pool, a ramp (HardSigmoid), a sum or a product of equal shapes leaves that layout and
comes back. A mask is a ramp; a phase of an image and zeros between its values are depthwise convolutions: the same to
the last bit for finite values. ReLU6's value is 6 times a ramp of x / 6, the same but for rounding.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import fx

from omenn_fx.capture.editor import Editor, Pass, shape
from omenn_fx.capture.nodes import bind

aten, omenn = torch.ops.aten, torch.ops.omenn
Tensor = torch.Tensor
HUGE = 3e38  # times the smallest normal float32 it is above 1
BLOCK = 16  # channels
LONG = 1024  # summands
_BINARY = (aten.add.Tensor, aten.mul.Tensor)
_KEEPS_BLOCKS = (
    aten.conv2d.default,
    aten.relu.default,
    aten.relu_.default,
    aten.max_pool2d.default,
    aten.clamp.default,
)
_RELUS = (aten.relu.default, aten.relu_.default)
_CLAMPS = (aten.hardtanh.default, aten.relu6.default, aten.clamp.default)
TINY = torch.finfo(torch.float32).tiny


def for_onnxruntime(module: fx.GraphModule) -> fx.GraphModule:
    """Run the passes on a float32 graph, in place."""
    return Editor(module).run(PASSES)


def _depthwise(editor: Editor, x: Any, kernel: Tensor, stride: list[int]) -> Any:
    """A convolution of every channel by itself, without padding; kernel [C, 1, h, w]."""
    groups = int(kernel.shape[0])
    return editor.call(aten.conv2d.default, x, editor.add_constant(kernel), None, stride, [0, 0], [1, 1], groups)


def _spread(editor: Editor, x: Any, kernel: Tensor, stride: list[int], rest: list[int], groups: int) -> Any:
    """A transposed convolution without padding, in groups of channels."""
    weight = editor.add_constant(kernel)
    return editor.call(aten.conv_transpose2d.input, x, weight, None, stride, [0, 0], rest, groups)


def _ramp(editor: Editor, x: Any, slope: float) -> Any:
    """min(max(slope x, 0), 1), which becomes ONNX's HardSigmoid (export/simplify.py): it keeps the layout."""
    return editor.call(aten.clamp.default, editor.call(aten.mul.Tensor, x, slope), 0, 1)


def masks(editor: Editor) -> None:
    """ReLU's mask of its result h is min(HUGE h, 1), that of its operand x min(max(HUGE x, 0), 1)."""
    for node, x in [*_marked_masks(editor), *_comparisons(editor)]:
        if node.meta["val"].dtype != torch.float32 or x.meta["val"].dtype != torch.float32:
            continue
        with editor.before(x.next):  # beside the forward's own use, while the value is in the cache
            editor.like(node)
            mask = _ramp(editor, x, HUGE)
        editor.replace(node, mask)


def _marked_masks(editor: Editor) -> list[tuple[Any, Any]]:
    """The masks that rules mark, each with the ReLU's result."""
    return [(node, node.args[0]) for node in editor.nodes(omenn.relu_mask.default)]


def _comparisons(editor: Editor) -> list[tuple[Any, Any]]:
    """What is a mask by its meaning: x > 0 as a number, for the operand or the result x of a ReLU."""
    found = []
    for node in editor.nodes(aten.to.dtype):
        test = node.args[0]
        if test.target is not aten.gt.Scalar or test.args[1] != 0:
            continue
        x = test.args[0]
        if x.target in _RELUS or (x.op != "placeholder" and any(u.target is aten.relu.default for u in x.users)):
            found.append((node, x))
    return found


def saturations(editor: Editor) -> None:
    """ReLU6's ratio min(max(x, 0), 6) / x = min(max(6 / x, 0), 1): only the reciprocal leaves the blocked layout.

    Where a channel may be 0 everywhere, it becomes -TINY, whose ratio is 0, as ReLU6's is at 0.
    """
    for node in editor.nodes(omenn.saturation.default):
        clipped, x, high = node.args
        if clipped.target not in _CLAMPS or clipped.args[0] is not x or not math.isfinite(high):
            continue
        if x.target is not aten.conv2d.default or x.meta["val"].dtype != torch.float32:
            continue
        bias = _bias(editor, x)
        if bias is None:
            continue
        _move_off_zero(editor, x, bias)
        channels = int(shape(x)[1])
        with editor.before(clipped):
            inverse = editor.call(aten.reciprocal.default, x)
            scaled = _depthwise(editor, inverse, torch.full((channels, 1, 1, 1), float(high)), [1, 1])
            ratio = editor.call(aten.clamp.default, scaled, 0, 1)
        editor.replace(node, ratio)
        _clip_in_place(editor, clipped, x, float(high))


def _clip_in_place(editor: Editor, clipped: Any, x: Any, high: float) -> None:
    """min(max(x, 0), high) without leaving the layout: as high times a ramp, of which convolutions read the ramp."""
    readers = list(clipped.users)
    with editor.before(clipped):
        ramp = _ramp(editor, x, 1 / high)
    for reader in readers:
        weight = editor.constant(reader.args[1]) if reader.target is aten.conv2d.default else None
        with editor.before(reader):
            if weight is not None and reader.args[0] is clipped:
                reader.args = (ramp, editor.add_constant(weight * high), *reader.args[2:])
            else:
                scale = torch.full((int(shape(x)[1]), 1, 1, 1), high)
                reader.replace_input_with(clipped, _depthwise(editor, ramp, scale, [1, 1]))
    editor.graph.erase_node(clipped)


def _bias(editor: Editor, convolution: Any) -> Tensor | None:
    """A convolution's bias, one number for each channel (zeros where it has none); None where it is no constant."""
    bias = convolution.args[2] if len(convolution.args) > 2 else None
    return torch.zeros(int(shape(convolution)[1])) if bias is None else editor.constant(bias)


def _move_off_zero(editor: Editor, convolution: Any, bias: Tensor) -> None:
    """Channels whose bias is 0, which may be 0 everywhere, get one of -TINY."""
    if not bias.all():
        with editor.before(convolution):
            moved = editor.add_constant(torch.where(bias == 0, -TINY, bias))
        convolution.args = (*convolution.args[:2], moved, *convolution.args[3:])


def phases_of_images(editor: Editor) -> None:
    """Every s-th row and column of ReLUs: a strided depthwise convolution that picks one value.

    What stands beyond the end of the image goes behind its phases, which are smaller.
    """
    for node in editor.nodes(omenn.phases.default):
        whole, _, stride = node.args
        x, value = _before_padding(whole)
        if not _of_relus(x) or len(shape(x)) != 4 or len(stride) != 2:
            continue
        for part in list(node.users):
            at = part.args[1] // stride[1], part.args[1] % stride[1]
            kernel = torch.zeros(int(shape(x)[1]), 1, *(c + 1 for c in at))
            kernel[:, :, -1, -1] = 1
            with editor.before(part):
                phase = _depthwise(editor, x, kernel, stride)
                behind = [int(n - m) for n, m in zip(shape(part)[2:], shape(phase)[2:], strict=True)]
                if any(behind):
                    phase = editor.call(aten.pad.default, phase, [0, behind[1], 0, behind[0]], "constant", value)
                editor.replace(part, phase)


def _before_padding(node: Any) -> tuple[Any, float]:
    """An image of a known size, and the number that was put behind its rows and columns."""
    if node.target is not aten.pad.default:
        return node, 0.0
    x, pads, mode, value = bind(node).values()
    known = all(isinstance(size, int) for size in shape(x)[2:])
    behind = mode == "constant" and len(pads) == 4 and not pads[0] and not pads[2] and min(pads) >= 0
    return (x, float(value or 0)) if known and behind else (node, 0.0)


def _of_relus(x: Any) -> bool:
    """A ReLU's result, or several side by side in the channels."""
    if x.target is aten.cat.default:
        return x.args[1:] == (1,) and all(_of_relus(part) for part in x.args[0])
    return x.target in _RELUS


def interleaved(editor: Editor) -> None:
    """The phases of an image side by side: a transposed convolution with a group for each channel interleaves them."""
    for node in editor.nodes(aten.pixel_shuffle.default):
        x, s = node.args
        if not 2 <= s <= 4 or len(shape(x)) != 4 or node.meta["val"].dtype != torch.float32:
            continue
        channels = int(shape(node)[1])
        kernel = torch.eye(s * s).reshape(1, s * s, 1, s, s).expand(channels, -1, -1, -1, -1).flatten(0, 1)
        with editor.before(node):
            editor.replace(node, _spread(editor, x, kernel, [s, s], [0, 0], channels))


def stuffed(editor: Editor) -> None:
    """Zeros between the values of an image, where a pointwise convolution had a stride: the same with a kernel of 1."""
    for node in editor.nodes(omenn.zeros_between.default):
        image, stride = node.args
        if len(shape(image)) != 4 or node.meta["val"].dtype != torch.float32:
            continue
        channels, rest = int(shape(image)[1]), [s - 1 for s in stride]
        with editor.before(node):
            ones = torch.ones(channels, 1, 1, 1)
            editor.replace(node, _spread(editor, image, ones, stride, rest, channels))


def blocked(editor: Editor) -> None:
    """A sum or product of one value in the blocked layout and one that is not would put all after it out of the layout:
    the other goes in by a depthwise convolution with 1."""
    inside: set[fx.Node] = set()
    for node in editor.nodes(*_KEEPS_BLOCKS, *_BINARY):
        if len(shape(node)) != 4 or node.meta["val"].dtype != torch.float32:
            continue
        operands = [a for a in node.args if _is_tensor(a) and editor.constant(a) is None]
        if node.target is aten.conv2d.default:
            inside |= {node} if _whole_blocks(node) else set()
        elif node.target in _BINARY and not _begins_ramp(node):
            alike = len(operands) == 2 and all(list(shape(a)[1:]) == list(shape(node)[1:]) for a in operands)
            there = [a in inside for a in operands]
            if not alike or not any(there) or not _whole_blocks(node):
                continue
            for operand in operands:
                if operand not in inside:
                    with editor.before(node):
                        moved = _depthwise(editor, operand, torch.ones(int(shape(operand)[1]), 1, 1, 1), [1, 1])
                    editor.redirect(operand, moved, partial(_reads_later, moved))
                    inside.add(moved)
            inside.add(node)
        elif operands and operands[0] in inside:
            inside.add(node)


def _begins_ramp(node: Any) -> bool:
    """Whether a product with a number is one operator with the clamp behind it."""
    number = isinstance(node.args[1], float)
    return number and all(u.target is aten.clamp.default and u.args[1:] == (0, 1) for u in node.users)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor)


def _reads_later(moved: fx.Node, user: fx.Node) -> bool:
    """Sums and products behind the move read the moved value."""
    return user.target in _BINARY and moved < user


def _whole_blocks(node: fx.Node) -> bool:
    channels = shape(node)[1]
    return isinstance(channels, int) and channels % BLOCK == 0


def repairs(editor: Editor) -> None:
    """0 / 0 = slope is one comparison of the divisor, where nan_to_num takes eight operators."""
    for node in editor.nodes(omenn.repaired_quotient.default):
        difference, x, slope = node.args
        with editor.before(node):
            limit = editor.add_constant(torch.tensor(slope, dtype=node.meta["val"].dtype))
            origin = editor.call(aten.eq.Scalar, x, 0)
            quotient = editor.call(aten.div.Tensor, difference, x)
            editor.replace(node, editor.call(aten.where.self, origin, limit, quotient))


def columns(editor: Editor) -> None:
    """A product with a constant vector is faster as one with a matrix of one column."""
    for node in editor.nodes(aten.matmul.default):
        vector = editor.constant(node.args[1])
        if vector is None or vector.ndim != 1 or len(shape(node.args[0])) < 2:
            continue
        with editor.before(node):
            product = editor.call(aten.matmul.default, node.args[0], editor.add_constant(vector[:, None]))
            editor.replace(node, editor.call(aten.squeeze.dim, product, -1))


def totals(editor: Editor) -> None:
    """A sum over several dimensions as one after the other: onnxruntime adds in sequence, and long sums lose digits."""
    for node in editor.nodes(aten.sum.dim_IntList, aten.mean.dim, aten.adaptive_avg_pool2d.default):
        x, dims, *keep = node.args
        sizes, op = shape(x), node.target
        if op is aten.adaptive_avg_pool2d.default:
            if list(dims) != [1, 1]:
                continue
            op, dims, keep = aten.mean.dim, [-1, -2], [True]
        length = math.prod(s if isinstance(s, int) else LONG for s in (sizes[d] for d in dims or ()))
        if len(dims or ()) < 2 or length < LONG or node.kwargs:
            continue
        with editor.before(node):
            for d in sorted((d % len(sizes) for d in dims), reverse=True):
                x = editor.call(op, x, [d], *keep)
        editor.replace(node, x)


PASSES: tuple[Pass, ...] = (
    masks,
    saturations,
    phases_of_images,
    interleaved,
    stuffed,
    blocked,
    repairs,
    columns,
    totals,
)
