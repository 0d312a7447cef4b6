"""Whole architectures keep every invariant, in float64 and float32, under every way to call an explainer."""

import logging

import pytest
import torch
from invariants import TOLERANCE, Report, completeness, mass, measure
from models import BATCH, BUILDERS, CLASSES, build
from torch import Tensor, nn

import omenn_fx

pytestmark = pytest.mark.slow
DTYPES = {"float64": torch.float64, "float32": torch.float32}


def transformed(name, dtype=torch.float64, **options):
    model, args, kwargs = build(name, dtype)
    return omenn_fx.transform(model, args, example_kwargs=kwargs, **options), model, args, kwargs


def rows(args, kwargs, index):
    """Some samples of a batch."""
    return tuple(a[index] for a in args), {k: v[index] for k, v in kwargs.items()}


def warnings_in(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "omenn_fx" and r.levelno >= logging.WARNING]


def assert_same(got, want, tolerance=1e-12):
    """Two explanations agree: values, weights, bias masses and the bias table, relative to the largest entry."""
    assert_near(got.value, want.value, tolerance)
    assert got.inputs.keys() == want.inputs.keys()
    for name, expected in want.inputs.items():
        for part in ("X", "C_w", "C_b", "C"):
            assert_near(getattr(got.inputs[name], part), getattr(expected, part), tolerance)
    assert list(got.bias) == list(want.bias)
    for name in want.bias:
        assert_near(got.bias[name], want.bias[name], tolerance, size=want.scale.max())


def assert_near(got, want, tolerance, size=None):
    assert got.shape == want.shape
    size = want.abs().max() if size is None else size
    assert ((got - want).abs() <= tolerance * size).all(), f"off by {((got - want).abs() / size).max():.1e}"


# Invariants ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BUILDERS)
def test_invariants(name, dtype, caplog):
    dtype = DTYPES[dtype]
    explainer, model, args, kwargs = transformed(name, dtype)
    report = measure(explainer, model, *args, **kwargs)
    print(f"\n{name} {dtype}: {report}")  # shown by pytest -s or on failure
    assert not report.failures(TOLERANCE[dtype])
    if dtype == torch.float64:  # a sample's explanation does not depend on the others of its batch
        whole = explainer(*args, **kwargs)
        for i in range(BATCH):
            one_args, one_kwargs = rows(args, kwargs, slice(i, i + 1))
            one = explainer(*one_args, **one_kwargs)
            for input_name, expected in whole.inputs.items():
                assert_near(one.inputs[input_name].C[0], expected.C[i], 1e-10)
            assert_near(one.bias.total[0], whole.bias.total[i], 1e-10, size=whole.scale[i])
    # Llama looks for packed sequences where the batch is one: that is another branch, and captured as that
    said = [text for text in warnings_in(caplog) if "the model takes another branch of its code where" not in text]
    assert not said, "captured with a fixed batch, or anew for a batch of one"


@pytest.mark.parametrize("name", ["resnet18", "small_vit", "lstm", "bert_eager", "two_inputs"])
def test_bias_policies(name):
    """Every policy keeps sum(C) == f; none of them touches the weights or the shares."""
    carrier, _, args, kwargs = transformed(name)
    reference = carrier(*args, **kwargs)
    for bias in ("contribution", "none"):
        explainer, *_ = transformed(name, bias=bias)
        report, explanation = Report(), explainer(*args, **kwargs)
        completeness(report, explanation)
        mass(report, explanation)
        assert not report.failures(1e-10)
        assert_near(explanation.sum, explanation.value, 1e-10, size=explanation.scale)
        assert_near(explanation.bias.total, reference.bias.total, 1e-12, size=reference.scale)
        for input_name, expected in reference.inputs.items():
            got = explanation.inputs[input_name]
            assert_near(got.C_w, expected.C_w, 1e-12)
            if bias == "none":
                assert got.C_b is None
            else:
                assert (got.C_b - expected.C_b).abs().max() > 1e-6, "the policy moved nothing"


# Targets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small_cnn", "small_vit", "gru", "bert_sdpa", "two_inputs"])
def test_targets(name):
    explainer, _, args, kwargs = transformed(name)
    several = torch.tensor([[0, 3, 9], [7, 7, 1], [2, 8, 5]])
    outputs = explainer(*args, **kwargs).outputs
    cases = {None: outputs.argmax(1), 4: torch.full((BATCH,), 4), "per row": several[:, 1], "list": several[:, 0]}
    for target, index in cases.items():
        target = {"per row": several[:, 1], "list": several[:, 0].tolist()}.get(target, target)
        explanation = explainer(*args, target=target, **kwargs)
        assert explanation.target.tolist() == index.tolist()
        assert torch.equal(explanation.value, outputs.gather(1, index[:, None])[:, 0])
        assert_near(explanation.sum, explanation.value, 1e-10, size=explanation.scale)
    together = explainer(*args, target=several, **kwargs)
    assert together.value.shape == several.shape
    report = Report()
    completeness(report, together)
    mass(report, together)
    assert not report.failures(1e-10)
    for t in range(several.shape[1]):
        single = explainer(*args, target=several[:, t], **kwargs)
        for input_name, expected in single.inputs.items():
            assert torch.equal(together.inputs[input_name].C_w[:, t], expected.C_w)
            assert torch.equal(together.inputs[input_name].C[:, t], expected.C)
        assert torch.equal(together.value[:, t], single.value)
        for node, share in single.bias.items():
            assert torch.equal(together.bias[node][:, t], share)


def test_target_in_outputs_of_more_dimensions():
    """A position and class of a causal language model's logits [N, T, V]; earlier positions see no later ones."""
    model, _, kwargs = build("llama_next_token", torch.float64)
    explainer = omenn_fx.transform(model.model, example_kwargs=kwargs)
    explanation = explainer(**kwargs, target=(2, 17))
    assert torch.equal(explanation.value, explanation.outputs[:, 2, 17])
    assert_near(explanation.sum, explanation.value, 1e-10, size=explanation.scale)
    assert explanation.C_w[:, :3].abs().amin(2).gt(0).all()
    assert not explanation.C_w[:, 3:].any()


# Several inputs ------------------------------------------------------------------------------------------------------


def test_two_inputs():
    explainer, model, (picture, vector), _ = transformed("two_inputs")
    explanation = explainer(picture, vector)
    assert list(explanation.inputs) == ["picture", "vector"]
    total = explanation.inputs["picture"].C.sum((1, 2, 3)) + explanation.inputs["vector"].C.sum(1)
    assert_near(total, model(picture, vector).amax(1), 1e-10, size=explanation.scale)
    assert_near(explanation.sum, total, 1e-12, size=explanation.scale)
    for attribute in ("X", "C_w", "C_b", "C"):
        with pytest.raises(AttributeError, match="picture, vector"):
            getattr(explanation, attribute)


def test_one_of_two_inputs():
    """The other input is a constant: what it adds is a bias, and C of the one still sums to the logit."""
    explainer, model, (picture, vector), _ = transformed("two_inputs", explain="picture")
    explanation = explainer(picture, vector)
    assert explanation.C.shape == picture.shape
    assert_near(explanation.C.sum((1, 2, 3)), model(picture, vector).amax(1), 1e-10, size=explanation.scale)


# Ways to run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "backend"), [("small_cnn", "eager"), ("small_vit", "eager"), ("small_cnn", "inductor")]
)
def test_compiled(name, backend):
    explainer, _, args, kwargs = transformed(name)
    want = explainer(*args, target=3, **kwargs)
    got = torch.compile(explainer, backend=backend, fullgraph=True)(*args, target=3, **kwargs)
    assert_same(got, want)


@pytest.mark.parametrize("name", ["small_cnn", "lstm"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_grad_modes(name, mode):
    """Called, and even captured, where autograd is off, on inputs created there."""
    explainer, model, args, kwargs = transformed(name)
    want = explainer(*args, **kwargs)
    with mode():
        assert_same(explainer(*args, **kwargs), want)
        inside = tuple(a.clone() for a in args)
        assert_same(explainer(*inside, **kwargs), want)
        assert_same(omenn_fx.transform(model)(*inside, **kwargs), want)


@pytest.mark.parametrize("name", ["small_cnn", "small_vit", "lstm", "bert_sdpa_ids"])
def test_no_autograd(name):
    """Nothing is recorded for autograd, also where parameters and inputs ask for it; and nothing gets a gradient."""
    model, args, kwargs = build(name)
    model.requires_grad_(True)
    args = tuple(a.requires_grad_() for a in args)
    explanation = omenn_fx.transform(model)(*args, **kwargs)
    tensors = [explanation.outputs, explanation.value, explanation.sum, *explanation.bias.values()]
    for i in explanation.inputs.values():
        tensors += [i.X, i.C_w, i.C_b, i.C]
    assert not any(t.requires_grad for t in tensors)
    assert all(p.grad is None for p in (*model.parameters(), *args))


# C_b -----------------------------------------------------------------------------------------------------------------


class CornerBias(nn.Module):
    """The only bias of the network is added after the convolutions, and stands in one corner of the feature map."""

    def __init__(self, pool):
        super().__init__()
        self.before = nn.Sequential(
            *(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.ReLU(), pool),
            *(nn.Conv2d(6, 8, 3, 1, 2, dilation=2, bias=False), nn.ReLU()),
        )
        corner = torch.zeros(8, 10, 8)
        corner[:, -2:, -3:] = torch.randn(8, 2, 3)
        self.corner = nn.Parameter(corner)
        self.after = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False), nn.Flatten())
        self.head = nn.Linear(4 * 8 * 6, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(self.before(x) + self.corner))


def test_bias_mass_stays_in_its_receptive_field():
    torch.manual_seed(0)
    x = torch.randn(BATCH, 3, 40, 32, dtype=torch.float64)
    model = CornerBias(nn.MaxPool2d(2)).double().eval()
    explanation = omenn_fx.transform(model, x)(x, target=1)
    # The receptive field, independently: where the corner's sum has a gradient, all weights 1 and all pools averages.
    linear = CornerBias(nn.AvgPool2d(2)).double().eval()
    for p in linear.before.parameters():
        nn.init.ones_(p)
    reach = torch.ones_like(x[:1]).requires_grad_()
    (linear.before(reach) * (model.corner != 0)).sum().backward()
    field = reach.grad[0] > 0
    assert 0.05 < field.double().mean() < 0.5
    assert list(explanation.bias) == ["add"]
    assert explanation.bias.total.abs().min() > 1e-3
    assert not explanation.C_b[:, ~field].any(), "mass outside of the corner's receptive field"
    assert explanation.C_b[:, field].ne(0).all()
    assert_near(explanation.C_b.sum((1, 2, 3)), explanation.bias["add"], 1e-12)


def test_bias_mass_is_shared_by_channels():
    """Over channels it is spread, never copied: the sum counts it once."""
    torch.manual_seed(0)
    x = torch.randn(BATCH, 3, 6, 5, dtype=torch.float64)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30, CLASSES)).double().eval()
    explanation = omenn_fx.transform(model, x)(x)
    C_b = explanation.C_b
    assert_near(C_b, C_b[:, :1].expand_as(C_b), 1e-12)
    assert_near(C_b.sum((1, 2, 3)), explanation.bias.total, 1e-12, size=explanation.scale)


# One sample of several parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GCNConv", "GATConv", "GATv2Conv", "SAGEConv", "GraphConv", "TransformerConv"])
def test_graph_network(name):
    """A class at a node: the neighbours within two steps have a part in it, and none but they."""
    convolutions = pytest.importorskip("torch_geometric.nn")

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            conv = getattr(convolutions, name)
            self.first, self.second = conv(8, 16), conv(16, 3)

        def forward(self, x, edge_index):
            return self.second(torch.relu(self.first(x, edge_index)), edge_index)

    path = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 4, 4, 5], [1, 0, 2, 1, 3, 2, 4, 3, 5, 4]])
    model, x = Network().double().eval(), torch.randn(6, 8, dtype=torch.float64)
    explainer = omenn_fx.transform(model, (x, path), batched=False)
    explanation = explainer(x, path, target=(0, 2))
    torch.testing.assert_close(explanation.value, model(x, path)[:1, 2], rtol=0, atol=1e-12)
    assert explanation.completeness_error.max() < 1e-14
    assert (explanation.C_w[0].abs().sum(1) > 0).tolist() == [True, True, True, False, False, False]
    assert explainer.opaque == []


def test_clip_explains_image_and_text_at_once():
    """One similarity logit, half of it from the pixels and half from the words, where the batch is a pair."""
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": 60, "max_position_embeddings": 16, "projection_dim": 24}
    vision = {**small, "image_size": 32, "patch_size": 8, "projection_dim": 24}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    model = transformers.CLIPModel(config).double().eval()
    inputs = {
        "input_ids": torch.tensor([[3, 9, 4, 59], [5, 5, 8, 59], [7, 11, 4, 59]]),
        "pixel_values": torch.randn(2, 3, 32, 32, dtype=torch.float64),
    }
    options = {"example_kwargs": inputs, "output": "logits_per_image", "explain": ["pixel_values", "input_ids"]}
    explainer = omenn_fx.transform(model, batched=False, **options)
    explanation = explainer(**inputs, target=(1, 2))
    assert_near(explanation.value, model(**inputs).logits_per_image[1:2, 2], 1e-12)
    assert explanation.completeness_error.max() < 1e-14
    image, words = (explanation.inputs[n].C[0] for n in ("pixel_values", "input_ids"))
    assert_near(image.sum((1, 2, 3)), torch.stack([torch.zeros(()), explanation.value[0] / 2]), 1e-12)
    assert_near(words.sum((1, 2)), torch.stack([*torch.zeros(2), explanation.value[0] / 2]), 1e-12)
    pairs = {k: v[:2] for k, v in inputs.items()}
    with pytest.raises(omenn_fx.MixedBatchError, match=r"modeling_clip.py:\d+ in forward"):
        omenn_fx.transform(model, **{**options, "example_kwargs": pairs})
