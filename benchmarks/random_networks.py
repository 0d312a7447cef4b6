"""Random networks: `network(seed)` is always the same valid model with the same inputs.

A network is a list of layers. Each reads one or two of the values before it and adds a value; a layer that writes in
place changes the value that it reads, and all views of it, for whatever reads them later. What nothing reads goes into
the head. `network(seed, count)` has the first `count` layers of the same network, so that a fault can be made small.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parent))
from random_layers import ANY, LARGEST, MAKERS, SIMPLE, Apply, Maker, of
from zoo.random_weights import calibrate, randomise

FEWEST, MOST = 5, 30  # layers
RECENT = 4  # a layer reads values of the last few
CLASSES, WORDS = 4, 11


@dataclass(frozen=True)
class Example:
    """A random network in eval mode and in float64, its inputs, and the names of its layers."""

    model: Network
    inputs: tuple[Tensor, ...]
    layers: list[str]

    @torch.no_grad()
    def logits(self) -> Tensor:
        """What is explained, as the model computes it."""
        result = self.model(*self.inputs)
        return result["logits"] if isinstance(result, dict) else result[0] if isinstance(result, tuple) else result


class Network(nn.Module):
    """Entries of one to three inputs, layers, and a head over all values that nothing reads."""

    def __init__(self, entries: Sequence[nn.Module], head: str):
        super().__init__()
        self.entries, self.layers = nn.ModuleList(entries), nn.ModuleList()
        self.reads: list[tuple[int, ...]] = []
        self.kind, self.head, self.auxiliary = head, nn.Identity(), nn.Identity()

    def values(self, *inputs: Tensor) -> list[Tensor]:
        values = [entry(x) for entry, x in zip(self.entries, inputs, strict=True)]
        for layer, reads in zip(self.layers, self.reads, strict=True):
            values.append(layer(*(values[i] for i in reads)))
        return values

    def ends(self) -> list[int]:
        """The values that nothing reads."""
        read = {i for reads in self.reads for i in reads}
        return [i for i in range(len(self.entries) + len(self.reads)) if i not in read]

    def features(self, values: list[Tensor]) -> Tensor:
        """The ends, as one vector in a row."""
        ends = [values[i] for i in self.ends()]
        return torch.cat([v.mean(tuple(range(2, v.ndim))) if v.ndim > 2 else v for v in ends], 1)

    def forward(self, first: Tensor, second: Tensor | None = None, third: Tensor | None = None) -> Any:
        values = self.values(*(x for x in (first, second, third) if x is not None))
        features = self.features(values)
        auxiliary = self.auxiliary(features)
        if self.kind == "dense":  # logits at each position of the last value
            return self.head(values[-1]) + auxiliary.reshape(auxiliary.shape[0], *[1] * (values[-1].ndim - 2), -1)
        logits = self.head(features)
        if self.kind == "tuple":
            return logits, auxiliary
        return {"auxiliary": auxiliary, "logits": logits} if self.kind == "dict" else logits


def network(seed: int, count: int | None = None, most: int = MOST) -> Example:
    """A random network of `count` layers (default: 5 to `most`, by the seed), and inputs for it."""
    draw, before = random.Random(seed), torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        drawn = draw.randint(FEWEST, most)
        return _network(draw, drawn if count is None else count, seed)
    finally:
        torch.random.set_rng_state(before)


@torch.no_grad()
def _network(draw: random.Random, count: int, seed: int) -> Example:
    batch, head = draw.choice([1, 2, 2, 3]), draw.choice(["plain", "plain", "plain", "tuple", "dict", "dense"])
    entries, inputs = zip(*(_entry(draw, batch) for _ in range(draw.choice([1, 1, 1, 2, 3]))), strict=True)
    model = Network(entries, head).double().eval()
    for entry in model.entries:
        randomise(entry, seed)
    values = [entry(x) for entry, x in zip(model.entries, inputs, strict=True)]
    names = []
    for _ in range(count):
        name, reads, layer = _layer(draw, values, seed + len(names))
        values.append(layer(*(values[i] for i in reads)))
        model.layers.append(layer)
        model.reads.append(reads)
        names.append(name)
    values = model.values(*inputs)
    features = model.features(values)
    model.head = nn.Linear((values[-1] if head == "dense" else features).shape[-1], CLASSES).double()
    model.auxiliary = nn.Linear(features.shape[-1], CLASSES).double()
    return Example(model.eval(), inputs, names)


def _entry(draw: random.Random, batch: int) -> tuple[nn.Module, Tensor]:
    """An input and the layer that reads it; the layers after it never see, and never write into, the input itself."""
    width = draw.choice([4, 6])
    kind = draw.choice(["image", "image", "image", "tokens", "tokens", "vector", "volume", "ids"])
    if kind == "ids":
        return nn.Embedding(WORDS, 8), torch.randint(WORDS, (batch, width + 1))
    entry, shape = {
        "image": (nn.Conv2d(3, width, 3, padding=1), (3, 8, 6)),
        "tokens": (nn.Linear(5, width), (draw.choice([4, 7]), 5)),
        "vector": (nn.Linear(7, 2 * width), (7,)),
        "volume": (nn.Conv3d(2, 4, 2), (2, 4, 5, 4)),
    }[kind]
    return entry, torch.randn(batch, *shape, dtype=torch.float64)


def _layer(draw: random.Random, values: list[Tensor], seed: int) -> tuple[str, tuple[int, ...], nn.Module]:
    """A layer that fits some recent value, its weights random, its result near 1 in size."""
    newest = len(values) - 1
    first = newest if draw.random() < 0.7 else draw.randint(max(0, newest - RECENT), newest)
    others = [i for i in range(max(0, newest - RECENT), newest + 1) if i != first]
    shape = tuple(values[first].shape)
    maker = _maker(draw, shape, bool(others))
    reads = (first, draw.choice(others)) if maker.reads == 2 else (first,)
    layer = maker.make(draw, *(tuple(values[i].shape) for i in reads)).double().eval()
    read = tuple(values[i].clone() for i in reads)  # the layer may write
    randomise(layer, seed)
    if values[first].numel() > shape[1]:  # the variance of one number is none
        calibrate(layer, tuple(v.clone() for v in read), {}, seed)
    result = layer(*read)
    size = float(result.std()) if result.numel() > 1 else 1.0
    if not 0.1 < size < 4:
        factor = 1 / max(size, 0.05)
        return f"{maker.name}, scaled", reads, Apply(lambda inner, *x: inner(*x) * factor, layer)
    return maker.name, reads, layer


def _maker(draw: random.Random, shape: tuple[int, ...], two: bool) -> Maker:
    """A kind of layer that fits: one of three is a mere function, of which there are many."""
    wanted = draw.random() < 0.35
    if torch.Size(shape[1:]).numel() > LARGEST:
        return Maker("reduce", ANY, bool, of(lambda x: x.flatten(1)[:, :64]))
    fitting = [
        m
        for m in MAKERS
        if len(shape) in m.ranks and m.fits(shape) and (m.name in SIMPLE) == wanted and (two or m.reads == 1)
    ]
    return draw.choice(fitting)
