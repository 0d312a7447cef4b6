"""What integers look up is explained, however they are computed; counted positions are not. Bags of embeddings."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omenn_fx

F64 = torch.float64
N, T, D, WORDS = 3, 4, 5, 40
CLASS = 1


class Reader(nn.Module):
    """A forward of the test's own with a table, another one for positions, and a linear head."""

    def __init__(self, forward, **bag):
        super().__init__()
        self.function = forward
        self.embed, self.other = nn.Embedding(WORDS, D, dtype=F64), nn.Embedding(WORDS, D, dtype=F64)
        self.bag = nn.EmbeddingBag(WORDS, D, dtype=F64, **bag)
        self.head = nn.Linear(D, 3, dtype=F64)
        self.register_buffer("offsets", torch.tensor([0, 10, 20, 30]))
        self.register_buffer("order", torch.arange(WORDS).flip(0))

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def ids(*shape, high=10):
    return torch.randint(0, high, shape or (N, T), generator=torch.Generator().manual_seed(3))


def explained(model, *inputs, target=CLASS, **options):
    """The explanation; its sum is the model's own output."""
    model.eval()
    explainer = omenn_fx.transform(model, inputs, **options)
    got = explainer(*inputs, target=target)
    assert (got.completeness_error <= 1e-12).all()
    with torch.no_grad():
        want = model(*inputs)
    torch.testing.assert_close(got.outputs, want if options.get("batched", True) else want[None])
    assert omenn_fx.check(model, inputs, **options).supported
    return got


def product(got):
    return got.C_w * got.X


def parts(model, got, looked_up, count):
    """Every token's part of a mean of `count` embeddings is that of its own embedding."""
    with torch.no_grad():
        want = model.embed.weight[looked_up] @ model.head.weight[CLASS] / count
    torch.testing.assert_close(product(got).sum(-1).reshape(want.shape), want)


def cls(m, u):
    return torch.cat([torch.full((u.shape[0], 1), 39), u], 1)


COMPUTED = {
    "column offsets": lambda m, u: u + m.offsets,
    "unknown ids replaced": lambda m, u: u.masked_fill(u > 8, 0),
    "chosen by where": lambda m, u: torch.where(u < 2, 39, u),
    "a token in front": cls,
    "padding": lambda m, u: F.pad(u, (2, 0), value=7),
    "clamped": lambda m, u: u.clamp(1, 5),
    "hashed": lambda m, u: (u * 31 + 7) % WORDS,
    "divided": lambda m, u: u // 3,
    "bits": lambda m, u: (u & 3) | 4,
    "shifted": lambda m, u: torch.cat([torch.zeros_like(u[:, :1]), u[:, :-1]], 1),
    "shifted in place": lambda m, u: written(u),
    "another order of words": lambda m, u: m.order[u],
    "buckets": lambda m, u: torch.bucketize(u, torch.tensor([2, 5, 7])),
    "sorted": lambda m, u: u.sort(1).values,
    "two columns make one code": lambda m, u: u[:, :2] * 3 + u[:, 2:] % 3,
    "a stack of columns": lambda m, u: torch.stack([u[:, 0], u[:, 1] + 10], 1),
    "the sum of a window": lambda m, u: u.unfold(1, 2, 1).sum(-1),
}


def written(u):
    out = torch.full_like(u, 3)
    out[:, 1:] = u[:, :-1]
    return out


@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED)
def test_computed_ids(compute):
    model = Reader(lambda m, u: m.head(m.embed(compute(m, u)).mean(1)))
    looked_up = compute(model, ids())
    parts(model, explained(model, ids()), looked_up, looked_up.shape[1])


TABLES = {
    "weight[ids]": lambda m, u: m.embed.weight[u],
    "index_select": lambda m, u: m.embed.weight.index_select(0, u.reshape(-1)).view(u.shape[0], -1, D),
    "gather": lambda m, u: m.embed.weight.gather(0, u.reshape(-1, 1).expand(-1, D)).view(u.shape[0], -1, D),
    "a normalised table": lambda m, u: F.normalize(m.embed.weight)[u],
    "folded into the batch": lambda m, u: m.embed(u.flatten()).view(u.shape[0], -1, D),
    "token by token": lambda m, u: torch.stack([m.embed(u[:, i]) for i in range(T)], 1),
}


@pytest.mark.parametrize("look_up", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("dynamic", [True, False])
def test_ways_to_look_up(look_up, dynamic):
    model = Reader(lambda m, u: m.head(torch.tanh(look_up(m, u)).mean(1)))
    got = explained(model, ids(), dynamic_batch=dynamic)
    each = list(got.inputs.values())
    assert all(len(one.X) == N for one in each)
    rows = torch.cat([one.X.reshape(N, -1, D) for one in each], 1)
    torch.testing.assert_close(rows, look_up(model, ids()).detach())
    if dynamic:  # another batch shares the capture
        more = omenn_fx.transform(model, ids())(ids(7, T), target=CLASS)
        assert (more.completeness_error <= 1e-12).all()


def test_one_hot_codes_are_explained_as_numbers():
    codes = Reader(lambda m, u: m.head((F.one_hot(u, WORDS).mT.double().mT @ m.embed.weight).mean(1)))
    got = explained(codes, ids())
    with torch.no_grad():
        want = codes.embed.weight[ids()] @ codes.head.weight[CLASS] / T
    torch.testing.assert_close(product(got).sum(1), want)  # [N, WORDS, T]
    counts = Reader(lambda m, u: m.head(F.one_hot(u, D).sum(1).double()))
    assert explained(counts, ids(high=D)).X.sum(1).tolist() == [T] * N


def test_documents_of_sentences():
    """[N, S, W] ids folded into the batch: C has the shape of the ids, and a row is that of its document alone."""

    def read(m, u):
        n, s, w = u.shape
        words = torch.tanh(m.embed(u.view(n * s, w)) + 0.5).mean(1)
        return m.head(torch.tanh(words.view(n, s, D)).mean(1))

    model, u = Reader(read), ids(N, 2, T)
    got = explained(model, u)
    assert got.C.shape == (N, 2, T, D)
    alone = omenn_fx.transform(model, u[:1])
    for i in range(N):
        torch.testing.assert_close(alone(u[i : i + 1], target=CLASS).C[0], got.C[i])


def test_rows_in_another_order_are_refused():
    """Ids whose first dimension is no longer the batch, in any way but by views: the error says how to go on."""
    for swap in (lambda u: u.t(), lambda u: u.t().reshape(-1, 2), lambda u: torch.cat([u, u])):
        model = Reader(lambda m, u, swap=swap: m.head(m.embed(swap(u)).sum((0, 1)).expand(u.shape[0], -1)))
        with pytest.raises(omenn_fx.InputError, match="batched=False"):
            omenn_fx.transform(model.eval(), ids())
        assert not omenn_fx.check(model, ids()).supported
        got = explained(model, ids(), batched=False, target=(0, CLASS))
        assert got.C.shape[0] == 1


# What is explained, and by what name ---------------------------------------------------------------------------------


def positions(m, u, mask=None):
    """As in RoBERTa: counted from what is no padding."""
    own = u.ne(1).int()
    place = own.cumsum(1) * own if mask is None else mask.cumsum(1) * mask
    return m.head((m.embed(u) + m.other(place.long() + 1)).mean(1))


def test_positions_counted_from_a_mask_are_not_explained():
    model = Reader(positions)
    got = explained(model, ids())
    assert list(got.inputs) == ["args_0"]
    torch.testing.assert_close(got.X, model.embed(ids()).detach())
    mask = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]])
    assert list(explained(Reader(positions), ids(), mask).inputs) == ["args_0"]


def test_positions_are_explained_where_they_are_asked_for_or_there_is_nothing_else():
    mask = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]])
    got = explained(Reader(positions), ids(), mask, explain=["args_0", "args_1"])
    assert list(got.inputs) == ["args_0", "args_1"]
    running = Reader(lambda m, u: m.head(m.embed(u.cumsum(1)).mean(1)))
    assert list(explained(running, ids()).inputs) == ["args_0"]


def test_every_lookup_has_a_name():
    model = Reader(lambda m, u, v: m.head((m.embed(u) + m.other(u + v)).mean(1)))
    got = explained(model, ids(), ids())
    assert list(got.inputs) == ["args_0:embedding", "args_0:embedding_1"]  # the second has ids of both: once


def test_codes_in_columns_of_floats():
    x = torch.tensor([[1.0, 0.5], [3.0, -1.0], [2.0, 2.0]], dtype=F64)
    only = Reader(lambda m, x: m.head(m.embed(x[:, 0].long())))
    torch.testing.assert_close(explained(only, x).X, only.embed.weight[[1, 3, 2]].detach())
    both = Reader(lambda m, x: m.head(m.embed(x[:, 0].long()) + x[:, 1:]))
    assert explained(both, x).C.shape == x.shape  # a column of numbers carries content: the input is explained
    got = explained(both, x, explain=["args_0", "embedding"])
    assert list(got.inputs) == ["args_0", "embedding"]


def test_a_node_inside_is_explained():
    model = Reader(lambda m, u: m.head(torch.tanh(m.embed(u)).mean(1)))
    explainer = omenn_fx.transform(model.eval(), ids())
    assert "tanh" in [n.name for n in explainer.nodes]
    got = explained(model, ids(), explain="tanh")
    torch.testing.assert_close(got.X, torch.tanh(model.embed(ids())).detach())
    assert (got.bias.total - model.head.bias[CLASS]).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("explain", "message"),
    [
        ("nothing", "nor is it the name of a node inside"),
        ("gt", "this node holds torch.bool"),
        ("where", "this node holds torch.int64"),
        ("embed_weight", "nor is it the name of a node inside"),
        (2, "the model's tensor inputs are args_0"),
    ],
)
def test_what_cannot_be_explained(explain, message):
    model = Reader(lambda m, u: m.head(m.embed(torch.where(u > 3, u, 0)).mean(1))).eval()
    with pytest.raises(omenn_fx.InputError, match=message):
        omenn_fx.transform(model, ids(), explain=explain)


def test_integers_that_only_decide():
    model = Reader(lambda m, u, x: m.head(torch.where(u[:, :1] > 3, x, -x))).eval()
    with pytest.raises(omenn_fx.InputError, match="no embedding reads"):
        omenn_fx.transform(model, (ids(), torch.randn(N, D, dtype=F64)), explain="args_0")


# Bags ----------------------------------------------------------------------------------------------------------------

WEIGHTS = torch.rand(N, T, dtype=F64, generator=torch.Generator().manual_seed(4))
OFFSETS = torch.tensor([0, 4, 4, 7])  # the second bag is empty


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize(("padding", "dynamic"), [(None, True), (3, True), (3, False)])
def test_bags_that_are_rows(mode, padding, dynamic):
    model = Reader(lambda m, u: m.head(m.bag(u)), mode=mode, padding_idx=padding)
    with torch.no_grad():
        model.bag.weight[3] = 5.0
    u = ids()
    u[0, :2], u[1] = 3, 3  # padding, and nothing but padding
    got = explained(model, u, dynamic_batch=dynamic)
    assert got.C.shape == (N, T, D)
    assert omenn_fx.transform(model, u, dynamic_batch=dynamic).validate(u).ok
    if padding is not None:
        assert (got.C_w[u == 3] == 0).all()
    if mode != "max":
        real = (u != 3).double() if padding is not None else torch.ones(N, T, dtype=F64)
        factor = real if mode == "sum" else real / real.sum(1, keepdim=True).clamp(min=1)
        with torch.no_grad():
            want = model.bag.weight[u] @ model.head.weight[CLASS] * factor
        torch.testing.assert_close(product(got).sum(-1), want)


def test_weights_of_the_tokens():
    model = Reader(lambda m, u: m.head(m.bag(u, per_sample_weights=WEIGHTS)), mode="sum", padding_idx=2)
    got = explained(model, ids(), dynamic_batch=False)
    with torch.no_grad():
        want = model.bag.weight[ids()] @ model.head.weight[CLASS] * WEIGHTS * (ids() != 2)
    torch.testing.assert_close(product(got).sum(-1), want)
    given = Reader(lambda m, u, w: m.head(m.bag(u, per_sample_weights=w)), mode="sum")
    assert list(explained(given, ids(), WEIGHTS).inputs) == ["args_1"]  # the default: what floats
    both = explained(given, ids(), WEIGHTS, explain=["args_0", "args_1"])
    assert all((one.C != 0).any() for one in both.inputs.values())


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("last", [False, True])
def test_bags_that_begin_at_offsets(mode, last):
    text, offsets = ids(11), torch.cat([OFFSETS, torch.tensor([11])]) if last else OFFSETS
    model = Reader(lambda m, u, o: m.head(m.bag(u, o)), mode=mode, include_last_offset=last, padding_idx=5)
    options = {"batched": False, "target": (2, CLASS)}
    got = explained(model, text, offsets, **options)
    assert got.C.shape == (1, 11, D)
    used = (got.C_w[0] != 0).any(1)
    assert not used[:4].any()
    assert not used[7:].any()
    assert (used[4:7] == (text[4:7] != 5)).all() or mode == "max"
    assert explained(model, text, offsets, batched=False, target=(1, CLASS)).C.abs().sum() < 1e2  # the empty one
    with pytest.raises(omenn_fx.OutputError, match="batched=False"):
        omenn_fx.transform(model, (text, offsets))


def test_bags_of_an_exported_program():
    model = Reader(lambda m, u: m.head(m.bag(u)), mode="mean").eval()
    program = torch.export.export(model, (ids(),))
    got = omenn_fx.transform(program, ids())(ids(), target=CLASS)
    assert got.C.shape == (N, T, D)
    assert (got.completeness_error <= 1e-12).all()


def test_bags_leave_python(tmp_path):
    pytest.importorskip("onnxruntime")
    model = Reader(lambda m, u: m.head(m.bag(u + m.offsets)), mode="mean").float().eval()
    explainer = omenn_fx.transform(model, ids())
    assert explainer.to_onnx(tmp_path / "bag.onnx", ids()).proof.completeness < 1e-5
    explainer.save(tmp_path / "bag.pt2", ids())
    again = omenn_fx.load(tmp_path / "bag.pt2")(ids(5, T))
    torch.testing.assert_close(again.C, explainer(ids(5, T)).C)
