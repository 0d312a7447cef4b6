"""Samples that meet: by pieces of the batch, by values, as content (an error) or through coefficients (a warning)."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import omenn_fx
from omenn_fx.algebra import Moves
from omenn_fx.algebra.rows import APART as ROWS_APART
from omenn_fx.graph import rows_apart

N, D = 4, 6
REACHES = "OMENN108"


class Net(nn.Module):
    def __init__(self, forward, width=D):
        super().__init__()
        self.function = forward
        self.one, self.two, self.head = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(width, 3)

    def forward(self, *args):
        return self.function(self, *args)


def rows(n=N, *shape):
    return torch.randn(n, *(shape or (D,)), generator=torch.Generator().manual_seed(1))


def net(function):
    return Net(lambda m, x: m.head(torch.relu(m.one(function(x))))).eval()


AS_CONTENT = {
    "the neighbour's row": lambda x: torch.cat([x, x])[1 : 1 + x.shape[0]],
    "the neighbour's row, narrowed": lambda x: torch.cat([x, x]).narrow(0, 2, x.shape[0]),
    "from the end": lambda x: torch.cat([x, x])[-x.shape[0] - 1 : -1],
    "pieces": lambda x: torch.cat([x, x]).split([1, x.shape[0], x.shape[0] - 1])[1],
    "rolled by slices": lambda x: torch.cat([x[1:], x[:1]]),
    "a difference to the row before": lambda x: x - torch.cat([x[:1], x[:-1]]),
    "one row for all": lambda x: x + x[:1].expand_as(x),
    "a row put into another": lambda x: torch.slice_scatter(x, x[:1], 0, 1, 2),
    "columns of the transposed": lambda x: torch.roll(x.t(), 1, 1).t(),
    "a linear resize": lambda x: F.interpolate(x.t()[None], scale_factor=3.0, mode="linear")[0].t()[: x.shape[0]],
    "a trapezium": lambda x: torch.cumulative_trapezoid(torch.cat([x, x[:1]]), dim=0),
    "views of one long row": lambda x: torch.cat([x.flatten()[3:], x.flatten()[:3]]).view(x.shape),
}


def test_a_start_that_the_batch_had_at_capture():
    """Explained at that size of the batch, where it is a row's own; refused at others."""
    explainer = omenn_fx.transform(net(lambda x: torch.cat([x, x])[N : N + x.shape[0]]), rows())
    assert explainer(rows(), target=1).completeness_error.max() < 1e-5
    with pytest.raises(omenn_fx.MixedBatchError):
        explainer(rows(N + 1))


@pytest.mark.parametrize("function", AS_CONTENT.values(), ids=AS_CONTENT)
def test_rows_that_are_read_as_content_are_refused(function):
    model = net(function)
    with pytest.raises(omenn_fx.MixedBatchError) as error:
        omenn_fx.transform(model, rows())
    assert error.value.places[0].node in str(error.value)
    assert [p.kind.code for p in omenn_fx.check(model, rows()).problems] == ["OMENN007"]
    got = omenn_fx.transform(model, rows(), batched=False)(rows(), target=(1, 2))  # the way out that the error names
    assert got.completeness_error.max() < 1e-5


APART = {
    "two passes, halves by size": lambda x: torch.cat([x, 2 * x])[x.shape[0] :],
    "two passes, the first": lambda x: torch.cat([2 * x, x])[: x.shape[0]],
    "from the end": lambda x: torch.cat([x, 2 * x])[-x.shape[0] :],
    "copies side by side": lambda x: x.repeat_interleave(2, 0).view(-1, 2, D)[:, 1],
    "columns": lambda x: torch.cat([x, x], 1)[:, 1 : 1 + D],
    "windows": lambda x: x.view(-1, 3, 2).flatten(0, 1).flip(1).view(-1, D),
    "rows among the tokens": lambda x: x.view(-1, 2, 3).transpose(0, 1).contiguous().transpose(0, 1).flatten(1),
}


@pytest.mark.parametrize("function", APART.values(), ids=APART)
def test_rows_that_stay_apart_are_explained(function):
    model = net(function)
    report = omenn_fx.check(model, rows())
    assert report.supported
    assert not report.warnings
    got = omenn_fx.transform(model, rows())(rows(), target=1)
    for i in range(N):
        alone = omenn_fx.transform(model, rows())(rows()[i : i + 1], target=1)
        torch.testing.assert_close(alone.C[0], got.C[i], rtol=1e-4, atol=1e-5)


# Only values tell ----------------------------------------------------------------------------------------------------


@torch.library.custom_op("omenn_meeting::neighbour", mutates_args=())
def neighbour(x: torch.Tensor) -> torch.Tensor:
    return torch.roll(x, 1, 0)


@neighbour.register_fake
def _(x):
    return torch.empty_like(x)


@omenn_fx.rule(neighbour, rows=ROWS_APART)  # which is not so
def _neighbour(call):
    return Moves(lambda u: torch.roll(u, 1, 0), lambda g: torch.roll(g, -1, 0), call.shape())


def test_a_record_that_is_wrong_is_found_out_by_values(caplog):
    """The rule says that rows stay apart. Captured at any number of rows, one too."""
    model = net(lambda x: torch.ops.omenn_meeting.neighbour(x))
    for n in (2, 3, N, 9):
        with pytest.raises(omenn_fx.MixedBatchError, match="neighbour"):
            omenn_fx.transform(model, rows(n))
        assert not omenn_fx.check(model, rows(n)).supported
    explainer = omenn_fx.transform(model, rows(1))
    assert "captured at a fixed batch of one" in caplog.text
    assert explainer(rows(1)).completeness_error.max() < 1e-5
    with pytest.raises(omenn_fx.MixedBatchError):
        explainer(rows(3))


@pytest.mark.parametrize("values", ["zeros", "the same rows", "ids out of range"])
def test_examples_that_tell_little(values):
    """Rows of zeros and equal rows are changed; where nothing can be run, nothing is said."""
    x = torch.zeros(N, D) if values == "zeros" else rows(1).expand(N, -1).clone()
    model = net(lambda x: torch.ops.omenn_meeting.neighbour(x))
    if values != "ids out of range":
        with pytest.raises(omenn_fx.MixedBatchError):
            omenn_fx.transform(model, x)
        return
    bag = nn.Sequential(nn.Embedding(5, D), nn.Flatten(), nn.Linear(2 * D, 3)).eval()
    assert omenn_fx.check(bag, torch.full((N, 2), 99)).supported


# Through coefficients ------------------------------------------------------------------------------------------------


def gate(m, x):
    return torch.sigmoid(m.two(x).mean(0)) * m.one(x)


def largest(m, x):
    return m.one(x) / m.two(x).detach().abs().amax().round()


def scores(m, x):
    return m.one(x) * torch.softmax(m.two(x).sum(1), 0)[:, None]


def another_row(m, x):
    return m.one(x) * torch.sigmoid(m.two(torch.cat([x, x])[1 : 1 + x.shape[0]]))


def ranks(m, x):
    return torch.where(x > x.median(0).values, m.one(x), m.two(x))


COEFFICIENTS = {gate: "mean", largest: "amax", scores: "softmax", another_row: "slice", ranks: "median"}


@pytest.mark.parametrize("part", COEFFICIENTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dynamic", [True, False])
def test_coefficients_of_the_batch_are_a_warning(part, dynamic, caplog):
    model = Net(lambda m, x: m.head(part(m, x))).eval()
    report = omenn_fx.check(model, rows(), dynamic_batch=dynamic)
    assert report.supported
    found = [w for w in report.warnings if w.kind.code == REACHES]
    assert len(found) == 1
    assert COEFFICIENTS[part] in found[0].place.op
    with caplog.at_level(logging.WARNING, "omenn_fx"):
        explainer = omenn_fx.transform(model, rows(), dynamic_batch=dynamic)
    assert "reach each other through coefficients" in caplog.text
    assert found[0].place.node in caplog.text
    assert explainer(rows()).completeness_error.max() < 1e-5


def quiet_gate(m, x):
    return torch.sigmoid(m.two(x).mean(1, keepdim=True)) * m.one(x)


def dropped_noise(m, x):
    return m.one(x) * torch.rand_like(x)


@pytest.mark.parametrize("part", [quiet_gate, dropped_noise], ids=lambda f: f.__name__)
def test_no_false_alarm(part, caplog):
    """A gate of the row's own, and numbers that are drawn anew."""
    model = Net(lambda m, x: m.head(part(m, x))).eval()
    assert REACHES not in [w.kind.code for w in omenn_fx.check(model, rows()).warnings]
    state = torch.random.get_rng_state()
    omenn_fx.transform(model, rows())
    assert "reach each other" not in caplog.text
    assert torch.equal(state, torch.random.get_rng_state())


def test_one_sample_and_a_graph_have_none(caplog):
    model = Net(lambda m, x: m.head(gate(m, x))).eval()
    omenn_fx.transform(model, rows(), batched=False)
    omenn_fx.transform(model, rows(1), dynamic_batch=False)
    assert "reach each other" not in caplog.text


def test_it_costs_little_at_capture(monkeypatch):
    """Three runs of three rows, whatever the batch, once for a capture: less than one explanation of a batch."""
    runs = []
    real = rows_apart._output
    monkeypatch.setattr(rows_apart, "_output", lambda tagged, x: runs.append(len(x[0])) or real(tagged, x))
    explainer = omenn_fx.transform(net(torch.tanh), rows(32))
    explainer(rows(32))
    explainer(rows(5))
    assert runs == [3, 3, 3]
