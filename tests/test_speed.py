"""The benchmark of costs: a small race from beginning to end, and that the documentation shows what its file says."""

import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

pytest.importorskip("captum")
pytest.importorskip("onnxruntime")
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import contest
import speed
import typer
from race import sweep, tables
from race.contestants import CONTESTANTS, PLAIN, Race
from race.models import MODELS, Subject
from rich.console import Console

from omenn_fx.algebra.ruleset import rule_sets

ROOT = Path(__file__).resolve().parents[1]
METHODS = [
    "torch explainer",
    "onnxruntime explainer",
    "captum InputXGradient",
    "captum IntegratedGradients",
    "captum DeepLift",
    "captum LRP",
]


class Net(nn.Module):
    """A softplus, for which DeepLift and LRP have no rule; a pool by a function, for which they have."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 12)

    def forward(self, x):
        return self.linear(F.adaptive_avg_pool2d(F.softplus(self.conv(x)), 1).flatten(1))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(MODELS, "small", ("Small", Net, (3, 8, 8)))


def test_a_race_and_going_on_with_it(small, tmp_path, monkeypatch):
    app = typer.Typer()
    app.command()(speed.main)
    out = tmp_path / "speed.json"
    arguments = ["--models", "small", "--threads", "1", "--rounds", "3", "--out", str(out)]
    arguments += [a for method in METHODS for a in ("--methods", method)]
    said = CliRunner().invoke(app, arguments, catch_exceptions=False).output
    results = json.loads(out.read_text())
    assert list(results["races"]) == ["small, batch 1, 1 threads", "small, batch 8, 1 threads"]
    for race in results["races"].values():
        rows = race["rows"]
        assert set(rows) == {*METHODS, "torch forward", "onnxruntime forward"}  # who is compared comes along
        for name in ("captum DeepLift", "captum LRP"):
            assert rows[name]["not applicable"].endswith("has no rule for softplus")
            assert "median" not in rows[name]
        for name in set(rows) - {"captum DeepLift", "captum LRP"}:
            own = rows[f"{CONTESTANTS[name].runtime} forward"]["median"]
            assert math.isclose(rows[name]["ratio"], rows[name]["median"] / own, rel_tol=1e-2)
        assert rows["torch explainer"]["completeness"] < 1e-5
        assert "verified" in rows["onnxruntime explainer"]["proof"]
    assert "DeepLift has no rule for softplus" in said
    monkeypatch.setattr(speed, "run", lambda *_: pytest.fail("what the file has is not run again"))
    CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_a_race_of_rule_sets_is_one_of_its_own(small, tmp_path):
    app = typer.Typer()
    app.command()(speed.main)
    out, name = tmp_path / "speed.json", "onnxruntime explainer, epsilon_plus_flat"
    arguments = ["--rules", "--models", "small", "--methods", name, "--rounds", "3", "--out", str(out)]
    said = CliRunner().invoke(app, arguments, catch_exceptions=False).output
    results = json.loads(out.read_text())
    rows = results["races"]["small, batch 1, 1 threads, rule sets"]["rows"]
    assert list(rows) == ["onnxruntime forward", "onnxruntime explainer", name]  # who is compared comes along
    times = rows[name]["median"] / rows["onnxruntime explainer"]["median"]
    assert math.isclose(rows[name]["times_omenn"], times, rel_tol=1e-2)
    assert rows[name]["bytes"] > rows["onnxruntime explainer"]["bytes"]
    assert rows[name]["completeness"] < 1e-5
    assert "rule sets, batch 1, 1 thread" in said
    assert list(tables.courses(results, sets=False)) == []  # the other tables do not have them
    assert f"{rows[name]['times_omenn']:.2f} x omenn" in tables.markdown(results)


def test_what_runs_is_the_explanation():
    """Each of ours gives the same map, and the peer its own, of the input's shape."""
    race = Race(Subject(Net().eval(), torch.randn(1, 3, 8, 8)), batch=2, threads=1)
    want = race.subject.explainer(race.x, target=race.target).C
    got = {name: CONTESTANTS[name].make(race).run() for name in ("torch explainer", "captum InputXGradient")}
    torch.testing.assert_close(got["torch explainer"], want)
    logits, C, _ = CONTESTANTS["onnxruntime explainer"].make(race).run()
    torch.testing.assert_close(torch.from_numpy(C), want, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.from_numpy(logits).argmax(1), race.target)
    assert got["captum InputXGradient"].shape == want.shape
    torch.testing.assert_close(CONTESTANTS["saved explainer"].make(race).run(), want)
    for name in ("torch explainer, 10 targets", "saved explainer, 10 targets"):
        several = CONTESTANTS[name].make(race).run()
        assert several.shape == (2, 10, 3, 8, 8)
        torch.testing.assert_close(several[0, race.target[0]], want[0])


def test_a_slow_contestant_comes_in_some_rounds_only():
    turns = {"fast": 0, "slow": 0}

    def counting(name):
        def run():
            turns[name] += 1

        return run

    contest.interleaved({name: counting(name) for name in turns}, rounds=11, rare=["slow"])
    assert turns == {"fast": 12, "slow": 3}  # the first turn of the fast one is not counted


def test_a_call_s_memory_is_what_it_takes():
    size = contest.peak_memory(lambda: torch.ones(2**24))
    assert size is None or 0.98 * 2**26 < size < 1.5 * 2**26  # the system counts in lumps


def test_the_tables_in_the_documentation_are_those_of_the_result_file():
    results = speed.read(speed.RESULTS / "speed.json")
    assert tables.markdown(results) in (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert tables.deployed(results) in (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")


def test_the_guide_s_table_of_rule_sets_has_each_with_its_time():
    races = speed.read(speed.RESULTS / "speed.json")["races"]
    rows = races["resnet18, batch 1, 1 threads, rule sets"]["rows"]
    times = {rules: rows[f"{PLAIN}, {rules}"]["times_omenn"] for rules in rule_sets() if rules != "omenn"}
    table = re.findall(r'^\| `"(\w+)"` \|.* (\S+) \|$', (ROOT / "docs" / "sets.md").read_text("utf-8"), re.MULTILINE)
    assert dict(table) == {rules: f"{time:.1f}" for rules, time in (times | {"omenn": 1.0}).items()}


def test_a_model_of_the_sweep(tmp_path):
    """Each runtime at each batch size, with the operators that take the time; the table shows the worst model first."""
    sent = {}
    sweep.task("plain/MLP", sent.__setitem__, ("onnxruntime", "torch"), rounds=3)
    assert set(sent) == {f"{r}, batch {b}" for r in ("onnxruntime", "torch") for b in sweep.BATCHES} | {"operators"}
    for key in set(sent) - {"operators"}:
        assert sent[key]["ratio"] == pytest.approx(sent[key]["explainer"] / sent[key]["forward"])
    assert sent["torch, batch 1"]["inputxgradient"] > 1
    assert sum(share for _, share in sent["operators"]) > 0
    worse = sent | {"onnxruntime, batch 1": sent["onnxruntime, batch 1"] | {"ratio": 99.0}}
    sweep.write(tmp_path / "sweep.json", {"plain/MLP": sent, "plain/worse": worse}, {})
    console = Console(record=True, width=200)
    sweep.show(sweep.read(tmp_path / "sweep.json"), console)
    said = console.export_text()
    assert said.index("plain/worse") < said.index("plain/MLP")
    assert "99.00" in said


def test_the_sweep_draws_the_same_models_each_time():
    """The trained models, then others of the census with a free batch that are not too large."""
    coverage = json.loads((ROOT / "benchmarks" / "results" / "coverage.json").read_text())["models"]
    names = sweep.drawn(coverage, seconds=60)
    assert names == sweep.drawn(coverage, seconds=60)
    assert len(set(names)) == sweep.COUNT
    others = names[len(sweep.TRAINED) :]
    assert all(coverage[name]["float32"]["dynamic_batch"] for name in others)
    assert len({name.partition("/")[0] for name in others}) >= 4
