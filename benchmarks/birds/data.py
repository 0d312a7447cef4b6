"""The rendered FunnyBirds: pictures, every removal of parts and background objects, masks, and what defines a class."""

from __future__ import annotations

import itertools
from functools import cached_property
from pathlib import Path

import numpy as np
from assets import ASSETS, module_at
from scipy import ndimage, sparse

KINDS = ("beak", "eye", "foot", "tail", "wing")  # bit k of a removal mask is the part kind KINDS[k]
BACKGROUNDS = 34  # the most background objects that a scene has
SIZE = 128
MARGIN = 2  # pixels that a mask grows by: the maps have no outline, and 98 % of a removal's changes lie within 2 pixels


class Birds:
    """The test birds (500, all parts present), with every intervention.

    Attributes:
        name: which birds these are.
        images: uint8 [N, 128, 128, 3]; labels: int64 [N], 0..49.
        backgrounds: int64 [N], the number of background objects of each scene.
        variants: int64 [50, 5], which beak, eye, foot, tail and wing each class has.
    """

    def __init__(self, images: int | None = None, folder: Path = ASSETS / "funnybirds", held_out: bool = False):
        """So many birds, as many of each class as of any other, or one more; `held_out`: counted from the other end."""
        reader = module_at(folder / "funnybirds.py")
        self._set = reader.TestSet(str(folder))
        rows = np.arange(len(self._set.images))
        if images is not None:
            of_class = 9 - rows % 10 if held_out else rows % 10
            rows = np.sort(np.argsort(of_class, kind="stable")[:images])
        self.held_out = held_out
        self.name = f"{len(rows)}{'-held-out' * held_out}"
        self._rows = rows
        self._ids = [reader.PART_IDS[kind] for kind in KINDS]
        self._first_background = reader.FIRST_BACKGROUND
        self.images = self._set.images[rows]
        self.labels = self._set.class_ids[rows].astype(np.int64)
        self.backgrounds = self._set.n_background[rows].astype(np.int64)
        self.variants = np.array([[parts[kind] for kind in KINDS] for parts in reader.load_classes(str(folder))])

    def __len__(self) -> int:
        return len(self.images)

    def interventions(self, i: int) -> np.ndarray:
        """Image i without each of the 32 sets of part kinds, then without each background object: uint8 [32 + b, ...].

        Row m < 32 lacks the part kinds of the bits of m; row 0 is the image itself.
        """
        row = int(self._rows[i])
        return np.concatenate([self._set.subsets(row), self._set.backgrounds(row)])

    @cached_property
    def masks(self) -> list[sparse.csr_array]:
        """Per image [5 + 34, 128 * 128]: the part kinds' and the background objects' dilated masks.

        Eyes, feet and wings are dilated one by one, as in the authors' code: a pixel that is next to both counts twice.
        """
        return [self._masks(self._set.part_maps[row]) for row in self._rows]

    def _masks(self, part_map: np.ndarray) -> sparse.csr_array:
        grown = np.ones((2 * MARGIN + 1, 2 * MARGIN + 1), bool)
        present = set(np.unique(part_map).tolist())
        background = [(self._first_background + j,) for j in range(BACKGROUNDS)]
        rows = [
            sum(
                (ndimage.binary_dilation(part_map == i, grown).astype(np.float32) for i in ids if i in present),
                start=np.zeros(part_map.shape, np.float32),
            )
            for ids in [*self._ids, *background]
        ]
        return sparse.csr_array(np.stack(rows).reshape(len(rows), -1))

    @cached_property
    def sufficient(self) -> list[list[np.ndarray]]:
        """Per class the minimal sufficient part sets, bool [5] each: no other class has these variants together, and no
        part can be left out (Hesse et al., Section 4.2, controlled synthetic data check)."""
        return [self._sufficient(c) for c in range(len(self.variants))]

    def _sufficient(self, c: int) -> list[np.ndarray]:
        same = np.delete(self.variants == self.variants[c], c, axis=0)
        found: list[np.ndarray] = []
        for size in range(1, len(KINDS) + 1):
            for parts in itertools.combinations(range(len(KINDS)), size):
                chosen = np.isin(np.arange(len(KINDS)), parts)
                minimal = not any((chosen >= smaller).all() for smaller in found)
                if minimal and not same[:, chosen].all(axis=1).any():
                    found.append(chosen)
        return found

    @cached_property
    def contrasts(self) -> np.ndarray:
        """Per class two others, int64 [50, 2], each of which shares two part kinds with it, and no kind twice: the
        first such pair (Hesse et al., Section 4.2, target sensitivity)."""
        return np.array([self._contrast(c) for c in range(len(self.variants))])

    def shared(self, labels: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Which part kinds two classes have in common, bool [..., 5]."""
        return self.variants[labels] == self.variants[others]

    def _contrast(self, c: int) -> tuple[int, int]:
        same = self.variants == self.variants[c]
        two = np.flatnonzero(same.sum(axis=1) == 2)
        return next((a, b) for a, b in itertools.combinations(two.tolist(), 2) if not (same[a] & same[b]).any())
