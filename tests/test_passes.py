"""The passes keep what the graph computes: on whole architectures in float64, and one by one where they act."""

import pytest
import torch
import torch.nn.functional as F
from models import BUILDERS, build
from torch import nn

import omenn_fx
from omenn_fx.capture.editor import Editor
from omenn_fx.export.deployed import Deployed
from omenn_fx.export.passes.onnxruntime_layout import for_onnxruntime
from omenn_fx.export.passes.optimize import merge_equal_nodes, optimize
from omenn_fx.export.passes.phases import phase_kernel, taps
from omenn_fx.export.program import export_at

aten = torch.ops.aten


def exported(model, args, kwargs=None):
    """The graph of model and explanation, what it is called with, and what it should return."""
    explainer = omenn_fx.transform(model, args, example_kwargs=kwargs)
    program, leaves = explainer.program_for(args, kwargs or {})
    deployed = Deployed(program, leaves, ("logits", "C_w", "C"), "input")
    want = explainer(*args, **(kwargs or {}))
    tensors = [t for t in leaves if isinstance(t, torch.Tensor)]
    values = [*tensors, want.target]
    return export_at(deployed, values, tensors[0].shape[0]).module(), values, want


def results(module, values, want):
    with torch.no_grad():
        got = module(*values)
    names = [n for part in ("C_w", "C") for n in [part] * len(want.inputs)]
    wanted = [want.outputs] + [getattr(i, part) for part in ("C_w", "C") for i in want.inputs.values()]
    return zip(["logits", *names], got, wanted, strict=True)


def assert_keeps(module, values, want, tolerance):
    for name, got, wanted in results(module, values, want):
        assert got.shape == wanted.shape
        size = wanted.abs().max().clamp_min(1e-30)
        assert (got - wanted).abs().max() <= tolerance * size, (
            f"{name} is off by {(got - wanted).abs().max() / size:.1e}"
        )


def count(module, *targets):
    return sum(n.target in targets for n in module.graph.nodes)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_architectures(name):
    model, args, kwargs = build(name, torch.float64)
    module, values, want = exported(model, args, kwargs)
    before = len(module.graph.nodes)
    assert_keeps(optimize(module), values, want, 1e-11)
    assert len(module.graph.nodes) <= before * 1.2


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("size", [11, 12])
def test_phases(stride, kernel, padding, size):
    """One convolution for each phase, interleaved, is the transposed convolution."""
    weight = torch.randn(4, 3, kernel, dtype=torch.float64)
    out = (size + 2 * padding - kernel) // stride + 1
    g = torch.randn(2, 3, out, dtype=torch.float64)  # weight as of a convolution 4 <- 3, taken the transposed way
    rest = size - ((out - 1) * stride - 2 * padding + kernel)
    want = F.conv_transpose1d(g, weight.transpose(0, 1), None, stride, padding, rest) if rest < max(stride, 1) else None
    if want is None:
        pytest.skip("positions that no window reads")
    blocks = -(-size // stride)
    got = torch.zeros(2, 4, blocks * stride, dtype=torch.float64)
    for c in range(stride):
        window = taps([c], kernel, stride, padding)
        if window is not None:
            part = F.conv1d(F.pad(g, window.pads(blocks - out)), phase_kernel(weight, (c,), [window]))
            got[:, :, c::stride] = part
    torch.testing.assert_close(got[:, :, :size], want)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [4, 24])
def test_no_transposed_convolution_is_left(groups, stride, channels):
    model = nn.Sequential(
        nn.Conv2d(channels, 8, 3, stride, 1, groups=groups, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 6, 5, stride, 2), nn.Flatten(), nn.LazyLinear(3),
    ).double().eval()  # fmt: skip
    x = torch.randn(2, channels, 9, 9, dtype=torch.float64)
    model(x)
    module, values, want = exported(model, (x,))
    optimize(module)
    assert_keeps(module, values, want, 1e-12)
    assert count(module, aten.conv_transpose2d.input) == 0
    assert count(module, aten.batch_norm.default) == 0


class Cropped(nn.Module):
    """A convolution behind padding that differs by side, with the size and stride of its windows given."""

    def __init__(self, kernel, stride, groups):
        super().__init__()
        self.first = nn.Conv2d(3, 24, 1)
        self.conv = nn.Conv2d(24, 24, kernel, stride, groups=groups)

    def forward(self, x):
        return self.conv(F.pad(self.first(x).relu(), [0, 1, 2, 1])).mean((2, 3))


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 2, 24), (2, 1, 1), (2, 1, 24), (3, 2, 1), (5, 3, 24)])
def test_a_crop_becomes_part_of_the_adjoint_in_front_of_it(kernel, stride, groups):
    model = Cropped(kernel, stride, groups).double().eval()
    module, values, want = exported(model, (torch.randn(2, 3, 9, 8, dtype=torch.float64),))
    assert wide_crops(module) == 2
    optimize(module)
    assert_keeps(module, values, want, 1e-12)
    assert wide_crops(module) == 0
    assert count(module, aten.conv_transpose2d.input) == 0


def wide_crops(module):
    """Crops of all channels: those of bias mass have one."""
    return sum(n.meta["val"].shape[1] == 24 for n in module.graph.nodes if n.target is aten.narrow.default)


def test_a_class_token_needs_its_own_part_of_the_last_block_only():
    model, args, _ = build("vit_b_16", torch.float64)
    module, values, want = exported(model, args)
    before = count(module, aten.scaled_dot_product_attention.default)
    optimize(module)
    assert_keeps(module, values, want, 1e-11)
    assert before > 0
    assert count(module, aten.scaled_dot_product_attention.default) == 0  # A is made once, for both ways
    linear = [n.meta["val"].shape for n in module.graph.nodes if n.target is aten.linear.default]
    assert any(s[1] == 1 for s in linear[-3:]), "the last block's feed-forward is computed for all tokens"


def test_equal_nodes_are_merged_and_random_ones_are_not():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch._subclasses.FakeTensorMode().from_tensor(torch.zeros(3))
    pairs = [graph.call_function(op, (x,)) for op in (aten.relu.default, aten.bernoulli.default) for _ in range(2)]
    graph.output(tuple(pairs))
    module = torch.fx.GraphModule(nn.Module(), graph)
    merge_equal_nodes(Editor(module))
    assert count(module, aten.relu.default) == 1
    assert count(module, aten.bernoulli.default) == 2


@pytest.mark.parametrize("name", ["small_cnn", "resnet18", "resnet50", "small_vit", "mobilenet_v3_small"])
def test_the_layout_of_onnxruntime_changes_no_value(name):
    model, args, kwargs = build(name, torch.float32)
    module, values, _ = exported(model, args, kwargs)
    optimize(module)
    with torch.no_grad():
        plain = module(*values)
        again = for_onnxruntime(module)(*values)
    for got, wanted in zip(again, plain, strict=True):
        assert (got - wanted).abs().max() <= 2e-5 * wanted.abs().max()


@pytest.mark.parametrize("bias", [True, False])
def test_a_relu6_of_a_dead_channel_and_of_a_saturated_one(bias):
    """The ratio made of the reciprocal alone: 0 where a channel is 0, 6 / x above 6, 1 between."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3, bias=bias), nn.ReLU6(), nn.Conv2d(16, 4, 3), nn.Flatten()).eval()
    with torch.no_grad():
        model[0].weight[0] = 0
        model[0].weight[1] *= 30
        if bias:
            model[0].bias[0] = 0
    module, values, want = exported(model, (torch.randn(2, 3, 9, 9),))
    for_onnxruntime(optimize(module))
    assert_keeps(module, values, want, 2e-6)
    assert count(module, aten.reciprocal.default) == 1


class Packed(nn.Module):
    """The middle of a packed bias is set to zero in place, as in Swin V2."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6))

    def forward(self, x):
        bias = self.bias.clone()
        bias[2:4].zero_()
        return nn.functional.linear(x, self.weight, bias).relu()


def test_constants_that_are_written_in_place_are_not_folded(tmp_path):
    model, x = Packed().eval(), torch.randn(3, 4)
    explainer = omenn_fx.transform(model, x)
    file = explainer.to_onnx(tmp_path / "packed.onnx", x)
    assert file.proof.logits < 1e-6
