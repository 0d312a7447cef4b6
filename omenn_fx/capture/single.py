"""Sizes of one: whether a graph of free sizes is the model there, and the rows of a batch of one.

torch.export takes a free size for at least two. At one the same graph is the model where the model's code makes the
same choices, and where no view comes out with another number of dimensions, as `squeeze` does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from omenn_fx.algebra.rows import VIEW
from omenn_fx.algebra.ruleset import RuleSet
from omenn_fx.capture.conditions import Conditions, plainly, readable
from omenn_fx.capture.editor import Editor
from omenn_fx.capture.nodes import value_of
from omenn_fx.capture.sizes import hint, is_symbolic, symbols
from omenn_fx.compat import Comparisons, fake_mode_of, guards_of, size_at

aten = torch.ops.aten


def conditions_of(
    graph: fx.Graph,
    inputs: Sequence[fx.Node],
    programs: Iterable[ExportedProgram],
    comparisons: Comparisons | None,
    rules: RuleSet,
) -> Conditions:
    """What the free sizes of a graph fulfil wherever it is the model.

    Args:
        graph, inputs: as captured.
        programs: those that it was made from; each has its conditions.
        comparisons: of the model's code; None for a program of the user's own, which makes no choice any more.
        rules: which operators are views.
    """
    hints = _hints(inputs)
    if not hints:
        return Conditions()
    texts: list[str] = []
    known = True
    for program in programs:
        mode = next((m for n in program.graph.nodes if (m := fake_mode_of(value_of(n))) is not None), None)
        guards = guards_of(mode)
        known = known and guards is not None
        texts += [*(guards or []), *_ranges(program, hints)]
    chosen = comparisons is None or comparisons.seen
    texts += comparisons.texts() if comparisons is not None and chosen else []
    texts = [text for text in dict.fromkeys(texts) if text != "True"]
    if not known or not all(readable(text, hints) for text in texts):  # then it is the model at the example alone
        return Conditions(tuple(f"{name} == {size}" for name, size in hints.items()))
    texts = [plainly(text) for text in texts]
    batch = {str(s) for v in _tensors(inputs) for s in v.shape[:1] if str(s) in hints}
    groups = [batch, *({name} for name in hints if name not in batch)]
    several = [g for g in groups if not chosen or not _same_at_one(graph, rules, g, hints)]
    return Conditions((*texts, *(f"{name} >= 2" for group in several for name in sorted(group))))


def _tensors(inputs: Sequence[fx.Node]) -> list[torch.Tensor]:
    return [v for n in inputs if isinstance(v := value_of(n), torch.Tensor)]


def _hints(inputs: Sequence[fx.Node]) -> dict[str, int]:
    """The free sizes of the inputs by name, with those of the example."""
    sizes = [s for v in _tensors(inputs) for s in v.shape if is_symbolic(s)]
    return {str(s): hint(s) for s in sizes if str(s).isidentifier()}


def _ranges(program: ExportedProgram, hints: Mapping[str, int]) -> list[str]:
    """What a program states of its sizes. That they are at least two is a habit of torch.export, and left out."""
    found = []
    for symbol, values in program.range_constraints.items():
        if str(symbol) in hints:
            least, most = str(values.lower), str(values.upper)  # an infinite one is no number
            found += [f"{symbol} >= {least}"] if least.isdigit() and int(least) > 2 else []
            found += [f"{symbol} <= {most}"] if most.isdigit() else []
    return found


def _same_at_one(graph: fx.Graph, rules: RuleSet, names: Collection[str], hints: Mapping[str, int]) -> bool:
    """Whether every view has the recorded dimensions where these sizes are one. What cannot be tried has others."""
    sizes = {**hints, **dict.fromkeys(names, 1)}
    for node in graph.nodes:
        rule = rules.get(node.target)
        if rule is None or rule.rows is not VIEW or not _depends(node, names):
            continue
        try:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: _at(value_of(n), sizes))
            with torch.no_grad():
                result = node.target(*args, **kwargs)
            if list(result.shape) != [size_at(s, sizes) for s in value_of(node).shape]:
                return False
        except Exception:
            return False
    return True


def _depends(node: fx.Node, names: Collection[str]) -> bool:
    values = [value_of(n) for n in (node, *node.all_input_nodes)]
    shapes = [v.shape for v in values if isinstance(v, torch.Tensor)]
    return any(str(symbol) in names for shape in shapes for size in shape for symbol in symbols(size))


def _at(value: Any, sizes: Mapping[str, int]) -> Any:
    """A recorded value where the free sizes are these, without data."""
    if isinstance(value, torch.Tensor):
        return torch.empty([size_at(s, sizes) for s in value.shape], dtype=value.dtype, device="meta")
    return size_at(value, sizes) if isinstance(value, torch.SymInt) else value


# A batch of one ------------------------------------------------------------------------------------------------------


def rows_at_one(outputs: Sequence[Any], inputs: Sequence[fx.Node]) -> list[list[int] | None]:
    """The shapes of outputs at a batch of one, as those of a larger one say; None where that is not known."""
    sizes = dict.fromkeys(_hints(inputs), 1)
    found: list[list[int] | None] = []
    for leaf in outputs:
        value = value_of(leaf)
        try:
            found.append([size_at(s, sizes) for s in value.shape] if isinstance(value, torch.Tensor) else None)
        except KeyError:
            found.append(None)
    return found


def with_rows(module: fx.GraphModule, outputs: Sequence[Any], rows: Sequence[list[int] | None]) -> tuple[Any, ...]:
    """Outputs of a batch of one that the model returns without its dimension get it back, as in a larger batch."""
    editor = Editor(module)
    end = module.graph.output_node()
    found = []
    for leaf, row in zip(outputs, rows, strict=True):
        found.append(leaf)
        value = value_of(leaf)
        if not isinstance(leaf, fx.Node) or not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        shape = [int(s) for s in value.shape] if not any(map(is_symbolic, value.shape)) else None
        if shape is None:
            continue
        wanted = row if row is not None and torch.Size(row).numel() == value.numel() else None
        wanted = wanted or (shape if shape[:1] == [1] else [1, *shape])
        if wanted != shape:
            with editor.before(end):
                editor.like(leaf)
                found[-1] = editor.call(aten.reshape.default, leaf, wanted)
    end.args = (tuple(found),)
    module.recompile()
    return tuple(found)
