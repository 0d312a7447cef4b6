"""Random networks under everything that must hold, and the benchmark that runs hundreds of them.

A seed that fails here runs again with `python benchmarks/fuzz.py --seed SEED --most 10`.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import fuzz
import typer
from random_layers import MAKERS
from random_networks import network
from unchanged import settle

from omenn_fx.explainer import Explainer

MOST = 10  # layers, which keeps twenty networks below a minute


@pytest.fixture(scope="module", autouse=True)
def _settled():
    settle()


@pytest.mark.slow
@settings(derandomize=True, max_examples=20, deadline=None, phases=[Phase.generate])  # a seed has no smaller one
@given(st.integers(0, 10**6))
def test_a_random_network(seed):
    record = fuzz.examine(seed, most=MOST)
    again = f"python benchmarks/fuzz.py --seed {seed} --most {MOST}"
    assert not record["failures"], f"{again}\n{json.dumps(record, indent=1)}"


@pytest.mark.slow
def test_a_random_network_as_files():
    record = fuzz.examine(1, count=5, files=True)
    assert not record["failures"], f"python benchmarks/fuzz.py --seed 1 --onnx 1\n{json.dumps(record, indent=1)}"


# The generator -------------------------------------------------------------------------------------------------------


def test_a_seed_is_one_network():
    one, two = network(3), network(3)
    assert one.layers == two.layers
    assert one.model.reads == two.model.reads
    torch.testing.assert_close(one.logits(), two.logits(), rtol=0, atol=0)
    assert network(4).layers != one.layers
    first = network(3, 4)
    assert first.layers == one.layers[:4]
    assert first.model.reads == one.model.reads[:4]


def test_networks_are_valid_and_use_every_layer():
    before = torch.random.get_rng_state()
    found, sizes = set(), set()
    for seed in range(120):
        example = network(seed)
        kept = [x.clone() for x in example.inputs]
        logits = example.logits()
        assert torch.isfinite(logits).all(), seed
        assert len(logits) == len(example.inputs[0])
        assert all(map(torch.equal, kept, example.inputs)), "a network writes into its inputs"
        found |= {name.removesuffix(", scaled") for name in example.layers}
        sizes.add(len(example.layers))
    assert {maker.name for maker in MAKERS} <= found
    assert min(sizes) >= 5
    assert max(sizes) == 30
    torch.testing.assert_close(torch.random.get_rng_state(), before)


# What the benchmark notices ------------------------------------------------------------------------------------------


def kinds(record) -> set[str]:
    return {failure["kind"] for failure in record["failures"]}


def _changed(explanation, **parts):
    """An explanation with other parts of its first input."""
    name, one = next(iter(explanation.inputs.items()))
    return replace(
        explanation, inputs={**explanation.inputs, name: replace(one, **{k: f(one) for k, f in parts.items()})}
    )


def _of_sum_zero(like):
    return torch.linspace(-1, 1, like.shape[-1], dtype=like.dtype)


FAULTS = {
    "sum": lambda e: _changed(e, C_w=lambda one: one.C_w * 1.001),
    "sum and rows": lambda e: _changed(e, C_b=lambda one: one.C_b + 0.01 * len(one.C_b)),
    "rows": lambda e: _changed(e, C_b=lambda one: one.C_b + (len(one.C_b) == 1) * _of_sum_zero(one.C_b)),
    "outputs": lambda e: replace(e, outputs=e.outputs + 1e-6),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_explanation_is_noticed(fault, monkeypatch):
    """Whatever else stays as it is."""
    right = Explainer.forward
    monkeypatch.setattr(Explainer, "forward", lambda self, *a, **k: FAULTS[fault](right(self, *a, **k)))
    example, failures = network(9, 3), fuzz.Failures()
    explainer = fuzz.omenn_fx.transform(example.model, example.inputs)
    with fuzz.noted(failures, "sum"):
        fuzz.adds_up(explainer(*example.inputs), example.logits())
    with fuzz.noted(failures, "rows"):
        fuzz.row_by_row(explainer, example)
    expected = {"outputs": {"sum"}, "sum and rows": {"sum", "rows"}}.get(fault, {fault})
    assert kinds({"failures": failures}) == expected


def test_a_changed_model_and_a_refusal_are_noticed(monkeypatch):
    right = Explainer.forward

    def forward(self, *args, **kwargs):
        self.model.note = "left behind"
        return right(self, *args, **kwargs)

    monkeypatch.setattr(Explainer, "forward", forward)
    record = fuzz.examine(1, 3)
    assert kinds(record) == {"unchanged"}
    assert "note is new" in record["failures"][0]["error"]

    def refuse(*args, **kwargs):
        raise ValueError("no\n  such thing")

    monkeypatch.setattr(fuzz.omenn_fx, "transform", refuse)
    record = fuzz.examine(1, 3)
    assert kinds(record) == {"transform", "check"}
    assert record["failures"][0]["error"] == "ValueError: no | such thing"


def test_a_failing_network_is_made_small(monkeypatch):
    monkeypatch.setattr(
        fuzz, "examine", lambda seed, count, most, files: {"failures": [{"kind": "rows"}] * (count > 6)}
    )
    record = {"layers": ["relu"] * 20, "failures": [{"kind": "rows"}, {"kind": "sum"}], "files": False}
    assert fuzz.smallest(0, record) == 7
    assert fuzz.smallest(0, record | {"failures": [{"kind": "nodes"}]}) == 20


def test_the_command_writes_goes_on_and_shows(tmp_path, monkeypatch):
    examined = []

    def examine(seed, count=None, most=30, files=False):
        examined.append((seed, files))
        failures = [{"kind": "sum", "error": "AssertionError: far"}] if seed == 2 and count is None else []
        return {"layers": ["relu", "conv"], "files": files, "seconds": 1.0, "failures": failures}

    app = typer.Typer()
    app.command()(fuzz.main)
    monkeypatch.setattr(fuzz, "examine", examine)
    monkeypatch.setattr(fuzz, "settle", lambda: None)
    out = ["--out", str(tmp_path / "fuzz.json"), "--last", "3"]
    assert CliRunner().invoke(app, out).exit_code == 1
    assert [seed for seed, files in examined] == [0, 1, 2, 2, 3]
    examined.clear()
    result = CliRunner().invoke(app, [*out, "--onnx", "2"])
    assert examined == [(0, True), (2, True), (2, True)]
    assert "seed 2, already its first 2 layers, sum: AssertionError: far" in result.output
    examined.clear()
    shown = CliRunner().invoke(app, [*out, "--show"])
    assert shown.exit_code == 1
    assert not examined
    assert "sum: 1 fail" in shown.output


def test_the_result_file_is_of_these_networks():
    """Layers that are added or changed make other networks of the seeds: run the benchmark again."""
    results = fuzz.read(fuzz.RESULTS / "fuzz.json")
    assert results
    for seed in list(results)[::10]:
        assert plain(results[seed]["layers"]) == plain(network(seed).layers)


def plain(layers):
    """Names without what follows from the size of the numbers, which another processor may round in another way."""
    return [name.removesuffix(", scaled") for name in layers]
