"""What named the modules of earlier versions goes on working: imports, pickles, saved explainers."""

import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import omenn_fx
from omenn_fx._moved import MOVED

DATA = Path(__file__).parent / "data"
X = torch.linspace(-1, 1, 8).reshape(2, 4)


def imported(name):
    """Imported anew, though another test may have done so."""
    sys.modules.pop(name, None)
    return importlib.import_module(name)


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_name_is_the_module_itself(old):
    pytest.importorskip("onnxscript")  # one of them needs it
    own = importlib.import_module(f"omenn_fx.{MOVED[old]}")
    spec = own.__spec__
    with pytest.warns(DeprecationWarning, match=f"omenn_fx.{old} is now omenn_fx.{MOVED[old]}"):
        assert imported(f"omenn_fx.{old}") is own
    assert own.__spec__ is spec
    assert own.__name__ == spec.name == f"omenn_fx.{MOVED[old]}"


def test_old_imports_in_a_new_process():
    code = (
        "import omenn_fx; from omenn_fx.linear import Chain; from omenn_fx.registry import Affine, Bias, Call, rule_set"
    )
    check = (
        "import omenn_fx.algebra.linear as new; assert Chain is new.Chain; assert callable(omenn_fx.check);"
        "assert omenn_fx.rule.__self__ is rule_set('omenn')"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", f"{code}; {check}"], check=True)


def test_an_explainer_that_an_earlier_version_pickled():
    with (DATA / "explainer.pickle").open("rb") as file:
        explainer = pickle.load(file)
    assert explainer.bias == explainer.request.bias == "none"
    assert "bias" not in vars(explainer)
    assert explainer.request.rules is omenn_fx.transform(torch.nn.Linear(1, 1).eval()).request.rules
    explanation = explainer(X, target=1)
    want = torch.tensor([[-0.0246, -0.0523, -0.0473, -0.0305], [0.0034, 0.0514, 0.0276, 0.1494]])
    assert torch.allclose(explanation.C, want, atol=1e-4)
    assert explanation.C_b is None
    again = pickle.loads(pickle.dumps(explainer))
    assert torch.equal(again(X, target=1).C, explanation.C)


def test_an_explainer_that_an_earlier_version_saved():
    with (DATA / "explainer.pickle").open("rb") as file:
        model = pickle.load(file).model
    saved = omenn_fx.load(DATA / "explainer.pt2")(X, target=1)
    want = torch.tensor([[-0.0690, -0.0967, -0.0917, -0.0749], [-0.0331, 0.0149, -0.0089, 0.1129]])
    assert torch.allclose(saved.C, want, atol=1e-4)
    assert torch.allclose(saved.C, omenn_fx.transform(model)(X, target=1).C, atol=1e-6)
    assert saved.completeness_error.max() < 1e-5
