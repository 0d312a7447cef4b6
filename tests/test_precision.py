"""Mixed precision: each part of a model is judged by the precision that it is computed in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import omenn_fx
from omenn_fx.algebra import Diagonal, omenn
from omenn_fx.algebra.tolerances import TOLERANCES, coarsest, tolerances_of

LOW = (torch.bfloat16, torch.float16)


@torch.library.custom_op("precision::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


twice.register_fake(torch.empty_like)


@pytest.fixture(scope="module", autouse=True)
def _rule():
    """One part in a hundred too much: visible in float32, below the rounding of bfloat16."""
    omenn_fx.rule(twice)(lambda call: Diagonal(torch.full_like(call.out, 2.02), call.shape(), call.out.shape))
    yield
    del omenn.table[twice._opoverload]


class Mixed(nn.Module):
    """A trunk in one dtype, a head in another; `between` acts on the trunk's result in the head's dtype."""

    def __init__(self, trunk, head, between=nn.Identity(), inside=nn.Identity()):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 8), nn.ReLU()).to(trunk)
        self.head, self.dtypes = nn.Linear(8, 3).to(head), (trunk, head)
        self.between, self.inside = between, inside
        self.eval()

    def forward(self, x):
        h = self.inside(self.trunk(x.to(self.dtypes[0])))
        return self.head(self.between(h.to(self.dtypes[1])))


class Twice(nn.Module):
    def forward(self, x):
        return twice(x)


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("trunk", [*LOW, torch.float64], ids=str)
@pytest.mark.parametrize("head", [torch.float32, torch.float64], ids=str)
def test_a_right_model_is_valid(trunk, head):
    report = omenn_fx.transform(Mixed(trunk, head), X).validate(X, target=1)
    assert report.ok, str(report)
    own = {entry.name: entry.dtype for entry in report.nodes}
    assert own["linear"] == str(coarsest([trunk])).removeprefix("torch.")
    assert own["linear_2"] == str(head).removeprefix("torch.")
    assert all(entry.dtype in str(report.to_json()) for entry in report.nodes)
    low = coarsest([torch.float32, trunk])  # the input is a float32
    assert report.tolerances == tolerances_of(low)


@pytest.mark.parametrize("trunk", [*LOW, torch.float32], ids=str)
def test_a_wrong_rule_in_the_float32_part_is_found(trunk):
    report = omenn_fx.transform(Mixed(trunk, torch.float32, between=Twice()), X).validate(X, target=1)
    assert not report.ok
    assert report.worst().name == "twice"
    assert [f for f in report.failures if f.startswith("node")]
    assert f"{TOLERANCES[torch.float32]['node']:.0e}" in next(
        line for line in str(report).splitlines() if "W h" in line
    )


def test_the_precision_of_a_node_is_that_of_its_content():
    """The same rule in the bfloat16 part: one in a hundred is no more than its rounding."""
    report = omenn_fx.transform(Mixed(torch.bfloat16, torch.float32, inside=Twice()), X).validate(X, target=1)
    entry = next(n for n in report.nodes if n.name == "twice")
    assert entry.dtype == "bfloat16"
    assert TOLERANCES[torch.float32]["node"] < entry.node < entry.allowed["node"]


def test_a_tolerance_that_is_given_holds_everywhere():
    explainer = omenn_fx.transform(Mixed(torch.bfloat16, torch.float32), X)
    assert not explainer.validate(X, target=1, tolerance=1e-9).ok
    assert explainer.validate(X, target=1, tolerance=0.1).ok


# torch.autocast inside of forward -----------------------------------------------------------------------------------


class Tokens(nn.Module):
    """A layer for sequences, on the positions of a map."""

    def __init__(self, layer, attends=False):
        super().__init__()
        self.layer, self.attends = layer, attends

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        y = self.layer(tokens, tokens, tokens) if self.attends else self.layer(tokens)
        return y[0] if isinstance(y, tuple) else y


class Statistics(nn.Module):
    def forward(self, x):
        return torch.softmax(x, 1) * x + x / (x.std(1, keepdim=True) + 1) + x.norm(dim=1, keepdim=True)


class Autocast(nn.Module):
    def __init__(self, layer, dtype):
        super().__init__()
        self.conv, self.layer, self.head, self.dtype = nn.Conv2d(3, 8, 3), layer, nn.Linear(8, 3), dtype
        self.eval()

    def forward(self, x):
        with torch.autocast("cpu", dtype=self.dtype):
            h = self.layer(self.conv(x))
            return self.head(h.mean((2, 3)) if h.ndim == 4 else h.mean(1)).float()


LAYERS = {
    "batch norm": lambda: nn.BatchNorm2d(8),
    "group norm": lambda: nn.GroupNorm(2, 8),
    "instance norm": lambda: nn.InstanceNorm2d(8, affine=True),
    "layer norm": lambda: Tokens(nn.LayerNorm(8)),
    "RMS norm": lambda: Tokens(nn.RMSNorm(8)),
    "attention": lambda: Tokens(nn.MultiheadAttention(8, 2, batch_first=True), attends=True),
    "statistics": Statistics,
    "PReLU": lambda: nn.PReLU(8),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_inside_of_autocast(name):
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = Autocast(LAYERS[name](), torch.bfloat16)
    assert omenn_fx.check(model, x).supported
    report = omenn_fx.transform(model, x).validate(x, target=1)
    assert report.ok, str(report)
    assert report.dtype == "bfloat16 and float32"


class Outside(nn.Module):
    """What the error advises."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return self.layer(x.float())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_inside_of_autocast_are_refused_by_name(kind):
    x = torch.randn(2, 3, 6, 6)
    model = Autocast(Tokens(kind(8, 8, batch_first=True)), torch.bfloat16)
    report = omenn_fx.check(model, x)
    assert not report.supported
    (problem,) = report.problems
    assert "autocast" in problem.reason
    assert problem.place.module == "layer.layer"
    assert "torch.autocast(device, enabled=False)" in problem.fix
    with pytest.raises(omenn_fx.CaptureError, match="inside of torch"):
        omenn_fx.transform(model, x)
    mended = Autocast(Tokens(Outside(model.layer.layer)), torch.bfloat16)
    assert omenn_fx.transform(mended, x).validate(x, target=1).ok
