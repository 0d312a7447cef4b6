"""The models, each with one input; and what is made of a model once for all its races."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from assets import REPOSITORY, module_at
from torch import Tensor, nn
from zoo.random_weights import randomise

import omenn_fx
from omenn_fx.export.onnx import OnnxFile


class Embedded(nn.Module):
    """BERT-base for classification, from the embeddings of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        self.bert = BertForSequenceClassification._from_config(BertConfig(num_labels=10), attn_implementation="sdpa")

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        return self.bert(inputs_embeds=inputs_embeds).logits


def torchvision_model(name: str) -> nn.Module:
    import torchvision

    return randomised(getattr(torchvision.models, name)())


def randomised(model: nn.Module) -> nn.Module:
    randomise(model, seed=0)
    return model


def efficientnet_lite0() -> nn.Module:
    """With the trained weights of the demo."""
    return module_at(REPOSITORY / "examples" / "demo.py").efficientnet_lite0()


IMAGE, TOKENS = (3, 224, 224), (128, 768)
MODELS: dict[str, tuple[str, Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": ("ResNet-18", partial(torchvision_model, "resnet18"), IMAGE),
    "resnet50": ("ResNet-50", partial(torchvision_model, "resnet50"), IMAGE),
    "mobilenet_v2": ("MobileNetV2", partial(torchvision_model, "mobilenet_v2"), IMAGE),
    "efficientnet_lite0": ("EfficientNet-Lite0", efficientnet_lite0, IMAGE),
    "convnext_tiny": ("ConvNeXt-T", partial(torchvision_model, "convnext_tiny"), IMAGE),
    "vit_b_16": ("ViT-B/16", partial(torchvision_model, "vit_b_16"), IMAGE),
    "bert_base": ("BERT-base, 128 tokens", lambda: randomised(Embedded()), TOKENS),
}
WITH_SETS = ("resnet18", "vit_b_16")  # those that rule sets race on: a convolutional network and a transformer


@dataclass
class Subject:
    """A model in eval mode with a batch of one, and what all its races share: the explainer, the exported files."""

    model: nn.Module
    x: Tensor
    _folder: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)
    _written: dict[tuple[str, str], OnnxFile] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self._folder.name)

    @cached_property
    def explainer(self) -> omenn_fx.Explainer:
        return omenn_fx.transform(self.model, self.x)

    @cached_property
    def forward_file(self) -> Path:
        """The model alone, by torch.onnx, with a free batch."""
        path, x = self.folder / "forward.onnx", torch.cat([self.x, self.x]).cpu()
        free = ({0: torch.export.Dim.DYNAMIC},)
        model = copy.deepcopy(self.model).cpu()
        torch.onnx.export(model, (x,), dynamo=True, verbose=False, dynamic_shapes=free).save(path)
        return path

    def explainer_file(self, dtype: str, rules: str = "omenn") -> OnnxFile:
        if (dtype, rules) not in self._written:
            explainer = self.explainer if rules == "omenn" else omenn_fx.transform(self.model, self.x, rules=rules)
            path = self.folder / f"{rules}-{dtype}.onnx"
            self._written[dtype, rules] = explainer.to_onnx(path, self.x, dtype=dtype)
        return self._written[dtype, rules]


def subject(name: str, device: str = "cpu") -> Subject:
    torch.manual_seed(0)
    _, make, shape = MODELS[name]
    return Subject(make().eval().to(device), torch.randn(1, *shape, device=device))
