"""Files that leave: attention and views in them, the inputs they are verified on, their names, and what breaks them."""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omenn_fx
from omenn_fx.capture.conditions import Conditions
from omenn_fx.errors import ExportError, InputError, OmennError, ParityError
from omenn_fx.export import load
from omenn_fx.export import onnx as onnx_module
from omenn_fx.export.draws import inputs_to_try
from omenn_fx.export.sizes import FileSizes

ALL = ("logits", "C", "C_w", "C_b", "X", "bias", "target")


def tries(explainer, inputs):
    """What a file that takes any size is verified on."""
    shapes = {str(i): shape for i, shape in enumerate(explainer.ready.captured.shapes)}
    return inputs_to_try(explainer, (inputs, {}), FileSizes(shapes, Conditions()))


def agrees(got, explainer, *inputs, target=1, tolerance=1e-4):
    """An explanation out of a file, against the explainer's own."""
    want = explainer(*inputs, target=target)
    torch.testing.assert_close(got.outputs, want.outputs, atol=tolerance, rtol=tolerance)
    assert list(got.inputs) == list(want.inputs)
    for name, one in want.inputs.items():
        torch.testing.assert_close(got.inputs[name].C, one.C, atol=tolerance, rtol=tolerance)
    assert (got.target == want.target).all()


def strided(x):
    """The same values, the last dimension with the largest stride."""
    return x.transpose(0, -1).contiguous().transpose(0, -1)


# Views ---------------------------------------------------------------------------------------------------------------


class Cross(nn.Module):
    """Queries of a text over an image's positions, sequence first; the weights are looked at, too."""

    def __init__(self):
        super().__init__()
        self.patches, self.attention = nn.Conv2d(3, 8, 2, 2), nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, image, query):
        y = self.patches(image)
        n, c, h, w = y.shape
        memory = y.view(n, c, h * w).permute(2, 0, 1)
        mixed, weights = self.attention(query.transpose(0, 1), memory, memory, need_weights=True)
        return self.head(mixed.transpose(0, 1).mean(1)) + weights.mean((1, 2))[:, None]


class Grouped(nn.Module):
    """Causal attention, two queries to a key, behind a write into a part of the input's copy."""

    def __init__(self):
        super().__init__()
        self.q, self.kv, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        n, t, _ = x.shape
        x = x.clone()
        x[:, 0].mul_(0.5)
        q = self.q(x).view(n, t, 4, 4).transpose(1, 2)
        k, v = self.kv(x).view(n, t, 2, 2, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.head(y.transpose(1, 2).contiguous().view(n, t, 16)[:, -1])


class Windows(nn.Module):
    """Attention in the windows of a rolled map, as Swin writes it; an expanded view on the way."""

    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x):
        n, h, w, c = x.shape
        parts = torch.roll(x, (1, 1), (1, 2)).view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5)
        q, k, v = self.qkv(parts.reshape(-1, 4, c)).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        y = (F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 4, c)).view(n, -1, c)
        return self.head((y + y[:, :1].expand(-1, y.shape[1], -1)).mean(1))


VIEWED = {
    "cross": (Cross, (torch.randn(3, 3, 4, 4), torch.randn(3, 2, 8))),
    "grouped": (Grouped, (torch.randn(3, 5, 8),)),
    "windows": (Windows, (torch.randn(3, 4, 4, 4),)),
}


@pytest.fixture(scope="module", params=VIEWED)
def exported(request):
    """An explainer of an exported program, whose attention was decomposed, and inputs."""
    torch.manual_seed(0)
    make, inputs = VIEWED[request.param]
    model = make().eval()
    explainer = omenn_fx.transform(torch.export.export(model, inputs), inputs)
    with torch.no_grad():
        torch.testing.assert_close(explainer(*inputs).outputs, model(*inputs), atol=1e-5, rtol=1e-5)
    return explainer, inputs


def test_inputs_with_other_strides(exported):
    explainer, inputs = exported
    want = explainer(*inputs, target=1)
    got = explainer(*map(strided, inputs), target=1)
    torch.testing.assert_close(got.outputs, want.outputs)
    for name, one in want.inputs.items():
        torch.testing.assert_close(got.inputs[name].C, one.C)


def test_decomposed_attention_is_saved(exported, tmp_path):
    explainer, inputs = exported
    explainer.save(tmp_path / "a.pt2", *map(strided, inputs))
    saved = omenn_fx.load(tmp_path / "a.pt2")
    agrees(saved(*inputs, target=1), explainer, *inputs)
    agrees(saved(*map(strided, inputs), target=1), explainer, *inputs)


def test_attention_that_was_taken_apart_for_a_write_leaves_as_onnx(tmp_path):
    """Not an exported program: the batch stays free, too."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    explainer = omenn_fx.transform(Grouped().eval(), x)
    assert explainer.to_onnx(tmp_path / "g.onnx", strided(x)).proof.inputs == 4
    other = torch.randn(4, 5, 8)
    agrees(load(tmp_path / "g.onnx")(other, target=1), explainer, other)


# Inputs with a domain ------------------------------------------------------------------------------------------------


class Of(nn.Module):
    """A linear layer of a function of the inputs."""

    def __init__(self, function, width):
        super().__init__()
        self.function, self.head = function, nn.Linear(width, 3)

    def forward(self, *inputs):
        return self.head(self.function(*inputs))


class Codes(nn.Module):
    """Codes in float columns, weighted by what must not sum to 0."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(4, 5), nn.Linear(5, 3)

    def forward(self, codes, weight):
        return self.head((self.embed(codes.long()) * weight[..., None]).sum(1) / weight.sum(1, keepdim=True))


def unit(*shape):
    return torch.rand(*shape) * 0.8 + 0.1


DOMAINS = {
    "odds": (lambda: Of(lambda p: torch.log(p) - torch.log1p(-p), 4), lambda n: (unit(n, 4),)),
    "angle": (lambda: Of(torch.acos, 4), lambda n: (unit(n, 4) - 0.5,)),
    "mask": (
        lambda: Of(lambda x, m: (x * m[..., None]).sum(1) / m.sum(1, keepdim=True), 4),
        lambda n: (torch.randn(n, 5, 4), (torch.arange(5) <= torch.arange(n)[:, None]).float()),
    ),
    "codes": (Codes, lambda n: (torch.randint(0, 4, (n, 6)).float(), unit(n, 6))),
    "distances": (lambda: Of(lambda d: (d + torch.eye(4)).pow(-0.5).sum(1), 4), lambda n: (unit(n, 4, 4),)),
}


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", DOMAINS)
def test_inputs_are_drawn_from_the_domain_of_those_given(name, rows):
    make, draw = DOMAINS[name]
    model, inputs = make().eval(), draw(rows)
    explainer = omenn_fx.transform(model, inputs, explain=len(inputs) - 1)
    tried = tries(explainer, inputs)
    assert tried[0][0] is inputs
    # those given, others like them, one row more, and one alone
    assert [len(args[0]) for args, _ in tried] == [rows, rows, rows + 1, *([1] if rows > 1 else [])]
    assert any(not torch.equal(a, b) for a, b in zip(tried[1][0], inputs, strict=True))
    for args, _ in tried:
        assert torch.isfinite(model(*args)).all()
        for drawn, given in zip(args, inputs, strict=True):
            assert given.min() <= drawn.min()
            assert drawn.max() <= given.max()
            if (given == given.round()).all():
                assert (drawn == drawn.round()).all()


def test_what_stands_together_in_a_row_stays_so_where_the_model_wants_it():
    """A model that refuses all but the rows that it knows is tried on those alone, or on nothing else."""
    rows = torch.randn(4, 3)

    class Known(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x, ids):
            if not torch.compiler.is_compiling() and any((rows == row).all(1).sum() != 1 for row in x):
                raise LookupError("a row that nobody knows")
            return self.head(x) * ids[:, None]

    inputs = rows, torch.arange(1, 5)
    tried = tries(omenn_fx.transform(Known().eval(), inputs, explain=0), inputs)
    assert len(tried) == 4
    for (x, ids), _ in tried:
        torch.testing.assert_close(x, rows[ids - 1])


def test_a_model_of_one_input_alone_is_verified_on_that(tmp_path):
    x = torch.rand(1, 4)

    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, given):
            if not torch.compiler.is_compiling() and not torch.equal(given, x):
                raise IndexError("no such row")
            return self.head(given)

    file = omenn_fx.transform(Once().eval(), x).to_onnx(tmp_path / "o.onnx", x, target=0)
    assert file.proof.inputs == 1
    assert "verified on 1 input:" in repr(file)


def test_without_inputs_random_ones_that_the_model_takes(tmp_path):
    explainer = omenn_fx.transform(Of(lambda x: torch.log(x - 0.05), 4).eval(), unit(2, 4))
    assert explainer.to_onnx(tmp_path / "l.onnx", target=1).proof.completeness < 1e-5


def test_inputs_far_from_any_that_are_thought_of_are_to_be_given(tmp_path):
    x = unit(2, 4) + 100
    explainer = omenn_fx.transform(Of(lambda x: torch.log(x - 99), 4).eval(), x)
    with pytest.raises(ExportError, match=r"takes none of the random inputs(?s:.)*give to_onnx example inputs"):
        explainer.to_onnx(tmp_path / "far.onnx")
    assert not list(tmp_path.iterdir())
    assert explainer.to_onnx(tmp_path / "far.onnx", x, target=1, dtype="float16").proof.inputs == 4


# Whole files ---------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))

    def forward(self, x):
        return self.layers(x)


X = torch.randn(2, 4)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return omenn_fx.transform(Small().eval(), X)


@pytest.fixture(scope="module")
def files(small, tmp_path_factory):
    """One explainer in both formats."""
    folder = tmp_path_factory.mktemp("files")
    file = small.to_onnx(folder / "s.onnx", X, outputs=ALL)
    assert file.outputs == [*ALL[:-1], "target_"], "an input has the name"
    small.save(folder / "s.pt2", X)
    return folder


@pytest.fixture(scope="module")
def translated(small):
    """One translation for all exports of `small` that differ in how they are written alone: it takes seconds."""
    found, translate = [], onnx_module._translated

    def once(*args):
        if not found:
            found.append(translate(*args))
        return found[0]

    return once


@pytest.fixture
def quick(small, translated, monkeypatch):
    monkeypatch.setattr(onnx_module, "_translated", translated)
    return small


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stops(error, *args, **kwargs):
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ParityError, ValueError, OSError(28, "full")])
def test_a_failed_export_leaves_what_was_there(quick, tmp_path, monkeypatch, error):
    (tmp_path / "s.onnx").write_bytes(b"the former one")
    (tmp_path / "s.onnx.data").write_bytes(b"its weights")
    before = contents(tmp_path)
    monkeypatch.setattr(onnx_module, "prove", partial(stops, error))
    for path in (tmp_path / "s.onnx", tmp_path / "new.onnx"):
        with pytest.raises(type(error) if isinstance(error, BaseException) else error):
            quick.to_onnx(path, X)
        assert contents(tmp_path) == before


def test_weights_of_their_own_take_their_place_with_the_file(quick, tmp_path, monkeypatch):
    """An interrupt between the two leaves the former pair; the next export replaces both, a small one removes them."""
    path = tmp_path / "w.onnx"
    with monkeypatch.context() as large:
        save = torch.onnx.ONNXProgram.save
        large.setattr(torch.onnx.ONNXProgram, "save", lambda self, where: save(self, where, external_data=True))
        file = quick.to_onnx(path, X)
        assert sorted(contents(tmp_path)) == ["w.onnx", "w.onnx.data"]
        assert file.size == sum(map(len, contents(tmp_path).values()))
        before, replace = contents(tmp_path), os.replace
        with monkeypatch.context() as interrupted:
            interrupted.setattr(os, "replace", lambda a, b: stops(KeyboardInterrupt) if b == path else replace(a, b))
            with pytest.raises(KeyboardInterrupt):
                quick.to_onnx(path, X)
        assert contents(tmp_path) == before
        quick.to_onnx(path, X)
        assert len(contents(tmp_path)) == 2
        agrees(load(path)(X, target=2), quick, X, target=2)
    quick.to_onnx(path, X, verify=False)
    assert sorted(contents(tmp_path)) == ["w.onnx"]


def test_weights_that_others_may_read_stay(quick, tmp_path):
    """A file of another program stood there, whose weights are in a file that it may share."""
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="shared.data")
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    (tmp_path / "m.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    (tmp_path / "shared.data").write_bytes(b"1234")
    quick.to_onnx(tmp_path / "m.onnx", X, verify=False)
    assert sorted(contents(tmp_path)) == ["m.onnx", "shared.data"]


def test_a_stopped_save_leaves_what_was_there(small, files, tmp_path, monkeypatch):
    path = tmp_path / "s.pt2"
    path.write_bytes((files / "s.pt2").read_bytes())
    before = contents(tmp_path)

    def half(program, where, **options):
        Path(where).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.export, "save", half)
    with pytest.raises(KeyboardInterrupt):
        small.save(path, X)
    assert contents(tmp_path) == before


def test_what_cannot_be_written_says_so(small, tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "file").write_text("")
    for write, name in ((small.to_onnx, "e.onnx"), (small.save, "e.pt2")):
        for path in (tmp_path / name.replace("e.", "folder."), tmp_path / "file" / name):
            with pytest.raises(ExportError, match="cannot be written"):
                write(path, X)
    with pytest.raises(ExportError, match="'inputs': an entry is text, under a name that no own entry has"):
        small.to_onnx(tmp_path / "e.onnx", X, metadata={"inputs": "[]"})
    with pytest.raises(ExportError, match="'mean': an entry is text"):
        small.to_onnx(tmp_path / "e.onnx", X, metadata={"mean": 0.5})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.onnx", "folder.pt2"]


def test_random_numbers_are_the_callers(quick, tmp_path):
    before = torch.get_rng_state()
    quick.to_onnx(tmp_path / "r.onnx")
    quick.save(tmp_path / "r.pt2", X)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_link_stays_a_link(small, tmp_path):
    (tmp_path / "latest.pt2").symlink_to(tmp_path / "v1.pt2")
    small.save(tmp_path / "latest.pt2", X)
    assert (tmp_path / "latest.pt2").is_symlink()
    assert (tmp_path / "v1.pt2").is_file()


# Calls ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["onnx", "pt2"])
def out_of_file(request, files):
    return load(files / "s.onnx") if request.param == "onnx" else omenn_fx.load(files / "s.pt2")


def test_arrays_and_tensors_of_any_strides(out_of_file, small):
    agrees(out_of_file(X, target=1), small, X)
    agrees(out_of_file(x=X.numpy(), target=1), small, X)
    agrees(out_of_file(strided(X), target=1), small, X)
    agrees(out_of_file(X.numpy()[::-1], target=1), small, X.flip(0))
    several = torch.tensor([[0, 1], [2, 0]])
    agrees(out_of_file(X, target=several), small, X, target=several)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.tensor([[1.0, torch.nan, 2, 3]]), "'x' holds NaN"),
        (np.array([[1, -np.inf, 2, 3]], np.float32), "'x' holds inf"),
        (X.double(), "'x' is"),
        (X.numpy().astype(np.float16), "'x' is"),
        (X.bfloat16(), "'x' is"),
        (X.long(), "'x' is"),
        (X[0], "'x'"),
        (X[None], "'x'"),
        (X[:, :3], "'x'"),
        (X.to_sparse(), "'x' is"),
        (X.to("meta"), "'x' is"),
        ("cat.jpg", "'x' is"),
        (None, "'x' is"),
        ([[1.0], [1.0, 2.0]], "'x' is"),
    ],
)
def test_wrong_inputs_are_named(out_of_file, given, said):
    with pytest.raises(InputError, match=said):
        out_of_file(given, target=1)


def test_wrong_calls_are_refused(out_of_file):
    for args, kwargs in (((), {}), ((X, X), {}), ((X,), {"x": X}), ((), {"y": X})):
        with pytest.raises(InputError, match="takes x"):
            out_of_file(*args, **kwargs)


def test_rows_of_two_inputs_belong_together(tmp_path):
    inputs = torch.randn(3, 4), torch.randn(3, 4)
    explainer = omenn_fx.transform(Of(torch.mul, 4).eval(), inputs, explain=0)
    explainer.to_onnx(tmp_path / "two.onnx", *inputs, target=0, verify=False)
    with pytest.raises(InputError, match="where batch is 3"):
        load(tmp_path / "two.onnx")(inputs[0], inputs[1][:1])
    explainer.save(tmp_path / "two.pt2", *inputs)
    with pytest.raises(InputError, match=r"saved for \(N, 4\) torch.float32 where N is 3"):
        omenn_fx.load(tmp_path / "two.pt2")(inputs[0], inputs[1][:1])


# Damage --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize(("name", "read"), [("s.onnx", load), ("s.pt2", omenn_fx.load)])
def test_a_part_of_a_file_is_refused(files, tmp_path, name, read, kept):
    whole = (files / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(OmennError, match=name):
        read(tmp_path / name)


@pytest.mark.parametrize("read", [load, omenn_fx.load])
def test_another_file_is_refused(files, tmp_path, read):
    (tmp_path / "text.pt2").write_text("no explainer\n" * 50)
    torch.save(Small().state_dict(), tmp_path / "weights.pt2")
    (tmp_path / "folder.pt2").mkdir()
    other = files / ("s.pt2" if read is load else "s.onnx")
    for path in (*tmp_path.iterdir(), other):
        with pytest.raises(OmennError, match=path.name):
            read(path)


@pytest.mark.parametrize("damage", ["missing", "damaged"])
@pytest.mark.parametrize("key", ["explained", "inputs", "biased", "kept", "target", "batched"])
def test_metadata_of_another_kind_are_refused(files, tmp_path, key, damage):
    model = onnx.load(str(files / "s.onnx"))
    entries = {p.key: p.value for p in model.metadata_props}
    entries |= {f"omenn_fx.{key}": "{]"}
    if damage == "missing":
        del entries[f"omenn_fx.{key}"]
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, entries)
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(ExportError, match=r"the metadata of '.*m\.onnx' are damaged"):
        load(tmp_path / "m.onnx")


def test_a_file_of_an_earlier_version_is_read(files, quick, tmp_path):
    """It says nothing of the names of its outputs: they are what they are called."""
    quick.to_onnx(tmp_path / "now.onnx", X, verify=False)
    model = onnx.load(str(tmp_path / "now.onnx"))
    entries = {p.key: p.value for p in model.metadata_props}
    del entries["omenn_fx.outputs"], entries["omenn_fx.target_input"], model.metadata_props[:]
    onnx.helper.set_model_props(model, entries)
    onnx.save(model, str(tmp_path / "then.onnx"))
    agrees(load(tmp_path / "then.onnx")(X, target=1), quick, X)


def test_notes_of_another_kind_are_refused(files, tmp_path):
    saved = omenn_fx.load(files / "s.pt2")
    broken = [{k: v for k, v in saved.notes.items() if k != key} for key in ("inputs", "tensors", "explained", "rules")]
    for i, notes in enumerate([*map(json.dumps, broken), "{", "[]", json.dumps(saved.notes | {"inputs": ["x", "y"]})]):
        torch.export.save(saved.program, tmp_path / f"{i}.pt2", extra_files={"omenn_fx.json": notes})
        with pytest.raises(ExportError, match=rf"'.*{i}\.pt2' is a saved explainer, but its notes"):
            omenn_fx.load(tmp_path / f"{i}.pt2")


@pytest.mark.parametrize("place", ["../secret.data", "inner/../../secret.data", "{folder}/secret.data", "link.data"])
def test_external_data_stays_in_its_folder(files, tmp_path, place):
    model, folder = onnx.load(str(files / "s.onnx")), tmp_path / "inner"
    folder.mkdir()
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    (tmp_path / "secret.data").write_bytes(largest.raw_data)
    (folder / "link.data").symlink_to(tmp_path / "secret.data")
    largest.ClearField("raw_data")
    largest.data_location = onnx.TensorProto.EXTERNAL
    largest.external_data.add(key="location", value=place.format(folder=tmp_path))
    (folder / "s.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=r"cannot read '.*s\.onnx'"):
        load(folder / "s.onnx")
    largest.external_data[0].value = "own.data"
    (folder / "own.data").write_bytes((tmp_path / "secret.data").read_bytes())
    (folder / "s.onnx").write_bytes(model.SerializeToString())
    assert load(folder / "s.onnx")(X).completeness_error.max() < 1e-5, "beside the file it is read"


# Names ---------------------------------------------------------------------------------------------------------------


class Names(nn.Module):
    """Its inputs, its buffer and its parts are called as ours are, as torch's are, and as each other."""

    def __init__(self):
        super().__init__()
        self.graph, self.code = nn.Linear(4, 4), nn.ModuleDict({"class": nn.Linear(4, 3), 'a"b,c': nn.Linear(3, 3)})
        self.register_buffer("target_", torch.ones(4))
        self.meta = nn.Parameter(torch.randn(3))

    def forward(self, target, logits, C, bias, X, relu, cotangent, residuals, outputs):
        y = target * self.target_ + 2 * logits + C - bias + X * torch.relu(relu) + cotangent + residuals - outputs
        return self.code['a"b,c'](torch.relu(self.code["class"](self.graph(y)))) + self.meta


@pytest.fixture(scope="module")
def named():
    torch.manual_seed(0)
    model, inputs = Names().eval(), tuple(torch.randn(2, 4) for _ in range(9))
    explainer = omenn_fx.transform(model, inputs)
    with torch.no_grad():
        torch.testing.assert_close(explainer(*inputs).outputs, model(*inputs))
    return explainer, inputs


def test_colliding_names_in_onnx(named, tmp_path):
    explainer, inputs = named
    file = explainer.to_onnx(tmp_path / "n.onnx", *inputs, outputs=ALL)
    assert file.inputs[0] == "target", "what is the user's keeps its name"
    assert file.inputs[-1] == "target_"
    assert len({*file.inputs, *file.outputs}) == len(file.inputs) + len(file.outputs)
    read = load(file.path)
    agrees(read(*inputs, target=1), explainer, *inputs)
    agrees(read(*inputs[:1], **dict(zip(file.inputs[1:], inputs[1:], strict=False)), target=1), explainer, *inputs)
    agrees(read(*inputs[:2], C=inputs[2], bias=inputs[3], X=inputs[4], relu=inputs[5], cotangent=inputs[6],
                residuals=inputs[7], outputs=inputs[8], target=2), explainer, *inputs, target=2)  # fmt: skip
    several = torch.tensor([[0, 1], [2, 0]])
    agrees(read(*inputs, target=several), explainer, *inputs, target=several)


def test_colliding_names_in_a_saved_explainer(named, tmp_path):
    explainer, inputs = named
    explainer.save(tmp_path / "n.pt2", *inputs)
    read = omenn_fx.load(tmp_path / "n.pt2")
    agrees(read(*inputs, target=1), explainer, *inputs)
    agrees(read(*inputs[:4], X=inputs[4], **dict(zip(read.inputs[5:], inputs[5:], strict=True)), target=1),
           explainer, *inputs)  # fmt: skip


def test_names_that_torch_cannot_write():
    """A write that has to be taken apart makes code of the model's names; elsewhere they are no hindrance."""

    class Writes(nn.Module):
        def __init__(self, key):
            super().__init__()
            self.parts, self.key = nn.ModuleDict({key: nn.Linear(4, 3)}), key

        def forward(self, x):
            x = x.clone()
            x[:, 0].mul_(2.0)
            return self.parts[self.key](x)

    assert omenn_fx.transform(Writes("plain").eval(), X)(X).completeness_error.max() < 1e-5
    for key in ("lambda", 'x"), print("run'):
        with pytest.raises(omenn_fx.CaptureError, match="rename these parts of the model"):
            omenn_fx.transform(Writes(key).eval(), X)
