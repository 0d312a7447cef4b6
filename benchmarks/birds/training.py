"""Training of a FunnyBirds classifier on images of which some lack parts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from assets import ASSETS, module_at
from torch import Tensor, nn
from torch.nn import functional as F

from .data import KINDS, Birds
from .models import ARCHITECTURES, folded, preprocess

BATCH = 64
SHIFT = 6  # pixels that a training image is moved by at most, its border repeated
WIDTHS = {"resnet18": 32, "vgg": 32, "vit": 24}
EPOCHS = {"resnet18": 14, "vgg": 14, "vit": 24}  # about an hour of one core at most, with bfloat16 matrix units
RATES = {"resnet18": 4e-3, "vgg": 4e-3, "vit": 1e-3}


@dataclass(frozen=True)
class TrainingSet:
    """Training images uint8 [M, 128, 128, 3] with target distributions float32 [M, 50], and the test birds."""

    images: np.ndarray
    targets: Tensor
    birds: Birds

    @classmethod
    def load(cls, images: int | None = None, folder: Path = ASSETS / "funnybirds") -> TrainingSet:
        """All 16,650 images, or the first so many."""
        birds = Birds(folder=folder)
        columns = module_at(folder / "funnybirds.py").load_train(str(folder), more=images is None or images > 5000)
        x, labels, removed = (column[:images] for column in columns)
        y = possible(birds.variants, labels.astype(np.int64), removed.astype(np.int64))
        return cls(x, torch.from_numpy(y), birds)


def possible(variants: np.ndarray, labels: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """The classes that the parts left in an image allow, evenly weighted: float32 [M, classes], rows sum to 1.

    The authors train so ("multi_target"): a bird without its wing is as much a bird of each class that differs in
    nothing but the wing.
    """
    left = (removed[:, None] >> np.arange(len(KINDS)) & 1) == 0
    same = variants[labels][:, None] == variants[None]
    fits = (same | ~left[:, None]).all(axis=2)
    return (fits / fits.sum(axis=1, keepdims=True)).astype(np.float32)


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to SHIFT pixels, half of them mirrored."""
    size = x.shape[-1]
    padded = F.pad(x, (SHIFT,) * 4, mode="replicate")
    moved = torch.empty_like(x)
    choices = torch.randint(2 * SHIFT + 1, (len(x), 2), generator=generator).tolist()
    for i, (down, right) in enumerate(choices):
        moved[i] = padded[i, :, down : down + size, right : right + size]
    mirrored = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
    return torch.where(mirrored[:, None, None, None], moved.flip(3), moved)


@torch.no_grad()
def accuracy(model: nn.Module, birds: Birds, device: str) -> float:
    """Of the test birds."""
    batches = [preprocess(birds.images[i : i + BATCH], device) for i in range(0, len(birds), BATCH)]
    predicted = torch.cat([model(x).argmax(1).cpu() for x in batches])
    return float((predicted.numpy() == birds.labels).mean())


class Training:
    """A classifier on its way: AdamW, a one-cycle learning rate, random numbers of its own.

    Attributes:
        model: in the memory format that convolutions like.
        seconds: of the processor, for all epochs so far.
    """

    def __init__(self, name: str, width: int, epochs: int, data: TrainingSet, device: str, bf16: bool):
        torch.manual_seed(0)
        normed = {"norm": True} if name == "vgg" else {}
        self.data, self.device, self.bf16, self.seconds = data, device, bf16, 0.0
        self.generator = torch.Generator().manual_seed(0)
        self.model = ARCHITECTURES[name](width, **normed).to(device).to(memory_format=torch.channels_last)
        self.steps = len(data.images) // BATCH
        optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATES[name], epochs * self.steps, pct_start=0.2)
        self.optimizer, self.schedule = optimizer, schedule
        self._stateful = {"model": self.model, "optimizer": optimizer, "schedule": schedule}

    @property
    def epochs(self) -> int:
        """How many are behind it."""
        return self.schedule.last_epoch // self.steps

    def epoch(self) -> float:
        """Each image once, in random order, but for those left over by whole batches. Returns the mean loss."""
        start = time.process_time()
        self.model.train()
        order = torch.randperm(len(self.data.images), generator=self.generator)
        losses = [self.step(rows) for rows in order[: self.steps * BATCH].view(self.steps, BATCH)]
        self.seconds += time.process_time() - start
        return float(torch.stack(losses).mean())

    def step(self, rows: Tensor) -> Tensor:
        """One step on some of the images. Returns the loss."""
        x = augmented(preprocess(self.data.images[rows.numpy()], self.device), self.generator)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bf16):
            logits = self.model(x.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), self.data.targets[rows].to(self.device))
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    def save(self, checkpoint: Path) -> None:
        """Write all that the next epoch depends on."""
        states = {key: part.state_dict() for key, part in self._stateful.items()}
        replace(checkpoint, {**states, "generator": self.generator.get_state(), "seconds": self.seconds})

    def load(self, checkpoint: Path) -> None:
        """Go on from what `save` wrote."""
        saved = torch.load(checkpoint, map_location=self.device, weights_only=True)
        for key, part in self._stateful.items():
            part.load_state_dict(saved[key])
        self.generator.set_state(saved["generator"].cpu())
        self.seconds = saved["seconds"]


def train(
    name: str,
    width: int,
    epochs: int,
    data: TrainingSet,
    device: str = "cpu",
    bf16: bool = True,
    checkpoint: Path | None = None,
    report: Callable[[int, float, float], None] = lambda epoch, loss, accuracy: None,
) -> tuple[nn.Module, dict[str, Any]]:
    """A trained classifier on the CPU, and what is to be known about it.

    Args:
        name, width: the architecture.
        bf16: bfloat16 in the forward and backward pass; the weights stay float32.
        checkpoint: written after every epoch; where it exists, training goes on from there.
        report: called after each epoch with its number, the mean loss and the accuracy on the test birds.
    """
    training = Training(name, width, epochs, data, device, bf16)
    if checkpoint is not None and checkpoint.exists():
        training.load(checkpoint)
    while training.epochs < epochs:
        loss = training.epoch()
        if checkpoint is not None:
            training.save(checkpoint)
        report(training.epochs, loss, accuracy(training.model.eval(), data.birds, device))
    model = folded(training.model.eval()).to("cpu").to(memory_format=torch.contiguous_format)
    about = {
        "width": width,
        "weights": "benchmarks/train_funnybirds.py",
        "accuracy_of_500": accuracy(model, data.birds, "cpu"),
        "epochs": epochs,
        "training_images": len(data.images),
        "training_processor_seconds": round(training.seconds),
        "device": device,
    }
    return model, about


def replace(path: Path, state: dict[str, Any]) -> None:
    """Write a file of tensors; whoever reads it sees the old one or the new one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    torch.save(state, unfinished)
    os.replace(unfinished, path)
