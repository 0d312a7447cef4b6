"""A graph of free sizes is the model under conditions; what is explained is the branch that the inputs take."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omenn_fx
from omenn_fx import compat
from omenn_fx.capture.conditions import Conditions, sizes_of
from omenn_fx.errors import InputError, MixedBatchError


class Forward(nn.Module):
    """A model of two heads and a function of it and its input."""

    def __init__(self, forward, width=4, classes=3):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(width, classes), nn.Linear(width, classes)
        self.compute = forward
        self.eval()

    def forward(self, x):
        return self.compute(self, x)


def branching(condition):
    return Forward(lambda m, x: m.a(x) if condition(x) else m.b(x))


def same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def explained(explainer, model, x, target=1):
    """An explanation, whose outputs, sum and weights are those of the model itself at these inputs."""
    e = explainer(x, target=target)
    leaf = x.clone().requires_grad_()
    outputs = model(leaf)
    same(e.outputs, outputs.detach().reshape(e.outputs.shape))
    same(e.sum, e.value)
    value = outputs.reshape(len(x), -1)[:, target or 0].sum()
    same(e.C_w, torch.autograd.grad(value, leaf)[0])
    return e


# Branches ------------------------------------------------------------------------------------------------------------

BRANCHES = {
    "square": lambda x: x.shape[0] ** 2 > 20,
    "every third": lambda x: x.shape[0] % 3 == 1,
    "some": lambda x: x.shape[0] in (2, 5),
    "outside": lambda x: x.shape[0] <= 2 or x.shape[0] >= 6,
    "halves": lambda x: (x.shape[0] + 1) // 2 > 2,
    "one": lambda x: not x.size(0) > 1,
    "smaller of two": lambda x: min(x.shape[0], 3) < 2,
    "ratio": lambda x: x.shape[0] / x.shape[1] > 0.7,
    "whole shape": lambda x: x.shape == (1, 4),
}


@pytest.mark.parametrize("captured", [1, 5])
@pytest.mark.parametrize("condition", BRANCHES.values(), ids=BRANCHES)
def test_the_branch_of_these_inputs_is_explained(condition, captured):
    model = branching(condition)
    explainer = omenn_fx.transform(model, torch.randn(captured, 4))
    for n in (1, 2, 3, 4, 6, 7):
        explained(explainer, model, torch.randn(n, 4))


def test_each_branch_is_captured_once():
    model = branching(lambda x: x.shape[0] > 3)
    explainer = omenn_fx.transform(model, torch.randn(2, 4))
    programs = {n: explainer.program_for((torch.randn(n, 4),), {})[0] for n in (1, 3, 4, 9, 2)}
    assert programs[1] is programs[2] is programs[3]
    assert programs[4] is programs[9]
    assert programs[4] is not programs[3]


def test_what_is_the_same_at_any_size_is_captured_once():
    """Checks of the inputs, choices by fixed sizes, and broadcasts, where torch itself asks for sizes of one."""

    def forward(m, x):
        assert x.shape[0] > 0
        assert x.ndim == 2
        x = x * torch.ones(1, 4) if x.shape[1] == 4 else x
        x = x + x.mean(-1, keepdim=True).expand(x.shape[0], 4)
        return m.a(x.reshape(-1, 2, 2).flatten(1))

    model = Forward(forward)
    explainer = omenn_fx.transform(model, torch.randn(1, 4))
    first = explainer.ready
    for n in (1, 2, 5):
        explained(explainer, model, torch.randn(n, 4))
        assert explainer.ready is first


def test_the_log_says_why_it_is_captured_anew(caplog):
    explainer = omenn_fx.transform(branching(lambda x: x.shape[0] > 3), torch.randn(2, 4))
    explainer(torch.randn(5, 4))
    assert "another branch of its code where" in caplog.text
    assert "<= 3 does not hold" in caplog.text


def test_an_exported_program_keeps_to_its_own_conditions():
    model = branching(lambda x: x.shape[0] > 3)
    program = torch.export.export(model, (torch.randn(2, 4),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    explainer = omenn_fx.transform(program, torch.randn(2, 4))
    same(explainer(torch.randn(3, 4) * 0).outputs, model(torch.zeros(3, 4)))
    with pytest.raises(InputError, match=r"another branch of its code where .* <= 3 does not hold"):
        explainer(torch.randn(4, 4))


def test_conditions_that_cannot_be_read_are_not_assumed(monkeypatch):
    monkeypatch.setattr("omenn_fx.capture.single.guards_of", lambda mode: None)
    model = branching(lambda x: x.shape[0] > 3)
    explainer = omenn_fx.transform(model, torch.randn(3, 4))
    assert set(explainer.ready.captured.conditions.texts) == {f"{explainer.ready.captured.batch} == 3"}
    for n in (2, 3, 4):
        explained(explainer, model, torch.randn(n, 4))


def test_comparisons_that_are_not_noticed_are_not_assumed(monkeypatch):
    monkeypatch.setattr(compat, "_asked_outside_of_torch", lambda frame: False)
    model = branching(lambda x: x.shape[0] == 1)
    explainer = omenn_fx.transform(model, torch.randn(3, 4))
    assert explainer.ready.captured.conditions.texts == (f"{explainer.ready.captured.batch} >= 2",)
    explained(explainer, model, torch.randn(1, 4))


# A batch of one ------------------------------------------------------------------------------------------------------


def loop(m, x):
    return torch.stack([m.a(row) for row in x])


ONE = {  # forward, number of outputs, target
    "squeezed in the middle": (lambda m, x: m.b(torch.relu(m.a(x)[:, :, None]).squeeze()), (4, 4), 2),
    "squeezed by dimension": (lambda m, x: m.a(x).unsqueeze(0).squeeze(1).reshape(-1, 3), (4, 3), 2),
    "one output, squeezed": (lambda m, x: m.a(x).squeeze(), (4, 1), None),
    "one output behind a squeeze": (lambda m, x: m.a(x.unsqueeze(-1).squeeze()), (4, 1), 0),
    "the row itself": (lambda m, x: m.a(x[0] if x.shape[0] == 1 else x), (4, 3), 1),
    "flattened": (lambda m, x: m.a(x).flatten(0), (4, 1), None),
    "a view": (lambda m, x: m.a(x).view(-1), (4, 1), None),
    "a mean over one": (lambda m, x: m.a(x)[:, None].mean(1).squeeze(), (4, 3), 1),
    "chunks": (lambda m, x: torch.cat([m.a(c) for c in x.chunk(2)]).squeeze(), (4, 3), 1),
    "rows": (loop, (4, 3), 1),
}


@pytest.mark.parametrize("captured", [1, 4])
@pytest.mark.parametrize("name", ONE)
def test_one_sample_is_explained_like_its_row_of_a_batch(name, captured):
    forward, (width, classes), target = ONE[name]
    model, rows = Forward(forward, width, classes), torch.randn(4, width)
    one = rows[:1]
    explainer = omenn_fx.transform(model, rows[:captured])
    e = explained(explainer, model, one, target)
    whole = omenn_fx.transform(model, rows)(rows, target=target)
    assert e.outputs.shape == (1, *whole.outputs.shape[1:])
    same(e.C, whole.C[:1])
    same(e.bias.total, whole.bias.total[:1])
    same(explainer.reference(one), e.outputs)


@pytest.mark.parametrize("name", ["squeezed in the middle", "one output, squeezed", "the row itself"])
def test_check_and_validate_agree_at_one_sample(name):
    forward, (width, classes), target = ONE[name]
    model, one = Forward(forward, width, classes), torch.randn(1, width)
    assert omenn_fx.check(model, one).supported
    assert omenn_fx.transform(model, one).validate(one, target=target).ok
    fixed = omenn_fx.transform(model, one, dynamic_batch=False)
    assert fixed(one, target=None).outputs.shape[0] == 1


def test_check_needs_no_weights_to_see_a_batch_of_one():
    with torch.device("meta"):
        model = Forward(lambda m, x: m.b(m.a(x).squeeze()), 4, 4)
    report = omenn_fx.check(model, torch.randn(1, 4))
    assert report.supported
    assert [v.op for v in report.nodes][-1] == "aten.reshape.default"  # the dimension of the batch, back again


# Parts of a batch ----------------------------------------------------------------------------------------------------

PARTS = {  # a model that takes its batch apart, and the same model in one piece
    "split": (lambda m, x: torch.cat([m.a(torch.relu(c)) for c in x.split(2)]), lambda m, x: m.a(torch.relu(x))),
    "rows": (lambda m, x: torch.stack([m.a(torch.tanh(row)) for row in x]), lambda m, x: m.a(torch.tanh(x))),
    "rows of one": (lambda m, x: torch.cat([m.a(x[i : i + 1]) for i in range(len(x))]), lambda m, x: m.a(x)),
    "twice": (lambda m, x: torch.cat([torch.cat([m.a(x[:1]), m.a(x[1:3])]), m.a(x[3:])]), lambda m, x: m.a(x)),
    "inside": (lambda m, x: m.b(torch.cat([(c + 1) for c in x.relu().split([1, 4])])), lambda m, x: m.b(x.relu() + 1)),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_a_batch_are_its_rows(name):
    width = (4, 4) if name == "inside" else (4, 3)
    apart, x = Forward(PARTS[name][0], *width), torch.randn(5, 4)
    e = omenn_fx.transform(apart, x)(x, target=2)
    whole = omenn_fx.transform(Forward(PARTS[name][1], *width), x)(x, target=2)
    same(e.outputs, apart(x))
    same(e.C, whole.C)
    same(e.bias.total, whole.bias.total)
    assert float(e.completeness_error.max()) < 1e-5
    assert omenn_fx.check(apart, x).supported


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.a(torch.cat([x[:2] + x[2:4], x[2:]])),
        lambda m, x: m.a(torch.cat([x[1:], x[:1]])),
        lambda m, x: torch.stack([m.a(x[i] * x[0]) for i in range(len(x))]),
    ],
    ids=["two parts added", "another order", "all times the first"],
)
def test_parts_that_meet_are_refused(forward):
    with pytest.raises(MixedBatchError):
        omenn_fx.transform(Forward(forward), torch.randn(4, 4))


# Files ---------------------------------------------------------------------------------------------------------------


def written(explainer, kind, folder, *inputs, **options):
    if kind == "pt2":
        explainer.save(folder / "e.pt2", *inputs)
        return omenn_fx.load(folder / "e.pt2")
    pytest.importorskip("onnxruntime")
    from omenn_fx.export import load

    return load(explainer.to_onnx(folder / "e.onnx", *inputs, **options).path)


FILES = {  # branch -> what the file says, where it is the model and where it is not, having been written at 2
    "more": (lambda x: x.shape[0] > 4, "batch <= 4", (1, 2, 4), (5, 7)),
    "one": (lambda x: x.shape[0] == 1, "batch != 1", (2, 5), (1,)),
    "even": (lambda x: x.shape[0] % 2 == 0, "batch % 2 == 0", (2, 6), (1, 3)),
    "two rows alone": (lambda x: 1 < x.shape[0] < 3, "batch", (2,), (1, 3)),
}


@pytest.mark.parametrize(("name", "kind"), [*((name, "pt2") for name in FILES), ("even", "onnx")])
def test_a_file_is_refused_where_it_is_not_the_model(name, kind, tmp_path):
    condition, text, inside, outside = FILES[name]
    model = branching(condition)
    explainer = omenn_fx.transform(model, torch.randn(2, 4))
    file = written(explainer, kind, tmp_path, torch.randn(2, 4))
    assert text in file.sizes.text or file.sizes.shapes["x"] == [2, 4]
    for n in inside:
        x = torch.randn(n, 4)
        same(file(x, target=1).outputs, model(x))
        same(file(x, target=1).C, explainer(x, target=1).C)
    for n in outside:
        x = torch.randn(n, 4)
        with pytest.raises(InputError) as error:
            file(x, target=1)
        if "another file at example inputs of these sizes" in str(error.value):  # it is told, and works
            other = written(explainer, kind, tmp_path, x)
            same(other(x, target=1).outputs, model(x))


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_one_sample_of_a_file(kind, tmp_path):
    """Where a squeeze makes another model of it, the file says so; elsewhere a file takes one sample as ever."""
    x = torch.randn(3, 4)
    squeezed = written(omenn_fx.transform(Forward(ONE["squeezed in the middle"][0], 4, 4), x), kind, tmp_path, x)
    assert "batch >= 2" in squeezed.sizes.text
    with pytest.raises(InputError, match="the model where batch >= 2"):
        squeezed(x[:1], target=0)
    plain = Forward(lambda m, x: m.b(m.a(x.reshape(-1, 2, 2).flatten(1)).relu().view(-1, 4)), 4, 4)
    file = written(omenn_fx.transform(plain, x), kind, tmp_path, x)
    same(file(x[:1], target=0).outputs, plain(x[:1]))


def test_free_tokens_have_conditions_too(tmp_path):
    pytest.importorskip("onnxruntime")

    def forward(m, x):
        return (m.a(x) if x.shape[1] <= 6 else m.b(x)).sum(1)

    model, x = Forward(forward), torch.randn(2, 6, 4)
    file = written(omenn_fx.transform(model, x), "onnx", tmp_path, x, dynamic=("batch", "tokens"))
    assert json.loads(file.metadata["sizes"])["hold"] == ["tokens <= 6"]
    for n, t in ((1, 3), (5, 6), (2, 1)):
        other = torch.randn(n, t, 4)
        same(file(other, target=0).outputs, model(other))
    with pytest.raises(InputError, match="tokens = 7: this file is the model where tokens <= 6"):
        file(torch.randn(2, 7, 4), target=0)


def test_a_file_without_sizes_is_read_as_before():
    sizes = omenn_fx.export.sizes.FileSizes.read("")
    sizes.check(["x"], [torch.randn(3, 2)])
    assert sizes.shapes == {}


# The text of conditions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "holds", "fails"),
    [
        ("n > 4", 5, 4),
        ("Ne(n, 3) & (2*n <= 20)", 10, 3),
        ("Eq(Mod(n, 2), 0) | Eq(n, 3)", 3, 5),
        ("~(n // 4 >= 2)", 7, 8),
        ("Max(3, n) - 1 < 4", 4, 5),
        ("FloatPow(ToFloat(n), 0.5) > 1.5", 3, 2),
        ("IntTrueDiv(n, 3) <= 1.0", 3, 4),
    ],
)
def test_arithmetic_in_sizes(text, holds, fails):
    conditions = Conditions((text,))
    assert conditions.broken({"n": holds}) is None
    assert conditions.broken({"n": fails}) == text
    assert conditions.names == {"n"}
    assert conditions.broken({"n": 0}) is None  # no rows to be wrong about


@pytest.mark.parametrize("text", ["__import__('os').getcwd()", "n.real > 0", "unknown > 0", "2**n**9 > 0", "max(n, n)"])
def test_what_is_no_arithmetic_never_holds(text):
    assert Conditions((text,)).broken({"n": 99}) == text


def test_sizes_of_inputs():
    x, y = torch.randn(3, 5), torch.randn(6, 5)
    assert sizes_of([("n", 5), ("2*n", "t")], [x, y]) == {"n": 3, "t": 5}
    assert sizes_of([("n", 5), ("n", 5)], [x, y]) is None
    assert sizes_of([("n", 5), ("3*n", 5)], [x, y]) is None
    assert sizes_of([("n", 4)], [x]) is None
    assert sizes_of([("n",)], [x]) is None


def test_comparisons_of_torch_itself_are_no_conditions():
    """`F.pad` and broadcasts ask for sizes of one, and compute the same."""
    padded = Forward(lambda m, x: m.a(F.pad(x, (0, 1)) + torch.zeros(1, 5)), 5)
    explainer = omenn_fx.transform(padded, torch.randn(3, 4))
    assert explainer.ready.captured.conditions == Conditions()
