"""Model and explanation as one ONNX file in onnxruntime, and as a .pt2 file: the explainer's own explanations."""

import json
import logging
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
import torch
from models import build
from test_explainer import Fixed, Net, X
from torch import nn
from typer.testing import CliRunner

import omenn_fx
from omenn_fx.cli.explain import app
from omenn_fx.errors import CaptureError, ExportError, InputError, OutputError, ParityError, TargetError
from omenn_fx.export import load
from omenn_fx.export import verify as verify_module


@pytest.fixture(scope="module")
def explainer():
    torch.manual_seed(0)
    return omenn_fx.transform(Net().eval(), X)


@pytest.fixture(scope="module")
def file(explainer, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    return explainer.to_onnx(
        path, X, outputs=("logits", "C", "C_w", "C_b", "bias", "completeness"), metadata={"mean": "0.5"}
    )


def same(got, want, tolerance=1e-6):
    assert got.shape == want.shape
    assert (got - want).abs().max() <= tolerance * want.abs().max().clamp_min(1e-3)


def test_the_file(file, explainer):
    assert file.inputs == ["x", "target"]
    assert file.outputs == ["logits", "C", "C_w", "C_b", "bias", "completeness"]
    assert file.proof.inputs == 4  # those given, random ones, one row more, and one row
    assert file.proof.completeness < 1e-6
    assert "verified on 4 inputs" in repr(file)
    onnx.checker.check_model(str(file.path), full_check=True)
    model = onnx.load(str(file.path))
    assert not {n.op_type for n in model.graph.node if n.domain not in ("", "ai.onnx")}, "an operator of no standard"
    notes = {p.key: p.value for p in model.metadata_props}
    assert notes["omenn_fx.rules"] == "omenn"
    assert notes["omenn_fx.bias"] == "carrier"
    assert notes["omenn_fx.mean"] == "0.5"
    assert json.loads(notes["omenn_fx.biased"]) == list(explainer(X).bias)
    assert len(notes["omenn_fx.weights_sha256"]) == 64
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize(
    "target", [None, 2, torch.tensor([3, 1, 0, 2, 4]), torch.tensor([[0, 1], [2, 3], [4, 0], [1, 1], [2, 2]])]
)
def test_like_the_explainer(file, explainer, batch, target):
    x = torch.randn(batch, 3, 8, 8)
    target = target[:batch] if isinstance(target, torch.Tensor) else target
    got, want = load(file.path)(x.numpy(), target=target), explainer(x, target=target)
    for name in ("outputs", "value", "C", "C_w", "C_b", "sum"):
        same(getattr(got, name), getattr(want, name))
    assert (got.target == want.target).all()
    same(got.bias.total, want.bias.total)
    assert (got.completeness_error < 1e-6).all()


def test_plain_onnxruntime_without_this_package(file):
    session = onnxruntime.InferenceSession(str(file.path), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    logits, c = session.run(["logits", "C"], {"x": x, "target": np.array([0, 1, 2, 3])})
    np.testing.assert_allclose(c.sum((1, 2, 3)), logits[range(4), range(4)], rtol=1e-5)


@pytest.mark.parametrize("target", ["top1", 3, [1, 4, 0]])
def test_a_fixed_target(explainer, tmp_path, target):
    file = explainer.to_onnx(tmp_path / "t.onnx", target=target, outputs=("C", "target"))
    assert file.inputs == ["x"]
    got = load(file.path)(X)
    several = torch.tensor([target] * 3) if isinstance(target, list) else None if target == "top1" else target
    want = explainer(X, target=several)
    same(got.C, want.C)
    same(got.sum, want.value)
    same(got.value, want.value)
    with pytest.raises(TargetError, match="leave target out"):
        load(file.path)(X, target=0)


def test_several_targets_share_one_forward(explainer, tmp_path):
    one, three = (
        onnx.load(str(explainer.to_onnx(tmp_path / f"{len(t)}.onnx", target=t).path)) for t in ([1], [1, 4, 0])
    )
    relus = [sum(n.op_type == "Relu" for n in m.graph.node) for m in (one, three)]
    assert relus[0] == relus[1] > 0


def test_the_file_holds_no_path_of_the_machine(file):
    """torch.onnx writes the lines of code that each node comes from; the names of modules stay."""
    data = file.path.read_bytes()
    assert b".py" not in data
    assert str(Path(__file__).parents[1]).encode() not in data
    assert any(
        p.key == "pkg.torch.onnx.name_scopes" for n in onnx.load(str(file.path)).graph.node for p in n.metadata_props
    )


def test_masks_lean_on_no_default(tmp_path):
    """OpenVINO takes beta = 0 of a HardSigmoid for one that is not given, which is 0.5: every mask is wrong there."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2)
    )
    x = torch.randn(1, 3, 8, 8)
    written = omenn_fx.transform(model.eval(), x).to_onnx(tmp_path / "masks.onnx", x)
    masks = [n for n in onnx.load(str(written.path)).graph.node if n.op_type == "HardSigmoid"]
    assert len(masks) == 2
    assert all(a.f != 0 for n in masks for a in n.attribute if a.name == "beta")
    feeds = {"input_1": x.numpy(), "target": np.array([1])}
    session = onnxruntime.InferenceSession(str(written.path))
    _, c, _ = onnx.reference.ReferenceEvaluator(str(written.path)).run(None, feeds)
    np.testing.assert_allclose(session.run(None, feeds)[1], c, atol=1e-6)


@pytest.mark.parametrize("bias", ["contribution", "none"])
def test_bias_policies(tmp_path, bias):
    explainer = omenn_fx.transform(Net().eval(), X, bias=bias)
    got = load(explainer.to_onnx(tmp_path / "b.onnx", X, outputs=("C", "bias")).path)(X, target=1)
    want = explainer(X, target=1)
    same(got.C, want.C)
    same(got.bias.total, want.bias.total)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert_sdpa_ids", "llama_eager", "two_inputs", "lstm", "swin", "efficientnet_b0"])
def test_architectures(name, tmp_path):
    model, args, kwargs = build(name, torch.float32)
    explainer = omenn_fx.transform(model, args, example_kwargs=kwargs)
    file = explainer.to_onnx(tmp_path / "a.onnx", *args, outputs=("logits", "C", "X"), **kwargs)
    assert not file.proof.random, "dropout is off in attention and recurrent layers"
    assert file.proof.parity < 1e-4 + 10 * (file.proof.rounding or 0)
    assert file.proof.completeness < 1e-5
    got, want = load(file.path)(*args, **kwargs), explainer(*args, **kwargs)
    for name, one in want.inputs.items():
        assert ((got.inputs[name].C - one.C).abs().sum() / want.scale.sum()) < 1e-3
        same(got.inputs[name].X, one.X)


class Distances(nn.Module):
    """Logits are negative distances to prototypes."""

    def __init__(self, p):
        super().__init__()
        self.prototypes, self.p = nn.Parameter(torch.randn(5, 4)), p

    def forward(self, x):
        return -torch.cdist(x, self.prototypes, p=self.p)


class Projected(nn.Module):
    """An LSTM whose hidden state is projected, which onnxruntime's is not."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 6, proj_size=3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def volumes():
    """Windows of several sizes, in three dimensions."""
    return nn.Sequential(nn.Conv3d(2, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool3d((2, 3, 1)), nn.Flatten(), nn.Linear(24, 3))


class Ranks(nn.Module):
    """Values by their place in an order."""

    def __init__(self, read):
        super().__init__()
        self.read, self.head = read, nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.read(torch.relu(x) + x / 4))


def largest(size):
    """The largest value of each window, which torch calls adaptive."""
    features = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.AdaptiveMaxPool2d(size), nn.Flatten())
    return nn.Sequential(features, nn.Linear(4 if size == 1 else 24, 3))


def experts():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.MixtralConfig(vocab_size=32, num_key_value_heads=1, num_local_experts=3, **sizes)
    return transformers.MixtralForCausalLM(config), torch.randint(0, 32, (1, 6))


@pytest.mark.parametrize("make", [
    lambda: (Distances(2.0), torch.randn(3, 4)),
    lambda: (Distances(1.0), torch.randn(3, 4)),
    lambda: (Distances(3.0), torch.randn(3, 4)),
    lambda: (Projected(), torch.randn(3, 5, 4)),
    lambda: (volumes(), torch.randn(3, 2, 5, 6, 4)),
    lambda: (Ranks(lambda y: torch.sort(y, dim=1, stable=True)[0][:, 2]), torch.randn(3, 5, 6)),
    lambda: (Ranks(lambda y: torch.sort(y, stable=True, descending=True)[0].mean(1)), torch.randn(3, 5, 6)),
    lambda: (Ranks(lambda y: y.median(1)[0]), torch.randn(3, 4, 6)),
    lambda: (Ranks(lambda y: y.median(-2, keepdim=True)[0].squeeze(1)), torch.randn(3, 5, 6)),
    lambda: (Ranks(lambda y: y.kthvalue(2, 1)[0]), torch.randn(3, 5, 6)),
    lambda: (largest(1), torch.randn(3, 2, 6, 4)),
    lambda: (largest((3, 2)), torch.randn(3, 2, 6, 4)),
    lambda: (nn.Sequential(nn.Linear(6, 5), nn.RReLU(), nn.Linear(5, 2)), torch.randn(3, 6)),
    experts,
], ids=["distances, p = 2", "p = 1", "p = 3", "projected LSTM", "adaptive pool of volumes",
        "sort", "sort downwards", "median", "median of an odd number", "kthvalue", "largest", "largest of each window",
        "rrelu", "experts"])  # fmt: skip
def test_what_torch_does_not_translate(make, tmp_path):
    torch.manual_seed(0)
    model, x = make()
    written = omenn_fx.transform(model.eval(), x).to_onnx(
        tmp_path / "m.onnx", x, dynamic=() if len(x) == 1 else ("batch",)
    )
    assert written.proof.completeness < 1e-5
    assert written.proof.parity < 1e-5


def test_a_fixed_batch(tmp_path):
    file = omenn_fx.transform(Fixed().eval(), X[:2]).to_onnx(tmp_path / "f.onnx", X[:2])
    with pytest.raises(InputError, match=r"'x' has shape \(3, 3, 8, 8\), the file takes \(2, 3, 8, 8\)"):
        load(file.path)(X)
    explainer = omenn_fx.transform(Net().eval(), X)
    one = load(explainer.to_onnx(tmp_path / "g.onnx", X[:1], dynamic=()).path)
    same(one(X[:1]).C, explainer(X[:1]).C)
    with pytest.raises(InputError):
        one(X)


def test_one_sample_without_a_batch(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).eval()
    nodes = torch.randn(6, 4)
    explainer = omenn_fx.transform(model, nodes, batched=False)
    got = load(explainer.to_onnx(tmp_path / "n.onnx", nodes).path)(nodes, target=(2, 1))
    same(got.C, explainer(nodes, target=(2, 1)).C)


class Attention(nn.Module):
    """One block of a transformer over embeddings, with a class token's share and a mask."""

    def __init__(self, positions=None):
        super().__init__()
        self.norm, self.qkv, self.out, self.head = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 3)
        self.positions = None if positions is None else nn.Parameter(torch.randn(1, positions, 8))

    def forward(self, x, mask=None):
        n, t, c = x.shape
        x = x if self.positions is None else x + self.positions
        q, k, v = self.qkv(self.norm(x)).view(n, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        seen = None if mask is None else mask[:, None, None, :]
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).reshape(n, t, c))
        return self.head(x[:, 0]) + self.head(nn.functional.gelu(x)).mean(1)


class Tokens(Attention):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)

    def forward(self, ids, mask):
        return super().forward(self.embed(ids), mask)


class Encoder(nn.Module):
    """torch's own attention, which puts tokens and batch into one dimension."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(x)).mean(1)


def tokens_of(kind, n, t):
    """A model over tokens, and inputs of n samples of t tokens."""
    if kind == "embeddings":
        return Attention().eval(), (torch.randn(n, t, 8),)
    return Tokens().eval(), (torch.randint(0, 11, (n, t)), torch.arange(t).expand(n, t) < t - 2)


@pytest.mark.parametrize("kind", ["embeddings", "ids"])
def test_any_number_of_tokens(kind, tmp_path):
    model, args = tokens_of(kind, 3, 7)
    file = omenn_fx.transform(model, args).to_onnx(tmp_path / "t.onnx", *args, dynamic=("batch", "tokens"))
    assert file.proof.inputs == 4  # the third has another number of samples and of tokens, the last has one sample
    session = load(file.path)
    assert session.session.get_inputs()[0].shape[:2] == ["batch", "tokens"]
    assert json.loads(session.metadata["dynamic"]) == ["batch", "tokens"]
    for n, t in [(1, 4), (2, 19)]:
        _, other = tokens_of(kind, n, t)
        got, want = session(*other, target=1), omenn_fx.transform(model, other)(*other, target=1)
        same(got.outputs, want.outputs)
        same(got.C, want.C)
        same(got.sum, want.value)


def head_of(*layers):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)
    )


def between(c=16):
    """Layers of c channels each, whose adjoints depend on the sizes."""
    strided = [nn.Conv2d(c, c, 3, 2, 1), nn.ReLU(), nn.Conv2d(c, c, 1, 2), nn.GELU(), nn.Conv2d(c, c, 2, 2)]
    grouped = [nn.Conv2d(c, c, 3, 2, 2, 2, 4), nn.BatchNorm2d(c), nn.Conv2d(c, c, 5, 3, groups=c)]
    uneven = [nn.Conv2d(c, c, 2, 1, 2), nn.ReLU(), nn.Conv2d(c, c, 2, 3)]
    transposed = [nn.ConvTranspose2d(c, c, 3, 2, 1, 1), nn.ReLU(), nn.ConvTranspose2d(c, c, 2, 3)]
    largest = [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(3, 2, ceil_mode=True)]
    average = [nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AvgPool2d(2)]
    wider = [nn.Upsample(scale_factor=2), nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear")]
    return [strided, grouped, uneven, transposed, largest, average, wider]


@pytest.mark.parametrize("layers", between())
def test_any_height_and_width(layers, tmp_path):
    model, x = head_of(*layers).eval(), torch.randn(2, 3, 24, 28)
    free = ("batch", "height", "width")
    file = omenn_fx.transform(model, x).to_onnx(tmp_path / "f.onnx", x, dynamic=free)
    session = load(file.path)
    assert session.session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    for shape in [(1, 3, 33, 22), (3, 3, 29, 31)]:
        other = torch.randn(shape)
        got, want = session(other, target=1), omenn_fx.transform(model, other)(other, target=1)
        same(got.outputs, want.outputs, 1e-5)
        same(got.C, want.C, 1e-5)
        same(got.sum, want.value, 1e-5)


def test_free_tokens_of_one_sample(tmp_path):
    """torch's own attention allows free tokens where the batch is fixed at one."""
    model, x = Encoder().eval(), torch.randn(1, 5, 8)
    file = omenn_fx.transform(model, x).to_onnx(tmp_path / "t.onnx", x, dynamic=("tokens",), target=0)
    session = load(file.path)
    assert session.session.get_inputs()[0].shape == [1, "tokens", 8]
    other = torch.randn(1, 9, 8)
    same(session(other).C, omenn_fx.transform(model, other)(other, target=0).C)


def test_what_fixes_a_size_is_named(tmp_path):
    def export(model, x, *free):
        omenn_fx.transform(model, x).to_onnx(tmp_path / "s.onnx", x, dynamic=("batch", *free))

    x = torch.randn(3, 7, 8)
    with pytest.raises(CaptureError, match=r"(?s)tokens of 'x' cannot stay free.*x \+ self\.positions"):
        export(Attention(positions=7).eval(), x, "tokens")
    with pytest.raises(CaptureError, match="folds it into the dimension of the batch"):
        export(Encoder().eval(), x, "tokens")
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)).eval()
    with pytest.raises(ExportError, match=r"(?s)height and width cannot stay free.*aten\.adaptive_avg_pool2d"):
        export(pooled, torch.randn(2, 3, 16, 16), "height", "width")
    with pytest.raises(ExportError, match="keeps its sizes"):
        export(torch.export.export(Attention().eval(), (x,)), x, "tokens")


def test_float16(explainer, tmp_path):
    file = explainer.to_onnx(tmp_path / "half.onnx", X, dtype="float16")
    got, want = load(file.path)(X.half(), target=1), explainer(X, target=1)
    assert got.C.dtype == torch.float16
    same(got.C.float(), want.C, 1e-2)
    assert file.proof.completeness < 1e-2
    single = explainer.to_onnx(tmp_path / "single.onnx", X, verify=False)
    assert weights_of(file.path) < 0.6 * weights_of(single.path)


def weights_of(path):
    """The bytes of floating-point numbers in a file; the operators of a small model weigh more."""
    arrays = [onnx.numpy_helper.to_array(i) for i in onnx.load(str(path)).graph.initializer]
    return sum(a.nbytes for a in arrays if a.dtype.kind == "f")


def test_a_transformer_in_float16(tmp_path):
    """ONNX returns a layer norm's statistics in float32; the adjoint goes on in the model's dtype."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)
    model = nn.Sequential(layer, nn.LayerNorm(8), nn.Flatten(), nn.Linear(40, 3)).eval()
    x = torch.randn(2, 5, 8)
    explainer = omenn_fx.transform(model, x)
    file = explainer.to_onnx(tmp_path / "half.onnx", x, dtype="float16")
    assert file.proof.completeness < 1e-3
    got, want = load(file.path)(x.half(), target=1), explainer(x, target=1)
    assert got.C.dtype == torch.float16
    same(got.C.float(), want.C, 1e-2)


def test_a_float64_model_leaves_in_float32(tmp_path):
    explainer = omenn_fx.transform(Net().double().eval(), X.double())
    file = explainer.to_onnx(tmp_path / "d.onnx")
    same(load(file.path)(X, target=1).C.double(), explainer(X.double(), target=1).C)


def test_what_cannot_be_exported(explainer, tmp_path):
    path = tmp_path / "e.onnx"
    with pytest.raises(OutputError, match="'heat'"):
        explainer.to_onnx(path, outputs=("heat",))
    with pytest.raises(TargetError, match="'best'"):
        explainer.to_onnx(path, target="best")
    with pytest.raises(TargetError, match="out of range"):
        explainer.to_onnx(path, target=5)
    with pytest.raises(TargetError, match="out of range"):
        explainer.to_onnx(path, target=[0, 5])
    with pytest.raises(ExportError, match="float64"):
        explainer.to_onnx(path, dtype="float64")
    with pytest.raises(ExportError, match="can stay free is batch, tokens, height, width"):
        explainer.to_onnx(path, dynamic=("batch", "channels"))
    with pytest.raises(OutputError, match="no C_b"):
        omenn_fx.transform(Net().eval(), X, bias="none").to_onnx(path, outputs=("C_b",))
    with pytest.raises(omenn_fx.OmennError, match="nothing is captured yet"):
        omenn_fx.transform(Net().eval()).to_onnx(path)
    assert not path.exists()


def test_what_cannot_be_loaded(file, tmp_path):
    with pytest.raises(ExportError, match="there is no file"):
        load(tmp_path / "nothing.onnx")
    with pytest.raises(ExportError, match="this onnxruntime has"):
        load(file.path, providers=["NoSuchProvider"])
    other = nn.Linear(2, 2).eval()
    torch.onnx.export(other, (torch.zeros(1, 2),), dynamo=True, verbose=False).save(tmp_path / "other.onnx")
    with pytest.raises(ExportError, match=r"not one that Explainer.to_onnx wrote"):
        load(tmp_path / "other.onnx")
    session = load(file.path)
    assert "CPUExecutionProvider" in repr(session)
    with pytest.raises(InputError, match="takes x"):
        session(X, X)
    with pytest.raises(TargetError, match="out of range"):
        session(X, target=5)
    with pytest.raises(TargetError, match="positions"):
        session(X, target=torch.randn(5))


def test_another_computation_is_refused_and_named(explainer, tmp_path, monkeypatch):
    """A file whose weights are wrong by a hundredth: the error names the convolution and its module."""
    saved = verify_module.load

    def damaged(path, providers=None):
        model = onnx.load(str(path))
        for tensor in model.graph.initializer:
            if len(tensor.dims) == 4 and tensor.dims[1] == 3:
                values = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.01), tensor.name))
        onnx.save(model, str(path))
        return saved(path, providers)

    monkeypatch.setattr(verify_module, "load", damaged)
    with pytest.raises(ParityError, match=r"(?s)The first node that differs: aten.conv2d.default"):
        explainer.to_onnx(tmp_path / "wrong.onnx", X)


def test_a_stride_beyond_the_kernel_by_phases(tmp_path):
    """Its phases read less than the image: a cut of an image whose batch is free (MViTv2's pooling)."""
    for kernel, stride, padding in ((3, 4, 1), (3, 8, 1), (1, 4, 0)):
        convolution = nn.Conv2d(3, 4, kernel, stride=stride, padding=padding)
        model = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)).eval()
        x = torch.randn(1, 3, 32, 32)
        model(x)
        file = omenn_fx.transform(model, x).to_onnx(tmp_path / "phases.onnx", x)
        assert file.proof.parity < 1e-5
        assert file.proof.inputs == 3  # the last has one row more


def test_bounds_of_two_clips_of_one_value(tmp_path):
    """onnxscript's rule for a minimum of a maximum names the bounds of both alike (Gemma's vision tower)."""

    class Clipped(nn.Module):
        def __init__(self):
            super().__init__()
            for name, value in (("low", -0.5), ("high", 1.0), ("floor", -0.25), ("ceiling", 0.75)):
                self.register_buffer(name, torch.tensor(value))

        def forward(self, x):
            first, second = torch.clamp(x, self.low, self.high), torch.clamp(x, self.floor, self.ceiling)
            return torch.stack([first.sum(1), second.sum(1)], 1)

    x = torch.randn(2, 8)
    assert omenn_fx.transform(Clipped().eval(), x).to_onnx(tmp_path / "clipped.onnx", x).proof.parity < 1e-5


def test_a_unit_at_its_kink_is_no_error(tmp_path, monkeypatch):
    """A ReLU just above 0 in one library and at 0 in the other: the explanation on either side is right."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
        model[0].bias.copy_(torch.tensor([1e-9, 0.5]))  # unit 0 is 1e-9 where both inputs are alike
        model[2].weight.fill_(1.0)
    saved = verify_module.load

    def rounded(path, providers=None):
        file = onnx.load(str(path))
        for tensor in file.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.shape == (2,) and np.isclose(values[1], 0.5):
                tensor.CopyFrom(onnx.numpy_helper.from_array(values - np.float32([2e-9, 0]), tensor.name))
        onnx.save(file, str(path))
        return saved(path, providers)

    monkeypatch.setattr(verify_module, "load", rounded)
    x = torch.tensor([[2.0, 2.0]])
    file = omenn_fx.transform(model, x).to_onnx(tmp_path / "k.onnx", x, target=0)
    assert file.proof.parity > 0.1
    assert file.proof.kinks
    assert "rounding decided at" in repr(file)


def test_a_model_that_draws_random_numbers(tmp_path):
    """Its sum is verified; its C is another at each run."""

    class Noisy(Net):
        def forward(self, x):
            return super().forward(x) * (1 + torch.rand_like(x[:, :1, 0, 0]))

    file = omenn_fx.transform(Noisy().eval(), X).to_onnx(tmp_path / "r.onnx", X)
    assert file.proof.random
    assert file.proof.completeness < 1e-5
    assert "draws random numbers" in repr(file)


# .pt2 and workers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, 2, torch.tensor([[0, 1], [2, 3], [4, 0]]), torch.eye(5)[:3], (slice(1, 3),)])
def test_a_saved_explainer_explains_the_same(explainer, tmp_path, target):
    explainer.save(tmp_path / "net.explain.pt2", X[:2])
    saved = omenn_fx.load(tmp_path / "net.explain.pt2")
    got, want = saved(X, target=target), explainer(X, target=target)
    for name in ("outputs", "value", "C", "C_w", "C_b", "sum"):
        same(getattr(got, name), getattr(want, name))
    assert list(got.bias) == list(want.bias)
    same(got.bias.total, want.bias.total)
    assert "rules='omenn'" in repr(saved)
    with pytest.raises(InputError, match="takes x"):
        saved(X, X)


def test_a_saved_explainer_is_optimised_and_runs_one_forward(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    omenn_fx.transform(model).save(tmp_path / "n.pt2", X[:2])
    saved = omenn_fx.load(tmp_path / "n.pt2")
    targets = {str(n.target) for n in saved.program.graph.nodes}
    assert not any("batch_norm" in t or "conv_transpose" in t for t in targets)
    ran = []
    forward, backward = saved._runnable.halves.forward, saved._runnable.halves.backward
    forward.register_forward_hook(lambda *_: ran.append("forward"))
    backward.register_forward_hook(lambda *_: ran.append("backward"))
    saved(X, target=torch.tensor([[0, 1, 2]] * len(X)))
    assert ran == ["forward", "backward", "backward", "backward"]
    with pytest.raises(
        InputError, match=r"'input_1' is \(3, 3, 9, 9\) torch.float32; this explainer was saved for \(N, 3, 8, 8\)"
    ):
        saved(torch.randn(3, 3, 9, 9))


def test_a_saved_transformer_takes_the_batch_from_its_input(tmp_path):
    """Its class token is repeated for each sample: the number of them must not be read from the cotangent."""
    model, args, _ = build("small_vit", torch.float32)
    explainer = omenn_fx.transform(model, args[0])
    explainer.save(tmp_path / "vit.pt2", args[0])
    saved, x, target = omenn_fx.load(tmp_path / "vit.pt2"), args[0].repeat(2, 1, 1, 1), torch.tensor([0, 1])
    for got, want in ((saved(x), explainer(x)), (saved(x[:2], target=target), explainer(x[:2], target=target))):
        same(got.C, want.C)
        assert got.completeness_error.max() < 1e-5


def test_what_is_no_saved_explainer(explainer, tmp_path):
    with pytest.raises(ExportError, match=r"ends in .pt2"):
        explainer.save(tmp_path / "net.onnx", X)
    with pytest.raises(ExportError, match="there is no file"):
        omenn_fx.load(tmp_path / "nothing.pt2")
    torch.export.save(torch.export.export(Net().eval(), (X,)), tmp_path / "plain.pt2")
    with pytest.raises(ExportError, match=r"but not one that Explainer\.save wrote"):
        omenn_fx.load(tmp_path / "plain.pt2")


def test_a_pickled_explainer_captures_for_itself(explainer, caplog):
    again = pickle.loads(pickle.dumps(explainer))
    with caplog.at_level(logging.WARNING, logger="omenn_fx"):
        same(again(X, target=1).C, explainer(X, target=1).C, 1e-7)
    assert not caplog.records
    assert again.request.rules is explainer.request.rules


# Command line --------------------------------------------------------------------------------------------------------


def test_export_from_the_command_line(tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\ndef net():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(),"
        " torch.nn.Linear(4 * 36, 5))\n"
    )
    out = tmp_path / "net.onnx"
    spec = [f"{tmp_path}/net.py:net", "--size", "8", "-o", str(out)]
    result = CliRunner().invoke(app, ["export", *spec, "--target", "top1"])
    assert result.exit_code == 0, result.output
    assert "verified on" in result.output
    assert json.loads(load(out).metadata["mean"]) == pytest.approx([0.485, 0.456, 0.406])
    assert load(out)(np.zeros((2, 3, 8, 8), np.float32)).completeness_error.max() < 1e-5
    result = CliRunner().invoke(app, ["export", *spec, "--outputs", "heat"])
    assert result.exit_code == 2
    assert "'heat'" in result.output
    assert CliRunner().invoke(app, ["export", *spec, "--target", "cat"]).exit_code == 2
    result = CliRunner().invoke(app, ["export", *spec, "--any-size"])
    assert result.exit_code == 2, "its linear layer reads 36 positions"
    assert "height and width cannot stay free: the model fails at one more: mat1 and mat2 shapes" in result.output


# Other runtimes ------------------------------------------------------------------------------------------------------

DEPLOYED = Path(__file__).resolve().parents[1] / "examples" / "deployed"


def printed_sum_is_the_logit(text):
    found = re.findall(r"class \d+: logit (\S+), sum of C (\S+)", text)
    assert found, text
    for logit, total in found:
        assert float(total) == pytest.approx(float(logit), abs=1e-4)


def test_the_script_without_torch(file):
    script = [sys.executable, str(DEPLOYED / "explain.py"), str(file.path)]
    printed_sum_is_the_logit(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
    assert "import torch" not in (DEPLOYED / "explain.py").read_text(encoding="utf-8")


def test_node(file, tmp_path):
    """The same file in JavaScript, where Node.js and its package registry are there."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("Node.js and npm are not installed")
    shutil.copytree(DEPLOYED, tmp_path / "deployed", ignore=shutil.ignore_patterns("node_modules"))
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(tmp_path / "deployed")]
    try:
        subprocess.run(install, capture_output=True, check=True, timeout=180)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip("onnxruntime-node cannot be installed from the registry")
    script = ["node", str(tmp_path / "deployed" / "explain.mjs"), str(file.path)]
    printed_sum_is_the_logit(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
