"""Pictures of explanations: maps of images, bars and text of tokens, and where the biases come from.

In: an explanation, as `visualize.explained` reads it. Out: matplotlib figures, pixels, HTML.
Imports no other room; may be imported by every room behind `explanation`.
"""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from omenn_fx.visualize.bars import bias_bars, layer_bars, token_bars
from omenn_fx.visualize.display import FINE, OUTLIERS, Display
from omenn_fx.visualize.explained import Explained
from omenn_fx.visualize.maps import contrast_picture, overlay_picture, picture, targets_picture
from omenn_fx.visualize.parts import bias_share, input_name, number, percent
from omenn_fx.visualize.pixels import PERCENTILE, colours, overlay, symmetric_scale
from omenn_fx.visualize.tokens import token_html, token_text

__all__ = [
    "FINE",
    "KINDS",
    "OUTLIERS",
    "PERCENTILE",
    "Display",
    "bias_bars",
    "bias_share",
    "colours",
    "contrast_picture",
    "layer_bars",
    "number",
    "overlay",
    "overlay_picture",
    "percent",
    "picture",
    "plot",
    "symmetric_scale",
    "targets_picture",
    "token_bars",
    "token_html",
    "token_text",
]

KINDS = {
    "maps": picture,
    "overlay": overlay_picture,
    "targets": targets_picture,
    "contrast": contrast_picture,
    "tokens": token_bars,
    "text": token_text,
    "bias": bias_bars,
    "layers": layer_bars,
}


def plot(explanation: Explained, kind: str | None = None, **options: Any) -> Figure:
    """Draw an explanation.

    Args:
        explanation: of any model.
        kind: "maps" (`picture`), "overlay", "targets" or "contrast" of images; "tokens" (bars) or "text"; "bias" (by
            node) or "layers" of any. Default: "maps" of an image ("targets" where a row has several), "tokens" of a
            sequence.
        **options: of the function of that kind: `image=`, `tokens=`, `row=`, `path=`, `class_name=`, `display=`, ...

    Returns:
        A matplotlib Figure that belongs to no pyplot state.

    Raises:
        ValueError: there is no such kind, or the picture does not fit the explained input.
    """
    kind = kind or _fitting(explanation, options)
    if kind not in KINDS:
        raise ValueError(f"kind='{kind}': a picture is one of {', '.join(KINDS)}")
    for name, kinds in {"image": ("maps", "overlay", "targets", "contrast"), "tokens": ("tokens", "text")}.items():
        if kind in kinds:
            options.setdefault(name, None)
    function: Any = KINDS[kind]
    return function(explanation=explanation, **options)


def _fitting(explanation: Explained, options: dict[str, Any]) -> str:
    """The kind of picture for the shape of a row: [C, H, W] is an image, [L, D] and [L] are sequences."""
    shape = tuple(explanation.inputs[input_name(explanation, options.get("input"))].C.shape[explanation.value.ndim :])
    if len(shape) == 3 or options.get("image") is not None:
        return "targets" if explanation.value.ndim == 2 and isinstance(options.get("row", 0), int) else "maps"
    if len(shape) in (1, 2):
        return "tokens"
    raise ValueError(
        f"a row of the explained input has shape {shape}: images are [C, H, W], sequences [L, D] or [L]; "
        "of anything else there are kind='bias' and kind='layers'"
    )
