"""Where the batch lies in a value whose first dimension is no longer the batch: biases are summed sample by sample."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omenn_fx
from omenn_fx.algebra.mass import Even, Mass, Product
from omenn_fx.analysis.batch_dim import Layout, layouts

F64 = torch.float64
N, T, HEADS, D = 3, 4, 2, 6  # a batch of three: no other size is a multiple of it


def x(*shape):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(5))


class Calls(nn.Module):
    def __init__(self, forward, size=D):
        super().__init__()
        self.function = forward
        self.one, self.two, self.out = (nn.Linear(size, k, dtype=F64) for k in (size, size, 5))

    def forward(self, u):
        return self.function(self, u)


def heads_beside_batch(m, u):
    """[T, N * heads, d], as in nn.MultiheadAttention."""
    y = m.one(u).transpose(0, 1).contiguous().view(T, -1, D // HEADS).transpose(0, 1) + 0.5
    y = torch.bmm(torch.softmax(y @ y.transpose(1, 2), -1), y) + 0.25
    y = y.transpose(0, 1).reshape(T, -1, D)
    return m.out(y).mean(0)


def windows(m, u):
    """[N * windows, tokens, d], as in Swin: windows are innermost."""
    y = m.one(u).view(-1, 2, 2, D).reshape(-1, 2, D) + 1.5
    y = F.gelu(m.two(y)).view(-1, 4, D)
    return m.out(y).mean(1)


def windows_outermost(m, u):
    """[windows * N, tokens, d]: the windows cut along the batch and put one after the other."""
    y = torch.cat([m.one(u[:, :2]), m.one(u[:, 2:])], 0) + 0.5
    y = F.gelu(m.two(y))
    first, second = y.split(u.shape[0], 0)
    return m.out(first + second).mean(1)


def heads_outermost(m, u):
    """Heads split from the channels and joined along dimension 0, as in early linear attentions."""
    y = torch.stack(m.one(u).split(D // HEADS, -1)).flatten(0, 1) + 0.5
    y = torch.softmax(y @ y.transpose(1, 2), -1) @ y + 0.25
    y = y.unflatten(0, (HEADS, -1)).permute(1, 2, 0, 3).flatten(2)
    return m.out(y).mean(1)


def time_first(m, u):
    """[T, N, d], transposed once and never back until the end."""
    y = torch.relu(m.one(u.permute(1, 0, 2))) + 0.5
    return m.out(y).transpose(0, 1).mean(1)


def tokens_as_rows(m, u):
    """[N * T, d], and a last layer on [N, T * ...]."""
    y = m.one(u.reshape(-1, D)).relu() + 0.5
    return m.out(m.two(y)).view(-1, T, 5).sum(1)


def batch_in_the_middle(m, u):
    """[d, N, T] and [T * d, N] before the batch comes back."""
    y = m.one(u).movedim(2, 0) + 0.5
    y = (y.permute(2, 0, 1).flatten(0, 1) + 0.25).t().reshape(-1, T, D)
    return m.out(y).mean(1)


def batch_last(m, u):
    y = m.one(u).permute(1, 2, 0) * 2 + 1.0
    return m.out(y.permute(2, 0, 1)).sum(1)


def halves(m, u):
    """Two passes in one batch, as in classifier-free guidance, cut apart by slices and by chunk."""
    y = torch.cat([m.one(u), m.two(u)]) + 0.5
    y = torch.relu(y[: u.shape[0]]) + y[u.shape[0] :]
    first, second = torch.cat([y, 2 * y]).chunk(2)
    return m.out(first * 0.5 + second).mean(1)


def repeated(m, u):
    """[N * 2, T, d], the copies of a sample side by side, as for several answers to one question."""
    y = m.one(u).repeat_interleave(2, 0) + torch.tensor([0.5, 1.5], dtype=F64).repeat(u.shape[0])[:, None, None]
    return m.out(m.two(y).relu()).view(-1, 2, T, 5).sum((1, 2))


def pooled_channels(m, u):
    """Channels as samples of one channel each: [N * d, 1, T]."""
    y = m.one(u).transpose(1, 2).reshape(-1, 1, T) + 0.5
    y = F.conv1d(y, torch.ones(1, 1, 3, dtype=F64), torch.ones(1, dtype=F64), padding=1)
    return m.out(y.view(-1, D, T).transpose(1, 2)).mean(1)


FOLDED = {
    heads_beside_batch: {Layout(1, 1, HEADS), Layout(0, 1, HEADS), Layout(1)},
    windows: {Layout(0, 1, 2)},
    windows_outermost: {Layout(0, 2, 1)},
    heads_outermost: {Layout(0, HEADS, 1), Layout(1)},
    time_first: {Layout(1)},
    tokens_as_rows: {Layout(0, 1, T)},
    batch_in_the_middle: {Layout(1), Layout(2)},
    batch_last: {Layout(2)},
    halves: {Layout(0, 2, 1)},
    repeated: {Layout(0, 1, 2)},
    pooled_channels: {Layout(0, 1, D)},
}
each = pytest.mark.parametrize("forward", FOLDED, ids=lambda f: f.__name__)


@each
def test_layouts(forward):
    """The layouts of the content values are those of the model's views, beside the batch in dimension 0."""
    explainer = omenn_fx.transform(Calls(forward).eval(), x(N, T, D))
    found = set(layouts(explainer.ready.tagged).values())
    assert found - {Layout(0)} == FOLDED[forward] - {Layout(0)}


@each
@pytest.mark.parametrize("dynamic", [True, False])
def test_bias_table_is_that_of_each_sample_alone(forward, dynamic):
    model, u = Calls(forward).eval(), x(N, T, D)
    together = omenn_fx.transform(model, u, dynamic_batch=dynamic)(u)
    assert (together.completeness_error <= 1e-10).all()
    assert len(together.bias) >= 3
    alone = omenn_fx.transform(model, u[:1], dynamic_batch=dynamic)
    for i in range(N):
        single = alone(u[i : i + 1], target=int(together.target[i]))
        assert list(single.bias) == list(together.bias)
        for name in together.bias:
            torch.testing.assert_close(together.bias[name][i : i + 1], single.bias[name], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(together.C[i : i + 1], single.C, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(together.C_b[i].sum(), together.bias.total[i], rtol=1e-10, atol=1e-12)


@each
def test_other_batch_sizes_share_the_capture(forward):
    """A capture at one batch size explains any other."""
    model, u = Calls(forward).eval(), x(8, T, D)
    explainer = omenn_fx.transform(model, u[:N])
    before = explainer.graph_module
    for size in (8, 1, 4):
        explanation = explainer(u[:size])
        torch.testing.assert_close(explanation.outputs, model(u[:size]))
        assert (explanation.completeness_error <= 1e-10).all()
    assert explainer.graph_module is before


@pytest.mark.parametrize("size", [2, 4])
@each
def test_sizes_that_divide_each_other(forward, size):
    """Batches as long as the tokens, or as the heads, are told apart by where the views put them."""
    model, u = Calls(forward).eval(), x(size, T, D)
    together = omenn_fx.transform(model, u, dynamic_batch=False)(u)
    want = omenn_fx.transform(model, x(N, T, D))(u, target=together.target)
    for name in want.bias:
        torch.testing.assert_close(together.bias[name], want.bias[name], rtol=1e-10, atol=1e-12)


MIXED = {
    "a batch statistic": lambda m, u: m.out(u).mean(1) + m.one(u).mean((0, 1))[:5],
    "softmax over the batch": lambda m, u: torch.softmax(m.out(u).mean(1), 0),
    "a sum over the samples before": lambda m, u: m.out(u).mean(1).cumsum(0),
    "a batch turned round": lambda m, u: m.out(u).mean(1).flip(0),
    "a batch turned round by an index": lambda m, u: m.out(u).mean(1)[torch.arange(u.shape[0] - 1, -1, -1)],
    "samples in their order": lambda m, u: m.out(u)[u.sum((1, 2)).argsort()].mean(1),
    "a batch rolled as a flat list": lambda m, u: torch.roll(m.out(u).mean(1), 1),
}


@pytest.mark.parametrize("forward", MIXED.values(), ids=MIXED)
def test_samples_that_are_mixed_are_refused(forward):
    """No explanation per sample exists there."""
    with pytest.raises(omenn_fx.OmennError, match="samples of a batch reach each other"):
        omenn_fx.transform(Calls(forward).eval(), x(N, T, D))


def test_one_sample_needs_no_layout():
    """With a fixed batch of one every position belongs to it, wherever it goes."""
    model = Calls(lambda m, u: m.out(u).mean(1) + m.one(u).mean((0, 1))[:5]).eval()
    explanation = omenn_fx.transform(model, x(1, T, D), dynamic_batch=False)(x(1, T, D))
    assert (explanation.completeness_error <= 1e-10).all()


# The sum itself ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [Layout(0), Layout(1), Layout(0, 2, 1), Layout(1, 1, 2), Layout(2, 2, 2)])
@pytest.mark.parametrize("kind", ["dense", "even", "product", "product along the batch", "parts"])
def test_per_sample(layout, kind):
    shape = [5, 4, 6]
    shape[layout.dim] = layout.outer * N * layout.inner
    other = (layout.dim + 1) % 3
    even = [1 if d == other else s for d, s in enumerate(shape)]
    parts = {
        "dense": (Even(x(*shape)),),
        "even": (Even(x(*even), frozenset({other})),),
        "product": (Product(x(*shape), x(shape[other]), other, 3),),
        "product along the batch": (Product(x(*shape), x(shape[layout.dim]), layout.dim, 3),),
        "parts": (Even(x(*shape)), Even(x(*even), frozenset({other})), Product(x(*shape), x(shape[2]), 2, 3)),
    }[kind]
    mass = Mass(parts, shape)
    got = layout.per_sample(mass)
    rows = mass.dense().movedim(layout.dim, 0).reshape(layout.outer, N, -1)
    torch.testing.assert_close(got, rows.sum((0, 2)))


# One sample without a batch ------------------------------------------------------------------------------------------


def graph(m, u):
    """Six nodes in a ring: each reads its neighbours' mean."""
    near = torch.eye(6, dtype=u.dtype).roll(1, 0) + torch.eye(6, dtype=u.dtype).roll(-1, 0)
    return m.out(torch.relu(m.one(near / 2 @ u)))


def gathered(m, u):
    """The same by an index of constants."""
    return m.out(torch.relu(m.one(u[[1, 2, 3, 4, 5, 0]] + u[[5, 0, 1, 2, 3, 4]]) / 2))


@pytest.mark.parametrize("forward", [graph, gathered])
@pytest.mark.parametrize("bias", ["carrier", "contribution", "none"])
def test_a_graph_is_one_sample(bias, forward):
    """Rows that exchange messages are no samples: target = a class at a node."""
    model = Calls(forward).eval()
    u = x(6, D)
    with pytest.raises(omenn_fx.OmennError, match="batched=False"):
        omenn_fx.transform(model, u)
    explainer = omenn_fx.transform(model, u, batched=False, bias=bias)
    explanation = explainer(u, target=(2, 1))
    torch.testing.assert_close(explanation.value, model(u)[2:3, 1])
    assert explanation.C_w.shape == (1, 6, D)
    assert (explanation.C_w[0].abs().sum(1) > 0).tolist() == [False, True, False, True, False, False]
    assert (explanation.completeness_error <= 1e-10).all()
    several = explainer(u, target=torch.tensor([[11, 0, 17]]))
    torch.testing.assert_close(several.value, model(u).flatten()[None, [11, 0, 17]])
    torch.testing.assert_close(several.C_w[:, 0], explanation.C_w)
    torch.testing.assert_close(several.sum, several.value)


def test_a_vector_and_a_number():
    model = Calls(lambda m, u: m.out(torch.tanh(u)).sum()).eval()
    u = x(D)
    explanation = omenn_fx.transform(model, u, batched=False)(u)
    torch.testing.assert_close(explanation.value, model(u)[None])
    assert explanation.C.shape == (1, D)
    assert (explanation.completeness_error <= 1e-10).all()


def test_one_sample_of_a_model_that_mixes_them():
    """A batch of one has nothing to mix with: it is captured as that; two are refused."""

    def attends_over_the_batch(m, u):
        q, k = m.one(u).mean(1), m.two(u).mean(1)
        return torch.softmax(q @ k.T, -1) @ m.out(u).mean(1)

    model = Calls(attends_over_the_batch).eval()
    explainer = omenn_fx.transform(model, x(1, T, D))
    assert explainer(x(1, T, D)).completeness_error.max() < 1e-14
    with pytest.raises(omenn_fx.MixedBatchError):
        explainer(x(2, T, D))


# A batch that is fixed -----------------------------------------------------------------------------------------------

SWAP = torch.tensor([1, 0, 2])
APART = {
    "nothing": lambda u: u,
    "a mask": lambda u: u * torch.tensor([[1.0], [0.0], [1.0]], dtype=u.dtype),
    "each row its own column": lambda u: u[torch.arange(3), torch.tensor([1, 2, 3])],
    "an einsum over the columns": lambda u: torch.einsum("ij,jk->ik", u, torch.ones(4, 2, dtype=u.dtype)),
    "an einsum with an ellipsis": lambda u: torch.einsum("...j,kj->...k", u, torch.ones(2, 4, dtype=u.dtype)),
    "a norm over the columns": lambda u: torch.nn.functional.layer_norm(u, (4,)),
    "a pool over the columns": lambda u: torch.nn.functional.max_pool1d(u, 3, 1, 1),
}
TOGETHER = {
    "an index": lambda u: u[SWAP],
    "an index by arange, backwards": lambda u: u[torch.arange(2, -1, -1)],
    "an index by arange of two": lambda u: torch.cat([u[torch.arange(2)], u[torch.arange(1)]]),
    "an index by the order": lambda u: u[u.sum(1).argsort()],
    "index_select": lambda u: u.index_select(0, SWAP),
    "gather": lambda u: u.gather(0, SWAP[:, None].expand(3, 4)),
    "scatter": lambda u: torch.zeros_like(u).scatter(0, SWAP[:, None].expand(3, 4), u),
    "index_put": lambda u: torch.zeros_like(u).index_put((SWAP,), u),
    "index_add": lambda u: torch.zeros_like(u).index_add(0, SWAP, u),
    "topk": lambda u: u.topk(3, 0).values,
    "a constant matrix": lambda u: torch.eye(3, dtype=u.dtype)[SWAP] @ u,
    "an einsum over the rows": lambda u: torch.einsum("ij,jk->ik", torch.ones(3, 3, dtype=u.dtype), u),
    "a norm over the rows": lambda u: torch.nn.functional.layer_norm(u.t(), (3,)).t(),
    "a pool over the rows": lambda u: torch.nn.functional.max_pool1d(u.t(), 3, 1, 1).t(),
    "parts that change places": lambda u: torch.cat(u.split(1)[::-1]),
    "one sample for all": lambda u: u + u[:1],
}


@pytest.mark.parametrize(
    ("forward", "apart"),
    [(f, True) for f in APART.values()] + [(f, False) for f in TOGETHER.values()],
    ids=[*APART, *TOGETHER],
)
def test_check_and_transform_agree_on_a_fixed_batch(forward, apart):
    """Where no size tells the batch from others, check reads along which dimensions an operator works."""
    model = Calls(lambda m, u: torch.relu(forward(u))).eval()
    report = omenn_fx.check(model, x(3, 4), dynamic_batch=False)
    assert report.supported == apart
    if apart:
        explanation = omenn_fx.transform(model, x(3, 4), dynamic_batch=False)(
            x(3, 4), target=0 if model(x(3, 4)).ndim > 1 else None
        )
        assert (explanation.completeness_error <= 1e-10).all()
    else:
        with pytest.raises(omenn_fx.MixedBatchError):
            omenn_fx.transform(model, x(3, 4), dynamic_batch=False)


class TimeFirst(nn.Module):
    """Embeds [N, T] ids as [T, N, D], as XLNet does."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 4), nn.Linear(4, 3)

    def forward(self, ids):
        return self.head(torch.tanh(self.embedding(ids.t())).mean(0))


@pytest.mark.parametrize("rows", [1, 2])
def test_an_explained_value_whose_first_dimension_is_not_the_batch(rows):
    model, ids = TimeFirst().eval(), torch.arange(rows * 5).reshape(rows, 5)
    with pytest.raises(omenn_fx.InputError, match=r"dimension 0 of the explained value .* is not the batch"):
        omenn_fx.transform(model, ids)
    assert not omenn_fx.check(model, ids).supported
    one = omenn_fx.transform(model, ids[:1], batched=False)(ids[:1], target=(0, 2))
    assert one.C.shape == (1, 5, 1, 4)
    torch.testing.assert_close(one.sum, one.value)


# A batch folded into the channels ------------------------------------------------------------------------------------


class Dynamic(nn.Module):
    """A convolution with weights of each sample: the batch stands in the channels, each sample in groups of its own."""

    def __init__(self, each=1):
        super().__init__()
        self.kernel, self.each = nn.Linear(4, 16 // each * 9), each
        self.eval()

    def forward(self, x):
        n, c, h, w = x.shape
        kernels = self.kernel(x.mean((2, 3))).reshape(-1, c // self.each, 3, 3)
        y = nn.functional.conv2d(x.reshape(1, n * c, h, w), kernels, None, 1, 1, 1, n * self.each)
        return y.reshape(n, -1, h, w).mean((2, 3))


class Shared(nn.Module):
    """The same fold with groups that hold several samples."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 8, 3, 3))
        self.eval()

    def forward(self, x):
        n, c, h, w = x.shape
        y = nn.functional.conv2d(x.reshape(1, n * c, h, w), self.kernel, None, 1, 1, 1, 1)
        return y.reshape(n, -1, h, w).mean((2, 3))


@pytest.mark.parametrize("each", [1, 2, 4])
@pytest.mark.parametrize("dynamic", [True, False])
def test_samples_in_groups_of_their_own_are_not_said_to_meet(each, dynamic):
    torch.manual_seed(0)
    model, x = Dynamic(each), torch.randn(2, 4, 5, 5)
    (problem,) = omenn_fx.check(model, x, dynamic_batch=dynamic).problems
    assert "reach each other" not in str(problem)
    assert "folded into the groups" in problem.reason
    with pytest.raises(omenn_fx.MixedBatchError, match="for one sample alone"):
        omenn_fx.transform(model, x, dynamic_batch=dynamic)
    report = omenn_fx.transform(model, x[:1]).validate(x[:1], target=1)  # what the fix says
    assert report.ok, str(report)


def test_samples_in_one_group_do_meet():
    x = torch.randn(2, 4, 5, 5)
    (problem,) = omenn_fx.check(Shared(), x, dynamic_batch=False).problems
    assert problem.kind.code == "OMENN007"
    assert "reach each other" in problem.reason
