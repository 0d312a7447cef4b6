"""Sizes of a file: which sizes of its inputs it is the model at, as it is written into the file and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram

from omenn_fx.algebra.ruleset import RuleSet
from omenn_fx.capture.captured import Captured
from omenn_fx.capture.conditions import Conditions, sizes_of
from omenn_fx.capture.nodes import value_of
from omenn_fx.capture.single import conditions_of
from omenn_fx.capture.sizes import FREE_SIZES, is_symbolic
from omenn_fx.errors import InputError

Tensor = torch.Tensor


@dataclass(frozen=True)
class FileSizes:
    """The shapes of a file's inputs, free sizes by name, and what those fulfil wherever the file is the model."""

    shapes: Mapping[str, Sequence[int | str]]
    conditions: Conditions

    @property
    def text(self) -> str:
        """JSON, as it stands in a file."""
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return json.dumps({"shapes": shapes, "hold": self.conditions.texts})

    @classmethod
    def read(cls, text: str) -> FileSizes:
        """From a file's JSON; those of an earlier version say nothing."""
        held = json.loads(text) if text else {}
        return cls(held.get("shapes", {}), Conditions(tuple(held.get("hold", ()))))

    def take(self, values: Sequence[Any]) -> bool:
        """Whether the file is the model at inputs, in the order of the file."""
        sizes = sizes_of(list(self.shapes.values()), values)
        return sizes is not None and self.conditions.broken(sizes) is None

    def check(self, names: Sequence[str], values: Sequence[Any]) -> None:
        """Raise InputError where the file is not the model at these inputs."""
        known = [(name, value) for name, value in zip(names, values, strict=True) if name in self.shapes]
        sizes = sizes_of([self.shapes[name] for name, _ in known], [value for _, value in known])
        if sizes is None:
            have = ", ".join(f"'{name}' {tuple(value.shape)}" for name, value in known)
            want = ", ".join(f"'{name}' ({', '.join(map(str, self.shapes[name]))})" for name, _ in known)
            raise InputError(f"the inputs are {have}; this file takes {want}")
        broken = self.conditions.broken(sizes)
        if broken is not None:
            have = ", ".join(f"{name} = {size}" for name, size in sizes.items())
            raise InputError(
                f"{have}: this file is the model where {' and '.join(self.conditions.texts)}, and the model takes "
                "another branch of its code elsewhere",
                fix="write another file at example inputs of these sizes: what is written is the branch that they take",
            )


def file_sizes(captured: Captured, traced: ExportedProgram, names: Sequence[str], rules: RuleSet) -> FileSizes:
    """The sizes at which a written program is the model.

    Args:
        captured: what it explains, with the conditions of the model.
        traced: the program; its first inputs are those of the model.
        names: of the tensors among the inputs.
        rules: which operators are views.
    """
    given = set(traced.graph_signature.user_inputs)
    inputs = [
        n
        for n in traced.graph.find_nodes(op="placeholder")
        if n.name in given and isinstance(value_of(n), torch.Tensor)
    ]
    own = [shape for n, shape in zip(captured.inputs, captured.shapes, strict=True) if isinstance(value_of(n), Tensor)]
    called: dict[str, str] = {}  # symbol of the program -> name in the file
    for name, node in zip(names, inputs, strict=False):
        for d, size in enumerate(value_of(node).shape):
            if is_symbolic(size) and str(size).isidentifier() and str(size) not in called:
                called[str(size)] = _name(d, value_of(node).ndim, name, set(called.values()))
    shapes = {
        name: [called.get(str(s), str(s)) if is_symbolic(s) else int(s) for s in value_of(node).shape]
        for name, node in zip(names, inputs, strict=False)
    }
    ours = {
        mine: str(theirs)
        for shape, written in zip(own, shapes.values(), strict=True)
        for mine, theirs in zip(shape, written, strict=True)
        if isinstance(mine, str) and mine.isidentifier()
    }
    for node in inputs[len(names) :]:  # the target, or the cotangent, has the batch of the outputs
        called.update({str(s): "batch" for s in value_of(node).shape[:1] if is_symbolic(s) and str(s) not in called})
    program = conditions_of(traced.graph, inputs, (traced,), None, rules).renamed(called)
    model = captured.conditions.renamed(ours)
    texts = dict.fromkeys((*model.texts, *program.texts))
    free = {size for shape in shapes.values() for size in shape if isinstance(size, str)}
    return FileSizes(shapes, Conditions(tuple(t for t in texts if set() < Conditions((t,)).names <= free)))


def _name(dim: int, ndim: int, name: str, taken: set[str]) -> str:
    """What a free size is called: `batch`, `tokens` ..., with the input where two inputs have one each."""
    kind = next((kind for kind, dims in FREE_SIZES.items() if dims.get(ndim) == dim), "batch" if dim == 0 else "size")
    return kind if kind not in taken else f"{name}_{kind}" if f"{name}_{kind}" not in taken else f"{name}_{kind}_{dim}"
