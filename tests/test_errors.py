"""Every kind of bad input gets a clear error, before any work is lost."""

import dataclasses
import inspect
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import omenn_fx
from omenn_fx.analysis.plan import Request
from omenn_fx.errors import Place

LIBRARY = torch.library.Library("omenn_tests", "FRAGMENT")
LIBRARY.define("twist(Tensor x) -> Tensor")
LIBRARY.impl("twist", lambda x: x.flip(-1) * x, "CompositeExplicitAutograd")
torch.library.register_fake("omenn_tests::twist", torch.empty_like, lib=LIBRARY)

X = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.drop, self.head = (
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.Dropout(),
            nn.Linear(4, 5),
        )

    def features(self, x):
        return self.drop(torch.relu(self.norm(self.conv(x))))

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def variant(forward):
    """Net with another forward, in eval mode."""
    return type("Variant", (Net,), {"forward": forward})().eval()


@pytest.fixture(scope="module")
def explainer():
    return omenn_fx.transform(Net().eval(), X)


def test_train_mode_names_the_random_modules():
    with pytest.raises(
        omenn_fx.ModeError, match=r"train mode.*'norm' \(BatchNorm2d\), 'drop' \(Dropout\).*model\.eval\(\)"
    ):
        omenn_fx.transform(Net())
    half = Net().eval()
    half.drop.train()
    with pytest.raises(omenn_fx.ModeError, match="'drop'"):
        omenn_fx.transform(half)


def test_model_put_back_in_train_mode_before_the_first_call():
    model = Net().eval()
    explainer = omenn_fx.transform(model)
    model.train()
    with pytest.raises(omenn_fx.ModeError, match="train mode"):
        explainer(X)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (5, "target 5 is out of range: the output has 5 values, 0 to 4"),
        (-1, "target -1 is out of range"),
        (torch.tensor([1, 9]), "target 9 is out of range"),
        (torch.tensor([[0, 1], [2, -3]]), "target -3 is out of range"),
        (torch.tensor([1, 2, 3]), r"target of shape \(3,\) does not fit a batch of 2"),
        (torch.zeros(2, 1, 1, dtype=torch.long), r"does not fit a batch of 2"),
        (torch.zeros(2, 0, dtype=torch.long), "names no class"),
        (torch.tensor([1.0, 2.0]), r"weights of shape \(2,\) do not fit outputs \(2, 5\): give \[5\] for all rows"),
        (torch.ones(2, 3, 4), r"weights of shape \(2, 3, 4\) do not fit outputs \(2, 5\)"),
        (torch.tensor([True, False]), "must hold integers or floating-point weights, not torch.bool"),
        ((slice(None), 1), r"does not index a row of outputs \[N, 5\]"),
        ((slice(9, None),), "selects no value"),
        (lambda outputs: "cat", "not str"),
        ("cat", "not str"),
        (True, "not bool"),
        ((1, 2), r"does not select one value of outputs \[N, 5\]: give an int"),
    ],
)
def test_bad_target(explainer, target, message):
    with pytest.raises(omenn_fx.TargetError, match=message):
        explainer(X, target=target)


def nan_at(value):
    x = X.clone()
    x[0, 0, 0, 0] = value
    return x


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((X.numpy(),), "an input is a ndarray, not a torch.Tensor"),
        ((X[0],), r"input 'x' has 3 dimensions \(3, 8, 8\), captured with 4"),
        ((X.double(),), r"the input is torch.float64, the model's weights are torch.float32: convert one"),
        ((X.to(torch.uint8),), "input 'x' is torch.uint8, captured as torch.float32"),
        ((X.to("meta"),), "the input is on meta, the model on cpu"),
        ((X, X), r"do not fit Net.forward\(x\): too many positional arguments"),
        ((), "no input is a tensor with a batch dimension"),
        ((nan_at(float("nan")),), "input 'x' holds NaN"),
        ((nan_at(float("inf")),), "input 'x' holds inf"),
    ],
)
def test_bad_input(explainer, args, message):
    with pytest.raises(omenn_fx.InputError, match=message):
        explainer(*args)


def test_bad_input_at_the_first_call():
    for x, message in ((np.zeros((2, 3, 8, 8)), "ndarray"), (X.double(), "weights are torch.float32")):
        with pytest.raises(omenn_fx.InputError, match=message):
            omenn_fx.transform(Net().eval())(x)


def test_a_failed_call_leaves_the_explainer_usable(explainer):
    with pytest.raises(omenn_fx.InputError):
        explainer(X.double())
    assert explainer(X).completeness_error.max() < 1e-5


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda self, x: Net.forward(self, x).mean(), r"of shape \(\) has no batch dimension.*like logits"),
        (lambda self, x: Net.forward(self, x).mean(0), r"of shape \(5,\) has no batch dimension"),
        (lambda self, x: Net.forward(self, x).argmax(1), "'argmax' holds torch.int64: explain the logits"),
        (lambda self, x: 3, "returns"),
    ],
)
def test_outputs_that_are_no_logits(forward, message):
    with pytest.raises(omenn_fx.OutputError, match=message):
        omenn_fx.transform(variant(forward), X)


def test_output_that_does_not_exist():
    model = variant(lambda self, x: {"logits": Net.forward(self, x), "n": 3})
    with pytest.raises(
        omenn_fx.OutputError, match=r"output='probs' is not part of what the model returns: dict of linear"
    ):
        omenn_fx.transform(model, X, output="probs")


def test_no_floating_point_path():
    counts = variant(lambda self, ids: (ids[..., None] == torch.arange(5)).float().sum(1))
    with pytest.raises(omenn_fx.NoContentError, match="no floating-point input and no embedding"):
        omenn_fx.transform(counts, torch.randint(0, 5, (2, 3)))
    steps = variant(lambda self, x: Net.forward(self, x).argmax(1).float()[:, None])
    with pytest.raises(omenn_fx.NoContentError, match=r"content ends at aten.argmax.default \(node 'argmax'\)"):
        omenn_fx.transform(steps, X)
    constant = variant(lambda self, x: self.head(torch.ones(x.shape[0], 4)))
    with pytest.raises(omenn_fx.NoContentError, match="does not depend on x at all"):
        omenn_fx.transform(constant, X)


class Unsupported(Net):
    def forward(self, x):
        h = torch.ops.omenn_tests.twist(self.conv(x))
        h = torch.special.i0(h)
        return self.head(h.mean((2, 3)))


def test_all_operators_without_a_rule_are_listed_at_once():
    with pytest.raises(omenn_fx.UnsupportedOpError) as caught:
        omenn_fx.transform(Unsupported().eval(), X)
    text = str(caught.value)
    assert {p.op for p in caught.value.places} == {"omenn_tests.twist.default", "aten.i0.default"}
    assert "no rule for 2 operator calls" in text
    assert "test_errors.py" in text
    assert "h = torch.special.i0(h)" in text  # the user's own line
    assert "node 'twist'" in text
    assert "Nothing falls back to the plain gradient" in text


def test_a_capture_that_fails_shows_the_users_line(capfd):
    def forward(self, x):
        h = self.conv(x)
        if h.sum() > 0:
            h = h * 2
        return self.head(h.mean((2, 3)))

    with pytest.raises(omenn_fx.CaptureError) as caught:
        omenn_fx.transform(variant(forward), X)
    text = str(caught.value)
    assert "if h.sum() > 0:" in text
    assert "test_errors.py" in text
    assert "torch.where, a mask, or torch.cond" in text
    assert len(text.splitlines()) == 3
    out, err = capfd.readouterr()
    assert "def forward" not in out + err  # no page of export internals beside it


def test_arguments_of_transform(tmp_path):
    model = Net().eval()
    for kwargs, error, message in (
        ({"bias": "all"}, ValueError, "carrier, contribution, none"),
        ({"rules": "lrp"}, ValueError, "no rule set 'lrp'; known: .*, omenn"),
        ({"explain": "img"}, omenn_fx.InputError, "the model's tensor inputs are x"),
        ({"explain": 3}, omenn_fx.InputError, "the model's tensor inputs are x"),
        ({"roles": {"nothing*": "content"}}, ValueError, "no node or module path matches 'nothing"),
        ({"roles": {"relu": "gate"}}, ValueError, "a role is 'content' or 'coefficient'"),
    ):
        with pytest.raises(error, match=message):
            omenn_fx.transform(model, X, **kwargs)
    with pytest.raises(omenn_fx.CaptureError, match="there is no file"):
        omenn_fx.transform(str(tmp_path / "model.pt2"))
    with pytest.raises(TypeError, match="cannot transform a function"):
        omenn_fx.transform(lambda x: x)


def test_looking_inside_before_a_capture_and_at_unknown_nodes(explainer):
    with pytest.raises(omenn_fx.OmennError, match="nothing is captured yet"):
        _ = omenn_fx.transform(Net().eval()).nodes
    with pytest.raises(ValueError, match="there is no node 'zzz'"):
        explainer.affine(X, to="zzz")
    with pytest.raises(ValueError, match="is a constant: only content nodes"):
        explainer.affine(X, to="conv_weight")
    with pytest.raises(omenn_fx.SizeError, match=r"has 110,592 elements, more than max_elements=10;"):
        explainer.affine(X, to="relu").to_dense(max_elements=10)


def test_transform_and_check_have_the_defaults_of_a_request():
    """Their signatures state them for the reader; the record is what counts."""
    for function in (omenn_fx.transform, omenn_fx.check):
        stated = {n: p.default for n, p in inspect.signature(function).parameters.items()}
        of_request = {f.name: f.default for f in dataclasses.fields(Request) if f.default is not dataclasses.MISSING}
        assert stated.pop("rules") == "omenn" == Request.of().rules.name
        shared = stated.keys() & of_request.keys()
        assert {"explain", "output", "roles", "dynamic_batch", "batched"} <= shared
        assert {n: stated[n] for n in shared} == {n: of_request[n] for n in shared}


def test_an_error_is_its_reason_its_places_and_its_fix():
    place = Place("relu", "aten.relu.default", "block.act", "/a/notes in it/net.py", 3, "forward", "return relu(x)")
    assert place.source == "/a/notes in it/net.py:3 in forward: return relu(x)"
    error = omenn_fx.CaptureError("it broke", place, "mend it")
    assert str(error) == f"it broke\n  at {place.source}\n  What to change: mend it."
    for one in (error, omenn_fx.MixedBatchError(place), omenn_fx.UnsupportedOpError([place], "omenn")):
        again = pickle.loads(pickle.dumps(one))
        assert (str(again), again.reason, again.places, again.fix) == (str(one), one.reason, one.places, one.fix)
