"""The record of an operator says what trying the operator says, and what it does not say is tried."""

from __future__ import annotations

import pytest
import torch
from samples import SAMPLES, name_of
from torch import nn

import omenn_fx
from omenn_fx.algebra import Diagonal, omenn, rule_set, rule_sets
from omenn_fx.algebra.aliases import ALIASES, canonical
from omenn_fx.analysis.probe import depends_on_content, rows_meet
from omenn_fx.capture.captured import capture
from omenn_fx.capture.nodes import producer, slots_of
from omenn_fx.testing import CallModule

aten = torch.ops.aten
SILENT = {  # static, although another form for values that are not finite, or at the kinks of a mask
    aten.nan_to_num.default,
}


def test_every_built_in_record_is_whole():
    """What could be tried is stated, so that no capture of a known operator pays for trying it."""
    for rule in omenn:
        if rule.form is not None and str(rule.op).split(".")[0] in ("aten", "transformers"):
            assert rule.dynamic is not None, rule.op
            assert rule.rows is not None, rule.op


def calls(model: nn.Module, inputs):
    """The calls of an operator in a captured model, with what may carry content."""
    graph = capture(model, inputs, {}, omenn, dynamic_batch=False).graph
    for node in graph.nodes:
        call = producer(node)[0]
        rule = omenn.get(call.target) if call.op == "call_function" else None
        if rule is not None and rule.form is not None and node.users and isinstance(node.meta.get("val"), torch.Tensor):
            slots = [slot for slot, operand in slots_of(call, rule) if operand.op == "placeholder"]
            if slots:
                yield node, rule, tuple(slots)


@pytest.mark.parametrize("op", list(dict.fromkeys(canonical(s.op) for s in SAMPLES)), ids=name_of)
def test_what_is_stated_of_w_is_what_trying_finds(op):
    """A record that calls W constant is right wherever it can be tried."""
    for sample in [s for s in SAMPLES if canonical(s.op) is op]:
        model = CallModule(sample.call(torch.float32))
        for node, rule, slots in calls(model, model.inputs()):
            if rule.dynamic or rule.op in SILENT or rule.multiplies(slots[0]):
                continue
            unstated = omenn_fx.algebra.Rule(rule.op, rule.form, rule.content)
            assert not depends_on_content(node, unstated, slots[:1]), node.format_node()


def test_every_alias_is_captured_as_its_operator():
    class Aliased(nn.Module):
        def forward(self, x):
            x = torch.multiply(torch.subtract(x, 0.1), torch.arctan(x))
            x = torch.concat([x, torch.absolute(torch.negative(x))], -1)
            x = torch.true_divide(torch.clip(x, -0.5, 2.0), 3.0)
            return torch.swapaxes(x.view(-1, 2, 4), axis0=1, axis1=2).flatten(1)

    x = torch.randn(2, 4, dtype=torch.float64)
    explainer = omenn_fx.transform(Aliased().eval(), x)
    used = {node.op for node in explainer.nodes}
    assert not used & set(map(str, ALIASES))
    assert {"aten.mul.Tensor", "aten.sub.Tensor", "aten.atan.default", "aten.cat.default", "aten.transpose.int"} <= used
    assert explainer(x, target=3).completeness_error.max() < 1e-12


def test_an_alias_has_its_operators_rule_and_can_have_none_of_its_own():
    assert omenn.get(aten.multiply.Tensor) is omenn.get(aten.mul.Tensor)
    with pytest.raises(ValueError, match="already has a rule"):
        omenn_fx.rule(aten.multiply.Tensor)(lambda call: None)


# Rules of users ------------------------------------------------------------------------------------------------------


@torch.library.custom_op("records::bump", mutates_args=())
def bump(x: torch.Tensor) -> torch.Tensor:
    return x * torch.exp(-x * x)


@torch.library.custom_op("records::halve", mutates_args=())
def halve(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x


@torch.library.custom_op("records::centre", mutates_args=())
def centre(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(0)


@torch.library.custom_op("records::suffix", mutates_args=())
def suffix(x: torch.Tensor) -> torch.Tensor:
    return x.flip(0).cumsum(0).flip(0)


USERS = (bump, halve, centre, suffix)
for _op in USERS:
    _op.register_fake(torch.empty_like)


@pytest.fixture(scope="module", autouse=True)
def _rules():
    omenn_fx.rule(bump)(lambda call: Diagonal(torch.exp(-call.x * call.x), call.shape(), call.out.shape))
    omenn_fx.rule(halve)(lambda call: Diagonal(0.5, call.shape(), call.out.shape))
    omenn_fx.rule(centre)(lambda call: Diagonal(call.out / call.x, call.shape(), call.out.shape))
    omenn_fx.rule(suffix)(lambda call: Diagonal(call.out / call.x, call.shape(), call.out.shape))
    yield
    for op in USERS:
        del omenn.table[op._opoverload]


class Net(nn.Module):
    def __init__(self, op):
        super().__init__()
        self.op, self.first, self.head = op, nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.op(self.first(x)))


def verdict(op, rules="omenn"):
    report = omenn_fx.check(Net(op).eval(), torch.randn(2, 5), rules=rules)
    return report, next((n for n in report.nodes if n.op.startswith("records.")), None)


def test_a_rule_of_a_user_that_says_nothing_is_tried():
    assert verdict(bump)[1].verdict.value == "dynamic"
    assert verdict(halve)[1].verdict.value == "affine"


@pytest.mark.parametrize("op", [centre, suffix])
def test_samples_that_meet_in_a_users_operator_are_found(op):
    """In one direction alone, too; and the user's random numbers stay as they are."""
    model, x = Net(op).eval(), torch.randn(2, 5)
    before = torch.get_rng_state()
    report = omenn_fx.check(model, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert [p.kind.code for p in report.problems] == ["OMENN007"]
    assert verdict(bump)[0].supported


@pytest.mark.parametrize("rules", rule_sets())
def test_a_users_rule_works_in_every_set_or_check_says_where_not(rules):
    """It was registered after the sets were made."""
    report, _ = verdict(bump, rules)
    if rules == "gradient":
        assert [(p.kind.code, p.place.op) for p in report.problems] == [("OMENN006", "records.bump.default")]
    elif rules == "omenn":
        assert report.supported
    else:
        said = [str(w) for w in report.warnings if w.kind.code == "OMENN106"]
        assert report.supported
        assert rules == "omenn_gamma" or any("records.bump.default" in text for text in said)
    model, x = Net(halve).eval().double(), torch.randn(2, 5, dtype=torch.float64)
    explanation = omenn_fx.transform(model, x, rules=rule_set(rules))(x, target=1)
    assert explanation.completeness_error.max() < 1e-12
    if rules == "gradient":
        want = 0.5 * model.head.weight[1] @ model.first.weight
        torch.testing.assert_close(explanation.C_w, want.expand(2, -1))


def test_rows_of_a_result_that_has_no_such_dimension_count_as_met():
    model = Net(lambda x: x.sum(0, keepdim=True).expand(2, -1)).eval()
    captured = capture(model, (torch.randn(2, 5),), {}, omenn, dynamic_batch=False)
    node = next(n for n in captured.graph.nodes if n.target is aten.sum.dim_IntList)
    assert rows_meet(node, omenn_fx.algebra.Slot("self"), 0)
    assert not rows_meet(node, omenn_fx.algebra.Slot("self"), 1) or node.meta["val"].shape[1] == 4
