"""`import omenn_fx` brings in what torch brings in and our own modules: all else is imported where it is used.

Times differ by machine, so that this looks at names. `python -X importtime -c 'import omenn_fx'` shows the times.
"""

import subprocess
import sys

HEAVY = (
    "torch._dynamo",
    "torch.fx.experimental.symbolic_shapes",
    "sympy",
    "networkx",
    "matplotlib",
    "PIL",
    "typer",
    "rich",
    "jinja2",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "scipy",
    "captum",
    "transformers",
    "omenn_fx.rules",
)

IMPORT = f"""
import sys
import torch
before = set(sys.modules)
import omenn_fx
print(*(name for name in {HEAVY} if name in sys.modules and name not in before))
"""

RULES = """
import sys
import torch
import omenn_fx
from omenn_fx.algebra import omenn, rule_set, rule_sets
assert "omenn_fx.rules" not in sys.modules
FIRST_USE
assert "omenn_fx.rules" in sys.modules
assert torch.ops.aten.relu.default in omenn
assert {"omenn", "gradient", "deeplift", "attnlrp"} <= set(rule_sets())
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_brings_in_nothing_heavy():
    assert run(IMPORT) == ""


def test_the_rules_come_at_first_use():
    """By whatever it is: the tables, a name, all names, a rule of the user's own, a model."""
    duplicate = (
        "try:\n    omenn_fx.rule(torch.ops.aten.relu.default)(lambda call: None)\n"
        "except ValueError:\n    pass\nelse:\n    raise AssertionError('a second rule was taken')"
    )
    model = "omenn_fx.transform(torch.nn.Linear(2, 2).eval())"
    for use in ("len(omenn.table)", "next(iter(omenn))", "rule_set('deeplift')", "rule_sets()", duplicate, model):
        run(RULES.replace("FIRST_USE", use))
