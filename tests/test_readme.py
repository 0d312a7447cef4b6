"""Every Python block of README.md and docs/ runs, in order, as a reader would paste them into one session."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run_blocks(path, text, at_least):
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) >= at_least
    session: dict = {}
    for block in blocks:
        exec(compile(block, str(path), "exec"), session)
    return session


def test_readme_code_runs(tmp_path, monkeypatch):
    """At a smaller size."""
    pytest.importorskip("torchvision")
    path = ROOT / "README.md"
    (tmp_path / "demo-output").mkdir()
    monkeypatch.chdir(tmp_path)
    run_blocks(path, path.read_text(encoding="utf-8").replace("224", "64"), 6)
    assert (tmp_path / "demo-output" / "noise.png").exists()


def test_the_guide_to_rules_runs():
    path = ROOT / "docs" / "rules.md"
    session = run_blocks(path, path.read_text(encoding="utf-8"), 2)
    explainer, explanation = session["explainer"], session["explanation"]
    assert explanation.completeness_error.max() < 1e-6
    assert [d.policy for d in explainer.decisions] == ["split"]


def test_the_guide_to_rule_sets_runs():
    path = ROOT / "docs" / "sets.md"
    session = run_blocks(path, path.read_text(encoding="utf-8"), 3)
    assert session["explanation"].completeness_error.max() < 1e-6


def test_the_guide_to_checks_runs():
    path = ROOT / "docs" / "check.md"
    session = run_blocks(path, path.read_text(encoding="utf-8"), 2)
    assert [w.kind.code for w in session["report"].warnings] == ["OMENN101"]
    assert session["result"].ok


def test_the_guide_lists_every_finding():
    from omenn_fx.checking.verdict import PROBLEMS, WARNINGS

    text = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    for kind in (*PROBLEMS, *WARNINGS):
        assert kind.code == "OMENN009" or f"| {kind.code} | {kind.title} |" in text


def test_the_guide_to_deployment_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = ROOT / "docs" / "deploy.md"
    run_blocks(path, path.read_text(encoding="utf-8"), 3)
    assert (tmp_path / "model.explain.pt2").exists()
