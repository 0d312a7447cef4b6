"""The ONNX graph made small: constants folded, operators that do nothing removed, equal ones merged.

It is what torch.onnx does when it is asked to optimise, in onnxscript's own passes, less the rewriting that costs more
than it brings: its rule for two slices that a Split could replace tries every pair of slices of the graph for each of
them, minutes for a DenseNet, and the rules for batch norm, dropout and quantised layers find none in an explainer.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import MatchResult, RewritePass, RewriteRuleClassBase
from onnxscript.rewriter.rules import common as rules

from omenn_fx.export.passes.portable import portable
from omenn_fx.export.passes.weights_once import one_orientation, weights_once

# Added to slope x, which is 0 or larger than 1 for all that a mask is made of: it changes no value. But OpenVINO reads
# beta = 0 as an attribute that is absent, whose default is 0.5, and all its masks were wrong.
_NEXT_TO_ZERO = -1e-30


class Ramp(RewriteRuleClassBase):
    """min(max(slope x, 0), 1) is HardSigmoid, which onnxruntime computes in one step, in whatever layout x has."""

    def pattern(self, op: Any, x: Any, slope: Any, low: Any, high: Any) -> Any:
        return op.Clip(op.Mul(x, slope), low, high)

    def check(self, context: Any, x: Any, slope: Any, low: Any, high: Any) -> MatchResult:
        single = slope.dtype == ir.DataType.FLOAT and _number(slope) is not None
        found = single and (_number(low), _number(high)) == (0.0, 1.0)
        return MatchResult() if found else MatchResult().fail("not a ramp from 0 to 1")

    def rewrite(self, op: Any, x: Any, slope: Any, low: Any, high: Any) -> Any:
        return op.HardSigmoid(x, alpha=_number(slope), beta=_NEXT_TO_ZERO)


def _number(value: Any) -> float | None:
    """A constant of one element."""
    constant = ir.convenience.get_const_tensor(value)
    return None if constant is None or constant.size != 1 else constant.numpy().item()


RULES = (
    Ramp().rule(),
    rules.mul_by_1_rule,
    rules.add_0_rule,
    rules.sub_0_rule,
    rules.div_by_1_rule,
    rules.one_reshape_matmul_reshape_rule,
    rules.two_reshapes_matmul_reshape_rule,
    rules.cast_constant_of_shape_rule,
    rules.cast_constant_of_shape_without_value_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.min_min_rule,
    rules.max_max_rule,
    rules.min_max_rule,
    rules.max_min_rule,
    rules.successive_relu_rule,
    rules.successive_clip_rule,
    rules.successive_relu_clip_rule,
    rules.successive_clip_relu_rule,
    rules.cast_cast_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.reshape_reshape_rule,
    rules.flatten_to_reshape_rule,
    rules.squeeze_reshape_1d_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.no_op_dynamic_scatter_nd_rule,
    rules.no_op_static_scatter_nd_rule,
    rules.normalize_pad_format_conv_rule,
    rules.fuse_pad_into_conv_rule,
    rules.remove_optional_bias_from_conv_rule,
    rules.remove_optional_bias_from_conv_transpose_rule,
    rules.remove_optional_bias_from_gemm_rule,
)
_KEPT = ("pkg.torch.onnx.name_scopes",)
ROUNDS = 2  # what one round folds, the next may rewrite


def simplify(model: Any) -> None:
    """Simplify an onnx_ir.Model in place."""
    passes.InlinePass()(model)
    for _ in range(ROUNDS):
        folded = fold_constants_ir(model, onnx_shape_inference=True).modified
        rewritten = RewritePass(RULES)(model).modified
        _register_constants(model)
        ir.passes.Sequential(
            passes.RemoveUnusedNodesPass(), passes.RemoveUnusedFunctionsPass(), passes.RemoveUnusedOpsetsPass()
        )(model)
        if not (folded or rewritten):
            break
    portable(model)
    passes.RemoveUnusedNodesPass()(model)  # the sizes of pads that are slices now
    ir.passes.Sequential(
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
    )(model)
    weights_once(model)
    one_orientation(model)
    ir.passes.Sequential(
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    )(model)


def without_origins(model: Any) -> None:
    """Take out which lines of which files each value comes from: paths of the machine that wrote the file, and more
    than half of a small file. The names of modules stay."""
    graphs = [model.graph, *model.functions.values()]
    values = [value for graph in graphs for node in graph.all_nodes() for value in (node, *node.outputs)]
    for named in (*values, *model.graph.inputs, *model.graph.initializers.values()):
        for key in [key for key in named.metadata_props if key not in _KEPT]:
            del named.metadata_props[key]
        named.doc_string = None


def _register_constants(model: Any) -> None:
    """onnxscript's rules name a new bound after the clipped value: the second one takes the first one's place."""
    held = model.graph.initializers
    for node in model.graph.all_nodes():
        for value in node.inputs:
            lost = value is not None and value.producer() is None and value.const_value is not None
            if lost and held.get(value.name) is not value:
                value.name = f"{value.name}_{len(held)}"
                held[value.name] = value
