"""Whether the samples of a batch meet: tried on values, where a capture is fixed at the size of its batch.

Such a graph may mix its samples by constants of that size, which no shape tells (a matrix [N, N], a loop over the first
dimension).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx

from omenn_fx.analysis.batch_dim import Layout, Layouts
from omenn_fx.analysis.roles import Tagged
from omenn_fx.graph.affine_map import Recorder
from omenn_fx.graph.twin import Twin, at_node

Tensor = torch.Tensor


def meeting(tagged: Tagged, where: Layouts, leaves: Sequence[Any]) -> fx.Node | None:
    """The node at which samples of a batch meet on the way to the explained output, found at inputs of such shapes.

    Two draws are tried: random ones, and the given floating-point values; a draw outside the domain of an operator, and
    values that are not finite, say nothing. Integers are zero or one in both, for no others are known to be in range.
    """
    devices = {leaf.device for leaf in leaves if isinstance(leaf, Tensor) and leaf.device.type == "cuda"}
    with torch.random.fork_rng(devices):  # what the model draws itself
        found = (_meeting_at(tagged, where, values) for values in _draws(leaves))
        return next((node for node in found if node is not None), None)


def _draws(leaves: Sequence[Any]) -> Iterator[list[Any]]:
    generator = torch.Generator().manual_seed(0)  # the user's random numbers stay as they are

    def drawn(leaf: Any, given: bool) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if not leaf.is_floating_point() and not leaf.is_complex():
            return torch.ones_like(leaf) if given and leaf.device.type == "cpu" else torch.zeros_like(leaf)
        if given:
            return torch.nan_to_num(leaf)
        return torch.randn(leaf.shape, generator=generator).to(leaf.device, leaf.dtype)

    for given in (False, True):
        yield [drawn(leaf, given) for leaf in leaves]


def _meeting_at(tagged: Tagged, where: Layouts, leaves: Sequence[Any]) -> fx.Node | None:
    """For each bit of the rows' numbers, explain the rows with it, and those without: two rows differ in one bit."""
    try:
        values = Recorder(tagged.captured.module).record(leaves)
    except (IndexError, ValueError, RuntimeError):  # ids out of range, a matrix that has no inverse
        return None
    twin = Twin(tagged, values)
    outputs = values[tagged.output]
    rows = torch.arange(outputs.shape[0], device=outputs.device)
    for bit in range(max(outputs.shape[0] - 1, 0).bit_length()):
        for side in (0, 1):
            explained = (rows >> bit & 1) == side
            mask = explained.to(outputs.dtype).reshape((-1,) + (1,) * (outputs.ndim - 1))
            node = _stranger(twin, where, torch.ones_like(outputs) * mask, ~explained)
            if node is not None:
                return node
    return None


def _stranger(twin: Twin, where: Layouts, cotangent: Tensor, others: Tensor) -> fx.Node | None:
    """The node through which the rows of a cotangent read values of other rows; None where no input is read so."""
    tagged = twin.tagged
    adjoint: dict[fx.Node, Any] = {tagged.output: cotangent}
    suspect: fx.Node | None = None
    for node in reversed(tagged.content):
        if node not in adjoint:
            continue
        g = adjoint.pop(node)
        if node in tagged.sources.values():
            if _touches(g, Layout(0), others):
                return suspect or node
            continue
        with at_node(node):
            _, form = twin.form(node)
            for slot, operand in twin.operands(node).items():
                term = form.terms[slot].transpose(g)
                if suspect is None and _touches(term, where[operand], others):
                    suspect = node
                adjoint[operand] = term if operand not in adjoint else adjoint[operand] + term
    return None


def _touches(g: Tensor, layout: Any, others: Tensor) -> bool:
    """Whether an adjoint is not zero at the given rows of the batch."""
    parts = g.movedim(layout.dim, 0)
    parts = parts.reshape(layout.outer, len(others), layout.inner, -1)[:, others]
    return bool(((parts != 0) & ~parts.isnan()).any())
