"""`check` says supported exactly where `transform` succeeds; both name the same cause, line and way out."""

import contextlib
import copy
import functools

import pytest
import torch
import torch.distributions as D
import torch.nn.functional as F
from torch import nn

import omenn_fx
from omenn_fx.algebra.linear import Moves
from omenn_fx.algebra.rows import APART
from omenn_fx.algebra.ruleset import rule_set

torch.set_num_threads(1)

LIBRARY = torch.library.Library("omenn_agree", "FRAGMENT")
LIBRARY.define("shifted(Tensor x) -> Tensor")
LIBRARY.impl("shifted", lambda x: torch.cat([x[1:], x[:1]]), "CompositeExplicitAutograd")
torch.library.register_fake("omenn_agree::shifted", torch.empty_like, lib=LIBRARY)
LIBRARY.define("faceless(Tensor x) -> Tensor")
LIBRARY.impl("faceless", lambda x: 2 * x, "CPU")

X = torch.linspace(-2, 2, 24).reshape(4, 6)


class Net(nn.Module):
    """(self, x) -> the result; with two layers to use."""

    def __init__(self, forward):
        super().__init__()
        self.hidden, self.head, self.function = nn.Linear(6, 5), nn.Linear(5, 3), forward
        self.eval()

    def layers(self, x):
        return self.head(torch.relu(self.hidden(x)))

    def forward(self, x):
        return self.function(self, x)


def explained(model, x=X, target=1, **options):
    """Explained, and `check` says so; the sum is the model's value."""
    assert omenn_fx.check(model, x, **options).supported
    got = omenn_fx.transform(model, x, **options)(x, target=target)
    with torch.no_grad():
        outputs = model(x)
    torch.testing.assert_close(got.outputs.reshape(outputs.shape), outputs)
    torch.testing.assert_close(got.sum, got.value)
    return got


def refused(kind, model, x=X, **options):
    """The error of `transform`; what `check` finds is the same."""
    report = omenn_fx.check(model, x, **options)
    with pytest.raises(kind) as caught:
        omenn_fx.transform(model, x, **options)
    error = caught.value
    assert not report.supported
    problem = report.problems[0]
    assert problem.reason == error.reason or error.places[0] == problem.place
    assert " at 0x" not in f"{error} {report}"
    return error


# Where the samples meet -----------------------------------------------------------------------------------------------


class First(nn.Module):
    """The way out of sequence-first models: the batch in front, and transposed."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, x):
        return self.model(x.transpose(0, 1))


class Steps(nn.Module):
    def __init__(self, layer, read):
        super().__init__()
        self.layer, self.head, self.read = layer, nn.Linear(6, 3), read
        self.eval()

    def forward(self, x):
        return self.head(self.read(self.layer, x))


def cells(layer, x):
    state = torch.zeros(x.shape[1], 6)
    for step in x:
        state = layer(step, state)
    return state


SEQUENCES = {
    "lstm": (lambda: nn.LSTM(6, 6), lambda m, x: m(x)[0][-1]),
    "gru, each step": (lambda: nn.GRU(6, 6), lambda m, x: m(x)[0]),
    "rnn, state": (lambda: nn.RNN(6, 6), lambda m, x: m(x)[1][-1]),
    "cells": (lambda: nn.GRUCell(6, 6), cells),
    "encoder": (lambda: nn.TransformerEncoderLayer(6, 2, 8), lambda m, x: m(x).mean(0)),
    "attention": (lambda: nn.MultiheadAttention(6, 2), lambda m, x: m(x, x, x)[0][0]),
}


@pytest.mark.parametrize("size", [(4, 4), (5, 3)], ids=["as many steps as samples", "more steps"])
@pytest.mark.parametrize(("layer", "read"), SEQUENCES.values(), ids=SEQUENCES)
def test_sequence_first_is_refused_with_a_way_out(layer, read, size):
    model, x = Steps(layer(), read), torch.randn(*size, 6)
    error = refused((omenn_fx.MixedBatchError, omenn_fx.OutputError), model, x)
    assert "takes [N, steps, ...] and transposes" in error.fix
    assert "batched=False" in error.fix
    if isinstance(error, omenn_fx.MixedBatchError):
        assert error.places[0].file == __file__
        assert "getitem" not in error.places[0].op


@pytest.mark.parametrize("name", ["lstm", "cells", "encoder"])
def test_the_ways_out_of_sequence_first_work(name):
    layer, read = SEQUENCES[name]
    model, x = Steps(layer(), read), torch.randn(4, 4, 6)
    got = explained(First(model), x)
    torch.testing.assert_close(got.value, model(x.transpose(0, 1))[:, 1].detach())
    explained(model, x, target=(0, 1), batched=False)


@pytest.fixture(scope="module")
def shifting():
    """A model whose operator shifts the rows, with a rule that states that it leaves them apart."""

    def back(g):
        return torch.cat([g[-1:], g[:-1]])

    op = torch.ops.omenn_agree.shifted.default
    omenn_fx.rule(op, rows=APART)(lambda call: Moves(op, back, call.shape()))
    yield Net(lambda net, x: net.head(op(torch.relu(net.hidden(x)))))
    del rule_set("omenn").table[op]


@pytest.mark.parametrize("x", [X, torch.zeros(4, 6), torch.full((4, 6), torch.nan)], ids=["values", "zeros", "none"])
def test_what_no_shape_tells_is_tried_on_values_and_named(shifting, x):
    before = torch.get_rng_state()
    error = refused(omenn_fx.MixedBatchError, shifting, x, dynamic_batch=False)
    assert [(p.node, p.file) for p in error.places] == [("shifted", __file__)]
    assert torch.equal(torch.get_rng_state(), before)


def test_without_values_check_says_what_was_not_tried(shifting):
    report = omenn_fx.check(copy.deepcopy(shifting).to("meta"), X, dynamic_batch=False)
    assert report.supported
    assert [w.kind.code for w in report.warnings] == ["OMENN110"]
    assert "fixed at 4" in report.warnings[0].reason
    refused(omenn_fx.MixedBatchError, shifting, X, dynamic_batch=False)  # the way out: with the weights


def test_a_fixed_batch_whose_samples_stay_apart_is_explained():
    explained(Net(lambda net, x: net.layers(x.view(4, 6)) / x.abs().sum(1, keepdim=True).log()))
    table = nn.Embedding(3, 6)
    net = Net(lambda net, ids: net.layers(table(ids.view(4, 2)).sum(1)))
    explained(net, torch.tensor([[0, 1], [2, 2], [1, 1], [0, 2]]))


def test_weights_made_in_inference_mode_are_named_with_a_way_out():
    with torch.inference_mode():
        model = Net(Net.layers)
        error = refused(omenn_fx.CaptureError, model)
    assert error.reason == refused(omenn_fx.CaptureError, model).reason
    assert "torch.inference_mode()" in error.reason
    assert "copy.deepcopy(model)" in error.fix
    explained(copy.deepcopy(model))


def test_a_call_inside_of_inference_mode_is_like_any_other():
    model = Net(Net.layers)
    want = explained(model).C
    with torch.inference_mode():
        torch.testing.assert_close(explained(model, X.clone()).C, want)


# TorchScript, and files -----------------------------------------------------------------------------------------------


def scripted(tmp_path):
    plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    traced = torch.jit.trace(plain, X)
    traced.save(tmp_path / "net.pt")
    return plain, {
        "scripted": torch.jit.script(plain),
        "traced": traced,
        "frozen": torch.jit.freeze(torch.jit.script(plain)),
        "loaded": torch.jit.load(tmp_path / "net.pt"),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_named_alone_and_inside_of_a_model(tmp_path):
    plain, modules = scripted(tmp_path)
    for module in modules.values():
        error = refused(omenn_fx.CaptureError, module)
        assert "the model is TorchScript" in error.reason
        inside = nn.Sequential(nn.Identity(), module)
        inside[0].eval()
        assert "'1' is TorchScript" in refused(omenn_fx.CaptureError, inside).reason
    assert error.fix == "give the nn.Module that was scripted or traced"
    explained(plain)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_files_that_hold_no_program_are_told_apart_without_loading_them(tmp_path):
    plain, _ = scripted(tmp_path)
    torch.save(plain.state_dict(), tmp_path / "weights.pth")
    torch.save({"model": plain.state_dict(), "epoch": 3}, tmp_path / "checkpoint.pt")
    torch.save(plain.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(plain, tmp_path / "module.pt")
    (tmp_path / "empty.pt2").touch()
    omenn_fx.transform(plain, X).save(tmp_path / "explainer.pt2", X)
    for name, said, fix in (
        ("net.pt", "is a TorchScript module", "give the nn.Module"),
        ("weights.pth", "is a file of weights", "load_state_dict(torch.load(path, weights_only=True))"),
        ("checkpoint.pt", "is a file of weights", "weights_only=True"),
        ("old.pth", "is a pickle", "weights_only=True"),
        ("module.pt", "is a pickled module", "torch.load(path, weights_only=False)"),
        ("empty.pt2", "is no archive", "torch.export.save"),
        ("explainer.pt2", "is an explainer", "omenn_fx.load('"),
        ("", "is a folder", ""),
        ("nothing.pt2", "there is no file", ""),
    ):
        error = refused(omenn_fx.CaptureError, tmp_path / name)
        assert said in error.reason
        assert fix in error.fix
    # the ways out, followed
    torch.export.save(torch.export.export(plain, (X,)), tmp_path / "model.pt2")
    explained_path = omenn_fx.transform(tmp_path / "model.pt2", X)
    torch.testing.assert_close(explained_path(X, target=1).value, plain(X)[:, 1].detach())
    explained(torch.load(tmp_path / "module.pt", weights_only=False))
    plain.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    assert omenn_fx.load(tmp_path / "explainer.pt2")(X, target=1).C.shape == X.shape


# Distributions --------------------------------------------------------------------------------------------------------


def validates():
    try:
        D.Normal(torch.zeros(1), -torch.ones(1))
    except ValueError:
        return True
    return False


DISTRIBUTIONS = {
    "log-likelihood": lambda h, x: D.Normal(h[:, :2], h[:, 2:4].exp()).log_prob(x[:, :2]),
    "asked for": lambda h, x: D.Laplace(h, torch.ones(5), validate_args=True).log_prob(x[:, :5]),
    "of probabilities": lambda h, x: D.Categorical(h.softmax(-1)).logits,
    "transformed": lambda h, x: D.TransformedDistribution(
        D.Normal(h, torch.ones(5)), [D.AffineTransform(1.0, 2.0), D.ExpTransform()]
    ).log_prob(x[:, :5].exp()),
    "divergence": lambda h, x: D.kl_divergence(
        D.Normal(h, torch.ones(5)), D.Normal(torch.zeros(5), F.softplus(x[:, :5]))
    ),
    "mixture": lambda h, x: D.MixtureSameFamily(
        D.Categorical(logits=h[:, :2]), D.Normal(h[:, 2:4], torch.ones(2))
    ).log_prob(x[:, 0])[:, None],
    "dirichlet": lambda h, x: D.Dirichlet(F.softplus(h) + 1).mean,
    "geometric": lambda h, x: D.Geometric(h.sigmoid()).probs,
}


@pytest.mark.parametrize("read", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_distributions_are_explained_and_go_on_validating(read):
    explained(Net(lambda net, x: read(net.hidden(x), x)), target=0)
    assert validates()


def test_a_constant_covariance_is_no_branch_on_values():
    """Its constraint looks at the matrix, too; what is left is an operator."""
    error = refused(
        omenn_fx.UnsupportedOpError,
        Net(lambda net, x: D.MultivariateNormal(torch.zeros(5), torch.eye(5)).log_prob(net.hidden(x))),
    )
    assert {place.op for place in error.places} == {"aten.linalg_solve_triangular.default"}


def test_a_capture_that_fails_leaves_the_validation_on():
    refused(omenn_fx.CaptureError, Net(lambda net, x: D.Normal(x, 1.0).log_prob(x) if x.sum() > 0 else x))
    assert validates()


# Transforms of torch.func ---------------------------------------------------------------------------------------------


def stacked(net, x):
    """An ensemble of two, whose weights are stacked."""
    names = dict(net.hidden.named_parameters())
    weights = {name: torch.stack([p, 2 * p]) for name, p in names.items()}
    return torch.vmap(lambda w, x: torch.func.functional_call(net.hidden, w, (x,)), (0, None))(weights, x).mean(0)


TRANSFORMED = {
    "one sample": lambda net, x: torch.vmap(net.layers)(x),
    "torch.func": lambda net, x: torch.func.vmap(lambda row: net.layers(row.tanh()) * row.sum())(x),
    "another dimension": lambda net, x: torch.vmap(net.layers, in_dims=1)(x.t()),
    "inside of one another": lambda net, x: net.layers(torch.vmap(torch.vmap(lambda t: torch.relu(t) * 2))(x)),
    "stacked weights": stacked,
    "functional_call": lambda net, x: torch.func.functional_call(net.hidden, dict(net.hidden.named_parameters()), (x,)),
    "forward derivative": lambda net, x: torch.func.jvp(net.layers, (x,), (x,))[1],
}


@pytest.mark.parametrize("forward", TRANSFORMED.values(), ids=TRANSFORMED)
def test_vmap_is_explained(forward):
    if forward is TRANSFORMED["forward derivative"] and torch.__version__ < "2.12":
        assert "vmap" in refused(omenn_fx.CaptureError, Net(forward)).fix
        return
    model, leaf = Net(forward), X.clone().requires_grad_()
    got = explained(model)
    if forward is TRANSFORMED["one sample"]:  # a network of ReLUs
        torch.testing.assert_close(got.C_w, torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)[0])


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: torch.vmap(torch.func.jacrev(net.layers))(x).sum(1),
        lambda net, x: torch.vmap(torch.func.grad(lambda row: net.layers(row).tanh().sum()))(x),
        lambda net, x: torch.vmap(net.layers, out_dims=1)(x).t(),
        lambda net, x: torch.vmap(lambda row: row if row.sum() > 0 else -row)(x),
    ],
    ids=["jacrev", "grad", "out_dims", "branch"],
)
def test_transforms_that_cannot_be_captured_are_named(forward):
    assert "vmap" in refused(omenn_fx.CaptureError, Net(forward)).fix


# Names of the user's --------------------------------------------------------------------------------------------------


def test_keys_of_modules_may_be_anything():
    class Keyed(nn.Module):
        def __init__(self):
            super().__init__()
            keys = ["class", "class_", "a-b", "0", "None", "def f", 'quo"te', "back\\slash"]
            self.layers = nn.ModuleDict({key: nn.Linear(6, 3) for key in keys})
            self.eval()

        def forward(self, x):
            return sum((i + 1) * layer(x) for i, layer in enumerate(self.layers.values()))

    explained(Keyed())
    assert omenn_fx.transform(Keyed(), X).validate(X).ok


# Where an error is, and what to do ------------------------------------------------------------------------------------

MADE: dict = {}
exec("def branch(self, x): return x if x.sum() > 0 else -x\ndef broken(x): raise ValueError(f'no {object()}')", MADE)


@contextlib.contextmanager
def around():
    yield


@around()
def decorated(net, x):
    with contextlib.suppress(KeyError):
        return net.layers(MADE["broken"](x))  # this line


def reduced(net, x):
    return functools.reduce(lambda a, b: MADE["broken"](a), [1, 2], x)  # this line


@pytest.mark.parametrize("forward", [decorated, reduced], ids=lambda f: f.__name__)
def test_an_error_without_a_file_is_placed_at_the_users_innermost_line(forward):
    error = refused(omenn_fx.CaptureError, nn.Sequential(nn.Linear(6, 6).eval(), Net(forward)).eval())
    (place,) = error.places
    assert place.file == __file__
    assert place.code.endswith("# this line")
    assert place.module == "1"


def test_an_error_without_any_file_is_placed_at_its_module():
    written = type("Written", (nn.Module,), {"forward": MADE["branch"]})().eval()
    error = refused(omenn_fx.CaptureError, nn.Sequential(nn.Linear(6, 6), nn.Sequential(written)).eval())
    (place,) = error.places
    assert (place.file, place.module) == ("", "1.0")
    assert "in module '1.0'" in str(error)


def test_a_node_is_placed_at_the_users_line_not_at_torchs():
    explainer = omenn_fx.transform(Net(Net.layers), X)
    lines = {node.op: node.source for node in explainer.nodes if node.op.startswith("aten")}
    assert all(source.startswith(f"{__file__}:") for source in lines.values()), lines


def test_each_advice_of_a_failed_capture_works():
    """What each says, followed."""
    for broken, said, mended in (
        (lambda net, x: x if x.sum() > 0 else -x, "torch.where", lambda net, x: torch.where(x.sum(1, True) > 0, x, -x)),
        (lambda net, x: x[:, : int(x[0, 0].item())], "a mask", lambda net, x: x * (torch.arange(6) < 3)),
        (lambda net, x: torch.from_numpy(x.numpy()), "tensor operators", lambda net, x: 1 * x),
        (lambda net, x: torch.ops.omenn_agree.faceless(x), "fake implementation", None),
        (lambda net, x: net.missing(x), "see its message above", Net.layers),
        (lambda net, x: torch.vmap(torch.func.jacrev(net.layers))(x).sum(1), "for the whole batch at once",
         lambda net, x: (net.hidden(x) > 0).float() * net.head.weight.sum(0) @ net.hidden.weight + x),
    ):  # fmt: skip
        assert said in refused(omenn_fx.CaptureError, Net(broken)).fix
        if mended is not None:
            explained(Net(mended))
    torch.library.register_fake("omenn_agree::faceless", torch.empty_like, lib=LIBRARY)
    refused(
        omenn_fx.UnsupportedOpError, Net(lambda net, x: torch.ops.omenn_agree.faceless(x))
    )  # captured: a rule is next
