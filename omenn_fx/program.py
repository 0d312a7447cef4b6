"""Program: all that one capture makes, and what the rooms behind it need of a live explainer.

`Runnable` is the one place where a call becomes an explanation: forward, target, backward of each cotangent, assembly.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch.export import ExportedProgram

from omenn_fx.algebra.tolerances import coarsest
from omenn_fx.analysis.plan import Plan, Request, at_one, make_plan
from omenn_fx.analysis.roles import Tagged
from omenn_fx.analysis.silent import silent, without_part
from omenn_fx.capture.captured import Captured
from omenn_fx.capture.exclusive import exclusive
from omenn_fx.capture.inputs import check_autocast, flatten_inputs
from omenn_fx.capture.nodes import place_of, producer, value_of
from omenn_fx.capture.sizes import batch_size
from omenn_fx.errors import MixedBatchError
from omenn_fx.explanation import Explanation, assembled
from omenn_fx.graph.affine_map import Recorder
from omenn_fx.graph.build import Halves, explainer_graph, split
from omenn_fx.graph.rows_apart import meeting
from omenn_fx.target import Chooser, Target, resolve

log = logging.getLogger("omenn_fx")
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
            OmennError: inside of torch.autocast.
        """
        check_autocast(leaves)
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

    @cached_property
    def precision(self) -> torch.dtype:
        """The least precise dtype on the way from the explained inputs to the output."""
        return coarsest(value_of(node).dtype for node in self.tagged.content)

    def output_of(self, result: Any, leaves: Sequence[Any]) -> Tensor:
        """The explained output, [N, ...], among what the model itself returns at these inputs."""
        captured, output = self.captured, self.tagged.output
        if output not in captured.outputs:  # a node inside of the model
            inside: Tensor = Recorder(captured.module).record(leaves)[output]
            return inside
        value: Tensor = pytree.tree_leaves(result)[captured.outputs.index(output)]
        shape = value_of(output).shape
        if captured.batch == 1 and value.ndim != len(shape):  # the model leaves out the dimension of the batch
            return value.reshape(shape)
        return value if captured.batch is not None else value[None]

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
        program = Program(plan.captured, plan.tagged, module, split(module))
    for name, node in silent(plan.tagged).items():
        log.warning("%s", without_part(name, node))
    if plan.reached is not None:
        log.warning("%s at %s", REACHED, place_of(producer(plan.reached)[0]).label)
    return program


REACHED = (
    "samples of a batch reach each other through coefficients, which are held fixed: C is exact, but of each row among "
    "the others of its batch,"
)


def tried_plan(
    source: nn.Module | ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any], request: Request
) -> Plan:
    """The plan of a capture; whether its samples meet is tried on values, too."""
    with exclusive(), torch.inference_mode(False), torch.no_grad():
        args, kwargs = pytree.tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else t, (args, kwargs))
        plan = tried(make_plan(source, args, kwargs, request), args, kwargs)
        one = batch_size(pytree.tree_leaves((args, kwargs))) == 1
        free = plan.captured is not None and plan.captured.dynamic_batch
        if isinstance(plan.error, MixedBatchError) and one and free:
            return at_one(source, args, kwargs, request, plan.error)
        return plan


def tried(plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
    """A plan without an error, with what trying its rows on values tells. There are none on the meta device."""
    if plan.captured is None or plan.tagged is None or plan.layout is None:
        return plan
    leaves = flatten_inputs(plan.captured, args, kwargs)
    if any(isinstance(v, Tensor) and v.is_meta for v in [*leaves, *plan.captured.module.state_dict().values()]):
        # Shapes tell whether the samples meet where the batch is free: not where constants may have its size.
        return replace(plan, untried=not plan.captured.dynamic_batch and (plan.captured.batch or 1) > 1)
    met = meeting(plan.tagged, plan.layout, leaves)
    if met is None:
        return plan
    if met.content:
        return replace(plan, layout=None, error=MixedBatchError(place_of(producer(met.node)[0])))
    return replace(plan, reached=met.node)


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
