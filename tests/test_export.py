"""The explainer graph leaves the process as one program that needs neither the model's code nor autograd."""

import pytest
import torch
from test_explainer import Fixed, Net, X

import omenn_fx
from omenn_fx.export import to_program


@pytest.mark.parametrize("batch", [1, 3])
def test_a_saved_program_explains_like_the_explainer(tmp_path, batch):
    explainer = omenn_fx.transform(Net().eval())
    torch.export.save(to_program(explainer, X[:batch]), tmp_path / "model.explain.pt2")
    loaded = torch.export.load(tmp_path / "model.explain.pt2").module()
    x, target = torch.randn(5, 3, 8, 8), torch.arange(5)
    expected = explainer(x, target=target)
    with torch.no_grad():
        result = loaded(x, torch.eye(5))
    torch.testing.assert_close(result["outputs"], expected.outputs)
    for name in ("X", "C_w", "C_b"):
        torch.testing.assert_close(result[name][0], getattr(expected, name))
    torch.testing.assert_close(result["bias"].sum(1), expected.bias.total)


def test_a_fixed_batch_stays_fixed():
    program = to_program(omenn_fx.transform(Fixed().eval()), X[:2])
    assert not program.range_constraints
    result = program.module()(X[:2], torch.eye(5)[:2])
    assert result["C_w"][0].shape == (2, 3, 8, 8)


def test_the_program_holds_no_backward_operator():
    program = to_program(omenn_fx.transform(Net().eval()), X)
    assert not any("backward" in str(n.target) for n in program.graph.nodes)
