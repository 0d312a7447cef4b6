"""Files of strangers: a `.pt2` file runs nothing where it is loaded, and says which of its entries would have."""

import ast
import io
import json
import os
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from samples import SAMPLES
from torch import nn
from typer.testing import CliRunner

import omenn_fx
from omenn_fx.capture import plain_program
from omenn_fx.capture.plain_program import NotPlainError, check_operator
from omenn_fx.cli.explain import app
from omenn_fx.errors import CaptureError, ExportError, FileError
from omenn_fx.loading.models import SourceError, read_state_dict

DATA = Path(__file__).parent / "data"
MODEL, WEIGHTS, CONSTANTS, INPUTS = (
    "models/model.json",
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
    "data/sample_inputs/model.pt",
)


class Small(nn.Module):
    """A weight, a constant, a size that stays free, a keyword, a subgraph, and an input that nothing reads."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"a-b": nn.Linear(4, 3)})
        self.scale = torch.arange(1.0, 4.0)

    def forward(self, x, *, shift, spare):
        with torch.no_grad():
            gate = torch.sigmoid(shift)
        return self.layers["a-b"](x) * self.scale + gate * x.shape[0]


KEYWORDS = {"shift": torch.ones(3), "spare": torch.ones(1)}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A program that torch.export saved, as the bytes of its entries."""
    path = tmp_path_factory.mktemp("good") / "good.pt2"
    free = {"x": {0: torch.export.Dim("batch", min=2, max=64)}, "shift": None, "spare": None}
    torch.export.save(torch.export.export(Small().eval(), (torch.randn(4, 4),), KEYWORDS, dynamic_shapes=free), path)
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A folder that hostile code makes."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "ran"


class Runs:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


CODE = "__import__('os').mkdir('ran')"


def pickled(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def write(entries: dict[str, bytes], path: Path = Path("bad.pt2"), compress: bool = False) -> Path:
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in entries.items():
            archive.writestr(f"bad/{name}", data)
    return path


def edited(good, entry: str, change) -> Path:
    """The good archive with one of its JSON entries changed."""
    content = json.loads(good[entry])
    change(content)
    return write(good | {entry: json.dumps(content).encode()})


def payload(good, entry: str, data: bytes, path_name: str, **fields) -> Path:
    """The good archive, whose first tensor of a kind is read from data of ours."""
    content = json.loads(good[entry])
    first = next(iter(content["config"].values()))
    first.update(path_name=path_name, **fields)
    folder = entry.rpartition("/")[0]
    return write(good | {entry: json.dumps(content).encode(), f"{folder}/{path_name}": data})


def replaced(value, old: str, new: str):
    """A JSON value in which a text stands for another everywhere: values and keys."""
    return json.loads(json.dumps(value).replace(json.dumps(old), json.dumps(new)))


def graph(content) -> dict:
    return content["graph_module"]["graph"]


def node_of(content, target: str) -> dict:
    return next(node for node in graph(content)["nodes"] if node["target"] == target)


def refused(path: Path, marker: Path, *parts: str) -> None:
    """By every door, with the entry's name, and nothing ran."""
    said = []
    for door in (omenn_fx.load, omenn_fx.transform):
        with pytest.raises(FileError) as error:
            door(path)
        said.append(str(error.value))
    (problem,) = omenn_fx.check(path).problems
    for text in (*said, f"{problem.reason} {problem.fix}"):
        for part in (path.name, *parts, "trusted=True"):
            assert part in text
    assert not marker.exists()


def trusted_runs(path: Path, marker: Path) -> None:
    """What is refused is really hostile: loaded as trusted and called, it runs."""
    try:
        program = omenn_fx.transform(path, trusted=True)._exported
        program.module()(torch.randn(3, 4), **KEYWORDS)
    except Exception:  # it need not be a program that works
        pass
    assert marker.exists()


# Entries that are unpickled -------------------------------------------------------------------------------------------


PICKLES = {
    "a weight": lambda good: payload(good, WEIGHTS, pickled(Runs()), "weight_0", use_pickle=True),
    "a constant": lambda good: payload(good, CONSTANTS, pickled(Runs()), "tensor_0", use_pickle=True),
    "an opaque constant": lambda good: payload(
        good, CONSTANTS, pickle.dumps(Runs()), "opaque_obj_0", use_pickle=True, tensor_meta=None
    ),
    "sample inputs": lambda good: write(good | {INPUTS: pickled(Runs())}),
    "weights of torch 2.8": lambda good: write(good | {"data/weights/model.pt": pickled({"w": Runs()})}),
    "constants of torch 2.8": lambda good: write(good | {"data/constants/model.pt": pickled({"w": Runs()})}),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_that_runs_code(good, marker, kind):
    path = PICKLES[kind](good)
    refused(path, marker, "data/")
    if kind != "an opaque constant" or torch.__version__ >= "2.13":  # before, torch did not unpickle it
        trusted_runs(path, marker)


def test_a_script_object(good, marker):
    path = payload(good, CONSTANTS, pickled(Runs()), "custom_obj_0", use_pickle=True, tensor_meta=None)
    refused(path, marker, "data/constants/custom_obj_0")


def test_a_pickle_is_refused_by_the_class_in_it(good, marker):
    refused(write(good | {INPUTS: pickled(({"x": Runs()}, {}))}), marker, INPUTS, "mkdir")


def test_a_torchscript_archive_for_sample_inputs(good, marker):
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.ReLU()), buffer)
    refused(write(good | {INPUTS: buffer.getvalue()}), marker, INPUTS)


def test_byte_order_is_data(good, marker):
    for order in (b"big", CODE.encode(), pickle.dumps(Runs())):
        path = write(good | {"byteorder": order})
        omenn_fx.transform(path)
        assert not marker.exists()


# Text that is evaluated -----------------------------------------------------------------------------------------------


def size_is(text: str):
    def change(content):
        value = next(v for v in graph(content)["tensor_values"].values() if "as_expr" in v["sizes"][0])
        value["sizes"][0]["as_expr"]["expr_str"] = text

    return change


@pytest.mark.parametrize(
    "text",
    [
        CODE,
        f"Symbol('s77') + {CODE}",
        "Max(1, lambdify('x', 'x')(1))",
        "sympify(\"__import__('os').mkdir('ran')\")",
        "Symbol('s77').__class__.__base__",
        "[s77 for s77 in (1,)]",
        "9**9**9",
        "9^9999999999",
        "PowByNatural(9, 999999999)",
        "LShift(1, 99999999999)",
        "Pow(Pow(Integer(9), Integer(64)), Integer(64))",
        "Pow(2, Mul(64, 64, 64, 64, 64))",
        "2**(64*64*64*64*64)",
        "Float('1.5', precision=9000000000000000000)",
        "Float(1, 999999999)",
        "u9999999999",
        "Symbol('s1'\n)",
    ],
)
def test_an_expression_that_is_not_arithmetic(good, marker, text):
    refused(edited(good, MODEL, size_is(text)), marker, MODEL)


def test_an_expression_is_really_evaluated(good, marker):
    trusted_runs(edited(good, MODEL, size_is(CODE)), marker)


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s77', positive=True, integer=True)",
        "Add(Mul(Integer(3), Symbol('s77', positive=True, integer=True)), Integer(-1))",
        "FloorDiv(s0 + 2*s1 - 1, 2)",
        "Max(1, Mod(s0, 8))",
        "(s0 >= 2) & Eq(s1, 4)",
        "Piecewise((s0, s0 > 1), (1, True))",
        "s0**2",
        "Pow(Symbol('u0', integer=True), Integer(2))",
        "Float('1.5', precision=53)",
    ],
)
def test_arithmetic_is_taken(text):
    plain_program.check_expression(text)


@pytest.mark.parametrize(
    "text", [CODE, f"L['x'].size()[0] == 2 or {CODE}", "L['x'].__class__", "L['x'].size()[0] == 2 # '", "L['\"']"]
)
def test_a_guard_that_is_no_comparison(good, marker, text):
    path = edited(good, MODEL, lambda content: content.update(guards_code=[text]))
    refused(path, marker, MODEL, "guard")


def test_a_guard_is_really_evaluated(good, marker):
    trusted_runs(edited(good, MODEL, lambda content: content.update(guards_code=[CODE])), marker)


@pytest.mark.parametrize(
    "text",
    ["L['x'].size()[0] >= 2", "Mod(L['x'].size()[0], 8) == 0", "L['a']['b-c'].size()[1] == 3 and not L['flag']"],
)
def test_a_guard_on_sizes_is_taken(text):
    plain_program.check_guard(text)


# Names that become Python ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hostile"),
    [
        ("x", f"x={CODE}"),
        ("c_scale", f"y={CODE}"),
        ("mul", f"mul; {CODE}; z"),
        ("layers.a-b.weight", f'layers.a"), {CODE}, ("b'),
    ],
)
def test_a_name_that_is_code(good, marker, name, hostile):
    content = replaced(json.loads(good[MODEL]), name, hostile)
    assert content != json.loads(good[MODEL])
    weights = replaced(json.loads(good[WEIGHTS]), name, hostile)
    path = write(good | {MODEL: json.dumps(content).encode(), WEIGHTS: json.dumps(weights).encode()})
    refused(path, marker, MODEL)


def test_a_name_really_becomes_code(good, marker):
    content = json.loads(good[MODEL])
    content["graph_module"] |= {
        part: replaced(content["graph_module"][part], "spare", f"spare={CODE}") for part in ("graph", "signature")
    }
    trusted_runs(write(good | {MODEL: json.dumps(content).encode()}), marker)


def keyword_is(text: str):
    def change(content):
        for entry in content["graph_module"]["module_call_graph"]:
            if entry["signature"]:
                entry["signature"]["in_spec"] = entry["signature"]["in_spec"].replace("shift", text)
                entry["signature"]["forward_arg_names"] = None

    return change


def test_a_keyword_that_is_code(good, marker):
    refused(edited(good, MODEL, keyword_is("shift=print(1)")), marker, MODEL, "shift=print(1)")


def test_names_of_arguments_that_are_code(good, marker):
    def change(content):
        for entry in content["graph_module"]["module_call_graph"]:
            if entry["signature"]:
                entry["signature"]["forward_arg_names"] = ["x", f"shift={CODE}"]

    refused(edited(good, MODEL, change), marker, MODEL)


def tree_of(node: dict):
    def change(content):
        for entry in content["graph_module"]["module_call_graph"]:
            if entry["signature"]:
                entry["signature"]["out_spec"] = json.dumps([1, node])

    return change


LEAF = {"type": None, "context": None, "children_spec": []}
IMPORTS = {
    "an enum": {"type": "builtins.dict", "context": '[{"__enum__": true, "fqn": "evil:E", "name": "A"}]'},
    "an enum, escaped": {"type": "builtins.dict", "context": '[{"\\u005f_enum__": 1, "fqn": "evil:E", "name": "A"}]'},
    "a factory": {
        "type": "collections.defaultdict",
        "context": {"default_factory_module": "evil", "default_factory_name": "E", "dict_context": ["a"]},
    },
}


@pytest.mark.parametrize("kind", IMPORTS)
def test_a_tree_that_imports(good, marker, kind, monkeypatch):
    Path("evil.py").write_text("import os\nos.mkdir('ran')\nclass E: pass\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    path = edited(good, MODEL, tree_of(IMPORTS[kind] | {"children_spec": [LEAF]}))
    refused(path, marker, MODEL)
    trusted_runs(path, marker)
    sys.modules.pop("evil", None)


# Calls ----------------------------------------------------------------------------------------------------------------


def call_of(target: str, *arguments: str):
    def change(content):
        node = node_of(content, "torch.ops.aten.mul.Tensor")
        node["target"] = target
        node["inputs"] = [{"name": "", "arg": {"as_string": a}, "kind": 1} for a in arguments]

    return change


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        ("torch.os.mkdir", ["ran"]),
        ("torch.load", ["bad.pt2"]),
        ("torch.hub.load", ["a/b", "c"]),
        ("torch.ops.load_library", ["evil.so"]),
        ("_operator.methodcaller", ["mkdir"]),
        ("_operator.attrgetter", ["x"]),
        ("torch.ops.aten.from_file.default", ["ran"]),
        ("torch.ops.aten.save.default", ["ran"]),
        ("torch.ops.higher_order.call_torchbind", ["x"]),
        ("#triton:x", []),
    ],
)
def test_a_call_of_what_is_no_operator(good, marker, target, arguments):
    refused(edited(good, MODEL, call_of(target, *arguments)), marker, MODEL, target)


def test_a_call_really_runs(good, marker):
    def change(content):
        arguments = {"filename": {"as_string": "ran"}, "shared": {"as_bool": True}, "size": {"as_int": 12}}
        node = node_of(content, "torch.ops.aten.mul.Tensor")
        node["target"] = "torch.ops.aten.from_file.default"
        node["inputs"] = [{"name": name, "arg": arg, "kind": 1} for name, arg in arguments.items()]

    trusted_runs(edited(good, MODEL, change), marker)


def test_an_operator_among_the_arguments(good, marker):
    def change(content):
        node_of(content, "torch.ops.aten.mul.Tensor")["inputs"][1]["arg"] = {"as_operator": "torch.os.mkdir"}

    refused(edited(good, MODEL, change), marker, "torch.os.mkdir")


def test_text_for_an_operator_of_a_library(good, marker):
    with torch.library._scoped_library("hostile_test", "DEF") as library:
        library.define("write(Tensor x, str file) -> Tensor")
        library.impl("write", lambda x, file: os.mkdir(file) or x, "CPU")
        refused(edited(good, MODEL, call_of("torch.ops.hostile_test.write.default", "ran")), marker, "text")


# The archive ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../../ran",
        "extra/../../ran",
        "data/aotinductor/model/model.so",
        "models/../models/other.json",
        "extra/a\\b",
        "Models/model.json",
        "code/ran.py",
    ],
)
def test_an_entry_of_another_kind(good, marker, name):
    refused(write(good | {name: b"x"}), marker, "")
    assert not marker.exists()


def test_the_layout_of_torch_2_7(good, marker):
    with zipfile.ZipFile("old.pt2", "w") as archive:
        archive.writestr("version", "8.14")
        archive.writestr("serialized_exported_program.json", good[MODEL])
        archive.writestr("serialized_state_dict.pt", pickled({}))
        archive.writestr("serialized_constants.pt", pickled({"w": Runs()}))
        archive.writestr("serialized_example_inputs.pt", b"")
    refused(Path("old.pt2"), marker, "torch 2.7")
    trusted_runs(Path("old.pt2"), marker)


def test_two_entries_of_one_name(good, marker):
    path = write(good)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(f"bad/{INPUTS}", pickled(Runs()))
    refused(path, marker, "one name")


def test_a_bomb(good, marker):
    refused(write(good | {"extra/a.txt": bytes(2**25)}, compress=True), marker, "bad/extra/a.txt")
    nested = io.BytesIO()
    with zipfile.ZipFile(nested, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(2**25))
    refused(write(good | {INPUTS: nested.getvalue()}), marker, "unpack")


def test_a_declared_shape_without_its_bytes(good, marker):
    def change(content):
        meta = next(iter(content["config"].values()))
        meta["path_name"] = "weight_9"
        meta["tensor_meta"]["sizes"] = [{"as_int": 10**6}, {"as_int": 10**6}]

    content = json.loads(good[WEIGHTS])
    change(content)
    refused(write(good | {WEIGHTS: json.dumps(content).encode(), "data/weights/weight_9": b""}), marker, "weight_9")


@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\x03\x04" + bytes(100)])
def test_a_damaged_file(tmp_path, data):
    path = tmp_path / "damaged.pt2"
    path.write_bytes(data)
    for door, kind in ((omenn_fx.load, ExportError), (omenn_fx.transform, CaptureError)):
        with pytest.raises(kind, match=r"damaged\.pt2.*cannot be read"):
            door(path)
    assert "cannot be read" in omenn_fx.check(path).problems[0].reason


def test_files_of_torch_that_hold_no_program(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")
    torch.jit.save(torch.jit.script(nn.ReLU()), tmp_path / "s.pt")
    for name, kind in (("w.pt", "weights"), ("s.pt", "TorchScript")):
        with pytest.raises(FileError, match=rf"{kind}.*no exported program") as error:
            omenn_fx.transform(tmp_path / name)
        assert "trusted" not in str(error.value)


def test_entries_cut_out_or_damaged(good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (MODEL, WEIGHTS, CONSTANTS, INPUTS):
        for entries in ({k: v for k, v in good.items() if k != name}, good | {name: b"\xff{"}, good | {name: b"[]"}):
            with pytest.raises(FileError):
                omenn_fx.transform(write(entries))


@pytest.mark.parametrize("folder", ["omenn_fx", "rules", "export", "examples"])
def test_every_load_is_restricted(folder):
    """No code of ours unpickles, evaluates or executes what it reads."""
    found = []
    for path in (Path(__file__).parents[1] / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            settings = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            unsafe = (
                called
                in ("eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load", "torch.jit.load")
                or (called == "torch.load" and settings.get("weights_only") != "True")
                or settings.get("allow_pickle", "False") != "False"
                or settings.get("trust_remote_code", "False") != "False"
                or (called == "torch.export.load" and path.name != "pt2_file.py")
            )
            found += [f"{path}:{node.lineno}: {called}"] * unsafe
    assert found == []


def test_weights_that_would_unpack_to_gigabytes(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", pickle.dumps({}))
        archive.writestr("w/data/0", bytes(2**25))
    with pytest.raises(SourceError, match="unpack"):
        read_state_dict(tmp_path / "w.pth")


# What is plain goes on loading ----------------------------------------------------------------------------------------


def test_good_archives(good, tmp_path):
    for compress in (False, True):
        path = write(good, tmp_path / "good.pt2", compress)
        program = omenn_fx.transform(path)._exported
        x = torch.randn(3, 4)
        trusted = omenn_fx.transform(path, trusted=True)._exported
        torch.testing.assert_close(program.module()(x, **KEYWORDS), trusted.module()(x, **KEYWORDS))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x):
        return self.layer(x).mean(1)


class Mapped(nn.Module):
    def forward(self, x):
        return torch.vmap(lambda row: row * 2 + torch.tensor([1.0, 2.0]))(x)


class Looped(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x - 1, (x,))


class Gated(nn.Module):
    """Constants of its own, of several dtypes."""

    def __init__(self):
        super().__init__()
        self.order, self.mask = torch.tensor([2, 0, 1, 3]), torch.tensor([True, False, True, True])
        self.register_buffer("scale", torch.rand(4, dtype=torch.float64), persistent=False)
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return torch.sigmoid(self.layer(x)) * x[:, self.order] * self.scale.float() * self.mask + torch.tensor(2.0)


PLAIN = {
    "gated": (Gated(), (3, 4)),
    "convolutions": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten()), (2, 3, 6, 6)),
    "recurrent": (nn.GRU(4, 3, batch_first=True), (2, 5, 4)),
    "attention": (Attention(), (2, 5, 8)),
    "vmap": (Mapped(), (3, 2)),
    "cond": (Looped(), (3, 2)),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_programs_of_torch(tmp_path, kind):
    model, shape = PLAIN[kind]
    x = torch.randn(shape)
    batch = {0: torch.export.Dim.AUTO}
    torch.export.save(torch.export.export(model.eval(), (x,), dynamic_shapes=(batch,)), tmp_path / "m.pt2")
    program = omenn_fx.transform(tmp_path / "m.pt2")._exported
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("kind", ["convolutions", "gated"])
def test_our_own_explainers(tmp_path, kind):
    model, shape = PLAIN[kind]
    x = torch.randn(shape)
    explainer = omenn_fx.transform(model.eval(), x)
    explainer.save(tmp_path / "m.pt2", x)
    torch.testing.assert_close(omenn_fx.load(tmp_path / "m.pt2")(x).C, explainer(x).C)


def test_an_explainer_of_an_earlier_version():
    assert omenn_fx.load(DATA / "explainer.pt2").inputs


def test_no_operator_of_torch_is_taken_for_another():
    """einsum has a `path` too, a list of numbers. Of aten's own operators from_file alone opens a file."""
    refused_names = set()
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = name.partition("::")
        base, _, overload = rest.partition(".")
        if namespace == "aten":
            try:
                check_operator(f"torch.ops.aten.{base}.{overload or 'default'}")
            except NotPlainError:
                refused_names.add(base)
    assert refused_names == {"from_file"}
    assert all(isinstance(check_operator(f"torch.ops.{sample.op}"), torch._ops.OpOverload) for sample in SAMPLES)


class Contracted(nn.Module):
    def forward(self, x):
        return torch.einsum("bi,bj->b", x, x)[:, None]


def test_an_explainer_of_einsum(tmp_path):
    x = torch.randn(2, 3)
    explainer = omenn_fx.transform(Contracted().eval(), x)
    explainer.save(tmp_path / "explainer.pt2", x)
    torch.testing.assert_close(omenn_fx.load(tmp_path / "explainer.pt2")(x).C, explainer(x).C)


def test_trust_on_the_command_line(good, marker):
    path = write(good | {INPUTS: pickled(({"x": Runs()}, {}))})
    for command in (["check"], ["export", "-o", "a.onnx"]):
        result = CliRunner().invoke(app, [command[0], str(path), *command[1:]])
        assert result.exit_code == 2
        assert "--trust" in result.output
        assert not marker.exists()
    CliRunner().invoke(app, ["check", str(path), "--trust"])
    assert marker.exists()
