"""What a validation report holds, on models that are right and on ones that are not."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import omenn_fx
from omenn_fx.algebra.linear import Diagonal
from omenn_fx.algebra.ruleset import RuleSet, omenn
from omenn_fx.checking.validation_report import MEANING

aten = torch.ops.aten


def network():
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 5)]
    return nn.Sequential(*body).eval()


X = torch.randn(2, 3, 8, 8)


def lying():
    """GELU's ratio, wrong by one in a thousand."""
    rules = RuleSet("lying", table=dict(omenn.table))
    right = rules.table.pop(aten.gelu.default).form
    rules.register(aten.gelu.default, dynamic=True)(
        lambda call: Diagonal(right(call).d * 1.001, call.shape(), call.out.shape)
    )
    return rules


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", ["carrier", "contribution", "none"])
def test_right_model(dtype, bias):
    report = omenn_fx.transform(network().to(dtype), bias=bias).validate(X.to(dtype), target=2)
    assert report.ok, str(report)
    assert [n.name for n in report.nodes] == ["conv2d", "batch_norm", "gelu", "max_pool2d", "flatten", "linear"]
    assert report.dtype == str(dtype).removeprefix("torch.")
    assert str(report).startswith("valid: 6 nodes")
    assert report.worst("transpose").place.op.startswith("aten.")


def test_lying_rule_is_named():
    report = omenn_fx.transform(network(), rules=lying()).validate(X)
    assert not report.ok
    assert report.worst().name == "gelu"
    assert any("aten.gelu.default (node 'gelu') in module '2'" in f for f in report.failures)
    assert any(f.startswith("completeness") for f in report.failures)
    assert "NOT VALID" in str(report)


def test_a_rule_that_raises_names_the_node():
    explainer = omenn_fx.transform(network(), X, rules=(rules := RuleSet("raising", table=dict(omenn.table))))
    rules.table[aten.gelu.default] = omenn.table[aten.linear.default]
    with pytest.raises(omenn_fx.NodeError, match=r"in the rule of aten.gelu.default \(node 'gelu'\)"):
        explainer.validate(X)


def test_against_float64():
    report = omenn_fx.transform(network()).validate(X, target=1, double=True)
    assert 0 < report.against_float64["C"] < 1e-4
    assert 0 <= report.against_float64["outputs"] < 1e-5
    assert "in float64 the outputs differ" in str(report)
    assert omenn_fx.transform(network().double()).validate(X.double(), double=True).against_float64["C"] == 0
    with pytest.raises(omenn_fx.OmennError, match="keeps its dtype"):
        omenn_fx.transform(torch.export.export(network(), (X,))).validate(X, double=True)


def test_own_tolerance():
    explainer = omenn_fx.transform(network())
    assert not explainer.validate(X, tolerance=1e-12).ok
    assert explainer.validate(X, tolerance=1e-3).ok


def test_nan_fails_and_is_shown(tmp_path):
    """Every comparison with NaN is false: it must not hide behind the numbers beside it."""
    report = omenn_fx.transform(network()).validate(X)
    first, last = report.nodes[0], report.nodes[-1]
    nan = float("nan")
    for nodes in ([replace(first, node=nan), *report.nodes[1:]], [*report.nodes[:-1], replace(last, node=nan)]):
        broken = replace(report, nodes=nodes)
        assert not broken.ok
        assert math.isnan(broken.worst().node)
        assert math.isnan(broken.worst().worst)
        assert math.isnan(broken.error("node"))
        (line,) = (line for line in str(broken).splitlines() if MEANING["node"] in line and "failed" not in line)
        assert " nan " in line
        assert broken.worst().name in line
        broken.plot(tmp_path / "nan.png")
        crosses = [c for c in broken.plot().axes[0].lines if c.get_marker() == "x" and len(c.get_xdata())]
        assert [list(c.get_xdata()) for c in crosses] == [[nodes.index(broken.worst())]]
    for name in report.whole:
        broken = replace(report, whole=report.whole | {name: nan})
        assert not broken.ok
        assert math.isnan(broken.error(name))
        assert any(" nan " in line for line in str(broken).splitlines() if MEANING[name] in line)
    assert report.error("node") == max(n.node for n in report.nodes)


def test_json_and_plot(tmp_path):
    report = omenn_fx.transform(network(), rules=lying()).validate(X)
    data = json.loads(report.to_json())
    assert data["ok"] is False
    assert len(data["nodes"]) == 6
    assert max(data["nodes"], key=lambda n: n["node"])["module"] == "2"
    report.plot(tmp_path / "errors.png")
    assert (tmp_path / "errors.png").stat().st_size > 5000


def test_exported_program_and_node_inside():
    program = torch.export.export(network(), (X,))
    assert omenn_fx.transform(program).validate(X).ok
    assert omenn_fx.transform(network(), output="flatten").validate(X, target=3).ok


def test_values_are_let_go_of():
    """Of a deep network no more than a few values are alive at any node."""

    class Alive(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.refs, self.most = [], 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.numel() == 256:
                import weakref

                self.refs = [r for r in self.refs if r() is not None] + [weakref.ref(out)]
                self.most = max(self.most, len(self.refs))
            return out

    from omenn_fx.checking.validate import Walk

    def most(depth):
        model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(depth))).eval()
        explainer = omenn_fx.transform(model, torch.randn(16, 16))
        program, leaves = explainer.program_for((torch.randn(16, 16),), {})
        with Alive() as alive, torch.no_grad():
            Walk(program.captured.module, program.tagged, lambda node, call, form: None).run(
                *leaves, enable_io_processing=False
            )
        return alive.most

    assert most(30) == most(4)
