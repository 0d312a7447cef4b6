"""Every Python block of README.md runs, in order, as a reader would paste them into one session (at a smaller size)."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


def test_readme_code_runs(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    text = README.read_text(encoding="utf-8").replace("224", "64")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) >= 6
    (tmp_path / "demo-output").mkdir()
    monkeypatch.chdir(tmp_path)
    session: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), session)
    assert (tmp_path / "demo-output" / "noise.png").exists()
