"""Oracles that share no code with omenn_fx: captum, autograd, and hand-written copies of models with frozen parts.

For a network that is piecewise linear (ReLU, max pool, batch norm in eval mode) the affine map at an input is the
Jacobian, so weights and bias shares must be gradients. Elsewhere the definition is written down again in plain torch:
a copy of the model whose softmax, sigma, activation ratios and gates are detached has C_w for its gradient.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import InputXGradient
from models import BATCH, build, randomise, vision_transformer
from torch import nn

import omenn_fx
from omenn_fx import SizeError

TARGET = 3
TOLERANCE = 1e-10  # everything here runs in float64


def assert_near(got, want, tolerance=TOLERANCE, size=None):
    assert got.shape == want.shape
    size = want.abs().max() if size is None else size
    error = float(((got - want).abs() / size).max())
    print(f"  worst deviation {error:.1e}")  # shown by pytest -s
    assert error <= tolerance


def explained(model, *args, target=TARGET, **kwargs):
    explainer = omenn_fx.transform(model, args, example_kwargs=kwargs)
    return explainer, explainer(*args, target=target, **kwargs)


# (a) Piecewise linear networks: captum and autograd ------------------------------------------------------------------

RELU_NETWORKS = ["resnet18", "vgg16_bn", "squeezenet1_1"]


@pytest.mark.parametrize("name", RELU_NETWORKS)
def test_weights_are_captums_input_x_gradient(name):
    model, (x,), _ = build(name, torch.float64)
    _, explanation = explained(model, x)
    want = InputXGradient(model).attribute(x.clone().requires_grad_(), target=TARGET)
    assert_near(explanation.C_w * explanation.X, want.detach())


@pytest.mark.parametrize("name", RELU_NETWORKS)
def test_bias_shares_are_bias_gradients(name):
    """<g_v, b_v> is grad(bias) * bias of a convolution, grad(beta) * (beta - gamma mu / sigma) of batch norm."""
    model, (x,), _ = build(name, torch.float64)
    explainer, explanation = explained(model, x)
    model.requires_grad_(True)
    layers = {
        path: m
        for path, m in model.named_modules()
        if isinstance(m, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)) and m.bias is not None
    }
    outputs = model(x)[:, TARGET]
    want = {path: [] for path in layers}
    for f in outputs:
        gradients = torch.autograd.grad(f, [m.bias for m in layers.values()], retain_graph=True)
        for (path, m), g in zip(layers.items(), gradients, strict=True):
            want[path].append((g * effective_shift(m)).sum())
    module_of = {info.name: info.module for info in explainer.nodes}
    assert sorted(module_of[n] for n in explanation.bias) == sorted(layers), "every bias once, at its own module"
    for node, share in explanation.bias.items():
        assert_near(share, torch.stack(want[module_of[node]]).detach(), size=explanation.scale)


def effective_shift(layer):
    if not isinstance(layer, nn.BatchNorm2d):
        return layer.bias
    return layer.bias - layer.weight * layer.running_mean / torch.sqrt(layer.running_var + layer.eps)


# (b) Hand-written copies with frozen parts ---------------------------------------------------------------------------


def frozen(f, x):
    """diag(f(x) / x) x, the ratio held fixed."""
    return x * (f(x) / x).detach()


def layer_norm(x, norm):
    """The mean linear, sigma held fixed."""
    centred = x - x.mean(-1, keepdim=True)
    sigma = torch.sqrt(x.var(-1, correction=0, keepdim=True) + norm.eps).detach()
    return centred / sigma * norm.weight + norm.bias


def heads(x, count):
    """[N, T, H * D] -> [N, H, T, D]."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def attend(q, k, v, mask=None):
    """softmax(Q K^T / sqrt(D)) held fixed, on V; the heads joined again."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return (scores.softmax(-1).detach() @ v).transpose(1, 2).flatten(2)


def vit_copy(model, x):
    x = model.conv_proj(x).flatten(2).transpose(1, 2)
    x = torch.cat([model.class_token.expand(len(x), -1, -1), x], 1) + model.encoder.pos_embedding
    for layer in model.encoder.layers:
        attention = layer.self_attention
        y = layer_norm(x, layer.ln_1)
        q, k, v = F.linear(y, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
        q, k, v = (heads(t, attention.num_heads) for t in (q, k, v))
        x = x + attention.out_proj(attend(q, k, v))
        x = x + layer.mlp[3](frozen(F.gelu, layer.mlp[0](layer_norm(x, layer.ln_2))))
    return model.heads.head(layer_norm(x, model.encoder.ln)[:, 0])


def bert_copy(model, words, mask=None):
    bert, count = model.bert, model.config.num_attention_heads
    table = bert.embeddings
    x = words + table.token_type_embeddings.weight[0] + table.position_embeddings.weight[: words.shape[1]]
    x = layer_norm(x, table.LayerNorm)
    keys = None if mask is None else mask.bool()[:, None, None, :]
    for layer in bert.encoder.layer:
        a = layer.attention.self
        y = attend(*(heads(m(x), count) for m in (a.query, a.key, a.value)), keys)
        x = layer_norm(x + layer.attention.output.dense(y), layer.attention.output.LayerNorm)
        y = layer.output.dense(frozen(F.gelu, layer.intermediate.dense(x)))
        x = layer_norm(x + y, layer.output.LayerNorm)
    return model.classifier(frozen(torch.tanh, bert.pooler.dense(x[:, 0])))


def rms_norm(x, norm):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).detach() * norm.weight


def rotated(x, theta):
    """Rotary position embedding of [N, H, T, D]: each pair (d, d + D/2) turned by its angle."""
    size = x.shape[-1]
    frequency = theta ** (-torch.arange(0, size, 2, dtype=x.dtype) / size)
    angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * frequency
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def llama_copy(model, x, last):
    """SwiGLU is a product of two values that carry content: the policy splits it, half to each."""
    config = model.config
    theta = config.rope_parameters["rope_theta"]
    causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    for layer in model.model.layers:
        a = layer.self_attn
        y = rms_norm(x, layer.input_layernorm)
        q = rotated(heads(a.q_proj(y), config.num_attention_heads), theta)
        k = rotated(heads(a.k_proj(y), config.num_key_value_heads), theta)
        v = heads(a.v_proj(y), config.num_key_value_heads)
        k, v = (t.repeat_interleave(config.num_attention_heads // config.num_key_value_heads, 1) for t in (k, v))
        x = x + a.o_proj(attend(q, k, v, causal))
        y = rms_norm(x, layer.post_attention_layernorm)
        gate, up = frozen(F.silu, layer.mlp.gate_proj(y)), layer.mlp.up_proj(y)
        x = x + layer.mlp.down_proj(0.5 * (gate.detach() * up + gate * up.detach()))
    x = rms_norm(x, model.model.norm)
    return model.score(x)[torch.arange(len(x)), last]


def lstm_pass(rnn, x, suffix):
    w, u, b_w, b_u = (getattr(rnn, f"{n}_{suffix}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h = c = x.new_zeros(len(x), rnn.hidden_size)
    out = []
    for step in x.unbind(1):
        i, f, g, o = (F.linear(step, w, b_w) + F.linear(h, u, b_u)).chunk(4, -1)
        i, f, o = (torch.sigmoid(gate).detach() for gate in (i, f, o))
        c = f * c + i * frozen(torch.tanh, g)
        h = o * frozen(torch.tanh, c)
        out.append(h)
    return torch.stack(out, 1)


def gru_pass(rnn, x, suffix):
    w, u, b_w, b_u = (getattr(rnn, f"{n}_{suffix}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h = x.new_zeros(len(x), rnn.hidden_size)
    out = []
    for step in x.unbind(1):
        a, b = F.linear(step, w, b_w).chunk(3, -1), F.linear(h, u, b_u).chunk(3, -1)
        r, z = (torch.sigmoid(a[i] + b[i]).detach() for i in (0, 1))
        h = (1 - z) * frozen(torch.tanh, a[2] + r * b[2]) + z * h
        out.append(h)
    return torch.stack(out, 1)


def recurrent_copy(model, x):
    one = lstm_pass if isinstance(model.rnn, nn.LSTM) else gru_pass
    for layer in range(model.rnn.num_layers):
        outs = [one(model.rnn, x, f"l{layer}")]
        if model.rnn.bidirectional:
            outs.append(one(model.rnn, x.flip(1), f"l{layer}_reverse").flip(1))
        x = torch.cat(outs, -1)
    return model.head(torch.cat([x[:, -1], x.mean(1)], 1))


def assert_copy_agrees(explanation, copy, x, *args):
    x = x.detach().clone().requires_grad_()
    outputs = copy(x, *args)
    assert_near(explanation.outputs, outputs.detach(), 1e-12)
    (want,) = torch.autograd.grad(outputs[:, TARGET].sum(), x)
    assert_near(explanation.C_w, want)


def test_vit():
    torch.manual_seed(0)
    model = vision_transformer(image_size=32, patch_size=8, layers=3, heads=4, width=32)
    randomise(model)
    model = model.double().eval()
    x = torch.randn(BATCH, 3, 32, 32, dtype=torch.float64)
    _, explanation = explained(model, x)
    assert_copy_agrees(explanation, lambda x: vit_copy(model, x), x)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bert(attention):
    model, _, kwargs = build(f"bert_{attention}", torch.float64)
    _, explanation = explained(model, **kwargs)
    assert_copy_agrees(explanation, lambda x: bert_copy(model, x), kwargs["inputs_embeds"])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bert_from_ids(attention):
    """The explained input is the word embedding of the ids; a padded token has no weight."""
    model, _, kwargs = build(f"bert_{attention}_ids", torch.float64)
    _, explanation = explained(model, **kwargs)
    words = model.bert.embeddings.word_embeddings.weight[kwargs["input_ids"]]
    assert torch.equal(explanation.X, words)
    assert_copy_agrees(explanation, lambda x: bert_copy(model, x, kwargs["attention_mask"]), words)
    assert not explanation.C_w[1, 5:].any()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_llama(attention):
    model, _, kwargs = build(f"llama_{attention}", torch.float64)
    # The model keeps its rotary frequencies in float32: give it the copy's digits.
    rotary = model.model.rotary_emb
    theta, size = model.config.rope_parameters["rope_theta"], model.config.head_dim
    rotary.inv_freq = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    explainer, explanation = explained(model, **kwargs)
    last = kwargs["inputs_embeds"].shape[1] - 1
    assert_copy_agrees(explanation, lambda x: llama_copy(model, x, last), kwargs["inputs_embeds"])
    splits = [d.node for d in explainer.decisions if d.policy == "split"]
    module_of = {info.name: info.module for info in explainer.nodes}
    assert [module_of[n] for n in splits] == [f"model.layers.{i}.mlp" for i in range(2)], "a policy decided elsewhere"


@pytest.mark.parametrize("name", ["lstm", "lstm_bidirectional", "gru", "gru_bidirectional"])
def test_recurrent(name):
    model, (x,), _ = build(name, torch.float64)
    _, explanation = explained(model, x)
    assert_copy_agrees(explanation, lambda x: recurrent_copy(model, x), x)


# (c) Pools and other layers that are linear where they are differentiable --------------------------------------------


def unfolded_max(x, kernel, stride, padding, dilation):
    """A max pool whose gradient goes to all winners of a window in equal parts: amax over its unfolded windows."""
    x = F.pad(x, (padding,) * 4, value=-math.inf)
    out = [(s - dilation * (kernel - 1) - 1) // stride + 1 for s in x.shape[2:]]
    taps = [
        x[:, :, i * dilation :, j * dilation :][
            :, :, : (out[0] - 1) * stride + 1 : stride, : (out[1] - 1) * stride + 1 : stride
        ]
        for i in range(kernel)
        for j in range(kernel)
    ]
    return torch.stack(taps).amax(0)


@pytest.mark.parametrize("geometry", [(2, 2, 0, 1), (3, 2, 1, 1), (3, 1, 1, 1), (2, 3, 1, 2), (3, 2, 0, 2)])
def test_max_pool_ties_share_equally(geometry):
    torch.manual_seed(0)
    x = torch.randint(0, 3, (BATCH, 4, 11, 9)).double()  # most windows have several winners
    pool = nn.MaxPool2d(*geometry)
    head = nn.Linear(pool(x)[0].numel(), 5).double()
    model = nn.Sequential(pool, nn.Flatten(), head).eval()
    _, explanation = explained(model, x)
    reference = x.clone().requires_grad_()
    outputs = head(unfolded_max(reference, *geometry).flatten(1))
    assert_near(explanation.outputs, outputs.detach(), 1e-12)
    assert_near(explanation.C_w, torch.autograd.grad(outputs[:, TARGET].sum(), reference)[0])


LINEAR_LAYERS = {
    "max_pool": lambda: nn.MaxPool2d(3, 2, 1),
    "max_pool_ceil": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "global_average": lambda: nn.AdaptiveAvgPool2d(1),
    "adaptive_average": lambda: nn.AdaptiveAvgPool2d((3, 4)),
    "average": lambda: nn.AvgPool2d(3, 2, 1),
    "average_valid": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "strided_conv": lambda: nn.Conv2d(4, 6, 3, 2, 1),
    "grouped_dilated_conv": lambda: nn.Conv2d(4, 8, 3, 1, 2, dilation=2, groups=2),
    "conv_transpose": lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1),
    "reflect_conv": lambda: nn.Conv2d(4, 6, 3, 1, 2, padding_mode="reflect"),
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "upsample_bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "upsample_nearest": lambda: nn.Upsample(size=(7, 17)),
    "pixel_shuffle": lambda: nn.PixelShuffle(2),
}


@pytest.mark.parametrize("layer", LINEAR_LAYERS)
def test_layers_with_captum(layer):
    torch.manual_seed(0)
    x = torch.randn(BATCH, 4, 11, 9, dtype=torch.float64)
    body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1), LINEAR_LAYERS[layer]()).double()
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(body(x)[0].numel(), 5).double()).eval().requires_grad_(False)
    _, explanation = explained(model, x)
    want = InputXGradient(model).attribute(x.clone().requires_grad_(), target=TARGET)
    assert_near(explanation.C_w * explanation.X, want.detach())
    assert_near(explanation.sum, explanation.value, size=explanation.scale)


# (d) AffineMap -------------------------------------------------------------------------------------------------------


def single(name):
    """A model, its explainer, one sample of input, and the names of its content nodes after the input."""
    model, (x,), _ = build(name, torch.float64)
    explainer = omenn_fx.transform(model, x)
    nodes = [info.name for info in explainer.nodes if info.role == "content"]
    return explainer, x[:1], nodes[1:]


def thirds(nodes):
    return [nodes[len(nodes) // 3], nodes[2 * len(nodes) // 3], nodes[-1]]


def assert_is_matrix(affine, dense):
    """matvec, rmatvec and to_dense agree, and h = W x + b with the bias walked on its own."""
    generator = torch.Generator().manual_seed(0)
    (x,) = affine.operands
    u = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    v = torch.randn(affine.value.shape, generator=generator, dtype=x.dtype)
    assert dense.shape == affine.shape == (v.numel(), u.numel())
    assert_near(affine.matvec(u).flatten(), dense @ u.flatten())
    assert_near(affine.rmatvec(v).flatten(), dense.T @ v.flatten())
    h = affine.matvec(x) + affine.bias
    assert_near(h, affine.value)
    assert_near((dense @ x.flatten()).reshape(h.shape) + affine.bias, affine.value)


@pytest.mark.parametrize("name", ["small_cnn", "small_vit", "lstm"])
def test_affine_maps_are_matrices(name):
    explainer, x, nodes = single(name)
    for node in thirds(nodes):
        affine = explainer.affine(x, node)
        assert_is_matrix(affine, affine.to_dense())
    explanation = explainer(x, target=TARGET)
    output = explainer.affine(x, nodes[-1])
    assert torch.equal(output.value, explanation.outputs)
    assert_near(output.to_dense()[TARGET].reshape(x.shape), explanation.C_w)
    assert_near(output.bias[:, TARGET], explanation.bias.total, size=explanation.scale)


@pytest.mark.parametrize("name", ["small_cnn", "small_vit", "lstm"])
def test_affine_maps_since_a_node(name):
    explainer, x, nodes = single(name)
    middle, end = nodes[len(nodes) // 2], nodes[-1]
    affine = explainer.affine(x, end, since=middle)
    assert_is_matrix(affine, affine.to_dense())
    before = explainer.affine(x, middle)
    if name == "small_cnn":  # every path leads through the stem's pool, so there the maps compose
        pool = next(n for n in nodes if n.startswith("max_pool"))
        affine, before, whole = explainer.affine(x, end, pool), explainer.affine(x, pool), explainer.affine(x, end)
        assert_near(affine.to_dense() @ before.to_dense(), whole.to_dense())
        assert_near(affine.matvec(before.bias) + affine.bias, whole.bias)
    nothing = explainer.affine(x, nodes[0], since=end)  # no path leads back: W = 0, all is bias
    assert not nothing.matvec(nothing.operands[0]).any()
    assert_near(nothing.bias, nothing.value)


@pytest.mark.parametrize("name", ["small_cnn", "small_vit", "lstm"])
def test_every_node_is_affine_in_its_operands(name):
    explainer, x, nodes = single(name)
    for node in nodes:
        affine = explainer.affine(x, node, since="operands")
        assert_near(affine.matvec(affine.operands) + affine.bias, affine.value)
        u, v = tuple(torch.randn_like(o) for o in affine.operands), torch.randn_like(affine.value)
        back = affine.rmatvec(v) if len(u) > 1 else (affine.rmatvec(v),)
        left, right = (affine.matvec(u) * v).sum(), sum((a * b).sum() for a, b in zip(u, back, strict=True))
        assert_near(left, right, size=(affine.matvec(u) * v).abs().sum())


@pytest.mark.parametrize("by_name", [False, True])
def test_affine_map_from_several_inputs(by_name):
    """The domain is all explained inputs together; of keyword inputs too."""
    model, inputs, _ = build("two_inputs", torch.float64)
    given = dict(zip(("picture", "vector"), inputs, strict=True)) if by_name else inputs
    explainer, explanation = explained(model, **given) if by_name else explained(model, *given)
    affine = explainer.affine(given, [info.name for info in explainer.nodes][-1])
    assert affine.shape == (explanation.outputs.numel(), sum(x.numel() for x in inputs))
    assert_near(affine.matvec(inputs) + affine.bias, explanation.outputs)
    chosen = F.one_hot(explanation.target, explanation.outputs.shape[1]).double()
    for back, i in zip(affine.rmatvec(chosen), explanation.inputs.values(), strict=True):
        assert_near(back, i.C_w)


def test_affine_map_as_scipy_operator():
    from scipy.sparse.linalg import aslinearoperator, svds

    explainer, x, nodes = single("small_cnn")
    affine = explainer.affine(x, nodes[-1])
    operator, dense = affine.to_linear_operator(), affine.to_dense().numpy()
    assert operator.shape == dense.shape
    assert operator.dtype == np.float64
    random = np.random.default_rng(0)
    u, v = random.standard_normal((dense.shape[1], 2)), random.standard_normal(dense.shape[0])
    np.testing.assert_allclose(operator @ u, dense @ u, rtol=0, atol=1e-12)
    np.testing.assert_allclose(operator.T @ v, dense.T @ v, rtol=0, atol=1e-12)
    np.testing.assert_allclose(((aslinearoperator(operator) * 2).H) @ v, 2 * dense.T @ v, rtol=0, atol=1e-12)
    singular = svds(operator, k=3, return_singular_vectors=False)
    np.testing.assert_allclose(np.sort(singular)[::-1], np.linalg.svd(dense, compute_uv=False)[:3], rtol=1e-8)


def test_dense_matrix_is_refused_above_the_limit():
    explainer, x, nodes = single("small_cnn")
    affine = explainer.affine(x, nodes[0])
    rows, columns = affine.shape
    with pytest.raises(SizeError, match=f"{rows * columns:,} elements.*matvec"):
        affine.to_dense(max_elements=rows * columns - 1)
    assert affine.to_dense(max_elements=rows * columns).shape == (rows, columns)
