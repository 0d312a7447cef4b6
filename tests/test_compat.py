"""What is private of other libraries is where `omenn_fx.compat` says; a failure names what moved."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import omenn_fx
from omenn_fx import compat

ROOT = Path(omenn_fx.__file__).parent
ENTRIES = [(module, name) for module, names in compat.PRIVATE.items() for name in names]


@pytest.mark.parametrize(("module", "name"), ENTRIES, ids=lambda part: part)
def test_a_private_name_is_where_it_was(module, name):
    if module.startswith("captum"):
        pytest.importorskip("captum")
    moved = f"{module}.{name} moved: find its place in torch {torch.__version__}, and say so in omenn_fx/compat.py"
    try:
        at = importlib.import_module(module)
        for part in name.split("."):
            at = getattr(at, part)
    except (ImportError, AttributeError):
        pytest.fail(moved)


def test_what_the_functions_answer():
    """A free size, and one that an export found to be a number."""
    program = torch.export.export(
        torch.nn.Linear(3, 2), (torch.randn(4, 3),), dynamic_shapes=({0: torch.export.Dim.AUTO},)
    )
    (value,) = [n.meta["val"] for n in program.graph.nodes if n.name == "input"]
    size = value.shape[0]
    assert compat.fixed_value(size) is None
    assert compat.hint_of(size) == 4
    assert len(compat.free_symbols(size)) == 1
    assert compat.fake_mode_of(value) is value.fake_mode
    assert compat.fake_mode_of(torch.ones(1)) is None
    assert torch.ops.aten.relu.default._schema.arguments[0].name == "self", "OpOverload._schema moved"


def test_it_imports_nothing_of_ours():
    tree = ast.parse((ROOT / "compat.py").read_text())
    modules = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert not [m for m in modules if m.startswith("omenn_fx")]


def test_importing_omenn_fx_imports_nothing_costly():
    code = "import sys, omenn_fx; print([m for m in ('torch._dynamo', 'onnxscript', 'captum') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
