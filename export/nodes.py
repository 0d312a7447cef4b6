"""onnxruntime's values against torch's, node by node: where the two part, and whether rounding alone parted them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram

from omenn_fx.capture.nodes import place_of
from omenn_fx.errors import Place
from omenn_fx.export.runtime import OnnxExplainer

Tensor = torch.Tensor
ROUNDING = 1e-3  # of a node's largest value: what float32 may cost one node, generously
FEW = 100  # one value in so many may jump: a sign, a comparison or a largest value inside the node


@dataclass(frozen=True)
class Difference:
    """A node whose value in onnxruntime is not torch's, by how much, and the largest value of torch's."""

    node: str
    place: Place
    gap: float
    size: float

    def __str__(self) -> str:
        return f"The first node that differs: {self.place} (by {self.gap:.1e}, its largest value is {self.size:.1e})"


@dataclass(frozen=True)
class Comparison:
    """The graph in torch against the file in onnxruntime, without its optimiser.

    Attributes:
        parted: the first node that differs where each goes on with its own values. A unit at its kink parts them.
        wrong: the first that differs although torch's reads onnxruntime's values: it computes something else. None
            where every operator is the same function, so that rounding alone parted the two.
    """

    parted: Difference | None
    wrong: Difference | None


def compare(session: OnnxExplainer, program: ExportedProgram, values: list[np.ndarray]) -> Comparison:
    """Compare all values that the translated program and the file both name, at the given inputs."""
    module = program.module()
    theirs = _values(session, {n.name for n in module.graph.nodes if n.op == "call_function"}, values)
    alone, following = _Against(module, theirs, follow=False), _Against(module, theirs, follow=True)
    for run in (alone, following):
        with torch.no_grad():
            run.run(*map(torch.from_numpy, values))
    return Comparison(alone.first, following.first)


def _values(session: OnnxExplainer, names: set[str], values: list[np.ndarray]) -> dict[str, Tensor]:
    """onnxruntime's values of some names, as far as the file has them, computed as it is written."""
    import onnx
    import onnxruntime

    model = onnx.load(str(session.path), load_external_data=False)
    known = {o.name for o in model.graph.output}
    made = [name for node in model.graph.node for name in node.output if name in names]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made if name not in known)
    open_file = session.path.with_name(session.path.name + ".nodes")  # beside the weights that it may refer to
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        onnx.save(model, str(open_file))
        run = onnxruntime.InferenceSession(str(open_file), options, providers=["CPUExecutionProvider"])
    finally:
        open_file.unlink(missing_ok=True)
    feeds = {i.name: v for i, v in zip(run.get_inputs(), values, strict=True)}
    found = run.run(made, feeds)
    return {name: torch.from_numpy(np.asarray(value)) for name, value in zip(made, found, strict=True)}


class _Against(fx.Interpreter):
    """Runs the graph in torch and keeps the first node that differs from onnxruntime's.

    With `follow`, what a node reads is onnxruntime's, so that its own arithmetic alone is compared; a few of its values
    may jump then, for a node can stand for several of the file's.
    """

    def __init__(self, module: fx.GraphModule, theirs: Mapping[str, Tensor], follow: bool):
        super().__init__(module)
        self.theirs, self.follow = theirs, follow
        self.first: Difference | None = None

    def run_node(self, n: fx.Node) -> Any:
        ours = super().run_node(n)
        theirs = self.theirs.get(n.name)
        if not isinstance(ours, Tensor) or theirs is None or theirs.shape != ours.shape or not ours.numel():
            return ours
        if self.first is None:
            self.first = self._difference(n, ours.double(), theirs.double())
        return theirs.to(ours.dtype) if self.follow else ours

    def _difference(self, node: fx.Node, ours: Tensor, theirs: Tensor) -> Difference | None:
        gap = torch.where(ours == theirs, 0.0, (ours - theirs).abs())  # inf is inf
        gap = torch.where(ours.isnan() & theirs.isnan(), 0.0, gap)
        finite = ours[ours.isfinite()]
        size = float(finite.abs().max()) if finite.numel() else 0.0
        off = int((~(gap <= ROUNDING * max(size, torch.finfo(torch.float32).tiny))).sum())
        if off <= (ours.numel() // FEW if self.follow else 0):
            return None
        return Difference(node.name, place_of(node), float(gap.max()), size)
