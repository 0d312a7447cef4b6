"""Program: all that one capture makes, and what the rooms behind it need of a live explainer.

`Runnable` is the one place where a call becomes an explanation: forward, target, backward of each cotangent, assembly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch.export import ExportedProgram

from omenn_fx.analysis.plan import Plan, Request, make_plan
from omenn_fx.analysis.roles import Tagged
from omenn_fx.capture.captured import Captured
from omenn_fx.capture.inputs import flatten_inputs
from omenn_fx.capture.nodes import place_of, producer
from omenn_fx.errors import MixedBatchError
from omenn_fx.explanation import Explanation, assembled
from omenn_fx.graph.build import Halves, explainer_graph, split
from omenn_fx.graph.meet import meeting
from omenn_fx.target import Chooser, Target, resolve

Tensor = torch.Tensor


@dataclass(frozen=True)
class NodeInfo:
    """One node of the captured graph: name, operator, module path, role, and the user's own source line."""

    name: str
    op: str
    module: str
    role: str
    source: str


@dataclass(frozen=True)
class Runnable:
    """The two halves of an explainer graph, and how their results become an explanation.

    Attributes:
        names: the explained inputs.
        biased: the nodes that have a bias, in the order of the table.
        kept: those of them whose share is not carried to the input.
        batched: False where all inputs together are one sample; the explanation then has a batch of one in front.
    """

    halves: Halves
    names: Sequence[str]
    biased: list[str]
    kept: Sequence[str]
    batched: bool

    def explain(self, leaves: Sequence[Any], target: Target | Chooser = None) -> Explanation:
        """Explain one output value per row, or several at once, from one forward.

        Args:
            leaves: the inputs of the graph, in its order.
            target: as of an `Explainer`, or a function from outputs [N, ...] to the positions themselves.

        Raises:
            TargetError: out of range or of the wrong shape.
        """
        outputs, residuals = self.halves.forward(*leaves)
        outputs = outputs if self.batched else outputs[None]
        resolved = resolve(target, outputs)
        cotangents = [g if self.batched else g[0] for g in resolved.cotangents(outputs)]
        results = self.halves.each(cotangents, residuals)
        return assembled(outputs, resolved, results, self.names, self.biased, self.kept, self.batched)


@dataclass(frozen=True)
class Program:
    """All that one capture makes: the graph with its roles, the explainer graph, and its two halves."""

    captured: Captured
    tagged: Tagged
    graph_module: fx.GraphModule
    halves: Halves

    @property
    def names(self) -> list[str]:
        """The explained inputs."""
        return list(self.tagged.sources)

    @property
    def runnable(self) -> Runnable:
        """What a call needs of it."""
        biased, kept = (self.graph_module.meta[key] for key in ("biased", "kept"))
        return Runnable(self.halves, self.names, biased, kept, self.captured.batch is not None)

    @property
    def nodes(self) -> list[NodeInfo]:
        """Every node of the captured graph, in order."""
        infos = []
        for node in self.captured.graph.nodes:
            if node.op != "output":
                place = place_of(producer(node)[0] if node.op == "call_function" else node)
                infos.append(NodeInfo(node.name, place.op, place.module, self.tagged.role[node].value, place.source))
        return infos


def make_program(
    source: nn.Module | ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any], request: Request
) -> Program:
    """Capture, analyse, and build the explainer graph. Raises the error of the plan."""
    plan = tried_plan(source, args, kwargs, request)
    if plan.error is not None:
        raise plan.error
    assert plan.captured is not None
    assert plan.tagged is not None
    assert plan.layout is not None
    with torch.inference_mode(False), torch.no_grad():
        module = explainer_graph(plan.tagged, plan.layout, request.policy)
        return Program(plan.captured, plan.tagged, module, split(module))


def tried_plan(
    source: nn.Module | ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any], request: Request
) -> Plan:
    """The plan of a capture; where its batch is fixed, whether the samples meet is tried on values, too."""
    with torch.inference_mode(False), torch.no_grad():
        own = pytree.tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else t, (args, kwargs))
        plan = make_plan(source, own[0], own[1], request)
        if plan.captured is None or plan.tagged is None or plan.layout is None:
            return plan
        if plan.captured.dynamic_batch or (plan.captured.batch or 1) == 1:
            return plan
        leaves = flatten_inputs(plan.captured, *own)
        if _on_meta([*leaves, *plan.captured.module.state_dict().values()]):
            return replace(plan, untried=True)
        node = meeting(plan.tagged, plan.layout, leaves)
        return plan if node is None else replace(plan, error=MixedBatchError(place_of(producer(node)[0])))


def _on_meta(values: Sequence[Any]) -> bool:
    """Whether a tensor among values has none itself."""
    return any(isinstance(value, Tensor) and value.device.type == "meta" for value in values)


class Live(Protocol):
    """A live explainer, as export, checking and the integrations need it: `omenn_fx.Explainer` is one."""

    model: nn.Module | None
    request: Request

    def __call__(self, *args: Any, target: Target = None, **kwargs: Any) -> Explanation:
        """Explain."""

    def prepare(self, *args: Any, **kwargs: Any) -> Live:
        """Capture at example inputs."""

    def program_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Program, list[Any]]:
        """What was captured for inputs like these, and their leaves in its order."""

    def reference(self, *args: Any, **kwargs: Any) -> Tensor:
        """The explained output as the model itself computes it."""

    def converted(self, dtype: torch.dtype, device: str | None = None) -> Live:
        """An explainer of a copy of the model in another dtype."""

    def in_float64(self) -> Live:
        """An explainer of a copy of the model in float64."""

    def with_request(self, request: Request) -> Live:
        """An explainer of the same model for another request."""

    @property
    def bias(self) -> str:
        """The bias policy."""

    @property
    def ready(self) -> Program:
        """What was captured last."""
