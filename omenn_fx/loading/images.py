"""From an image file to a model's input, and back to what the model saw."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from omenn_fx.errors import InputError

log = logging.getLogger("omenn_fx")
Tensor = torch.Tensor
LARGEST = 4096  # a side of what a model reads, in pixels
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Steps:
    """Resize, then crop the centre: (height, width) of both, how the image fits the first, and PIL's filter."""

    size: tuple[int, int]
    resize: tuple[int, int]
    fit: Literal["cover", "squash"]  # the proportions stay and the box is filled; or exactly the box
    interpolation: str  # bilinear, bicubic ...


@dataclass(frozen=True)
class Preprocess:
    """A transform from a PIL image to a normalised tensor [C, H, W], with the mean and std that it used.

    `steps` says what the transform does, for those who repeat it in another language; None where no steps say it.
    """

    transform: Callable[[Image.Image], Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    steps: Steps | None = None

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
    if len(mean) not in (1, 3) or len(mean) != len(std) or not all(s > 0 and math.isfinite(s) for s in std):
        raise InputError(
            f"mean {tuple(mean)} and std {tuple(std)}: give 3 values each (or 1 for grey), every std above 0"
        )
    if not all(map(math.isfinite, mean)):
        raise InputError(f"mean {tuple(mean)}: give finite numbers")
    check_size(height, width, resize)
    longer, crop = (resize, min(height, width)) if resize else (256, 224)
    if longer < crop:
        raise InputError(f"resize {resize} is smaller than the crop {height}x{width}")
    box = height * longer // crop, width * longer // crop

    def transform(image: Image.Image) -> Tensor:
        image = trimmed(image)
        image = _crop(image.resize(_cover(image.size, box), interpolation), height, width)
        pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
        channels = pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None]
        return ((channels - _column(mean).float()) / _column(std).float()).contiguous()

    steps = Steps((height, width), box, "cover", interpolation.name.lower())
    return Preprocess(transform, tuple(mean), tuple(std), steps)


def check_size(height: int, width: int, resize: int | None = None) -> None:
    """Raise InputError where a model would read an image of no pixels, or of more than fit in a memory."""
    if min(height, width) < 1:
        raise InputError(f"size {height}x{width}: a side has at least one pixel")
    if max(height, width, resize or 0) > LARGEST:
        raise InputError(
            f"size {height}x{width}{f', resize {resize}' if resize else ''}: a side of more than {LARGEST} pixels does "
            "not fit in the memory of an explanation; give a smaller size"
        )


def trimmed(image: Image.Image, longest: int = 16) -> Image.Image:
    """The middle of a very long image: what is resized as a whole has its short side as large as the crop's.

    The centre crop of what is `longest` times as long as it is wide drops the rest anyway.
    """
    width, height = image.size
    short = min(width, height)
    if max(width, height) <= longest * short:
        return image
    return _crop(image, min(height, longest * short), min(width, longest * short))


def open_image(path: Path) -> Image.Image:
    """Read an image file as RGB, turned the way its camera says.

    Of an animation the first frame is taken, and a warning says so. 16 bits become 8.

    Raises:
        InputError: no such file, not an image or a damaged one, too many pixels, or pixels without a known range.
    """
    if not path.is_file():
        raise InputError(f"there is no image '{path}'")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # at half of where it is an error
            # by a file: PIL maps the pixels of a path into memory, and then turns those of 16-bit TIFFs wrongly
            with path.open("rb") as file, Image.open(file) as image:
                return _read(image, path)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"'{path}' is not an image (PIL knows no format for it)") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"'{path}' has more pixels than are read: {error} Make the image smaller first.") from None
    except Exception as error:  # a damaged file raises anything from struct.error to IndexError
        raise InputError(f"'{path}' cannot be read as an image: {error or type(error).__name__}") from error


def _read(image: Image.Image, path: Path) -> Image.Image:
    if image.format != "MPO" and getattr(image, "is_animated", False):  # a camera's MPO holds one picture twice
        log.warning("'%s' has several frames: the first one is taken", path)
    return _in_8_bits(ImageOps.exif_transpose(image), path).convert("RGB")


def _in_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """An image whose pixels go from 0 to 255: PIL's own conversion cuts deeper ones off."""
    if not image.mode.startswith(("I", "F")):
        return image
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        kind = "floating-point pixels" if image.mode == "F" else "pixels of 32 bits"
        raise InputError(f"'{path}' has {kind}, whose range no file states: save it with 8 or 16 bits a channel")
    return Image.fromarray(np.round(pixels / 257).astype(np.uint8))


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
