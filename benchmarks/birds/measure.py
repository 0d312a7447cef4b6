"""Running a model on every intervention, and a method on every image; what both say is kept as arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .data import BACKGROUNDS, KINDS, Birds
from .models import CACHE, CLASSES, Classifier, preprocess
from .protocol import Answers, Importances

Attribute = Callable[[Tensor, Tensor], Tensor]
Step = Callable[[int], None]


def kept(classifier: Classifier, birds: Birds, what: str) -> Path:
    """Where arrays of a model are kept: the name changes with its weights and with the birds."""
    digest = hashlib.sha256()
    for value in classifier.model.state_dict().values():
        digest.update(value.cpu().contiguous().numpy().tobytes())
    safe = what.replace(" ", "-")
    return CACHE / f"funnybirds-{classifier.name}-{digest.hexdigest()[:12]}-{birds.name}-{safe}.npz"


def answers(classifier: Classifier, birds: Birds, device: str, step: Step = lambda n: None) -> Answers:
    """The model's logits for every intervention; computed once, then read from the cache."""
    path = kept(classifier, birds, "answers")
    if path.exists():
        with np.load(path) as arrays:
            return Answers(**arrays)
    subsets = np.empty((len(birds), 2 ** len(KINDS), CLASSES), np.float32)
    backgrounds = np.full((len(birds), BACKGROUNDS, CLASSES), np.nan, np.float32)
    for i in range(len(birds)):
        logits = _logits(classifier, birds.interventions(i), device)
        subsets[i], rest = np.split(logits, [2 ** len(KINDS)])
        backgrounds[i, : len(rest)] = rest
        step(1)
    result = Answers(subsets, backgrounds)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, subsets=subsets, backgrounds=backgrounds)
    return result


@torch.inference_mode()
def _logits(classifier: Classifier, images: np.ndarray, device: str, batch: int = 16) -> np.ndarray:
    parts = [classifier.model(preprocess(images[i : i + batch], device)) for i in range(0, len(images), batch)]
    return torch.cat(parts).float().cpu().numpy()


def maps(classes: np.ndarray) -> int:
    """How many attributions the classes [N, 4] ask for: what occurs twice in a row is asked once."""
    return sum(len(set(row)) for row in classes.tolist())


def importances(
    attribute: Attribute,
    birds: Birds,
    classes: np.ndarray,
    device: str,
    batch: int = 16,
    step: Step = lambda n: None,
) -> Importances:
    """A method's part importances (Section 4.1 of the paper): its attribution summed within each dilated mask.

    Args:
        attribute: (x [N, 3, 128, 128], target int64 [N]) -> maps [N, 3 or 1, 128, 128].
        classes: int64 [N, 4], for which each image is explained; what occurs twice in a row is computed once.
    """
    asked = np.stack([np.repeat(np.arange(len(birds)), classes.shape[1]), classes.ravel()], axis=1)
    pairs, where = np.unique(asked, axis=0, return_inverse=True)
    found = np.empty((len(pairs), len(KINDS) + BACKGROUNDS + 1))
    for start in range(0, len(pairs), batch):
        images, targets = pairs[start : start + batch].T
        attributed = attribute(preprocess(birds.images[images], device), torch.from_numpy(targets).to(device))
        flat = attributed.detach().double().sum(1).flatten(1).cpu().numpy()
        for row, (i, values) in enumerate(zip(images, flat, strict=True), start):
            found[row] = np.append(birds.masks[i] @ values, values.sum())
        step(len(images))
    per_question = found[where.ravel()].reshape(*classes.shape, -1)
    return Importances(*np.split(per_question[..., :-1], [len(KINDS)], axis=2), per_question[..., -1])


def noise(seed: int = 0) -> Attribute:
    """Normal noise, another map at each call: the bottom of every table."""
    generator = torch.Generator().manual_seed(seed)
    return lambda x, target: torch.randn(x[:, :1].shape, generator=generator)
