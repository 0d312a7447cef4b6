"""A copy of a model in which methods that hook modules find every activation: same outputs, one module per use."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

ACTIVATIONS: dict[Any, type[nn.Module]] = {
    torch.relu: nn.ReLU,
    F.relu: nn.ReLU,
    "relu": nn.ReLU,
    "relu_": nn.ReLU,
    F.relu6: nn.ReLU6,
    torch.sigmoid: nn.Sigmoid,
    torch.tanh: nn.Tanh,
    F.gelu: nn.GELU,
    F.silu: nn.SiLU,
    F.hardswish: nn.Hardswish,
}
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in eval mode
# Linear, without weights: any method that goes backwards treats these rightly without a rule.
PLUMBING = {
    *(torch.flatten, torch.cat, torch.stack, torch.permute, torch.transpose, torch.reshape, torch.squeeze, F.pad),
    *(operator.getitem, getattr, torch.add, operator.add, operator.iadd, torch.mean),
    *("flatten", "view", "reshape", "permute", "transpose", "contiguous", "mean", "size", "squeeze", "unsqueeze"),
}


class NotApplicable(Exception):
    """A method that cannot run a model as it is meant to; the message is the reason."""


class _Tracer(fx.Tracer):
    """Down to the layers that hooks know, those that a library derives from torch's included."""

    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        derived = isinstance(m, (nn.Conv2d, nn.Linear)) and not list(m.children())
        return derived or super().is_leaf_module(m, qualified_name)


def hookable(model: nn.Module) -> fx.GraphModule:
    """The model with each activation a module of its own, none in place, without dropout and identities.

    Raises NotApplicable where torch.fx cannot trace the model.
    """
    model = copy.deepcopy(model).eval()
    _split_batch_norms(model)
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # tracing runs the model's own code
        raise NotApplicable(f"torch.fx cannot trace the model: {str(error).splitlines()[0]}") from error
    traced = fx.GraphModule(model, graph)
    seen: set[Any] = set()
    for node in list(traced.graph.nodes):
        if node.op in ("call_function", "call_method") and node.target in ACTIVATIONS:
            _replace(traced, node, ACTIVATIONS[node.target](), node.args[:1])
        elif node.target is F.adaptive_avg_pool2d:
            size = node.args[1] if len(node.args) > 1 else node.kwargs["output_size"]
            _replace(traced, node, nn.AdaptiveAvgPool2d(size), node.args[:1])
        elif node.op == "call_module":
            module = traced.get_submodule(node.target)
            if isinstance(module, NOTHING):
                node.replace_all_uses_with(node.args[0])
                traced.graph.erase_node(node)
            elif node.target in seen:
                _replace(traced, node, copy.deepcopy(module), node.args)
            seen.add(node.target)
    for module in traced.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    return _compiled(traced)


def folded(traced: fx.GraphModule) -> fx.GraphModule:
    """Each batch norm that follows a convolution folded into it, exactly.

    Zennit's own MergeBatchNorm leaves eps in the norm, which changes the outputs of an EfficientNet by per cents.
    """
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        norm, conv = modules[node.target], modules[before.target]
        if isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d) and len(before.users) == 1:
            traced.add_submodule(str(before.target), fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    return _compiled(traced)


def canonical(model: nn.Module, library: str) -> fx.GraphModule:
    """For LRP: also batch norm folded, and additions and global means as modules that have a rule.

    Both libraries send relevance back instead of gradients, so a functional addition would give all of it to each side.
    Zennit's canonizers do this for torchvision's ResNets, Captum asks for its Addition_Module in the model's code. It
    also refuses an nn.Flatten, having no rule for it, while torch.flatten passes relevance on as it is.
    """
    traced = folded(hookable(model))
    for node in list(traced.graph.nodes):
        if node.target in (operator.add, operator.iadd, torch.add) and isinstance(node.args[1], fx.Node):
            _replace(traced, node, *_addition(traced, node, library))
        elif node.target in ("mean", torch.mean) and _dims(node) in ((2, 3), (-2, -1)):
            pool = _replace(traced, node, nn.AdaptiveAvgPool2d(1), node.args[:1])
            if not node.kwargs.get("keepdim"):
                with traced.graph.inserting_after(pool):
                    pool.replace_all_uses_with(flat := traced.graph.call_function(torch.flatten, (pool, 1)))
                flat.args = (pool, 1)
        elif node.op == "call_module" and isinstance(flatten := traced.get_submodule(node.target), nn.Flatten):
            dims = flatten.start_dim, flatten.end_dim
            with traced.graph.inserting_before(node):
                node.replace_all_uses_with(traced.graph.call_function(torch.flatten, (node.args[0], *dims)))
            traced.graph.erase_node(node)
    return _compiled(traced)


def _addition(traced: fx.GraphModule, node: fx.Node, library: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """A library's own module for a sum, and what it is called with."""
    if library == "captum":
        from captum.attr._utils.custom_modules import Addition_Module

        return Addition_Module(), node.args
    from zennit.layer import Sum

    with traced.graph.inserting_before(node):
        return Sum(), (traced.graph.call_function(torch.stack, (list(node.args),), {"dim": -1}),)


def require(traced: fx.GraphModule, method: str, rules: Iterable[type]) -> None:
    """Raise NotApplicable where a method would pass a layer or function with the plain gradient, having no rule."""
    missing = set()
    for node in traced.graph.nodes:
        if node.op == "call_module":
            module = traced.get_submodule(node.target)
            leaves = [m for m in module.modules() if not list(m.children())]
            missing |= {type(m).__name__ for m in leaves if not isinstance(m, (*rules, nn.Flatten))}
        elif node.op in ("call_function", "call_method") and node.target not in PLUMBING:
            missing.add(getattr(node.target, "__name__", str(node.target)))
    if missing:
        raise NotApplicable(f"{method} has no rule for {', '.join(sorted(missing))}")


def _split_batch_norms(model: nn.Module) -> None:
    """timm's batch norms with an activation inside become a batch norm followed by that activation."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and hasattr(module, "act"):
            norm = nn.BatchNorm2d(module.num_features, module.eps)
            norm.load_state_dict({k: v for k, v in module.state_dict().items() if "." not in k})
            norm.to(module.weight.device)
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], nn.Sequential(norm, module.drop, module.act).eval())


def _replace(traced: fx.GraphModule, node: fx.Node, module: nn.Module, args: tuple[Any, ...]) -> fx.Node:
    name = f"own_{node.name}"
    traced.add_submodule(name, module.eval())
    with traced.graph.inserting_before(node):
        own = traced.graph.call_module(name, args)
    node.replace_all_uses_with(own)
    traced.graph.erase_node(node)
    return own


def _dims(node: fx.Node) -> tuple[Any, ...]:
    dims: Any = node.args[1:] or node.kwargs.get("dim", ())
    return tuple(dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims)


def _compiled(traced: fx.GraphModule) -> fx.GraphModule:
    traced.delete_all_unused_submodules()
    traced.graph.lint()
    traced.recompile()
    return traced
