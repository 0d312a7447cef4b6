"""Draw the picture of docs/idea.md from a real explanation: a small network, its matrices at one digit, and their sum.

python docs/idea.py    # writes idea.png and, for narrow screens, idea-narrow.png; needs scikit-learn's digits
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn

import omenn_fx
from omenn_fx.visualize import colours, number, symmetric_scale

HERE = Path(__file__).resolve().parent
INK, FRAME = "#333333", "#999999"
DIGIT = 3
Panel = tuple[str, str, Callable[[Axes], None]]  # above, below, what is drawn


def trained(x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """Two convolutions and a linear layer, on 8 x 8 pixels."""
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y, label_smoothing=0.1).backward()
        optimizer.step()
    return model.eval()


def signed(values: np.ndarray, rows: np.ndarray | None = None) -> Callable[[Axes], None]:
    """A matrix or a map in red and blue, with a column for the bias beside it."""

    def draw(axes: Axes) -> None:
        if rows is None:
            pixels = colours(values)
        else:
            gap = np.full((len(values), max(1, values.shape[1] // 32), 4), 255, np.uint8)
            wide = np.repeat(rows[:, None], max(1, values.shape[1] // 16), 1)
            pixels = np.concatenate([colours(values), gap, colours(wide)], 1)
        axes.imshow(pixels, interpolation="nearest")

    return draw


def grey(values: np.ndarray) -> Callable[[Axes], None]:
    """A picture as it is, 0 white."""
    return lambda axes: axes.imshow(values, cmap="gray_r", interpolation="nearest")


def bars(logits: np.ndarray, chosen: int) -> Callable[[Axes], None]:
    """The outputs, with the explained one in red."""

    def draw(axes: Axes) -> None:
        axes.barh(range(len(logits)), logits, color=["#b2182b" if i == chosen else "#cccccc" for i in range(10)])
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(logits)))
        axes.yaxis.tick_right()
        axes.invert_yaxis()
        axes.set_box_aspect(1)

    return draw


def panels(model: nn.Module, x: torch.Tensor) -> tuple[list[Panel], list[Panel]]:
    """What the layers are at this input, and what their product is."""
    explainer = omenn_fx.transform(model, x)
    explanation = explainer(x, target=DIGIT)
    layers: list[Panel] = [("input X", "8 × 8\npixels", grey(x[0, 0].numpy()))]
    symbols = {"conv2d": "W, b", "relu": "0 or 1", "linear": "W, b"}
    for node in explainer.nodes:
        kind = node.op.removeprefix("aten.").removesuffix(".default")
        if kind not in symbols:
            continue
        local = explainer.affine(x, to=node.name, since="operands")
        b = local.bias.flatten().numpy()
        W = local.to_dense().numpy()
        title = {"conv2d": "convolution", "relu": "ReLU", "linear": "linear"}[kind]
        shape = f"{symbols[kind]}:\n{W.shape[0]} × {W.shape[1]}"
        layers.append((title, shape, signed(W, b if b.any() else None)))
    logit = number(float(explanation.value[0]))
    layers.append(("logits", f"of “{DIGIT}”:\n{logit}", bars(explanation.outputs[0].numpy(), DIGIT)))
    product, carried, both = (t[0, 0].numpy() for t in (explanation.C_w * x, explanation.C_b, explanation.C))
    scale = symmetric_scale(both)
    maps: list[Panel] = [
        ("$C_w$", "one weight\na pixel", signed(explanation.C_w[0, 0].numpy())),
        ("X", "the input", grey(x[0, 0].numpy())),
    ]
    for title, values in (("$C_w * X$", product), ("$C_b$", carried), ("$C$", both)):
        end = "\n= the logit" if values is both else ""
        maps.append((title, f"sum {number(float(values.sum()))}{end}", one_scale(values, scale)))
    print(explanation, *(float(v.sum()) for v in (product, carried, both)))
    return layers, maps


def one_scale(values: np.ndarray, scale: float) -> Callable[[Axes], None]:
    """A map whose colours end where those of the others do."""
    return lambda axes: axes.imshow(colours(values, scale), interpolation="nearest")


def place(figure: Figure, panel: Panel, box: tuple[float, float, float, float], size: float) -> None:
    """A panel in its square of the figure; what is written above and below stands at one height in a row."""
    above, below, draw = panel
    axes = figure.add_axes(box)
    axes.set_xticks([])
    axes.set_yticks([])
    draw(axes)
    axes.tick_params(length=0, labelsize=size * 0.7, colors=INK, pad=2)
    for spine in axes.spines.values():
        spine.set(color=FRAME, linewidth=0.6)
    left, bottom, width, height = box
    style = {"ha": "center", "color": INK, "fontsize": size}
    figure.text(left + width / 2, bottom + height * 1.05, above, va="bottom", **style)
    figure.text(left + width / 2, bottom - height * 0.05, below, va="top", **style)


def draw(rows: list[tuple[str, list[Panel], str]], path: Path, width: float, size: float) -> None:
    """Rows of panels, each with a sentence above it and signs between its panels; the width in inches."""
    most = max(len(panels) for _, panels, _ in rows)
    gap, margin, line = 0.34, 0.15, size / 72 * 1.35
    side = (width - 2 * margin - (most - 1) * gap) / most
    heads = [line * (2.6 + sentence.count("\n") if sentence else 1.4) for sentence, _, _ in rows]
    feet = [line * 1.8 + line * max(below.count("\n") for _, below, _ in panels) for _, panels, _ in rows]
    top = height = sum(heads) + sum(feet) + len(rows) * side
    figure = Figure(figsize=(width, height), facecolor="white")
    for (sentence, panels, signs), head, foot in zip(rows, heads, feet, strict=True):
        figure.text(
            margin / width, (top - 0.4 * line) / height, sentence, fontsize=size, color=INK, weight="bold", va="top"
        )
        top -= head + side
        left = margin
        for panel, sign in zip(panels, signs.ljust(len(panels)), strict=True):
            place(figure, panel, (left / width, top / height, side / width, side / height), size)
            x, y = (left + side + gap / 2) / width, (top + side / 2) / height
            figure.text(x, y, sign, fontsize=size * 1.3, color=INK, ha="center", va="center")
            left += side + gap
        top -= foot
    figure.savefig(path, dpi=1760 / width)


def main() -> None:
    """Train, explain one digit that the network has not seen, and draw it for wide and for narrow screens."""
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(digits.target)
    model = trained(x[:1500], y[:1500])
    print("accuracy", float((model(x[1500:]).argmax(1) == y[1500:]).float().mean()))
    index = 1500 + int((y[1500:] == DIGIT).nonzero()[1])
    layers, maps = panels(model, x[index : index + 1])
    first = ("At this digit every layer is a matrix W", "and a bias b:")
    second = (
        "Multiplied together they are one row of weights $C_w$,",
        "and the biases are carried back to the pixels:",
    )
    wide = [(" ".join(first), layers, "→→→→→→"), (" ".join(second), maps, "∗=+=")]
    draw(wide, HERE / "idea.png", 11, 10.5)
    narrow = [("\n".join(first), layers[:4], "→→→"), ("", layers[4:], "→→")]
    narrow += [("\n".join(second), maps[:3], "∗="), ("", maps[2:], "+=")]
    draw(narrow, HERE / "idea-narrow.png", 5.6, 10.5)


if __name__ == "__main__":
    main()
