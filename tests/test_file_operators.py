"""What stands in no explainer's file: scatters, moves of an image's dimensions, tensors of a size that is computed.

One of each is allowed: the row of zeros and the 1 in it that choose the target.
"""

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from test_fired_passes import CASES

import omenn_fx

TOKENS = ("unbound", "vit_tiny")  # whose heads are transposed, which is no move of an image


def file_of(model, x, path):
    omenn_fx.transform(model, x).to_onnx(path, x, verify=False)
    return onnx.load(path).graph


def computed(graph):
    """The nodes that read more than weights: the others are computed when a session starts."""
    fixed = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.input and all(name in fixed for name in node.input if name):
            fixed.update(node.output)
        else:
            yield node


def assert_holds_no_move(name, graph):
    kinds = Counter(n.op_type for n in computed(graph))
    found = {kind: n for kind, n in kinds.items() if kind.startswith("Scatter") or kind == "ConstantOfShape"}
    assert found.items() <= {"ScatterElements": 1, "ConstantOfShape": 1}.items(), f"{name} holds {found}"
    assert name in TOKENS or not kinds["Transpose"], f"{name} transposes {kinds['Transpose']} times"


@pytest.mark.parametrize("name", ["same", "unbound", "fire", "residual"])
def test_a_small_model_s_file_holds_no_scatter_and_no_transposed_image(name, tmp_path):
    torch.manual_seed(0)
    case = CASES[name]
    graph = file_of(case.model().eval(), torch.randn(case.size), tmp_path / "small.onnx")
    assert_holds_no_move(name, graph)
    if name == "same":  # nor does a padding stand in front of a convolution, on either way
        images = {n.input[0] for n in graph.node if n.op_type == "Conv"}
        assert not [n.name for n in graph.node if n.op_type == "Pad" and n.output[0] in images]
    if name == "unbound":  # the adjoint of query and key is zero: nothing multiplies their part of the projection
        sizes = {tuple(tensor.dims) for tensor in graph.initializer}
        assert (8, 8) in sizes, "the adjoint goes through the whole projection"


def torchvision_model(name):
    return getattr(pytest.importorskip("torchvision").models, name)(weights=None)


def vit_tiny():
    return pytest.importorskip("timm").create_model("vit_tiny_patch16_224", depth=1, img_size=32)


def efficientnet_lite0():
    return pytest.importorskip("timm").create_model("tf_efficientnet_lite0")


MODELS = {
    "resnet18": lambda: torchvision_model("resnet18"),
    "squeezenet1_0": lambda: torchvision_model("squeezenet1_0"),
    "mobilenet_v2": lambda: torchvision_model("mobilenet_v2"),
    "vit_tiny": vit_tiny,
    "efficientnet_lite0": efficientnet_lite0,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_model_s_file_holds_no_scatter_and_no_transposed_image(name, tmp_path):
    size = 32 if name == "vit_tiny" else 65
    assert_holds_no_move(name, file_of(MODELS[name]().eval(), torch.randn(1, 3, size, size), tmp_path / "model.onnx"))


@pytest.mark.slow
def test_a_cifar_resnet_s_file_holds_no_scatter_and_no_transposed_image(assets, tmp_path: Path):
    model, _ = assets.model_cifar_resnet(20)
    assert_holds_no_move("resnet20", file_of(model, torch.randn(1, 3, 32, 32), tmp_path / "model.onnx"))
