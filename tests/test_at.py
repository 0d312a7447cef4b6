"""at=: the value of a module inside is explained in place of the inputs, and the sum is the logit still."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import omenn_fx
from omenn_fx.errors import InputError
from omenn_fx.export import load

X = torch.randn(3, 3, 12, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(c, c, 3, padding=1), nn.BatchNorm2d(c)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))


class Net(nn.Module):
    """Two blocks, and a second way around the last one."""

    def __init__(self, around=False):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2)
        self.layer1, self.layer2 = nn.Sequential(Block(6), Block(6)), nn.Sequential(Block(6))
        self.head, self.around = nn.Linear(6, 4), around

    def forward(self, x):
        x = self.layer1(self.stem(x))
        deep = self.layer2(x)
        return self.head((deep + x if self.around else deep).mean((2, 3)))


def made(model, **options):
    torch.manual_seed(0)
    model = model.eval().double()
    return model, omenn_fx.transform(model, X, **options)


@pytest.mark.parametrize("at", ["stem", "layer1", "layer1.0", "layer1.0.conv", "layer2"])
@pytest.mark.parametrize("bias", ["carrier", "contribution", "none"])
def test_the_sum_at_a_module_is_the_logit(at, bias):
    model, explainer = made(Net(), at=at, bias=bias)
    kept = {}
    hook = model.get_submodule(at).register_forward_hook(lambda module, args, out: kept.update(out=out))
    logits = model(X)
    hook.remove()
    found = explainer(X, target=2)
    assert list(found.inputs) == [at]
    torch.testing.assert_close(found.X, kept["out"].detach())
    torch.testing.assert_close(found.sum, logits[:, 2].detach())
    (gradient,) = torch.autograd.grad(logits[:, 2].sum(), kept["out"])
    torch.testing.assert_close(found.C_w, gradient)  # of ReLUs and norms in eval mode the weight row is the gradient
    assert explainer.validate(X).ok


def test_what_goes_around_is_a_bias():
    model, explainer = made(Net(around=True), at="layer2")
    found = explainer(X, target=1)
    torch.testing.assert_close(found.sum, model(X)[:, 1].detach())
    _, straight = made(Net(), at="layer2")
    torch.testing.assert_close(found.C_w, straight(X, target=1).C_w)
    share = float(found.bias.total.abs().sum())
    assert share > float(straight(X, target=1).bias.total.abs().sum())


def test_a_node_s_name_does_as_well():
    _, explainer = made(Net())
    name = next(n.name for n in explainer.nodes if n.module == "layer1.1" and "relu" in n.op)
    _, by_node = made(Net(), at=name)
    _, by_module = made(Net(), at="layer1")
    assert torch.equal(by_node(X).C, by_module(X).C)


def test_only_what_is_behind_it_is_computed_backwards():
    _, whole = made(Net())
    _, late = made(Net(), at="layer2")
    backwards = [len(e.ready.halves.backward.graph.nodes) for e in (whole, late)]
    assert backwards[1] < backwards[0] / 2


class Twice(nn.Module):
    """A module that is called twice, and one that returns two tensors."""

    def __init__(self):
        super().__init__()
        self.shared, self.lstm, self.head = nn.Linear(10, 10), nn.LSTM(10, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x):
        x = self.shared(torch.relu(self.shared(x.mean(1))))
        out, (h, _) = self.lstm(x)
        return self.head(out[:, -1] + h[0])


@pytest.mark.parametrize(
    ("at", "says"),
    [
        ("shared", r"2 values of this module are read outside of it: linear, linear_1\. Name one"),
        ("lstm", r"2 values of this module are read outside"),
        ("nowhere", r"is no module of the captured model.*Modules: shared, lstm, head"),
    ],
)
def test_what_names_no_single_value_is_refused_by_its_names(at, says):
    with pytest.raises(InputError, match=rf"at='{at}'.*{says}"):
        made(Twice(), at=at)
    report = omenn_fx.check(Twice().eval().double(), X, at=at)
    assert not report.supported
    assert at in str(report)


def test_inputs_and_a_module_are_not_explained_together():
    with pytest.raises(ValueError, match="give one"):
        made(Net(), at="layer1", explain=0)


def test_check_takes_it():
    assert omenn_fx.check(Net().eval().double(), X, at="layer2").supported


def test_a_file_explains_there(tmp_path):
    torch.manual_seed(0)
    model, x = Net().eval(), X.float()
    explainer = omenn_fx.transform(model, x, at="layer1")
    path = tmp_path / "at.onnx"
    explainer.to_onnx(path, x)
    found, wanted = load(path)(x, target=1), explainer(x, target=1)
    assert found.C.shape == (3, 6, 5, 4)
    torch.testing.assert_close(found.C, wanted.C, rtol=1e-4, atol=1e-6)
    session = onnxruntime.InferenceSession(path)
    (error,) = session.run(["completeness"], {"x": x.numpy(), "target": np.array([1, 1, 1])})
    assert (error <= 1e-5).all()
    explainer.save(tmp_path / "at.pt2", x)
    torch.testing.assert_close(omenn_fx.load(tmp_path / "at.pt2")(x, target=1).C, wanted.C)
