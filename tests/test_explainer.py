"""The public face: lazy capture, recapture, dynamic batches, and what an Explainer and an Explanation offer."""

import logging

import pytest
import torch
from torch import nn

import omenn_fx


class Net(nn.Module):
    """A biased CNN with a residual connection."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace=True))
        self.head = nn.Linear(6, 5)
        nn.init.normal_(self.norm.running_mean)
        nn.init.normal_(self.norm.bias)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.head((x + self.block(x)).mean((2, 3)))


class Fixed(Net):
    """A model that writes its batch size down."""

    def forward(self, x):
        return super().forward(x.reshape(2, 3, 8, 8))


X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def messages(caplog):
    """What omenn_fx logs during the test."""
    caplog.set_level(logging.WARNING, "omenn_fx")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "omenn_fx"]


def exact(explanation, tol=1e-5):
    return explanation.completeness_error.max() < tol


def test_capture_is_lazy_and_explains_exactly():
    model = Net().eval()
    explainer = omenn_fx.transform(model)
    assert "not captured yet" in repr(explainer)
    e = explainer(X, target=2)
    torch.testing.assert_close(e.outputs, model(X))
    torch.testing.assert_close(e.value, model(X)[:, 2])
    torch.testing.assert_close(e.C.sum((1, 2, 3)), e.value)
    torch.testing.assert_close(e.C, e.C_w * e.X + e.C_b)
    torch.testing.assert_close(e.C_b.sum((1, 2, 3)), e.bias.total)
    assert e.X is X or torch.equal(e.X, X)
    assert e.C_w.shape == e.C_b.shape == e.C.shape == X.shape
    assert e.target.tolist() == [2, 2, 2]
    assert exact(e)
    assert set(e.bias) <= {n.name for n in explainer.nodes}
    assert e.bias["linear"].shape == (3,)
    with pytest.raises(KeyError):
        e.bias["nothing"]
    assert "completeness_error" in repr(e)
    assert "linear" in repr(e.bias)


def test_a_dynamic_batch_is_not_captured_anew(messages):
    explainer = omenn_fx.transform(Net().eval(), X)
    for n in (1, 2, 7):
        assert exact(explainer(torch.randn(n, 3, 8, 8)))
    assert not messages()


def test_a_batch_of_one_is_captured_dynamically(messages):
    explainer = omenn_fx.transform(Net().eval(), X[:1])
    assert exact(explainer(X))
    assert not messages()


def test_a_new_shape_recaptures_with_one_message_and_both_stay(messages):
    explainer = omenn_fx.transform(Net().eval(), X)
    assert exact(explainer(torch.randn(2, 3, 10, 6)))
    assert exact(explainer(X))
    assert exact(explainer(torch.randn(4, 3, 10, 6)))
    assert len(messages()) == 1
    assert "captured anew for new inputs: 'x' is (2, 3, 10, 6)" in messages()[0]


def test_a_model_that_fixes_its_batch_says_so(messages):
    explainer = omenn_fx.transform(Fixed().eval(), X[:2])
    assert len(messages()) == 1
    assert "fixed batch size: the model's code fixes it at 2" in messages()[0]
    assert exact(explainer(X[:2]))


def test_dynamic_batch_off_recaptures(messages):
    explainer = omenn_fx.transform(Net().eval(), X, dynamic_batch=False)
    assert exact(explainer(X[:2]))
    assert "captured anew" in messages()[0]


def test_to_double_moves_the_model_and_recaptures():
    explainer = omenn_fx.transform(Net().eval(), X)
    explainer(X)
    explainer.to(torch.float64)
    e = explainer(X.double())
    assert e.C.dtype == torch.float64
    assert exact(e, 1e-10)


def test_weights_are_shared_with_the_model():
    model = Net().eval()
    explainer = omenn_fx.transform(model, X)
    with torch.no_grad():
        model.head.weight.mul_(2)
    torch.testing.assert_close(explainer(X).outputs, model(X))


def test_the_graph_is_readable_and_has_no_backward():
    explainer = omenn_fx.transform(Net().eval(), X)
    names = {n.name for n in explainer.graph_module.graph.nodes}
    assert {"x", "cotangent", "conv2d", "conv2d_1_adjoint", "linear_share", "linear_adjoint"} <= names
    assert not any("backward" in str(n.target) for n in explainer.graph_module.graph.nodes)
    result = explainer.graph_module(X, torch.eye(5)[:3])
    assert set(result) == {"outputs", "X", "C_w", "C_b", "bias"}


def test_nodes_name_module_role_and_the_users_line():
    explainer = omenn_fx.transform(Net().eval(), X)
    nodes = {n.name: n for n in explainer.nodes}
    assert nodes["x"].role == "content"
    assert nodes["stem_weight"].role == "constant"
    conv = nodes["conv2d"]
    assert (conv.op, conv.module, conv.role) == ("aten.conv2d.default", "stem", "content")
    assert "test_explainer.py" in nodes["add"].source
    assert "return self.head((x + self.block(x)).mean((2, 3)))" in nodes["add"].source


def test_train_is_ignored_and_grad_mode_too():
    explainer = omenn_fx.transform(Net().eval(), X).train()
    assert not explainer.training
    assert not explainer.model.training
    e = explainer(X.requires_grad_())
    assert not e.C.requires_grad
    X.requires_grad_(False)


@pytest.mark.parametrize("bias", ["carrier", "contribution", "none"])
def test_bias_policies_keep_the_sum(bias):
    e = omenn_fx.transform(Net().eval().double(), X.double(), bias=bias)(X.double())
    assert exact(e, 1e-10)
    torch.testing.assert_close(e.sum, e.value)
    if bias == "none":
        assert e.C_b is None
        torch.testing.assert_close(e.C.sum((1, 2, 3)) + e.bias.total, e.value)
    else:
        torch.testing.assert_close(e.C.sum((1, 2, 3)), e.value)


def test_outputs_of_every_structure():
    class Many(Net):
        def forward(self, x):
            y = super().forward(x)
            return {"features": x.mean((2, 3)), "nested": (y * 2, y + 1), "logits": y}

    model = Many().eval()
    assert torch.equal(omenn_fx.transform(model)(X).outputs, model(X)["logits"])
    assert torch.equal(omenn_fx.transform(model, output="features")(X).outputs, model(X)["features"])
    assert torch.equal(omenn_fx.transform(model, output=lambda r: r["nested"][1])(X).outputs, model(X)["nested"][1])


def test_positions_of_outputs_with_more_than_two_dimensions():
    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x)

    model = Maps().eval()
    explainer = omenn_fx.transform(model)
    e = explainer(X, target=(1, 2, 3))
    torch.testing.assert_close(e.value, model(X)[:, 1, 2, 3])
    assert exact(e)
    torch.testing.assert_close(explainer(X).value, model(X).flatten(1).amax(1))
    with pytest.raises(omenn_fx.TargetError, match="give a tuple of 3 ints"):
        explainer(X, target=1)


def test_regression_outputs_without_a_class_dimension():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 1), nn.Flatten(0)).eval()
    e = omenn_fx.transform(model)(X)
    assert e.value.shape == (3,)
    torch.testing.assert_close(e.value, model(X))
    assert exact(e)


def test_explain_one_of_two_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.vector = nn.Conv2d(3, 4, 3), nn.Linear(6, 4)

        def forward(self, image, vector):
            return torch.relu(self.image(image)).mean((2, 3)) + torch.tanh(self.vector(vector))

    model, vector = Two().eval(), torch.randn(3, 6)
    both = omenn_fx.transform(model)(X, vector)
    assert set(both.inputs) == {"image", "vector"}
    assert exact(both)
    with pytest.raises(AttributeError, match="2 inputs are explained"):
        _ = both.C
    total = both.inputs["image"].C.sum((1, 2, 3)) + both.inputs["vector"].C.sum(1)
    torch.testing.assert_close(total, both.value)
    for explain in ("vector", 1, ["vector"]):
        one = omenn_fx.transform(model, explain=explain)(X, vector)
        assert one.C.shape == vector.shape
        assert exact(one)


@pytest.mark.parametrize("batch", [1, 3])
def test_compiled_code_does_not_capture_anew(batch):
    """Whatever batch it was captured at, compiled at another: the sizes that it checks are plain numbers and names."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    explainer = omenn_fx.transform(model, torch.randn(2, 4))
    compiled = torch.compile(explainer, backend="eager")
    x = torch.randn(batch, 4)
    for _ in range(2):
        torch.testing.assert_close(compiled(x, target=1).C, explainer(x, target=1).C)
    assert len(explainer._programs) == 1
