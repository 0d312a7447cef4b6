"""A wheel holds everything, and every room keeps to its floor.

rules/ and export/ stand at the top of the repository and install inside the package.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"omenn_fx": "omenn_fx", "rules": "omenn_fx/rules", "export": "omenn_fx/export"}  # folder -> where it installs

FILES = (".py", ".html", ".css", ".js", ".ts", ".json", ".md")

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
from omenn_fx.export.web import write_page
page = pathlib.Path("page")
page.mkdir()
(page / "model.onnx").write_bytes(b"")
write_page(page, {}, title="a model")
assert (page / "index.html").stat().st_size and (page / "explain" / "index.js").stat().st_size
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
    assert modules() <= names, f"add to packages in pyproject.toml: {sorted(modules() - names)}"
    assert "omenn_fx/py.typed" in names
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


def modules() -> set[str]:
    """Every module and every file beside one, by the path that it has in a wheel."""
    found = set()
    for folder, inside in ROOMS.items():
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in FILES or path.name == "onnxruntime-LICENSE":
                found.add(f"{inside}/{path.relative_to(ROOT / folder).as_posix()}")
    return found


def test_every_module_stands_on_its_floor():
    """import-linter's contracts in pyproject.toml, over the package as it installs."""
    done = subprocess.run([sys.executable, ".ci/house", "contracts"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_module_without_a_floor_is_found(tmp_path):
    """And so is an import in a function, or for type checking alone, that runs back."""
    house = tmp_path / "house"
    for name in ROOMS:
        shutil.copytree(ROOT / name, house / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", house)
    (house / "omenn_fx" / "lost.py").write_text("")
    with (house / "omenn_fx" / "errors.py").open("a") as file:
        file.write("\n\ndef late():\n    import omenn_fx.target\n")
    with (house / "rules" / "ops" / "folding.py").open("a") as file:
        file.write("\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import omenn_fx.rules.sets.lrp\n")
    command = [sys.executable, ".ci/house", "--root", str(house), "contracts"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert "omenn_fx.errors -> omenn_fx.target" in said
    assert "omenn_fx.rules.ops.folding -> omenn_fx.rules.sets.lrp" in said
    assert "lost" in said
