"""Transposed convolutions as convolutions, which runtimes have made fast; what crops their result goes into them."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from typing import Any

import torch

from omenn_fx.capture.editor import Editor, shape
from omenn_fx.export.passes.phases import phase_kernel, taps

aten, omenn = torch.ops.aten, torch.ops.omenn
Tensor = torch.Tensor

CONV = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
TRANSPOSED = {
    aten.conv_transpose1d.default: 1, aten.conv_transpose2d.input: 2, aten.conv_transpose3d.input: 3,
}  # fmt: skip
FEW_CHANNELS = 16  # up to it the phases of a transposed convolution go into the channels of one


@dataclass(frozen=True)
class Crop:
    """The part of an image that is read, along its spatial dimensions: from `starts` on, so many positions."""

    node: Any  # whose value it is
    starts: list[int]
    sizes: list[Any]


def forward_convolutions(editor: Editor) -> None:
    """A transposed convolution with constant weights as convolutions, of which what crops the result becomes a part.

    One with the kernel flipped where the stride is 1; else with zeros between the values of g where every channel is
    apart, one for each phase, or one for all phases where there are few channels. Behind the adjoint of a padded
    convolution stands a crop: fewer zeros around g are the same.
    """
    for node in editor.nodes(*TRANSPOSED):
        g, weight, bias, stride, padding, rest, groups, dilation = _transposed_args(node)
        w = editor.constant(weight)
        if w is None or bias is not None:
            continue
        kernel, crop = _as_forward(w, groups), _cropped(node)
        with editor.before(crop.node):
            if all(s == 1 for s in stride):
                if any(rest):
                    continue
                flipped = editor.add_constant(kernel.flip(*range(2, w.ndim)))
                new = _convolve(editor, g, flipped, _around(crop, node, w, padding, dilation), groups, dilation)
            elif len(stride) == 2 and groups == w.shape[0] > FEW_CHANNELS and all(d == 1 for d in dilation):
                new = _stuffed(editor, crop, g, kernel, stride, padding, groups)
            elif len(stride) == 2 and stride[0] == stride[1] and all(d == 1 for d in dilation):
                new = _by_phases(editor, crop, g, kernel, stride, padding, groups)
            else:
                continue
        editor.replace(crop.node, new)
        editor.rewritten += crop.node is not node  # the convolution and its crop


def _cropped(node: Any) -> Crop:
    """What is read of a value, where all that reads it is a crop of its spatial dimensions."""
    starts, sizes = [0] * (len(shape(node)) - 2), list(shape(node)[2:])
    while len(node.users) == 1:
        (user,) = node.users
        if user.target is not aten.narrow.default or not all(isinstance(a, int) for a in user.args[1:]):
            break
        dim = user.args[1] % len(shape(node)) - 2
        if dim < 0 or not isinstance(sizes[dim], int):
            break
        starts[dim] += user.args[2] % sizes[dim] if user.args[2] < 0 else user.args[2]
        sizes[dim], node = user.args[3], user
    return Crop(node, starts, sizes)


def _around(crop: Crop, node: Any, weight: Tensor, padding: list[int], dilation: list[int]) -> list[tuple[int, int]]:
    """The zeros before and behind g in each dimension, for a stride of 1."""
    pads = []
    geometry = zip(crop.starts, crop.sizes, shape(node)[2:], weight.shape[2:], padding, dilation, strict=True)
    for start, size, whole, k, p, d in geometry:
        every = d * (k - 1) - p
        pads.append((every - start, every - (0 if size is whole else int(whole - size - start))))
    return pads


def _convolve(
    editor: Editor, g: Any, kernel: Any, pads: list[tuple[int, int]], groups: int, dilation: list[int]
) -> Any:
    """A convolution of stride 1 with zeros around g, as one operator where there are as many on both sides."""
    even = all(before == after >= 0 for before, after in pads)
    x = g if even else _padded(editor, g, pads)
    inside = [before for before, _ in pads] if even else [0] * len(pads)
    return editor.call(CONV[len(pads)], x, kernel, None, [1] * len(pads), inside, dilation, groups)


def _as_forward(weight: Tensor, groups: int) -> Tensor:
    """A transposed convolution's weight [in, out / groups, ...] as that of a convolution, [out, in / groups, ...]."""
    channels, out, *kernel = weight.shape
    split = weight.reshape(groups, channels // groups, out, *kernel).transpose(1, 2)
    return split.reshape(groups * out, channels // groups, *kernel)


def _stuffed(
    editor: Editor, crop: Crop, g: Any, kernel: Tensor, stride: list[int], padding: list[int], groups: int
) -> Any:
    """One convolution of g with zeros between its values.

    A channel by itself is cheap to convolve: more so than its phases are to interleave.
    """
    apart = editor.call(omenn.zeros_between.default, g, stride)
    pads = []
    geometry = zip(crop.starts, crop.sizes, shape(g)[2:], kernel.shape[2:], stride, padding, strict=True)
    for start, size, o, k, s, p in geometry:
        before = k - 1 - p - start
        pads.append((before, int(size - s * o) - before + k - 1))
    flipped = editor.add_constant(kernel.flip(2, 3))
    return _convolve(editor, apart, flipped, pads, groups, [1] * len(stride))


def _by_phases(
    editor: Editor, crop: Crop, g: Any, kernel: Tensor, stride: list[int], padding: list[int], groups: int
) -> Any:
    # One sum and one product of sizes: a number, although the sizes themselves may be free.
    beyond = [int(n - s * o) for n, o, s in zip(crop.sizes, shape(g)[2:], stride, strict=True)]
    more = [-(-b // s) for b, s in zip(beyond, stride, strict=True)]
    first = [p + start for p, start in zip(padding, crop.starts, strict=True)]
    every = list(itertools.product(*(range(s) for s in stride)))

    def convolve(group: list[tuple[int, ...]]) -> Any:
        """Some phases at once, as channels: those of a channel stand side by side."""
        reads = [
            taps(sorted({p[d] for p in group}), kernel.shape[2 + d], stride[d], first[d]) for d in range(len(stride))
        ]
        window = [r for r in reads if r is not None]
        if len(window) < len(reads):
            return None
        weight = torch.stack([phase_kernel(kernel, p, window) for p in group], 1).flatten(0, 1)
        pads = [w.pads(m) for w, m in zip(window, more, strict=True)]
        return _convolve(editor, g, editor.add_constant(weight), pads, groups, [1] * len(stride))

    if kernel.shape[0] <= FEW_CHANNELS and groups == 1:
        stacked = convolve(every)
        assert stacked is not None  # some phase reads something
    else:
        parts = [convolve([phase]) for phase in every]
        some = next(p for p in parts if p is not None)
        nothing = editor.call(aten.mul.Tensor, some, 0.0) if None in parts else some
        pile = editor.call(aten.stack.default, [nothing if p is None else p for p in parts], 2)
        stacked = editor.call(aten.flatten.using_ints, pile, 1, 2)
    whole = editor.call(aten.pixel_shuffle.default, stacked, stride[0])
    for d, (b, m, s) in enumerate(zip(beyond, more, stride, strict=True), 2):
        if b != m * s:
            whole = editor.call(aten.slice.Tensor, whole, d, 0, b - m * s)
    return whole


def _padded(editor: Editor, g: Any, pads: list[tuple[int, int]]) -> Any:
    """Zeros around an image, or less of it where a number is negative, which aten.pad cannot do with a free batch."""
    for d, (before, after) in enumerate(pads, 2):
        if before < 0 or after < 0:
            g = editor.call(aten.slice.Tensor, g, d, max(-before, 0), after if after < 0 else sys.maxsize)
    around = [max(v, 0) for pair in reversed(pads) for v in pair]
    return editor.call(aten.pad.default, g, around) if any(around) else g


def _transposed_args(node: Any) -> list[Any]:
    n = TRANSPOSED[node.target]
    defaults: list[Any] = [None, None, None, [1] * n, [0] * n, [0] * n, 1, [1] * n]
    args = [*node.args, *defaults[len(node.args) :]]
    return [a * n if isinstance(a, list) and len(a) == 1 else a for a in args]
