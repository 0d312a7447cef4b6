"""The sum is checked where a file runs: its output `completeness`, and -1 as the target that is each row's largest."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from test_explainer import Net, X
from torch import nn

import omenn_fx
from omenn_fx.export import load


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("sum") / "net.onnx"
    torch.manual_seed(0)
    omenn_fx.transform(Net().eval(), X).to_onnx(path, X)
    return path


def test_a_file_measures_its_sum_by_default(written):
    session = onnxruntime.InferenceSession(written)
    assert [o.name for o in session.get_outputs()] == ["logits", "C", "completeness"]
    target = np.array([0, 1, 2])
    logits, c, error = session.run(None, {"x": X.numpy(), "target": target})
    gap = np.abs(c.reshape(len(c), -1).sum(1, dtype=np.float64) - logits[np.arange(3), target])
    scale = np.abs(c).reshape(len(c), -1).sum(1)  # at most what the file divides by
    assert error.shape == (3,)
    assert (error <= gap / scale + 1e-6).all()
    assert (error <= 1e-5).all()


def masks(model):
    """What a ReLU's mask is in a file."""
    return [node for node in model.graph.node if node.op_type == "HardSigmoid"]


@pytest.mark.parametrize("share", [1e-2, 1e-3])
def test_a_wrong_mask_shows(written, tmp_path, share):
    model = onnx.load(str(written))
    node = masks(model)[-1]  # near the logits
    place = list(model.graph.node).index(node)
    model.graph.node.insert(
        place + 1, onnx.helper.make_node("Mul", [node.output[0] + "_right", "share"], [node.output[0]])
    )
    node.output[0] += "_right"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1 + share), "share"))
    path = tmp_path / "wrong.onnx"
    onnx.save(model, path)
    target = np.array([0, 1, 2])
    right = onnxruntime.InferenceSession(written).run(["C"], {"x": X.numpy(), "target": target})[0]
    _, c, error = onnxruntime.InferenceSession(path).run(None, {"x": X.numpy(), "target": target})
    moved = np.abs(c - right).reshape(3, -1).sum(1) / np.abs(right).reshape(3, -1).sum(1)
    assert (moved > share / 10).all()  # the map is another one,
    assert (error > 1e-5).all()  # and says so
    with pytest.warns(omenn_fx.IncompleteWarning, match="does not add up"):
        load(path)(X, target=0)


def test_the_file_is_believed_where_it_does_not_return_all(tmp_path):
    path = tmp_path / "part.onnx"
    torch.manual_seed(0)
    omenn_fx.transform(Net().eval(), X).to_onnx(path, X, outputs=("logits", "C_w", "completeness"))
    load(path)(X, target=0)
    model = onnx.load(str(path))
    last = next(node for node in model.graph.node if "completeness" in node.output)
    last.output[0] = "right"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1), "one"))
    model.graph.node.append(onnx.helper.make_node("Add", ["right", "one"], ["completeness"]))
    onnx.save(model, path)
    with pytest.warns(omenn_fx.IncompleteWarning, match=r"off by 1\.0e\+00 of S"):
        load(path)(X, target=0)


@pytest.mark.parametrize(("bias", "target"), [("none", "input"), ("carrier", "top1"), ("contribution", [0, 2])])
def test_whatever_is_explained(tmp_path, bias, target):
    torch.manual_seed(0)
    explainer = omenn_fx.transform(Net().eval(), X, bias=bias)
    path = tmp_path / "net.onnx"
    proof = explainer.to_onnx(path, X, target=target, outputs=("logits", "C", "bias", "completeness")).proof
    assert proof.completeness <= 1e-5
    session = onnxruntime.InferenceSession(path)
    feeds = {"x": X.numpy()} | ({"target": np.array([0, 1, 2])} if target == "input" else {})
    (error,) = session.run(["completeness"], feeds)
    assert error.shape == ((3, 2) if isinstance(target, list) else (3,))
    assert (error <= 1e-5).all()


def test_several_inputs_have_one_sum(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.head = nn.Linear(5, 8), nn.Linear(3, 8), nn.Linear(8, 4)

        def forward(self, a, b):
            return self.head(torch.relu(self.left(a) + self.right(b)))

    a, b = torch.randn(2, 5), torch.randn(2, 3)
    path = tmp_path / "two.onnx"
    omenn_fx.transform(Two().eval(), (a, b)).to_onnx(path, a, b)
    results = onnxruntime.InferenceSession(path).run(
        ["completeness"], {"a": a.numpy(), "b": b.numpy(), "target": [1, 2]}
    )
    assert (results[0] <= 1e-5).all()


def test_a_sample_without_a_batch(tmp_path):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(24, 5)

        def forward(self, x):
            return self.head(torch.relu(x).flatten())

    x, path = torch.randn(6, 4), tmp_path / "whole.onnx"
    omenn_fx.transform(Whole().eval(), x, batched=False).to_onnx(path, x)
    explanation = load(path)(x)
    assert explanation.target == explanation.outputs.argmax()
    assert explanation.completeness_error.max() <= 1e-5


def test_a_target_of_minus_one_is_the_largest(written):
    session = onnxruntime.InferenceSession(written)
    top, c = session.run(["logits", "C"], {"x": X.numpy(), "target": np.full(3, -1)})
    mixed = np.array([-1, top[1].argmax(), top[2].argmin()])
    (each,) = session.run(["C"], {"x": X.numpy(), "target": mixed})
    (named,) = session.run(["C"], {"x": X.numpy(), "target": top.argmax(1)})
    np.testing.assert_array_equal(c, named)
    np.testing.assert_array_equal(each[:2], named[:2])
    assert np.abs(each[2] - named[2]).max() > 0


def test_without_a_target_a_file_runs_once(written, monkeypatch):
    explainer = load(written)
    runs, run = [], explainer.run
    monkeypatch.setattr(explainer, "run", lambda values: runs.append(1) or run(values))
    explanation = explainer(X)
    assert len(runs) == 1
    assert (explanation.target == explanation.outputs.argmax(1)).all()


def test_files_from_before_there_was_a_largest(written, tmp_path):
    model = onnx.load(str(written))
    kept = [p for p in model.metadata_props if p.key != "omenn_fx.top_target"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    path = tmp_path / "older.onnx"
    onnx.save(model, path)
    assert json.loads(load(path).metadata["outputs"])["completeness"] == "completeness"
    assert (load(path)(X).C == load(written)(X).C).all()
