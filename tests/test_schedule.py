"""The order of an explainer graph: coefficients beside their operators, nothing kept longer than it is read."""

import pytest
import torch
from models import build
from torch import fx

import omenn_fx
from omenn_fx.graph.schedule import hoist

aten = torch.ops.aten


@pytest.mark.parametrize("name", ["resnet18", "small_vit"])
def test_coefficients_stand_beside_their_operators(name):
    """No later layer runs between an activation and the coefficients that are made of it."""
    model, args, kwargs = build(name, torch.float32)
    graph = omenn_fx.transform(model, args, example_kwargs=kwargs).graph_module.graph
    layer, begun = {}, 0  # the number of the layer that each value belongs to
    for node in graph.nodes:
        of_the_model = "omenn" not in node.meta
        begun += of_the_model and node.op == "call_function"
        layer[node] = begun
        if node.meta.get("omenn", ("", ""))[1] == "form":
            assert begun - max((layer[n] for n in node.all_input_nodes), default=begun) <= 1, node.format_node()


def test_residuals_are_let_go_of_along_the_last_target():
    model, args, _ = build("resnet18", torch.float32)
    explainer = omenn_fx.transform(model, args)
    program, leaves = explainer.program_for(args, {})
    with torch.no_grad():
        outputs, residuals = program.halves.forward(*leaves)
        count, cotangent = len(residuals), torch.ones_like(outputs)
        kept = tuple(residuals)
        first, second = program.halves.each([cotangent, 2 * cotangent], residuals)
        assert count > 0
        assert residuals == []
        again = program.halves.each([cotangent], kept)
    assert len(kept) == count, "a tuple is the caller's own"
    torch.testing.assert_close(first["C_w"][0], again[0]["C_w"][0], rtol=0, atol=0)
    torch.testing.assert_close(second["C_w"][0], 2 * first["C_w"][0])


def test_a_node_waits_until_its_operand_is_written_for_the_last_time():
    graph = fx.Graph()
    x = graph.placeholder("x")
    made = graph.call_function(aten.zeros_like.default, (x,))
    graph.call_function(aten.relu.default, (x,))
    graph.call_function(aten.fill_.Scalar, (made, 3.0))
    read = graph.call_function(aten.neg.default, (made,))
    graph.output((read,))
    module = fx.GraphModule(torch.nn.Module(), graph)
    hoist(graph, lambda node: node is read)
    graph.lint()
    module.recompile()
    assert module(torch.ones(2))[0].tolist() == [-3.0, -3.0]
