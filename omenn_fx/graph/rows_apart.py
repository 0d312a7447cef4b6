"""Whether the rows of a batch stay apart, tried on a few rows of values: what no shape and no operator's record tells.

Some rows are changed, and the output of the others must stay as it is. Where it does not, the twin tells whether the
rows are read as content (then no row has an explanation of its own) or through coefficients alone (a statistic of the
batch that gates): those are held fixed, so that the explanation is exact, but of a row among these others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from omenn_fx.analysis.batch_dim import Layout, Layouts
from omenn_fx.analysis.roles import Tagged
from omenn_fx.capture.captured import Captured
from omenn_fx.capture.nodes import value_of
from omenn_fx.capture.sizes import hint, symbols
from omenn_fx.graph.affine_map import Recorder
from omenn_fx.graph.twin import Twin

Tensor = torch.Tensor
Values = dict[fx.Node, Any]
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the largest output; coarser dtypes: 2e-2


@dataclass(frozen=True)
class Meeting:
    """Rows that reach each other: at which node first, and whether as content."""

    node: fx.Node
    content: bool


def meeting(tagged: Tagged, where: Layouts, leaves: Sequence[Any]) -> Meeting | None:
    """How the rows of a batch reach each other at inputs like these; None where they do not, or nothing can be run.

    A free batch is tried at another number of rows than that of the capture, which a constant may have been.
    """
    cuda = {v.device for v in leaves if isinstance(v, Tensor) and v.device.type == "cuda"}
    with torch.random.fork_rng(cuda), torch.no_grad():
        for count in _counts(tagged.captured):
            try:
                trial = _Trial.of(tagged, leaves, count)
                differs = trial.differs()
            except Exception:  # ids out of range; a number of rows that does not fit; whatever an operator raises
                continue
            return trial.meeting(where) if differs else None
    return None


def _counts(captured: Captured) -> list[int]:
    batch = hint(captured.batch) if captured.batch is not None else 1
    if not captured.dynamic_batch:
        return [batch] if batch > 1 else []
    return [4 if batch == 3 else 3, max(batch, 2)]


@dataclass(frozen=True)
class _Trial:
    """Some rows, and the same inputs with others in the place of a part of them."""

    tagged: Tagged
    count: int
    base: list[Any]
    changed: list[Any]

    @classmethod
    def of(cls, tagged: Tagged, leaves: Sequence[Any], count: int) -> _Trial:
        pairs = [_pair(v, count) if _in_batch(tagged.captured, i) else (v, v) for i, v in enumerate(leaves)]
        return cls(tagged, count, *map(list, zip(*pairs, strict=True)))

    @property
    def parts(self) -> list[Tensor]:
        """Rows that are changed together, and then all others: a maximum may be in either part. Of three rows it is the
        middle one, which reads rows before and behind it; a batch that is fixed has constants for its first."""
        rows = torch.arange(self.count)
        middle = self.tagged.captured.dynamic_batch and self.count > 2
        part = (rows > 0) & (rows < self.count - 1) if middle else rows == 0
        return [part, ~part]

    def inputs(self, part: Tensor) -> list[Any]:
        return [
            torch.where(part.to(a.device).reshape(-1, *[1] * (a.ndim - 1)), b, a)
            if _in_batch(self.tagged.captured, i)
            else a
            for i, (a, b) in enumerate(zip(self.base, self.changed, strict=True))
        ]

    def differs(self) -> bool:
        before = _output(self.tagged, self.base)
        after = ((part, _output(self.tagged, self.inputs(part))) for part in self.parts)
        return any(_differ(before[~part], value[~part], before) for part, value in after)

    def meeting(self, where: Layouts) -> Meeting:
        """At which node, and how. Only where rows do meet, for it keeps all values several times."""
        recorder = Recorder(self.tagged.captured.module)
        values = _seeded(recorder.record, self.base)
        others = [(part, _seeded(recorder.record, self.inputs(part))) for part in self.parts]
        content = self._as_content(values)
        for node in self.tagged.content if content else _ancestors(self.tagged.output):
            if any(self._reached(node, where.get(node), values[node], after[node], part) for part, after in others):
                return Meeting(node, content)
        return Meeting(self.tagged.output, content)

    def _as_content(self, values: Values) -> bool:
        twin, output = Twin(self.tagged, values), values[self.tagged.output]
        for row in range(self.count):
            cotangent = torch.zeros_like(output)
            cotangent[row] = 1
            for g in twin.pull({self.tagged.output: cotangent}, shares=False).adjoint.values():
                others = torch.arange(self.count, device=g.device) != row
                if bool(((g != 0) & ~g.isnan())[others].any()):
                    return True
        return False

    def _reached(self, node: fx.Node, layout: Any, before: Any, after: Any, part: Tensor) -> bool:
        """Whether a node has another value at rows that were not changed, or any other where it has no rows."""
        if not isinstance(before, Tensor) or not before.is_floating_point():
            return False
        possible: list[Layout | None] = [layout] if isinstance(layout, Layout) else [*self._layouts(node)]
        return all(self._differ_at(at, before, after, part) for at in possible or [None])

    def _differ_at(self, layout: Layout | None, before: Tensor, after: Tensor, part: Tensor) -> bool:
        if layout is None:
            return _differ(before, after, before)
        sizes = (layout.outer, self.count, layout.inner, -1)
        before, after = (v.movedim(layout.dim, 0).reshape(sizes).movedim(1, 0) for v in (before, after))
        return _differ(before[~part], after[~part], before)

    def _layouts(self, node: fx.Node) -> list[Layout]:
        """Where the rows of a value outside the content may be: in the dimension with the size of the batch."""
        batch = self.tagged.captured.batch
        for dim, size in enumerate(value_of(node).shape):
            copies, rest = divmod(hint(size), hint(batch))
            held = symbols(size) & symbols(batch) if self.tagged.captured.dynamic_batch else copies > 0
            if held and not rest:
                return [Layout(dim, 1, copies), Layout(dim, copies, 1)]
        return []


def _output(tagged: Tagged, leaves: Sequence[Any]) -> Tensor:
    """The explained output, all other values let go of as soon as they are read."""

    class Run(fx.Interpreter):
        found: Any = None

        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            self.found = value if n is tagged.output else self.found
            return value

    run = Run(tagged.captured.module)
    _seeded(lambda values: run.run(*values, enable_io_processing=False), leaves)
    output: Tensor = run.found
    return output


def _seeded(run: Any, leaves: Sequence[Any]) -> Any:
    """What a model draws itself is the same each time. The caller keeps the user's random numbers."""
    torch.manual_seed(0)
    return run(leaves)


def _in_batch(captured: Captured, i: int) -> bool:
    value = value_of(captured.inputs[i])
    if not isinstance(value, Tensor) or not value.ndim:
        return False
    same = symbols(value.shape[0]) == symbols(captured.batch) if captured.dynamic_batch else True
    return same and hint(value.shape[0]) == hint(captured.batch)


def _pair(leaf: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """So many rows, and others in their place: those of other samples, which are in the model's domain."""
    leaf = torch.nan_to_num(leaf, 0.0, 0.0, 0.0) if leaf.is_floating_point() else leaf  # NaN would hide a difference
    at = torch.arange(count, device=leaf.device)
    rows, others = leaf[at % len(leaf)], leaf[(at + 1) % len(leaf)]
    same = torch.tensor([torch.equal(a, b) for a, b in zip(rows, others, strict=True)], device=leaf.device)
    return rows, torch.where(same.reshape(-1, *[1] * (leaf.ndim - 1)), _altered(rows), others)


def _altered(rows: Tensor) -> Tensor:
    """Values near the given ones, of the same sign; integers in another order."""
    if not rows.is_floating_point():
        return rows.flip(-1) if rows.ndim > 1 else rows
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(rows.shape, generator=generator).to(rows.device, rows.dtype)
    return rows * (1 + noise / 4) if bool(rows.any()) else noise


def _differ(before: Tensor, after: Tensor, whole: Tensor) -> bool:
    finite = torch.where(whole.isfinite(), whole, torch.zeros_like(whole)).abs()
    limit = _TOLERANCES.get(whole.dtype, 2e-2) * (finite.max() if finite.numel() else 0)
    same = (before == after) | (before.isnan() & after.isnan()) | ((before - after).abs() <= limit)
    return not bool(same.all())


def _ancestors(output: fx.Node) -> Iterator[fx.Node]:
    """What an output is made of, in the order of the graph."""
    behind = {output}
    for node in reversed(output.graph.nodes):
        if node in behind:
            behind.update(node.all_input_nodes)
    return (node for node in output.graph.nodes if node in behind)
