"""The architectures that must work: random weights, seeded, in eval mode, at small inputs (`build`).

Nothing may vanish from a test by being trivial: every vector of parameters (biases, norm weights, layer scales, class
tokens) is perturbed, weights that an initialiser left at 0 are drawn anew, and running statistics fit the inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Example = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
BATCH, CLASSES, TOKENS, WIDTH, VOCABULARY = 3, 10, 7, 32, 99
BUILDERS: dict[str, Callable[[], Example]] = {}


def architecture(name: str) -> Callable[[Callable[[], Example]], Callable[[], Example]]:
    def register(builder: Callable[[], Example]) -> Callable[[], Example]:
        assert name not in BUILDERS, name
        BUILDERS[name] = builder
        return builder

    return register


def build(name: str, dtype: torch.dtype = torch.float32) -> Example:
    """(model, args, kwargs) of an architecture, the same numbers at every call."""
    torch.manual_seed(0)
    model, args, kwargs = BUILDERS[name]()
    model.eval()
    randomise(model)
    calibrate(model, args, kwargs)
    args, kwargs = torch.utils._pytree.tree_map(lambda t: t.to(dtype) if t.is_floating_point() else t, (args, kwargs))
    return model.to(dtype).requires_grad_(False), args, kwargs


def shallow(model: nn.Module) -> nn.Module:
    """In place: stages without the blocks from the third on that repeat the one before. They are more of the same, and
    each costs an export as much as the first."""

    def kind(block: nn.Module) -> Any:
        return [type(m) for m in block.modules()], [p.shape for p in block.parameters()]

    for stage in [m for m in model.modules() if isinstance(m, nn.Sequential)]:
        blocks = list(stage)
        kinds = [kind(block) if list(block.parameters()) else None for block in blocks]
        for i in reversed(range(2, len(blocks))):
            if kinds[i] is not None and kinds[i] == kinds[i - 1]:
                del stage[i]
    return model


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Perturb every parameter that is a vector (also [C, 1, 1]), and redraw those that are constant."""
    for p in model.parameters():
        if p.numel() == max(p.shape, default=1):
            p.add_(0.2 * torch.randn_like(p))
        elif p.std() == 0:
            p.copy_(torch.randn_like(p) / p.shape[-1] ** 0.5)


@torch.no_grad()
def calibrate(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Running statistics near those of the inputs: else deep networks let no more than 1e-8 of the input through."""

    def near(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].transpose(0, 1).flatten(1)
        var = x.var(1) + 0.1 * x.var()
        norm.running_mean.copy_(x.mean(1) + 0.3 * var.sqrt() * torch.randn(len(x)))
        norm.running_var.copy_(var * (0.5 + torch.rand(len(x))))

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    hooks = [m.register_forward_pre_hook(near) for m in norms]
    if hooks:
        model(*args, **kwargs)
    for hook in hooks:
        hook.remove()


def image(height: int, width: int) -> tuple[Tensor]:
    return (torch.randn(BATCH, 3, height, width),)


# Convolutional and vision transformer networks -------------------------------------------------------------------

TORCHVISION = {
    "resnet18": (64, 48),
    "resnet50": (64, 48),
    "mobilenet_v3_small": (96, 64),
    "efficientnet_b0": (64, 48),
    "squeezenet1_1": (64, 48),
    "shufflenet_v2_x1_0": (64, 48),
    "googlenet": (64, 48),
    "convnext_tiny": (64, 48),
}
TIMM = {
    "tf_efficientnet_lite0": (64, 48),
    "resnet26d": (64, 48),
    "poolformer_s12": (96, 64),
}
TIMM_OF_SIZE = {"deit_tiny_patch16_224": (64, 48), "mixer_s32_224": (96, 64)}  # built for one image size


def _torchvision(name: str, size: tuple[int, int]) -> Example:
    import torchvision

    options: dict[str, Any] = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)
    return shallow(model), image(*size), {}


def _timm(name: str, size: tuple[int, int], **options: Any) -> Example:
    import timm

    return shallow(timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)), image(*size), {}


for _name, _size in TORCHVISION.items():
    architecture(_name)(lambda name=_name, size=_size: _torchvision(name, size))
for _name, _size in TIMM.items():
    architecture(_name)(lambda name=_name, size=_size: _timm(name, size))
for _name, _size in TIMM_OF_SIZE.items():
    architecture(_name)(lambda name=_name, size=_size: _timm(name, size, img_size=size))


@architecture("vgg16_bn")
def vgg16_bn() -> Example:
    """With a classifier of 64 instead of 4096 units: the same operators at a hundredth of the memory."""
    model, args, kwargs = _torchvision("vgg16_bn", (48, 64))
    model.classifier = nn.Sequential(
        *(nn.Linear(512 * 7 * 7, 64), nn.ReLU(True), nn.Dropout()),
        *(nn.Linear(64, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, CLASSES)),
    )
    return model, args, kwargs


@architecture("densenet")
def densenet() -> Example:
    """DenseNet-121's blocks and transitions with 10 instead of 58 layers: the census has the whole one."""
    from torchvision.models import DenseNet

    return DenseNet(16, (3, 3, 2, 2), 32, num_classes=CLASSES), image(64, 48), {}


@architecture("swin")
def swin() -> Example:
    """Two of Swin-T's four stages, with shifted windows and the merging between them, at half its width."""
    from torchvision.models import SwinTransformer

    heads, depths = [3, 6], [2, 2]
    return SwinTransformer([4, 4], 48, depths, heads, [7, 7], num_classes=CLASSES), image(32, 64), {}


@architecture("vit_b_16")
def vit_b_16() -> Example:
    """ViT-B/16's depth and patches at a quarter of its width; torchvision's ViT takes square images only."""
    return vision_transformer(image_size=48, patch_size=16, layers=4, heads=3, width=192), image(48, 48), {}


def vision_transformer(image_size: int, patch_size: int, layers: int, heads: int, width: int) -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(image_size, patch_size, layers, heads, width, 2 * width, num_classes=CLASSES)


# Recurrent networks ------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """A recurrent network over time, the last step and the mean of all into one linear layer."""

    def __init__(self, rnn: nn.RNNBase):
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(2 * rnn.hidden_size * (1 + rnn.bidirectional), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out = self.rnn(x)[0]
        return self.head(torch.cat([out[:, -1], out.mean(1)], 1))


class FinalState(nn.Module):
    """The final hidden state of the last layer, both directions, into one linear layer; time first inside."""

    def __init__(self, rnn: nn.RNNBase):
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(rnn.hidden_size * (1 + rnn.bidirectional), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state = self.rnn(x.transpose(0, 1))[1]
        h = state[0] if isinstance(state, tuple) else state
        return self.head(torch.cat(h[-1 - self.rnn.bidirectional :].unbind(0), -1))


def _sequence() -> tuple[Tensor]:
    return (torch.randn(BATCH, TOKENS, 8),)


for _kind in (nn.LSTM, nn.GRU):
    _low = _kind.__name__.lower()
    architecture(_low)(lambda kind=_kind: (Recurrent(kind(8, 16, 2, batch_first=True)), _sequence(), {}))
    architecture(f"{_low}_bidirectional")(
        lambda kind=_kind: (Recurrent(kind(8, 16, 2, batch_first=True, bidirectional=True)), _sequence(), {})
    )
    architecture(f"{_low}_state")(lambda kind=_kind: (FinalState(kind(8, 16, 2, bidirectional=True)), _sequence(), {}))


# Language models ---------------------------------------------------------------------------------------------------


def bert(attention: str) -> nn.Module:
    import transformers

    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=CLASSES,
        initializer_range=0.2,
        attn_implementation=attention,
    )
    return transformers.BertForSequenceClassification(config)


def llama_config(attention: str) -> Any:
    """Grouped-query attention: two key and value heads for four query heads."""
    import transformers

    return transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        num_labels=CLASSES,
        initializer_range=0.2,
        attn_implementation=attention,
        use_cache=False,
    )


def llama(attention: str) -> nn.Module:
    import transformers

    return transformers.LlamaForSequenceClassification(llama_config(attention))


class NextToken(nn.Module):
    """A causal language model read at its last position: [N, vocabulary]."""

    def __init__(self, attention: str):
        import transformers

        super().__init__()
        self.model = transformers.LlamaForCausalLM(llama_config(attention))

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        return self.model(inputs_embeds=inputs_embeds).logits[:, -1]


def embeddings() -> dict[str, Tensor]:
    return {"inputs_embeds": torch.randn(BATCH, TOKENS, WIDTH)}


def token_ids() -> dict[str, Tensor]:
    """Ids with padding at the end of one row, and the attention mask that says so."""
    ids = torch.randint(3, VOCABULARY, (BATCH, TOKENS))
    mask = torch.ones_like(ids)
    ids[1, 5:], mask[1, 5:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


for _attention in ("eager", "sdpa"):
    architecture(f"bert_{_attention}")(lambda a=_attention: (bert(a), (), embeddings()))
    architecture(f"bert_{_attention}_ids")(lambda a=_attention: (bert(a), (), token_ids()))
    architecture(f"llama_{_attention}")(lambda a=_attention: (llama(a), (), embeddings()))
    architecture(f"llama_{_attention}_ids")(lambda a=_attention: (llama(a), (), token_ids()))
architecture("llama_next_token")(lambda: (NextToken("sdpa"), (), embeddings()))


# Two inputs --------------------------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    """An image and a vector: the vector is joined to the image's features, and also gates them."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 16, 3, 2), nn.BatchNorm2d(16), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.gate, self.vector, self.head = nn.Linear(5, 16), nn.Linear(5, 8), nn.Linear(24, CLASSES)

    def forward(self, picture: Tensor, vector: Tensor) -> Tensor:
        features = self.convs(picture) * torch.sigmoid(self.gate(vector))
        return self.head(torch.cat([features, torch.relu(self.vector(vector))], 1))


@architecture("two_inputs")
def two_inputs() -> Example:
    return TwoInputs(), (*image(16, 12), torch.randn(BATCH, 5)), {}


# Small networks for the checks that need no large one ----------------------------------------------------------------


class SmallCNN(nn.Module):
    """Convolutions with stride, batch norm, max pool, a residual; no global pool, so positions stay apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.conv, self.norm = nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 4 * 3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.norm(self.conv(x)))
        return self.head(x.flatten(1))


def small_cnn() -> Example:
    return SmallCNN(), image(16, 12), {}


def small_vit() -> Example:
    return vision_transformer(image_size=16, patch_size=8, layers=2, heads=2, width=16), image(16, 16), {}


architecture("small_cnn")(small_cnn)
architecture("small_vit")(small_vit)
