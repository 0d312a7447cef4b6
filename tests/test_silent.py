"""Nothing is silent: inputs whose C is 0 although they matter (OMENN107), and explanations that do not add up."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from torch import nn

import omenn_fx
from omenn_fx.algebra import Diagonal
from omenn_fx.explanation import BiasTable, Explanation, InputExplanation

N, D = 3, 4


class Net(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.function = forward
        self.one, self.two, self.three, self.head = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, 3)
        self.embed = nn.Embedding(9, D)

    def forward(self, *args):
        return self.function(self, *args)


def values(*shape):
    return torch.randn(*(shape or (N, D)), generator=torch.Generator().manual_seed(2))


def attention(m, x, y):
    scores = m.one(y)[:, :, None] * m.two(x)[:, None]
    return (torch.softmax(scores, -1) @ m.three(x)[..., None]).squeeze(-1)


COEFFICIENTS = {  # the operator of the content node that reads y
    "keys of attention": (attention, "matmul"),
    "a gate": (lambda m, x, y: torch.sigmoid(m.one(y)) * m.two(x), "mul"),
    "hard gate": (lambda m, x, y: torch.where(m.one(y) > 0, m.two(x), m.three(x)), "where"),
    "a float mask": (lambda m, x, y: m.two(x).masked_fill(y > 0, 0.0), "masked_fill"),
    "a mask of additions": (lambda m, x, y: torch.softmax(m.two(x) + y, -1) * m.three(x), "mul"),
    "a norm's statistic": (lambda m, x, y: m.two(x) / y.std(1, keepdim=True), "div"),
    "the largest": (lambda m, x, y: m.two(x) + m.one(y).argmax(1, keepdim=True), "add"),
    "buckets": (lambda m, x, y: m.two(x) * torch.bucketize(y, torch.tensor([0.0, 1.0])), "mul"),
    "rounded": (lambda m, x, y: m.two(x) + 0.1 * torch.round(3 * y), "add"),
    "an edge weight": (lambda m, x, y: (torch.softmax(y, -1)[:, None] * m.two(x)[:, None]).sum(1), "mul"),
    "positions to read": (lambda m, x, y: m.two(x).gather(1, y.argsort(1)), "gather"),
}


@pytest.mark.parametrize(("part", "op"), COEFFICIENTS.values(), ids=COEFFICIENTS)
def test_an_input_without_a_part_is_named(part, op, caplog):
    model, args = Net(lambda m, x, y: m.head(torch.relu(part(m, x, y)))).eval(), (values(), values().flip(0))
    with torch.no_grad():
        assert (model(args[0], 5 * values()) - model(*args)).abs().max() > 1e-3
    report = omenn_fx.check(model, args)
    assert report.supported
    (found,) = [w for w in report.warnings if w.kind.code == "OMENN107"]
    assert "'args_1'" in found.reason
    assert "args_0" not in str(found)
    assert op in found.place.op
    with caplog.at_level(logging.WARNING, "omenn_fx"):
        explainer = omenn_fx.transform(model, args)
    said = [r.message for r in caplog.records if "is 0 everywhere" in r.message]
    assert len(said) == 1
    assert "'args_1'" in said[0]
    assert f"node '{found.place.node}'" in said[0]
    got = explainer(*args, target=1)
    assert not got.inputs["args_1"].C.any()
    assert got.inputs["args_0"].C.any()
    caplog.clear()
    explainer(*args)
    assert not caplog.records  # once, at capture
    # the way out: the other inputs alone
    assert not [w for w in omenn_fx.check(model, args, explain="args_0").warnings if w.kind.code == "OMENN107"]


PARTS = {
    "a sum": lambda m, x, y: m.one(x) + m.two(y),
    "a product": lambda m, x, y: m.one(x) * m.two(y),
    "a gate that is added too": lambda m, x, y: torch.sigmoid(y) * m.one(x) + y,
    "passed by a detach": lambda m, x, y: m.one(x) + y.detach(),
    "a row of a table": lambda m, x, y: m.two(x) + m.embed(m.one(y).argmax(1)),
    "not read at all": lambda m, x, y: m.one(x),
    "only its shape": lambda m, x, y: m.one(x) + torch.zeros_like(y),
    "a scale": lambda m, x, y: m.one(x) * (1 + m.two(y)),
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_no_false_alarm(part, caplog):
    model, args = Net(lambda m, x, y: m.head(torch.relu(part(m, x, y)))).eval(), (values(), values().flip(0))
    report = omenn_fx.check(model, args)
    assert report.supported
    assert "OMENN107" not in [w.kind.code for w in report.warnings]
    omenn_fx.transform(model, args)
    assert "is 0 everywhere" not in caplog.text


def test_lookups_without_a_part_are_named():
    def gated(m, u):
        return m.head((torch.sigmoid(m.embed(u)) * m.one(m.embed(u % 3))).mean(1))

    report = omenn_fx.check(Net(gated).eval(), torch.arange(6).reshape(3, 2))
    assert ["'args_0:embedding'" in w.reason for w in report.warnings if w.kind.code == "OMENN107"] == [True]


def test_all_inputs_without_a_part_are_an_error():
    model = Net(lambda m, x, y: m.head(torch.where(x > y, m.one.weight[:1], m.two.weight[:1]))).eval()
    with pytest.raises(omenn_fx.NoContentError):
        omenn_fx.transform(model, (values(), values().flip(0)))


# Sums ----------------------------------------------------------------------------------------------------------------


@torch.library.custom_op("omenn_silent::double", mutates_args=())
def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@double.register_fake
def _(x):
    return torch.empty_like(x)


@omenn_fx.rule(double)
def _double(call):
    """Not its map: 2 % of the result are lost."""
    return Diagonal(1.96, call.shape(), call.out.shape)


def wrong(m, x):
    return m.head(torch.relu(torch.ops.omenn_silent.double(m.one(x))))


@pytest.mark.parametrize("bias", ["carrier", "contribution", "none"])
def test_what_does_not_add_up_is_a_warning(bias):
    explainer = omenn_fx.transform(Net(wrong).eval(), values(), bias=bias)
    with pytest.warns(omenn_fx.IncompleteWarning, match=r"does not add up.*omenn_silent.double.default") as said:
        explainer(values(), target=1)
    assert len(said) == 1
    report = explainer.validate(values(), target=1)
    assert not report.ok
    first = next(entry for entry in report.nodes if entry.worst > 1e-3)
    assert str(first.place) in str(said[0].message)
    with pytest.warns(omenn_fx.IncompleteWarning, match="does not add up"):
        explainer(values(), target=torch.tensor([[0, 1]] * N))


def test_deployed_explainers_say_so_too(tmp_path):
    with pytest.warns(omenn_fx.IncompleteWarning):
        omenn_fx.transform(Net(wrong).eval(), values()).save(tmp_path / "wrong.pt2", values())
    with pytest.warns(omenn_fx.IncompleteWarning, match=r"is off by \d"):
        omenn_fx.load(tmp_path / "wrong.pt2")(values())


def test_weights_that_are_not_finite():
    model = Net(lambda m, x: m.head(torch.relu(m.one(x)))).eval()
    with torch.no_grad():
        model.head.weight[1] = torch.nan
    explainer = omenn_fx.transform(model, values())
    with pytest.warns(omenn_fx.IncompleteWarning, match="nan"):
        explainer(values(), target=1)


EXACT = {
    "a plain one": (lambda m, x: m.head(torch.relu(m.one(x))), torch.float32),
    "float64": (lambda m, x: m.head(torch.relu(m.one(x))), torch.float64),
    "bfloat16": (lambda m, x: m.head(torch.relu(m.one(x))), torch.bfloat16),
    "a trunk in bfloat16": (lambda m, x: m.head(torch.tanh(m.one(x).bfloat16()).float()), torch.float32),
    "terms that cancel": (lambda m, x: m.head(1e4 * m.one(x) - 1e4 * (m.one(x) + 1e-3 * m.two(x))), torch.float32),
    "all of it cancels": (lambda m, x: m.head(m.one(x)) - m.head(m.one(x)) + m.two(x)[:, :3] * 0, torch.float32),
}


@pytest.mark.parametrize(("part", "dtype"), EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("zero", [False, True])
def test_rounding_is_no_warning(part, dtype, zero):
    x = torch.zeros(N, D, dtype=dtype) if zero else values().to(dtype)
    explainer = omenn_fx.transform(Net(part).to(dtype).eval(), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", omenn_fx.IncompleteWarning)
        explainer(x)
        explainer(x, target=torch.tensor([[0, 2]] * N))


def test_sums_that_are_not_known_are_not_judged():
    """A file may return C_w without C_b: nothing can be said of the sum then."""
    value, x = torch.ones(2), torch.ones(2, D)
    part = Explanation(
        torch.ones(2, 3), torch.zeros(2, dtype=torch.long), value, {"x": InputExplanation(x, x, None)},
        BiasTable(["head"], None, value),
    )  # fmt: skip
    assert not part.summed
    whole = Explanation(part.outputs, part.target, value, {"x": InputExplanation(x, x, x)}, part.bias)
    assert whole.summed
    assert not whole.adds_up(1e-5)
    assert whole.adds_up(1.0)
