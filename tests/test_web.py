"""`omenn-fx export --web` writes a page that needs nothing from elsewhere; its npm package computes as Python does."""

import json
import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from web_server import NAMES, PACKAGE, TINY, in_node, lay_out, node_modules, photograph, run, write_page

import omenn_fx
from omenn_fx.errors import ExportError
from omenn_fx.export import load
from omenn_fx.export.web import RUNTIME, runtime_files
from omenn_fx.export.web.runtime import FILES
from omenn_fx.loading import images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network, its names, two photographs, and a runtime of empty files."""
    folder = lay_out(tmp_path_factory.mktemp("web"))
    (folder / "hollow").mkdir()
    for name in FILES:
        (folder / "hollow" / name).write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def page(folder):
    """The page's files, written by the command line."""
    return write_page(folder, folder / "hollow")


@pytest.fixture
def tensor(folder):
    """The first photograph as the network's input."""
    return images.standard(32, 36)(Image.open(folder / "coast.png"))


# The page's files ----------------------------------------------------------------------------------------------------


def test_the_page_is_whole_and_asks_for_nothing_elsewhere(page):
    text = {
        path: path.read_text(encoding="utf-8") for path in page.rglob("*") if path.suffix in (".html", ".css", ".js")
    }
    for path, content in text.items():
        linked = re.findall(r"""(?:src|href)="([^"]+)"|from "([^"]+)"|new URL\("([^"]+)", import""", content)
        for link in filter(None, (name for names in linked for name in names)):
            assert link.startswith("data:") or (path.parent / link).exists(), f"{path.name}: {link}"
        assert not re.search(r"""["'(](https?:)?//""", content), path.name
    about = json.loads((page / "page.json").read_text(encoding="utf-8"))
    assert [each["name"] for each in about["examples"]] == ["coast", "tower"]
    assert all((page / each["file"]).stat().st_size > 500 for each in about["examples"])
    assert (about["title"], about["untrained"]) == ("tiny", False)
    assert "Microsoft" in (page / "onnxruntime" / "LICENSE").read_text()


def test_the_file_says_how_images_become_its_input_and_what_its_classes_are(page):
    notes = load(page / "model.onnx").metadata
    assert json.loads(notes["classes"]) == NAMES
    recipe = json.loads(notes["preprocess"])
    assert recipe["size"] == [32, 32]
    assert recipe["resize"] == [36, 36]
    assert recipe["interpolation"] == "bilinear"
    assert recipe["mean"] == list(images.IMAGENET_MEAN)
    assert set(json.loads(notes["outputs"])) >= {"logits", "C", "C_w", "C_b"}


def test_without_a_runtime_the_error_says_how_to_get_it(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ExportError, match=re.escape(f"npm install --ignore-scripts {RUNTIME}")):
        runtime_files()
    with pytest.raises(ExportError, match="does not hold"):
        runtime_files(tmp_path)
    monkeypatch.chdir(folder)
    said = run("export", *TINY, "--web", "none", code=2).stderr
    assert "--runtime-dir" in said
    assert not list((folder / "none").glob("*.onnx"))


def test_a_runtime_is_found_in_node_modules(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    dist = tmp_path / "node_modules" / "onnxruntime-web" / "dist"
    dist.mkdir(parents=True)
    for name in FILES:
        (dist / name).write_text(name)
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    expected = {name: name.encode() for name in FILES}
    assert runtime_files() == expected
    for place in (dist, dist.parent, dist.parent.parent, tmp_path):
        assert runtime_files(place) == expected


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "--out / --web"),
        (("--web", "x", "-o", "x.onnx"), "--out / --web"),
        (("--web", "x", "--dtype", "float16"), "float32"),
        (("--web", "x", "--outputs", "logits,C_w"), "logits and C"),
        (("-o", "x.onnx", "--runtime-dir", "hollow"), "--web"),
        (("--web", "x", "--mean", "a"), "0.485"),
    ],
)
def test_wrong_arguments_of_a_page(folder, monkeypatch, arguments, part):
    monkeypatch.chdir(folder)
    assert part in run("export", *TINY, *arguments, code=2).stderr


def test_a_page_is_not_written_over_what_it_reads(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    arguments = ["--web", "page", "--runtime-dir", "hollow", "-i", "page/examples/1.jpg"]
    assert "which is read" in run("export", *TINY, *arguments, code=2).stderr


def test_the_version_of_the_runtime_is_said_once():
    about = json.loads((PACKAGE / "package.json").read_text(encoding="utf-8"))
    assert f"onnxruntime-web@{about['devDependencies']['onnxruntime-web']}" == RUNTIME
    assert about["version"] == omenn_fx.__version__ or omenn_fx.__version__.startswith(f"{about['version']}.")


# Node: what needs no runtime -----------------------------------------------------------------------------------------

PREPARE = """
import { readFileSync } from "node:fs";
import { preprocess } from "omenn-fx-web";
const { width, height, recipe } = JSON.parse(readFileSync("given.json"));
const data = new Uint8ClampedArray(readFileSync("given.rgba"));
const found = preprocess({ data, width, height }, recipe);
console.log(JSON.stringify({ data: [...found.data], dims: found.dims, box: found.box }));
"""


@pytest.mark.parametrize(
    ("width", "height", "filter"),
    [
        (90, 70, "bilinear"), (70, 91, "bicubic"), (20, 30, "bilinear"), (33, 31, "lanczos"), (36, 36, "bilinear"),
        (700, 20, "bilinear"), (61, 50, "box"), (50, 67, "hamming"), (61, 50, "nearest"),
    ],
)  # fmt: skip
def test_javascript_prepares_images_to_the_last_bit(width, height, filter, tmp_path):
    image = photograph(width, height)
    expected = images.standard(32, 36, interpolation=Image.Resampling[filter.upper()])
    recipe = {"size": [32, 32], "resize": [36, 36], "fit": "cover", "interpolation": filter}
    assert expected.steps == images.Steps((32, 32), (36, 36), "cover", filter)
    recipe |= {"mean": expected.mean, "std": expected.std}
    (tmp_path / "given.json").write_text(json.dumps({"width": width, "height": height, "recipe": recipe}))
    (tmp_path / "given.rgba").write_bytes(image.convert("RGBA").tobytes())
    found = in_node(PREPARE, folder=tmp_path)
    assert found["dims"] == [1, 3, 32, 32]
    np.testing.assert_array_equal(np.float32(found["data"]), expected(image).numpy().ravel())
    assert 0 <= found["box"]["left"] <= width - found["box"]["width"] + 1e-9


def test_javascript_prepares_grey_images_of_any_side(tmp_path):
    image = photograph(45, 80)
    expected = images.standard((20, 28), mean=(0.5,), std=(0.25,))
    steps = expected.steps
    recipe = {"size": steps.size, "resize": steps.resize, "fit": "cover", "interpolation": "bilinear"}
    given = {"width": 45, "height": 80, "recipe": recipe | {"mean": [0.5], "std": [0.25]}}
    (tmp_path / "given.json").write_text(json.dumps(given))
    (tmp_path / "given.rgba").write_bytes(image.convert("RGBA").tobytes())
    np.testing.assert_array_equal(
        np.float32(in_node(PREPARE, folder=tmp_path)["data"]), expected(image).numpy().ravel()
    )


@pytest.mark.parametrize(("mode", "fit"), [("center", "cover"), ("squash", "squash")])
def test_javascript_prepares_images_as_timm_does(mode, fit, tmp_path):
    timm = pytest.importorskip("timm")
    from omenn_fx.loading.models import _timm_steps

    shape = {"input_size": (3, 32, 32), "crop_pct": 0.9, "crop_mode": mode, "interpolation": "bicubic"}
    transform = timm.data.create_transform(**shape, mean=(0.5,) * 3, std=(0.5,) * 3, is_training=False)
    steps = _timm_steps(transform)
    assert steps.fit == fit
    image = photograph(71, 52)
    recipe = vars(steps) | {"mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "given.json").write_text(json.dumps({"width": 71, "height": 52, "recipe": recipe}))
    (tmp_path / "given.rgba").write_bytes(image.convert("RGBA").tobytes())
    np.testing.assert_array_equal(
        np.float32(in_node(PREPARE, folder=tmp_path)["data"]), transform(image).numpy().ravel()
    )


def test_what_timm_does_otherwise_has_no_steps():
    timm = pytest.importorskip("timm")
    from omenn_fx.loading.models import _timm_steps

    assert _timm_steps(timm.data.create_transform((3, 32, 32), crop_mode="border", is_training=False)) is None


METADATA = """
import { readFileSync } from "node:fs";
import { readMetadata } from "omenn-fx-web";
const bytes = readFileSync(process.argv[2]);
const broken = [bytes.subarray(0, 1000), new TextEncoder().encode("no file")].map((part) => {
  try { return [...readMetadata(part)].length; } catch (error) { return error.message; }
});
console.log(JSON.stringify([Object.fromEntries(readMetadata(bytes)), broken]));
"""


def test_javascript_reads_the_metadata(page, tmp_path):
    found, broken = in_node(METADATA, page / "model.onnx", folder=tmp_path)
    model = onnx.load(page / "model.onnx", load_external_data=False)
    assert found == {entry.key: entry.value for entry in model.metadata_props}
    assert broken == ["this is no ONNX file, or a damaged one"] * 2


# Node: with the runtime ----------------------------------------------------------------------------------------------

EXPLAIN = """
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web/wasm";
import { load, TOLERANCE } from "omenn-fx-web";
ort.env.wasm.numThreads = 1;
const [file, ...targets] = process.argv.slice(2);
const explainer = await load(readFileSync(file)); // finds the runtime by its own name
const { data, dims } = JSON.parse(readFileSync("tensor.json"));
const results = [];
for (const target of targets) {
  try {
    const found = await explainer.explain({ data: new Float32Array(data), dims }, JSON.parse(target));
    const plain = Object.entries(found).map(([key, value]) => [key, value?.length === undefined ? value : [...value]]);
    results.push(Object.fromEntries(plain));
  } catch (error) {
    results.push(`${error.name}: ${error.message}`);
  }
}
const { classes, targets: kind, shape, preprocessing } = explainer;
console.log(JSON.stringify({ results, classes, kind, shape, preprocessing, tolerance: TOLERANCE }));
"""


def explained(file, x, *targets, folder):
    """The package's explanations of one input in onnxruntime-web's wasm."""
    node_modules()
    (folder / "tensor.json").write_text(json.dumps({"data": x.flatten().tolist(), "dims": list(x.shape)}))
    return in_node(EXPLAIN, file, *map(json.dumps, targets), folder=folder)


def near(found, expected, scale):
    difference = np.abs(np.float64(found) - expected.double().numpy().ravel()).max()
    assert difference <= 1e-5 * float(scale), f"{difference / float(scale):.1e} of S"


def test_the_package_explains_as_python_does(page, tensor, tmp_path):
    answer = explained(page / "model.onnx", tensor, None, 3, 5, 12, 1.5, folder=tmp_path)
    assert answer["classes"] == NAMES
    assert answer["kind"] == "input"
    assert answer["shape"] == [1, 3, 32, 32]
    sys.path.insert(0, str(page.parent))
    from net import tiny

    explainer = omenn_fx.transform(tiny().eval(), tensor)
    top = int(explainer(tensor).target)
    for target, found in zip((top, 3, 5), answer["results"], strict=False):
        expected = explainer(tensor, target=target)
        scale = expected.scale[0]
        assert found["target"] == target
        near(found["C"], expected.C, scale)
        near(found["Cw"], expected.C_w, scale)
        near(found["Cb"], expected.C_b, scale)
        near(found["logits"], expected.outputs, scale)
        assert found["logit"] == found["logits"][target]
        assert abs(found["sum"] - found["logit"]) <= 1e-5 * float(scale)
        assert found["completenessError"] <= answer["tolerance"] == 1e-5
        assert found["input"] == tensor.flatten().tolist()
    for refused in answer["results"][3:]:
        assert refused.startswith("RangeError")
        assert "12 outputs" in refused


@pytest.mark.parametrize(("kind", "good", "wrong"), [("top1", None, 3), (4, 4, 3), ([2, 7], 7, 3)])
def test_the_package_reads_files_with_fixed_targets(kind, good, wrong, page, tensor, tmp_path):
    sys.path.insert(0, str(page.parent))
    from net import tiny

    explainer = omenn_fx.transform(tiny().eval(), tensor)
    explainer.to_onnx(tmp_path / "fixed.onnx", tensor, target=kind, verify=False)
    found, refused = explained(tmp_path / "fixed.onnx", tensor, good, wrong, folder=tmp_path)["results"]
    expected = explainer(tensor, target=good)
    near(found["C"], expected.C, expected.scale[0])
    assert found["target"] == int(expected.target)
    assert (found["Cw"], found["Cb"]) == (None, None)
    assert found["completenessError"] <= 1e-5
    assert refused.startswith("RangeError")


def test_a_wrong_map_is_seen(page, tensor, tmp_path):
    """C times 1.01, as a runtime may compute it that rounds masks."""
    model = onnx.load(page / "model.onnx")
    (node,) = [node for node in model.graph.node if "C" in node.output]
    node.output[list(node.output).index("C")] = "right"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1.01), "factor"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["right", "factor"], ["C"]))
    onnx.save(model, tmp_path / "wrong.onnx")
    answer = explained(tmp_path / "wrong.onnx", tensor, 3, folder=tmp_path)
    assert answer["results"][0]["completenessError"] > 10 * answer["tolerance"]


def test_files_of_others_are_refused_by_name(tmp_path):
    node_modules()
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:])), tmp_path / "other.onnx")
    code = """
    import { readFileSync } from "node:fs";
    import { load } from "omenn-fx-web";
    await load(readFileSync("other.onnx")).catch((error) => console.log(JSON.stringify(error.message)));
    """
    assert "not written by omenn-fx" in in_node(code, folder=tmp_path)


CONSUMER = """
import { load, type Explanation, type Preprocessing } from "omenn-fx-web";
const explainer = await load(new Uint8Array());
const found: Explanation = await explainer.explain({ data: new Float32Array(3), dims: [1, 3, 1, 1] }, 207);
const image = { data: new Uint8ClampedArray(4), width: 1, height: 1 };
const { C, Cw, sum, completenessError } = await explainer.explain(image);
const numbers: [Float32Array, Float32Array | null, number, number] = [C, Cw, sum, completenessError];
const recipe: Preprocessing | null = explainer.preprocessing;
console.log(found.logits[found.target], numbers, recipe?.mean, explainer.classes?.[0]);
// @ts-expect-error a target is a number
await explainer.explain(image, "cat");
// @ts-expect-error it may be null
console.log(Cw.length);
"""


def test_the_types_hold_for_a_consumer(tmp_path):
    modules = node_modules()
    in_node("console.log(1)", folder=tmp_path)  # lays the package out
    (tmp_path / "consumer.mts").write_text(CONSUMER)
    options = ["--noEmit", "--strict", "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom"]
    command = ["node", modules / "typescript" / "bin" / "tsc", *options, "consumer.mts"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_types_name_what_the_package_exports(tmp_path):
    code = 'import * as all from "omenn-fx-web"; console.log(JSON.stringify(Object.keys(all)));'
    found = set(in_node(code, folder=tmp_path))
    declared = (PACKAGE / "index.d.ts").read_text(encoding="utf-8")
    assert found == set(re.findall(r"export declare (?:function|const|class) (\w+)", declared))


@pytest.mark.slow
def test_squeezenet_in_wasm_is_squeezenet_in_python(shared, assets, tmp_path):
    pytest.importorskip("torchvision")
    net, _ = assets.model_squeezenet()
    x = images.standard()(photograph(300, 260))
    omenn_fx.transform(net, x).to_onnx(tmp_path / "model.onnx", x, dynamic=(), verify=False)
    (found,) = explained(tmp_path / "model.onnx", x, None, folder=tmp_path)["results"]
    expected = load(tmp_path / "model.onnx")(x.numpy())
    assert found["target"] == int(expected.target)
    near(found["C"], torch.as_tensor(expected.C), expected.C.abs().sum())
    assert found["completenessError"] <= 1e-5
