"""What a check report holds, in every form: table, JSON, SARIF, networkx, SVG; and what it costs."""

import json
import xml.dom.minidom
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import nn
from traps import TRAPS

import omenn_fx
from omenn_fx.checking.verdict import Verdict

DATA = Path(__file__).parent / "data"


class Broken(nn.Module):
    """Two operators without a rule, an opaque bias, a product, and a softmax at the end."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        y = self.stem(x).mean((2, 3))
        y = y * torch.sigmoid(y) + torch.round(y)
        y = torch.special.i0(y) + torch.lgamma(y)
        return torch.softmax(self.head(y), -1)


X = torch.empty(2, 3, 8, 8)


@pytest.fixture
def report():
    return omenn_fx.check(Broken().eval(), X)


def test_all_problems_at_once_with_their_lines(report):
    assert not report.supported
    assert [p.place.op for p in report.problems] == ["aten.i0.default", "aten.lgamma.default"]
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    for problem in report.problems:
        assert problem.place.file == __file__
        assert "torch.special.i0(y) + torch.lgamma(y)" in lines[problem.place.line - 1]
        assert "roles=" in problem.fix
    assert [w.kind.code for w in report.warnings] == ["OMENN101"]


def test_verdicts(report):
    verdicts = [(n.op, n.verdict.value) for n in report.nodes if n.verdict is not Verdict.CONSTANT]
    assert verdicts == [
        ("x", "source"),
        ("aten.conv2d.default", "affine"),
        ("aten.mean.dim", "affine"),
        ("aten.sigmoid.default", "coefficient"),
        ("aten.mul.Tensor", "policy"),
        ("aten.round.default", "coefficient"),
        ("aten.add.Tensor", "opaque"),
        ("aten.i0.default", "unsupported"),
        ("aten.lgamma.default", "unsupported"),
        ("aten.add.Tensor", "affine"),
        ("aten.linear.default", "affine"),
        ("aten.softmax.int", "dynamic"),
    ]
    assert sum(report.counts.values()) == len(report.nodes)
    by_verdict = {n.verdict: n for n in report.nodes}
    assert by_verdict[Verdict.SOURCE].name == "x"
    assert next(n for n in report.nodes if n.op.startswith("aten.conv2d")).module == "stem"
    assert "round_1: an input-dependent bias" in by_verdict[Verdict.OPAQUE].reason


def test_table_is_grouped_and_names_the_way_out(report):
    text = str(report)
    assert text.startswith("Broken: not supported")
    for part in (
        "unsupported",
        "i0 1",
        "problem: OMENN006",
        "What to change",
        "warning: OMENN101",
        "in forward",
    ):
        assert part in text


def test_json(report):
    data = json.loads(report.to_json())
    assert data["supported"] is False
    assert data["counts"]["unsupported"] == 2
    assert data["problems"][0]["file"] == __file__
    assert {n["verdict"] for n in data["nodes"]} <= {v.value for v in Verdict}


@pytest.mark.parametrize("trap", [t for t in TRAPS if t.says or t.verdict[1] == "opaque"], ids=lambda t: t.name)
def test_sarif_is_valid(trap):
    """Against the published schema (schemas of the SchemaStore, SARIF 2.1.0 rtm 5)."""
    schema = json.loads((DATA / "sarif-schema-2.1.0.json").read_text(encoding="utf-8"))
    log = json.loads(omenn_fx.check(trap.build(), trap.make(), **trap.options).to_sarif())
    jsonschema.Draft4Validator(schema).validate(log)
    known = {rule["id"] for rule in log["runs"][0]["tool"]["driver"]["rules"]}
    assert {result["ruleId"] for result in log["runs"][0]["results"]} <= known


def test_sarif_points_at_the_users_line(report, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    results = json.loads(report.to_sarif())["runs"][0]["results"]
    assert [r["level"] for r in results] == ["error", "error", "warning", "note"]
    where = results[0]["locations"][0]["physicalLocation"]
    assert where["artifactLocation"]["uri"] == "test_check.py"
    line = Path(__file__).read_text(encoding="utf-8").splitlines()[where["region"]["startLine"] - 1]
    assert "torch.special.i0" in line


def test_networkx(report):
    graph = report.to_networkx()
    (product,) = (n for n, data in graph.nodes(data=True) if data["verdict"] == "policy")
    assert set(graph.predecessors(product)) == {"mean", "sigmoid"}


def test_svg_is_one_document_with_a_row_for_each_node(report):
    document = xml.dom.minidom.parseString(report.to_svg())
    text = document.documentElement.toxml()
    for part in ("Broken: not supported: 2 problems", "lgamma", "no rule for", "stem", 'role="button"'):
        assert part in text
    rows = [g for g in document.getElementsByTagName("g") if g.getAttribute("class") == "row"]
    live = [n for n in report.nodes if n.verdict is not Verdict.CONSTANT]
    assert len(rows) == len(live) + 2, "the nodes and two modules"


def test_no_weights_are_needed():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(10**6, 10**6), nn.ReLU(), nn.Linear(10**6, 3)).eval()
    report = omenn_fx.check(model, torch.empty(1, 10**6))
    assert report.supported
    assert report.counts["affine"] == 2


def test_own_inputs():
    """What a model tells of its inputs is taken; a model that tells nothing is asked for."""
    program = torch.export.export(nn.Linear(4, 3).eval(), (torch.zeros(2, 4),))
    assert omenn_fx.check(program).supported
    with pytest.raises(omenn_fx.InputError, match="check needs example_inputs for Broken"):
        omenn_fx.check(Broken().eval())


def test_own_inputs_of_libraries():
    timm = pytest.importorskip("timm")
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    with torch.device("meta"):
        models = [
            timm.create_model("resnet10t"),
            transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=40, **small)),
            transformers.ViTForImageClassification(transformers.ViTConfig(image_size=32, patch_size=8, **small)),
        ]
    for model in models:
        assert omenn_fx.check(model.eval()).supported


@pytest.mark.slow
def test_seventy_billion_parameters():
    """A Llama of 70 B on the meta device: shapes alone."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, vocab_size=128256, use_cache=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).eval()
    assert sum(p.numel() for p in model.parameters()) > 70e9
    assert omenn_fx.check(model, torch.zeros(1, 64, dtype=torch.long)).supported
