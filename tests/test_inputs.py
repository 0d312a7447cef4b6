"""Inputs, outputs and targets in the forms that users have them, and what is said of those that cannot be taken."""

import copy
import dataclasses
import inspect
import pickle
from collections import OrderedDict, defaultdict, namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import omenn_fx
from omenn_fx.errors import Place
from omenn_fx.target import resolve

torch.set_num_threads(1)


class Net(nn.Module):
    """A network whose forward is given: (its two layers, *inputs) -> what it returns."""

    def __init__(self, forward, inputs=4):
        super().__init__()
        self.hidden, self.head, self.function = nn.Linear(inputs, 5), nn.Linear(5, 3), forward
        self.eval()

    def layers(self, x):
        return self.head(torch.relu(self.hidden(x)))

    def forward(self, *inputs):
        return self.function(self.layers, *inputs)


def explained(model, *inputs, target=1, value=None, **options):
    """An explanation, after `check` has said that there is one; its sum is a logit of the model."""
    assert omenn_fx.check(model, inputs, **options).supported
    explainer = omenn_fx.transform(model, inputs, **options)
    got = explainer(*inputs, target=target)
    with torch.no_grad():
        want = model(*inputs) if value is None else value(model(*inputs))
    want = want if target is None else want[:, target]
    torch.testing.assert_close(got.value, want)
    torch.testing.assert_close(got.sum, want)
    return got


def refused(kind, model, *inputs, **options):
    """The error that `transform` raises; `check` says the same."""
    report = omenn_fx.check(model, inputs, **options)
    assert not report.supported
    with pytest.raises(kind) as caught:
        omenn_fx.transform(model, inputs, **options)
    problem = report.problems[0]
    assert problem.reason == caught.value.reason
    assert caught.value.fix in ("", problem.fix)
    assert " at 0x" not in f"{caught.value} {problem}"
    return caught.value


# Structures of inputs -------------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "first second")


def columns(layers, batch):
    return layers(torch.cat([batch[key] for key in sorted(batch)], 1))


def shuffled(kind, batch):
    """The same entries in another order, in another kind of dict."""
    other = kind()
    other.update(reversed(list(batch.items())))
    return other


@pytest.mark.parametrize("kind", [dict, OrderedDict, lambda: defaultdict(list)], ids=["dict", "ordered", "default"])
@pytest.mark.parametrize("exported", [False, True], ids=["module", "program"])
def test_a_dict_is_its_keys(kind, exported):
    model, batch = Net(columns), {key: torch.randn(3, 2) for key in "ab"}
    source = torch.export.export(model, (batch,), strict=False) if exported else model
    explainer = omenn_fx.transform(source, (batch,))
    want, got = explainer(batch, target=1), explainer(shuffled(kind, batch), target=1)
    assert len(explainer._programs) == 1
    assert list(got.inputs) == list(want.inputs)
    for name, one in want.inputs.items():
        assert torch.equal(got.inputs[name].X, one.X)
        torch.testing.assert_close(got.inputs[name].C, one.C)


def test_dicts_inside_of_lists_tuples_and_keywords():
    class Nested(Net):
        def forward(self, x, *, more):
            pair = x["list"][1]
            return self.layers(torch.cat([x["list"][0]["u"], pair.first, more["k"]["j"] * pair.second], 1))

    model, tensors = Nested(None, inputs=6), [torch.randn(3, 2) for _ in range(4)]
    first = {"list": [{"u": tensors[0], "none": None}, Pair(tensors[1], tensors[3])]}
    explainer = omenn_fx.transform(model, (first,), example_kwargs={"more": {"k": {"j": tensors[2], "i": 3}}})
    want = explainer(first, more={"k": {"j": tensors[2], "i": 3}}, target=0)
    swapped = {"list": [{"none": None, "u": tensors[0]}, Pair(second=tensors[3], first=tensors[1])]}
    got = explainer(swapped, more={"k": {"i": 3, "j": tensors[2]}}, target=0)
    assert len(explainer._programs) == 1
    torch.testing.assert_close([one.C for one in got.inputs.values()], [one.C for one in want.inputs.values()])
    for more, said in (
        ({"k": {"i": 3, "z": tensors[2]}}, "input 'more'['k'] lacks 'j' and has 'z'"),
        ({"k": [3, tensors[2]]}, "input 'more'['k'] is a list of 2, captured was a dict of 2"),
        ({"k": tensors[2]}, "input 'more'['k'] is a tensor or a plain value, captured was a dict of 2"),
    ):
        with pytest.raises(omenn_fx.InputError) as caught:
            explainer(first, more=more)
        assert said in str(caught.value)
        assert "TreeSpec" not in str(caught.value)
        assert len(str(caught.value)) < 500


def test_another_structure_is_captured_where_the_model_takes_it():
    class Columns(Net):
        def forward(self, batch):
            return columns(self.layers, batch)

    model, batch = Columns(None), {key: torch.randn(3, 1) for key in "abcd"}
    explainer = omenn_fx.transform(model, (batch,))
    renamed = {{"d": "e"}.get(key, key): value for key, value in batch.items()}
    torch.testing.assert_close(explainer(renamed, target=1).sum, model(renamed)[:, 1].detach())
    assert len(explainer._programs) == 2
    torch.testing.assert_close(explainer(batch=batch, target=1).sum, model(batch)[:, 1].detach())


def test_an_exported_program_names_the_key_that_is_missing():
    batch = {f"column {i}": torch.randn(3, 1) for i in range(4)}
    explainer = omenn_fx.transform(torch.export.export(Net(columns), (batch,), strict=False), (batch,))
    with pytest.raises(omenn_fx.InputError, match=r"input 0 lacks 'column 3'; it cannot be captured anew"):
        explainer({key: value for key, value in batch.items() if key != "column 3"})
    with pytest.raises(
        omenn_fx.InputError, match=r"input 0 lacks 'column 0', .*'column 3' and has 0, 1, 2, 3, 4 and 1 mo"
    ):
        explainer(dict(enumerate(6 * [torch.randn(3, 1)])))


@dataclasses.dataclass
class Sample:
    image: torch.Tensor
    weight: torch.Tensor


def test_a_dataclass_input_is_told_what_to_do_and_doing_it_works():
    model = Net(lambda layers, sample: layers(sample.image) * sample.weight)
    sample = Sample(torch.randn(3, 4), torch.rand(3, 1))
    error = refused(omenn_fx.InputError, model, sample)
    assert "call torch.export.register_dataclass(Sample) once" in str(error)
    torch.export.register_dataclass(Sample)
    got = explained(model, sample)
    assert list(got.inputs) == ["inputs_0_image", "inputs_0_weight"]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (np.zeros((2, 4), np.float32), "example_inputs is a ndarray: convert it with torch.from_numpy"),
        (
            (np.zeros((2, 4), np.float32),),
            "an input is a ndarray, not a torch.Tensor; convert it with torch.from_numpy",
        ),
        ((torch.zeros(2, 4), np.float32(3)), "a float32, not a torch.Tensor"),
        (
            (torch.zeros(2, 4), np.int64(3)),
            "a int64, not a torch.Tensor; convert it with torch.from_numpy (a single number",
        ),
        ({"x": torch.zeros(2, 4)}, "example_inputs=(batch,) where forward takes the mapping itself, or example_kwargs"),
        (3, "example_inputs is a int"),
    ],
)
def test_inputs_that_are_no_tensors(inputs, said):
    model = Net(lambda layers, x, n=1: layers(x) * float(n))
    report = omenn_fx.check(model, inputs)
    with pytest.raises(omenn_fx.InputError) as caught:
        omenn_fx.transform(model, inputs)
    assert said in str(caught.value)
    assert [p.kind.code for p in report.problems] == ["OMENN003"]
    assert said in f"{report.problems[0].reason} {report.problems[0].fix}"


# Integers that are numbers --------------------------------------------------------------------------------------------


class Picture(nn.Module):
    def __init__(self, read):
        super().__init__()
        self.conv, self.head, self.read = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), read
        self.eval()

    def forward(self, image):
        return self.head(torch.relu(self.conv(self.read(image))).mean((2, 3)))


@pytest.mark.parametrize(
    "read",
    [
        lambda i: i.float() / 255,
        lambda i: i / 255,
        lambda i: i.to(torch.float32).sub(127).div(128),
        lambda i: i.float() / 255 + (i / 255) ** 2,
        lambda i: torch.cat([part.float() for part in i.chunk(3, 1)], 1),
        lambda i: torch.cat([i[:, 1:], i[:, :1]], 1) * 0.01,
    ],
    ids=["cast", "division", "to", "twice", "pieces", "joined"],
)
def test_uint8_images_are_explained_as_the_numbers_they_are(read):
    image = torch.randint(0, 256, (2, 3, 6, 6), dtype=torch.uint8)
    got = explained(Picture(read), image)
    assert got.C.shape == image.shape
    assert torch.equal(got.X, image.float())


def test_a_view_before_the_cast_leaves_the_explanation_in_the_inputs_shape():
    image = torch.randint(0, 256, (2, 6, 6, 3), dtype=torch.uint8)
    model = Picture(lambda i: i.permute(0, 3, 1, 2).contiguous().float() / 255)
    got = explained(model, image)
    assert got.C.shape == image.shape
    assert omenn_fx.transform(model, image).validate(image).ok


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.bool], ids=str)
def test_codes_and_masks_that_are_cast(dtype):
    codes = torch.randint(0, 5, (6, 4)).to(dtype)
    got = explained(Net(lambda layers, x: layers(x.float())), codes)
    assert torch.equal(got.X, codes.float())


def test_an_integer_input_among_others_is_explained_where_it_is_named():
    model = Net(lambda layers, x, codes: layers(torch.cat([x, codes.float()], 1)))
    x, codes = torch.randn(6, 2), torch.randint(0, 5, (6, 2))
    assert list(explained(model, x, codes).inputs) == ["inputs_0"]
    got = explained(model, x, codes, explain=[0, 1])
    assert list(got.inputs) == ["inputs_0", "inputs_1"]
    assert torch.equal(got.inputs["inputs_1"].X, codes.float())


def test_ids_and_their_mask_are_explained_by_the_embedding_alone():
    class Bag(Net):
        def __init__(self):
            super().__init__(None)
            self.table = nn.Embedding(9, 4).eval()

        def forward(self, ids, mask):
            weights = mask.float()[..., None]
            return self.layers((self.table(ids) * weights).sum(1) / weights.sum(1))

    ids, mask = torch.randint(0, 9, (2, 5)), torch.ones(2, 5, dtype=torch.long)
    assert list(explained(Bag(), ids, mask).inputs) == ["ids"]
    assert list(explained(Bag(), ids, mask, explain="mask").inputs) == ["mask"]


def test_integers_that_are_computed_with_are_told_to_be_cast_and_casting_works():
    image = torch.randint(0, 100, (2, 3, 6, 6), dtype=torch.uint8)
    model = Picture(lambda i: (i * 2).float())
    error = refused(omenn_fx.NoContentError, model, image)
    assert "torch.uint8" in str(error)
    assert "x.float()" in str(error)
    explained(model, image.float())


# Outputs --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Result:
    logits: object
    others: object = None


class Opaque:
    """Something that torch.export has no type for."""


OUTPUTS = {
    "dataclass": (lambda h, x: Result(h, x), "logits", lambda r: r.logits),
    "dataclass, by default": (lambda h, x: Result(h, x), None, lambda r: r.logits),
    "picked": (lambda h, x: Result(x, h), lambda r: r.others, lambda r: r.others),
    "dataclass inside": (lambda h, x: Result(x, Result(h)), lambda r: r.others.logits, lambda r: r.others.logits),
    "in a tuple": (lambda h, x: (x, Result(h)), lambda r: r[1].logits, lambda r: r[1].logits),
    "in a dict": (lambda h, x: {1: x, "r": Result(h)}, lambda r: r["r"].logits, lambda r: r["r"].logits),
    "in a list": (lambda h, x: [Result(h), x], lambda r: r[0].logits, lambda r: r[0].logits),
    "beside what is none": (lambda h, x: Result(h, Opaque()), "logits", lambda r: r.logits),
    "namedtuple": (lambda h, x: Pair(h, Opaque()), "first", lambda r: r.first),
    "namespace": (lambda h, x: SimpleNamespace(logits=h, cache=Opaque()), None, lambda r: r.logits),
}


@pytest.mark.parametrize(("returned", "output", "value"), OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_are_read_by_their_fields(returned, output, value):
    model, x = Net(lambda layers, x: returned(layers(x), x)), torch.randn(2, 4)
    explained(model, x, output=output, value=value)
    torch.testing.assert_close(omenn_fx.transform(model, x, output=output).reference(x), value(model(x)).detach())


@pytest.mark.parametrize("returned", [lambda h: Opaque(), lambda h: torch.distributions.Normal(h, 1.0)])
def test_an_output_without_tensors_is_told_what_to_do_and_doing_it_works(returned):
    model, x = Net(lambda layers, x: (layers(x), returned(layers(x)))[1]), torch.randn(2, 4)
    error = refused(omenn_fx.OutputError, model, x)
    assert "wrap the model in one that returns its tensors" in error.fix
    explained(Net(lambda layers, x: Result(layers(x), returned(layers(x)))), x, value=lambda r: r.logits)


# Targets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "plain"),
    [
        (np.int64(3), 3),
        (np.uint8(3), 3),
        (np.array(3), 3),
        (torch.tensor(3), 3),
        (np.array([1, 2]), torch.tensor([1, 2])),
        (np.array([[1, 2], [0, 1]]), torch.tensor([[1, 2], [0, 1]])),
        (np.array([0.5, 0, 0, 1, 0]), torch.tensor([0.5, 0, 0, 1, 0])),
        ([np.int64(1), 2], torch.tensor([1, 2])),
        ((np.int64(1),), 1),
        (lambda outputs: outputs.argmax(1).numpy(), None),
    ],
    ids=lambda value: "function" if callable(value) else repr(value),
)
def test_targets_of_numpy(target, plain):
    outputs = torch.randn(2, 5)
    torch.testing.assert_close(resolve(target, outputs).value(outputs), resolve(plain, outputs).value(outputs))


def test_positions_and_regions_of_numpy():
    outputs = torch.randn(2, 3, 4)
    mask = np.array([True, False, True])
    assert torch.equal(resolve((np.int64(1), np.int32(2)), outputs).value(outputs), outputs[:, 1, 2])
    torch.testing.assert_close(resolve((mask,), outputs).value(outputs), outputs[:, [0, 2]].flatten(1).sum(1))


@pytest.mark.parametrize(
    "target", [np.bool_(True), torch.tensor(True), np.array(["cat"]), [[1, 2], [3]], ["cat"], np.float32(1)], ids=repr
)
def test_targets_that_are_none(target):
    with pytest.raises(omenn_fx.TargetError):
        resolve(target, torch.randn(2, 5))


# Errors and explainers in other processes -----------------------------------------------------------------------------


def _kinds(kind=omenn_fx.OmennError):
    return [kind] + [one for below in kind.__subclasses__() for one in _kinds(below)]


@pytest.mark.parametrize("kind", _kinds(), ids=lambda kind: kind.__name__)
def test_errors_survive_a_pickle(kind):
    place = Place("relu", "aten.relu.default", "act", "/a/net.py", 3, "forward", "return relu(x)")
    given = {
        "place": place,
        "places": [place],
        "where": place,
        "error": KeyError("k"),
        "fix": "mend it",
        "why": {"relu": "no"},
    }
    names = list(inspect.signature(kind).parameters)
    error = kind(**{name: given.get(name, f"some {object()} {name}") for name in names})
    error.__cause__ = KeyError("k")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert (str(again), again.args, again.places, again.fix) == (str(error), error.args, error.places, error.fix)
    assert " at 0x" not in str(error)


def test_written_explainers_survive_a_pickle(tmp_path):
    from omenn_fx.export import runtime

    model, x = Net(lambda layers, x: layers(x / 255)), torch.randint(0, 256, (3, 4), dtype=torch.uint8)
    explainer = omenn_fx.transform(model, x)
    explainer.save(tmp_path / "net.pt2", x)
    explainer.to_onnx(tmp_path / "net.onnx", x)
    for written in (omenn_fx.load(tmp_path / "net.pt2"), runtime.load(tmp_path / "net.onnx")):
        for again in (pickle.loads(pickle.dumps(written)), copy.deepcopy(written)):
            torch.testing.assert_close(again(x[:2], target=1).C, explainer(x[:2], target=1).C)
            assert repr(again) == repr(written)
