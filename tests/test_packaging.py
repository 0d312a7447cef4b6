"""A wheel holds everything: rules/ and export/ stand at the top of the repository and install inside the package."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

USE = """
import pathlib, sys
import torch
import omenn_fx, omenn_fx.rules, omenn_fx.export
here = pathlib.Path(sys.argv[1]).resolve()
for module in (omenn_fx, omenn_fx.rules, omenn_fx.export):
    assert here in pathlib.Path(module.__file__).resolve().parents, module.__file__
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
e = omenn_fx.transform(model)(torch.randn(5, 3))
assert e.completeness_error.max() < 1e-5
print("explained", omenn_fx.__version__)
"""


def test_a_wheel_works_outside_the_checkout(tmp_path):
    source = tmp_path / "source"  # a copy: a build leaves its files where it runs
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("omenn_fx", "rules", "export"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, source]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    (wheel,) = tmp_path.glob("omenn_fx-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        names = set(archive.namelist())
    assert {"omenn_fx/rules/convolution.py", "omenn_fx/export/program.py", "omenn_fx/py.typed"} <= names
    assert not any(n.startswith(("rules/", "export/", "tests/")) for n in names)
    done = subprocess.run(
        [sys.executable, "-c", USE, site],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "explained" in done.stdout


def test_no_import_runs_back():
    """capture -> roles -> rules -> twin -> lower -> passes -> explainer: each room imports only those before it."""
    order = ["errors", "mass", "linear", "registry", "functionalize", "exporting", "capture", "roles", "batch", "carry",
             "twin", "lower", "editor", "phases", "zeros", "passes", "inputs", "select", "target", "explanation",
             "affine", "explainer"]  # fmt: skip
    for position, room in enumerate(order):
        text = (ROOT / "omenn_fx" / f"{room}.py").read_text()
        for later in order[position + 1 :]:
            assert f"from omenn_fx.{later} " not in text, f"{room} imports {later}"
    for path in (ROOT / "rules").glob("*.py"):
        for later in ("exporting", "capture", "roles", "twin", "lower", "explainer"):
            assert f"from omenn_fx.{later} " not in path.read_text(), f"rules/{path.name} imports {later}"
