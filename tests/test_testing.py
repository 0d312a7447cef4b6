"""`check_rule` accepts a right rule and says what is wrong with a wrong one; `rule` says what it cannot take."""

import pytest
import torch

import omenn_fx
from omenn_fx.algebra.form import Affine, Bias
from omenn_fx.algebra.linear import Diagonal, Linear, Matrix
from omenn_fx.algebra.ruleset import RuleSet, omenn
from omenn_fx.testing import INVARIANTS, RuleError, check_rule

aten = torch.ops.aten


@torch.library.custom_op("omenn_tests::lift", mutates_args=())
def lift(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return 2 * x + b


@lift.register_fake
def _(x, b):
    return torch.empty_like(x)


X, B = torch.randn(3, 4), torch.randn(4)


def right(call):
    return Diagonal(2.0, call.shape(), call.out.shape), Bias(call["b"], -1)


class Broken(Diagonal):
    def transpose(self, g):
        return g * 2.002


class Leaky(Diagonal):
    def carry(self, mass):
        return mass.scaled(0.999)


class Affinely(Diagonal):
    def apply(self, u):
        return 2 * u + 1e-3


class Infinite(Diagonal):
    def transpose(self, g):
        return g * torch.inf


class Backward(Diagonal):
    def transpose(self, g):
        return torch.ops.aten.tanh_backward(g, torch.zeros_like(g)) * 2


class Narrow(Diagonal):
    def transpose(self, g):
        return 2 * g[:, :2]


def check(form, samples=((X, B),)):
    rules = RuleSet("trial")
    rules.register(lift)(form)
    rules.add(omenn.table[aten.sum.default])
    return check_rule(lift, samples, rules=rules)


def test_right_rule():
    report = check(right)
    assert set(report.worst) == set(INVARIANTS)
    assert report.failures(2e-5) == []


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda call: (Diagonal(2.002, call.shape(), call.out.shape), Bias(call["b"], -1)), "node is off"),
        (lambda call: Diagonal(2.0, call.shape(), call.out.shape), "node is off"),
        (lambda call: (Broken(2.0, call.shape(), call.out.shape), Bias(call["b"], -1)), "transpose is off"),
        (lambda call: (Leaky(2.0, call.shape(), call.out.shape), Bias(call["b"], -1)), r"mass \(carrier\) is off"),
        (lambda call: (Affinely(2.0, call.shape(), call.out.shape), Bias(call["b"] - 1e-3, -1)), "linear is off"),
        (lambda call: (Infinite(2.0, call.shape(), call.out.shape), Bias(call["b"], -1)), "finite is off by inf"),
        (lambda call: (Backward(2.0, call.shape(), call.out.shape), Bias(call["b"], -1)), "tanh_backward"),
        (lambda call: (Narrow(2.0, call.shape(), call.out.shape), Bias(call["b"], -1)), r"W\^T v of x is .*\(3, 2"),
        (lambda call: (Matrix(call["b"], call.shape()), None), "W h of x is .* must be torch.float64 .3, 4"),
        (lambda call: torch.cat([]), "sample 0, as given, float64: "),
        (lambda call: Affine({}), "terms for nothing, not for x"),
        (lambda call: Linear(), "NotImplementedError"),
    ],
)  # fmt: skip
def test_wrong_rule(form, message):
    with pytest.raises(RuleError, match=message) as caught:
        check(form)
    assert "omenn_tests.lift.default is not exact" in str(caught.value)
    assert isinstance(caught.value, (omenn_fx.OmennError, AssertionError))


def test_every_failure_is_listed():
    with pytest.raises(RuleError) as caught:
        check(lambda call: Diagonal(2.0, call.shape(), call.out.shape))
    assert {line.split(":")[0] for line in caught.value.failures} >= {
        f"sample 0, {variant}, {dtype}"
        for variant in ("as given", "not contiguous", "zero")
        for dtype in ("float64", "float32")
    }


def test_own_tolerance():
    rules = RuleSet("trial")
    rules.register(aten.relu.default)(lambda call: Diagonal((call.x > 0) * 1.001, call.shape(), call.out.shape))
    with pytest.raises(RuleError):
        check_rule(aten.relu.default, [X], rules=rules, dtypes=[torch.float64])
    with pytest.raises(RuleError, match="no rule"):
        check_rule(aten.relu.default, [X], rules=rules, dtypes=[torch.float64], tolerance={torch.float64: 1e-2})


def test_what_cannot_be_checked():
    with pytest.raises(ValueError, match=r"aten.linalg_svd.default has no rule in the rule set 'omenn'"):
        check_rule(aten.linalg_svd.default, [X])
    with pytest.raises(ValueError, match=r"aten.argmax.default has no form"):
        check_rule(aten.argmax.default, [X])
    with pytest.raises(ValueError, match="needs at least one sample"):
        check_rule(aten.relu.default, [])
    with pytest.raises(ValueError, match="takes self; a sample gives 2 operands"):
        check_rule(aten.relu.default, [(X, X)])
    with pytest.raises(ValueError, match="has no floating-point operand"):
        check_rule(aten.relu.default, [X.long()])


def test_what_a_rule_is_for():
    rules = RuleSet("trial")
    with pytest.raises(ValueError, match=r"aten.relu has several overloads, name one: .*aten.relu.default"):
        rules.register(aten.relu)(right)
    with pytest.raises(ValueError, match="has no operand 'input': content is one or more of x, b"):
        rules.register(lift, content="input")(right)
    with pytest.raises(ValueError, match="given by name, must say content"):
        rules.register("mylib.op.default")(right)
    rules.register(torch.ops.omenn_tests.lift)(right)
    assert rules.get(torch.ops.omenn_tests.lift.default).content == ("x",)
    with pytest.raises(ValueError, match="already has a rule"):
        rules.register(lift)(right)
