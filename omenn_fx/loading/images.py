"""From an image file to a model's input, and back to what the model saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from omenn_fx.errors import InputError

Tensor = torch.Tensor
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """A transform from a PIL image to a normalised tensor [C, H, W], with the mean and std that it used."""

    transform: Callable[[Image.Image], Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> Tensor:
        """An image in RGB mode (in L mode where there is one channel) as a batch of one, float32 [1, C, H, W]."""
        return self.transform(image.convert("RGB" if len(self.mean) == 3 else "L"))[None]

    def undo(self, x: Tensor) -> np.ndarray:
        """The picture in an input [C, H, W]: uint8 [H, W, 3] (or [H, W]), at the positions of the explanation."""
        pixels = x.double() * _column(self.std) + _column(self.mean)
        return (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(-1).numpy()


def standard(
    size: int | tuple[int, int] = 224,
    resize: int | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    interpolation: Image.Resampling = Image.Resampling.BILINEAR,
) -> Preprocess:
    """The standard ImageNet transform: resize the short side, crop the centre, scale to 0..1, normalise.

    Args:
        size: height and width of the crop (one int: a square).
        resize: short side before the crop. Default: 256 for 224, and in that proportion for other sizes.
        mean, std: one value per channel, 3 or 1, for pixels in 0..1.
        interpolation: PIL's filter for the resize.

    Raises:
        InputError: mean and std do not fit, or the resized image would be smaller than the crop.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if len(mean) not in (1, 3) or len(mean) != len(std) or not all(s > 0 for s in std):
        raise InputError(
            f"mean {tuple(mean)} and std {tuple(std)}: give 3 values each (or 1 for grey), every std above 0"
        )
    if min(height, width) < 1:
        raise InputError(f"size {height}x{width}: a side has at least one pixel")
    longer, crop = (resize, min(height, width)) if resize else (256, 224)
    if longer < crop:
        raise InputError(f"resize {resize} is smaller than the crop {height}x{width}")
    box = height * longer // crop, width * longer // crop

    def transform(image: Image.Image) -> Tensor:
        image = _crop(image.resize(_cover(image.size, box), interpolation), height, width)
        pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
        channels = pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None]
        return ((channels - _column(mean).float()) / _column(std).float()).contiguous()

    return Preprocess(transform, tuple(mean), tuple(std))


def open_image(path: Path) -> Image.Image:
    """Read an image file, turned the way its camera says. Raises InputError: no such file, or not an image."""
    if not path.is_file():
        raise InputError(f"there is no image '{path}'")
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:
        raise InputError(f"'{path}' is not an image (PIL knows no format for it)") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"'{path}' cannot be read as an image: {error}") from error


def _cover(have: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the smallest image of the same proportions that covers box = (height, width)."""
    width, height = have
    if box[0] * width >= box[1] * height:
        return box[0] * width // height, box[0]
    return box[1], box[1] * height // width


def _crop(image: Image.Image, height: int, width: int) -> Image.Image:
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1)
