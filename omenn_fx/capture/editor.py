"""Editing an exported graph: constants as tensors, new nodes with their shapes, fresh names for new constants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from omenn_fx.compat import enable_python_dispatcher, fake_mode_of, traced_calls, without_guards

Tensor = torch.Tensor


class Editor:
    """A graph of ATen operators whose parameters are attributes and whose nodes know their shapes (`meta["val"]`)."""

    def __init__(self, module: fx.GraphModule):
        self.module, self.graph = module, module.graph
        modes = (fake_mode_of(n.meta.get("val")) for n in self.graph.nodes)
        self.fake_mode = next(mode for mode in modes if mode is not None)
        self.rewritten = 0  # nodes so far
        self._fresh = sum(1 for name, _ in module.named_buffers() if name.startswith("folded_"))

    def run(self, passes: Iterable[Pass]) -> fx.GraphModule:
        """Run passes one after the other, each followed by the removal of what nothing reads any more.

        `module.meta["rewritten"]` counts the nodes that each has rewritten, by its name.
        """
        counts = self.module.meta.setdefault("rewritten", Counter())
        for change in passes:
            before = self.rewritten
            change(self)
            counts[change.__name__] += self.rewritten - before
            self.graph.eliminate_dead_code()
        self.graph.lint()
        self.module.recompile()
        return self.module

    def nodes(self, *targets: Any) -> list[Any]:
        """The nodes of some operators, in order; a list, so that the graph may change on the way."""
        return [n for n in self.graph.nodes if n.op == "call_function" and n.target in targets]

    def constant(self, node: Any) -> Tensor | None:
        """The tensor of a parameter, buffer or folded constant; None for anything else."""
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        value: Any = self.module
        for name in str(node.target).split("."):
            value = getattr(value, name)
        return value.detach() if isinstance(value, Tensor) else None

    @contextmanager
    def before(self, node: Any) -> Iterator[None]:
        """New nodes go in front of a node and are traced to the same line of the user's."""
        self._like = node
        with self.graph.inserting_before(node):
            yield

    def like(self, node: Any) -> None:
        """New nodes are traced to this node's line from now on."""
        self._like = node

    def add_constant(self, value: Tensor) -> fx.Node:
        name = f"folded_{self._fresh}"
        self._fresh += 1
        self.module.register_buffer(name, value.detach().contiguous())
        node = self.graph.get_attr(name)
        node.meta["val"] = self.fake_mode.from_tensor(value, static_shapes=True)
        return node

    def call(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        node = self.graph.call_function(op, args, kwargs)
        kept = ("nn_module_stack", "stack_trace", "omenn")
        node.meta = {key: self._like.meta[key] for key in kept if key in self._like.meta}
        values: Any = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        with without_guards(self.fake_mode), self.fake_mode, enable_python_dispatcher(), torch.no_grad():
            node.meta["val"] = op(*values[0], **values[1])
        return node

    def inline(self, function: Callable[..., Any], *args: fx.Node) -> fx.Node:
        """The operators that a function of tensors calls, as nodes; the one that makes its result."""
        with without_guards(self.fake_mode), torch.no_grad():
            traced = traced_calls(function, [node.meta["val"] for node in args])
        env = dict(zip(traced.graph.find_nodes(op="placeholder"), args, strict=True))
        for node in traced.graph.nodes:
            if node.op == "output":
                result: fx.Node = env[node.args[0]]
                return result
            if node not in env:
                env[node] = self.call(node.target, *fx.map_arg(node.args, env.get), **fx.map_arg(node.kwargs, env.get))
        raise AssertionError("a graph has an output")

    def replace(self, old: Any, new: fx.Node) -> None:
        """All that read a node read another one."""
        old.replace_all_uses_with(new)
        self.erase(old)

    def redirect(self, old: Any, new: fx.Node, chosen: Callable[[fx.Node], bool]) -> None:
        """Chosen readers of a node read another one."""
        old.replace_all_uses_with(new, delete_user_cb=chosen)
        self.rewritten += 1

    def erase(self, node: Any) -> None:
        """Remove a node that nothing reads."""
        self.graph.erase_node(node)
        self.rewritten += 1

    def rewire(self, node: Any, *args: Any) -> None:
        """Give a node other operands."""
        node.args = args
        self.rewritten += 1


Pass = Callable[[Editor], None]


def shape(node: Any) -> Any:
    """The shape of a node's value."""
    return node.meta["val"].shape
