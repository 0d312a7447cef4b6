"""Lowering: the affine twin, run on the values of a graph being built, becomes the explainer graph.

`explainer_graph` makes one readable graph: the model's forward, then the adjoint, the bias shares and the carried
mass. Its names follow the source nodes (`layer1_0_conv1`, `layer1_0_conv1_adjoint`, `..._bias`, `..._carry`).
`split` divides it at the cotangent, so that one forward serves any number of targets.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import GraphAppendingTracer

from omenn_fx.algebra.bias_policy import Policy
from omenn_fx.analysis.batch_dim import Layouts
from omenn_fx.analysis.roles import Tagged
from omenn_fx.capture.nodes import free_name, fresh_name, value_of
from omenn_fx.capture.sizes import is_symbolic
from omenn_fx.compat import enable_python_dispatcher, fake_mode_of
from omenn_fx.graph.schedule import hoist, writes
from omenn_fx.graph.twin import Twin, at_node, dense_or_zero

COTANGENT = "cotangent"


class _Tracer(GraphAppendingTracer):
    """Appends to a graph; new nodes are named after the node of the model they belong to."""

    def __init__(self, graph: fx.Graph, fake_mode: Any, module: fx.GraphModule):
        super().__init__(graph)
        self.module = module
        self.fake_mode = fake_mode
        self.at: tuple[fx.Node, str] | None = None
        self.sizes: dict[str, Traced] = {}
        self.origins: dict[str, tuple[Traced, int]] = {}  # inputs of a free size: they are there before all else
        self.constants: dict[str, torch.Tensor] = {}

    def create_arg(self, a: Any) -> Any:
        """A tensor that a rule makes from sizes alone (pooling weights, index lists) becomes an attribute."""
        if isinstance(a, torch.Tensor):
            name = free_name(self.module, f"constant_{len(self.constants)}")
            self.constants[name] = a
            node = self.create_node("get_attr", name, (), {}, name)
            node.meta["val"] = a if self.fake_mode is None else self.fake_mode.from_tensor(a, static_shapes=True)
            return node
        return super().create_arg(a)

    @contextmanager
    def within(self, node: fx.Node, phase: str) -> Iterator[None]:
        before, self.at = self.at, (node, phase)
        with at_node(node):
            yield
        self.at = before

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None, type_expr: Any = None
    ) -> fx.Node:
        if self.at is not None:
            name = f"{self.at[0].name}_{self.at[1]}"
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        if self.at is not None:
            source = self.at[0]
            node.meta = {k: source.meta[k] for k in ("nn_module_stack", "stack_trace") if k in source.meta}
            node.meta["omenn"] = (source.name, self.at[1])
        return node

    def proxy(self, node: fx.Node) -> Traced:
        return Traced(node, self)

    def starts_at(self, value: Traced) -> None:
        """Take the free sizes of an input from there."""
        for dim, size in enumerate(getattr(value_of(value.node), "shape", ())):
            if is_symbolic(size):
                self.origins.setdefault(str(size), (value, dim))

    def iter(self, obj: Any) -> Iterator[Any]:
        """The pieces of a value that is a tuple or list, as `chunk` and `unbind` return."""
        return iter([obj[i] for i in range(len(obj))])


class Traced(fx.Proxy):
    """A value of the graph being built. Rules use it as a tensor; sizes are ints, or values where they are dynamic."""

    tracer: _Tracer

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(self._size(d, s) for d, s in enumerate(self.fake.shape))

    @property
    def ndim(self) -> int:
        return self.fake.ndim

    @property
    def dtype(self) -> torch.dtype:
        return self.fake.dtype

    @property
    def device(self) -> torch.device:
        return self.fake.device

    def __len__(self) -> int:
        return len(self.fake)

    @property
    def fake(self) -> Any:
        """Shape and dtype, without data."""
        return _fake(self.node, self.tracer.fake_mode)

    def _size(self, dim: int, size: Any) -> Any:
        if not is_symbolic(size):
            return int(size)
        key = str(size)
        if key not in self.tracer.sizes:
            self.tracer.sizes[key] = self.tracer.create_proxy(  # type: ignore[assignment]
                "call_function", torch.ops.aten.sym_size.int, self.tracer.origins.get(key, (self, dim)), {}
            )
        return self.tracer.sizes[key]


def _fake(node: fx.Node, mode: Any) -> Any:
    """Shape and dtype of a node, found when first asked for (with those of all nodes before it)."""
    missing, found = [node], set[fx.Node]()
    while missing:
        at = missing.pop()
        if "val" not in at.meta and at not in found:  # once: the number of paths grows exponentially
            found.add(at)
            missing += at.all_input_nodes
    order = {n: i for i, n in enumerate(node.graph.nodes)} if len(found) > 1 else {}
    for at in sorted(found, key=lambda n: order.get(n, 0)):
        args, kwargs = fx.map_arg((at.args, at.kwargs), lambda n: n.meta["val"])
        target: Any = at.target
        with mode, enable_python_dispatcher(), torch.no_grad():
            if at.op == "call_method":
                at.meta["val"] = getattr(args[0], target)(*args[1:], **kwargs)
            else:
                at.meta["val"] = target(*args, **kwargs)
    return node.meta["val"]


def explainer_graph(tagged: Tagged, where: Layouts, policy: Policy | None) -> fx.GraphModule:
    """The explainer graph of a tagged model.

    Inputs: the leaves of the model's inputs, and the cotangent (of the explained output's shape).
    Output: a dict of `outputs` (the explained output), `X`, `C_w` and (with a policy) `C_b`, each a tuple with one
    tensor per explained input, and `bias` [N, V]: the share of each of the V biased nodes (None without any).
    """
    graph = fx.Graph()
    tracer = _Tracer(graph, fake_mode_of(value_of(tagged.output)), tagged.captured.module)
    values, cotangent = _forward(tagged, tracer)
    twin = Twin(tagged, values, tracer.within)
    pulled = twin.pull({tagged.output: cotangent}, policy)
    shares = []
    for node, mass in pulled.shares.items():
        with tracer.within(node, "share"):
            shares.append(where[node].per_sample(mass))
    C_b = []
    for source in tagged.sources.values():
        with tracer.within(source, "C_b"):
            C_b.append(_node(dense_or_zero(pulled.carried.get(source), values[source]), values[source]))
    with tracer.within(tagged.output, "shares"):
        table: Any = torch.stack(shares, 1) if shares else None
    sources = list(tagged.sources.values())
    result = {
        "outputs": values[tagged.output].node,
        "X": tuple(values[s].node for s in sources),
        "C_w": tuple(_node(pulled.adjoint.get(s), values[s]) for s in sources),
        "C_b": tuple(C_b) if policy is not None or pulled.afoot else None,
        "bias": None if table is None else table.node,
    }
    graph.output(result)
    graph.eliminate_dead_code(_kept)
    hoist(graph, lambda node: node.meta.get("omenn", ("", ""))[1] in ("form", "share"))
    graph.lint()
    attributes = _attributes(graph, tagged.captured.module, tracer.constants)
    module = fx.GraphModule(attributes, graph, class_name="ExplainerGraph")
    module.meta["biased"] = [n.name for n in pulled.shares]
    module.meta["kept"] = [n.name for n in pulled.shares if n not in pulled.afoot]
    return module


def _attributes(graph: fx.Graph, module: fx.GraphModule, constants: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What the graph reads beside its inputs: tensors of the model, which it shares, and constants of its own."""
    targets = dict.fromkeys(str(n.target) for n in graph.nodes if n.op == "get_attr")
    return {t: constants[t] if t in constants else operator.attrgetter(t)(module) for t in targets}


def _forward(tagged: Tagged, tracer: _Tracer) -> tuple[dict[fx.Node, Any], Any]:
    """Copy the captured graph: the value of each of its nodes, and the cotangent, an input behind the model's own."""
    graph, nodes = tracer.graph, tagged.captured.graph.nodes
    env = {node: graph.node_copy(node) for node in nodes if node.op == "placeholder"}
    cotangent = graph.placeholder(fresh_name(COTANGENT, [str(n.target) for n in env.values()]))
    cotangent.meta["val"] = value_of(tagged.output)
    values: dict[fx.Node, Any] = {}
    for node in nodes:
        if node.op == "output":
            continue
        if node.op != "placeholder":
            env[node] = graph.node_copy(node, env.__getitem__)
        if node.target is torch.ops.aten.sym_size.int:
            tracer.sizes.setdefault(str(value_of(node)), tracer.proxy(env[node]))
        values[node] = tracer.proxy(env[node])
        if node.op == "placeholder":
            tracer.starts_at(values[node])
    return values, tracer.proxy(cotangent)


def _kept(node: fx.Node) -> bool:
    """Inputs, outputs, and operators that write: to a constant, to the list of residuals."""
    return node.op in ("placeholder", "output") or node.target == "clear" or writes(node)


def _node(value: Any, like: Any) -> fx.Node:
    """The node of a traced value; zeros where no adjoint reached an explained input."""
    return (like * 0 if value is None else value).node


@dataclass(frozen=True)
class Halves:
    """The explainer graph divided at the cotangent: residuals = forward(*inputs); result = backward(g, residuals).

    The backward empties the list of residuals, so that each is let go of behind its last use, as autograd does.
    """

    forward: fx.GraphModule  # *inputs -> (outputs, residuals)
    backward: fx.GraphModule  # cotangent, list of residuals -> the explainer graph's output

    def each(self, cotangents: Sequence[torch.Tensor], residuals: Sequence[Any]) -> list[dict[str, Any]]:
        """The backward of each cotangent, from one forward. A list of residuals is empty afterwards."""
        last = len(cotangents) - 1
        own = residuals if isinstance(residuals, list) else list(residuals)
        return [self.backward(g, own if i == last else list(own)) for i, g in enumerate(cotangents)]


def split(module: fx.GraphModule) -> Halves:
    """Divide an explainer graph into what does not depend on the cotangent and what does."""
    *_, cotangent = module.graph.find_nodes(op="placeholder")  # behind the model's own
    after: set[fx.Node] = {cotangent}
    result: dict[str, Any] = {}
    for node in module.graph.nodes:
        if any(n in after for n in node.all_input_nodes):
            after.add(node)
        if node.op == "output":
            result = node.args[0]
    after = {n for n in after if n.op != "output"}
    wanted: list[fx.Node] = []
    fx.map_arg(result, wanted.append)
    needed = [n for n in module.graph.nodes if n not in after and n.op not in ("get_attr", "output")]
    residuals = [n for n in needed if n in wanted or any(u in after for u in n.users)]
    ahead, back = fx.Graph(), fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node not in after and node.op != "output":
            env[node] = ahead.node_copy(node, env.__getitem__)
    ahead.output((env[result["outputs"]], [env[n] for n in residuals]))
    ahead.eliminate_dead_code(_kept)
    env = {cotangent: back.placeholder(COTANGENT)}
    kept = back.placeholder("residuals")
    for i, node in enumerate(residuals):
        env[node] = back.create_node("call_function", operator.getitem, (kept, i), name=node.name)
        env[node].meta = dict(node.meta)
    back.call_method("clear", (kept,))
    for node in module.graph.nodes:
        if node.op == "get_attr" or (node in after and node not in env):
            env[node] = back.node_copy(node, env.__getitem__)
    back.output(fx.map_arg(result, env.__getitem__))
    back.eliminate_dead_code(_kept)
    return Halves(fx.GraphModule(module, ahead, "Forward"), fx.GraphModule(module, back, "Backward"))
