"""Convolutions of an image without a batch: one sample as it is, or the samples of a batch one by one."""

import pytest
import torch
from torch import nn

import omenn_fx
from omenn_fx.export import load

F64 = torch.float64


class Net(nn.Module):
    def __init__(self, layer, channels):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(channels, 3)

    def forward(self, x):
        y = torch.relu(self.layer(x * 1.5))
        return self.head(y.flatten(1).mean(1))


LAYERS = {
    "conv1d": (nn.Conv1d(3, 4, 3, 2, 1), (3, 9)),
    "conv2d": (nn.Conv2d(3, 4, 3, 2, 1), (3, 9, 7)),
    "groups": (nn.Conv2d(3, 6, 3, groups=3, bias=False), (3, 9, 7)),
    "same": (nn.Conv2d(3, 4, 4, padding="same"), (3, 9, 7)),
    "conv3d": (nn.Conv3d(2, 4, 2), (2, 4, 5, 3)),
    "transposed": (nn.ConvTranspose2d(3, 4, 3, 2, 1, 1), (3, 5, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rules", ["omenn", "epsilon_plus"])
def test_one_image_is_one_sample(name, rules):
    layer, shape = LAYERS[name]
    torch.manual_seed(0)
    model, x = Net(layer, 6 if name == "groups" else 4).eval().to(F64), torch.randn(shape, dtype=F64)
    assert omenn_fx.check(model, x, batched=False, rules=rules).supported
    explainer = omenn_fx.transform(model, x, batched=False, rules=rules)
    found = explainer(x, target=1)
    torch.testing.assert_close(found.sum, model(x)[1:2].detach())
    assert found.C.shape == (1, *shape)
    if rules == "omenn":
        assert explainer.validate(x).ok
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(leaf)[1], leaf)
        torch.testing.assert_close(found.C_w[0], gradient)


def test_a_convolution_itself_may_be_the_output():
    layer, x = nn.Conv1d(3, 4, 3, padding=1).eval().to(F64), torch.randn(3, 6, dtype=F64)
    found = omenn_fx.transform(layer, x, batched=False)(x, target=(2, 5))
    torch.testing.assert_close(found.sum, layer(x)[2, 5][None].detach())


class Each(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.stack([torch.relu(self.conv(image)) for image in x.unbind(0)]).mean((2, 3)))


def test_samples_one_by_one(tmp_path):
    torch.manual_seed(0)
    model, x = Each().eval(), torch.randn(2, 3, 8, 8)
    explainer = omenn_fx.transform(model, x)
    assert explainer.validate(x).ok
    assert [n.name for n in explainer.nodes if "conv2d" in n.op] == ["conv2d", "conv2d_1"]
    explainer.to_onnx(tmp_path / "each.onnx", x)
    torch.testing.assert_close(load(tmp_path / "each.onnx")(x, target=1).C, explainer(x, target=1).C)


class Across(nn.Module):
    """The rows of a batch [3, T] as channels."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv1d(3, 3, 3, padding=1), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.conv(x))


def test_rows_as_channels_meet():
    x = torch.randn(3, 6)
    assert not omenn_fx.check(Across().eval(), x).supported
    with pytest.raises(omenn_fx.MixedBatchError, match=r"conv1d.*in module 'conv'"):
        omenn_fx.transform(Across().eval(), x)
