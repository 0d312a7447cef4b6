"""The classifiers of FunnyBirds: their architectures, and where trained weights are.

All take float32 [N, 3, 128, 128] in -1..1 (`preprocess`) and return logits [N, 50].
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zoo.common
from assets import ASSETS
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .data import SIZE

CLASSES = 50
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "omenn-fx"


def preprocess(images: np.ndarray, device: str = "cpu") -> Tensor:
    """uint8 [N, 128, 128, 3] -> float32 [N, 3, 128, 128] in -1..1."""
    x = torch.from_numpy(np.ascontiguousarray(images)).to(device)
    return x.permute(0, 3, 1, 2).to(torch.float32).contiguous() / 127.5 - 1


def resnet18(width: int = 32) -> nn.Module:
    """ResNet-18 (He et al. 2016) with batch norm; width 64 is the original."""
    zoo.common.timm()
    from timm.models.resnet import BasicBlock, ResNet

    channels = tuple(width * 2**i for i in range(4))
    return ResNet(BasicBlock, [2, 2, 2, 2], stem_width=width, channels=channels, num_classes=CLASSES)


def vgg(width: int = 32, norm: bool = False) -> nn.Module:
    """Four stages of two 3x3 convolutions with max pools between, two linear layers (Simonyan and Zisserman 2015).

    Its batch norms exist for training alone (`norm`): `folded` merges them into the convolutions.
    """
    layers: list[nn.Module] = []
    before = 3
    for stage in range(4):
        channels = width * 2**stage
        for stride in (2 if stage == 0 else 1, 1):
            layers.append(nn.Conv2d(before, channels, 3, stride, 1, bias=not norm))
            layers += [nn.BatchNorm2d(channels)] if norm else []
            layers.append(nn.ReLU())
            before = channels
        layers += [nn.MaxPool2d(2)] if stage < 3 else []
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, before), nn.ReLU(), nn.Linear(before, CLASSES)]
    return nn.Sequential(*layers, *head)


def vit(width: int = 24) -> nn.Module:
    """A small vision transformer (Dosovitskiy et al. 2021): 64 tokens of 8 * width, 6 blocks, a class token.

    The patches of 16 pixels are embedded by four strided convolutions, which trains in a fraction of the epochs (Xiao
    et al. 2021, "Early convolutions help transformers see better").
    """
    zoo.common.timm()
    from timm.layers import HybridEmbed
    from timm.models.vision_transformer import VisionTransformer

    stem: list[nn.Module] = []
    before = 3
    for stage in range(4):
        channels = width * 2**stage
        stem += [nn.Conv2d(before, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        before = channels
    embed = partial(HybridEmbed, backbone=nn.Sequential(*stem))
    return VisionTransformer(
        img_size=SIZE,
        patch_size=1,
        num_classes=CLASSES,
        embed_dim=before,
        depth=6,
        num_heads=width // 8,
        embed_layer=embed,
    )


def folded(model: nn.Module) -> nn.Module:
    """The same function with each batch norm of a Sequential merged into the convolution before it."""
    if not isinstance(model, nn.Sequential):
        return model
    layers: list[nn.Module] = []
    for layer in model.eval():
        if isinstance(layer, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"resnet18": resnet18, "vgg": vgg, "vit": vit}


@dataclass(frozen=True)
class Classifier:
    """A trained model, and how it came to be."""

    name: str
    model: nn.Module
    about: dict[str, Any]


def weights(name: str) -> Path:
    """Where the trained weights of an architecture are kept."""
    return CACHE / f"funnybirds-{name}.pth"


def load(name: str, device: str = "cpu") -> Classifier:
    """A trained classifier in eval mode: from the cache, else (ResNet-18) the one that comes with the data.

    Raises:
        FileNotFoundError: neither is there; says what trains it.
    """
    comes_along = ASSETS / "models" / "funnybirds_resnet18_slim_fp16.pth"
    if weights(name).exists():
        saved = torch.load(weights(name), map_location="cpu", weights_only=True)
        state, about = saved["state"], saved["about"]
    elif name == "resnet18" and comes_along.exists():
        state = torch.load(comes_along, map_location="cpu", weights_only=True)
        state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
        about = {"width": 32, "weights": "shared/assets/models"}
    else:
        raise FileNotFoundError(f"no trained {name} at {weights(name)}: python benchmarks/train_funnybirds.py {name}")
    model = ARCHITECTURES[name](about["width"])
    model.load_state_dict(state)
    parameters = sum(p.numel() for p in model.parameters())
    return Classifier(name, model.eval().to(device), {**about, "parameters": parameters})
