"""Explanations of Hugging Face pipelines (`pip install transformers`): text or image in, tokens or pixels out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import (
    ImageClassificationPipeline,
    Pipeline,
    TextClassificationPipeline,
    TokenClassificationPipeline,
)

from omenn_fx.errors import InputError, TargetError
from omenn_fx.explanation import BiasTable, Explanation, InputExplanation
from omenn_fx.integrations.live import LiveExplainer
from omenn_fx.integrations.results import ImageExplanation, PipelineExplanation, TextExplanation

__all__ = ["ImageExplanation", "PipelineExplainer", "PipelineExplanation", "TextExplanation"]

Tensor = torch.Tensor
Label = str | int
Target = Label | tuple[int, Label] | None  # with a token's position where each token has labels of its own


class PipelineExplainer:
    """Explains what a pipeline for text, image or token classification says. Call it as the pipeline is called.

    The inputs go through the pipeline's own tokenizer or image processor. The model is captured at the first call, and
    again for another length of text or size of image.

    Args:
        pipeline: a transformers pipeline on PyTorch.
        bias: the bias policy of `omenn_fx.transform`. With "none" the biases' part is in no score.
        length: the number of tokens that every text is padded to, so that one capture serves all texts. Default: that
            of the longest text of a call.

    Raises:
        TypeError: another kind of pipeline.
    """

    def __init__(self, pipeline: Pipeline, bias: str = "carrier", length: int | None = None):
        if not isinstance(
            pipeline, (TextClassificationPipeline, ImageClassificationPipeline, TokenClassificationPipeline)
        ):
            raise TypeError(
                f"a {type(pipeline).__name__} is no pipeline for text-, image- or token-classification: transform its "
                "model itself (omenn_fx.transform)"
            )
        self.pipeline: Any = pipeline
        self.length = length
        self._live = LiveExplainer(explain="pixel_values" if self._of_images else "input_ids", bias=bias)

    @property
    def _of_images(self) -> bool:
        return isinstance(self.pipeline, ImageClassificationPipeline)

    def __call__(self, inputs: Any, target: Target | list[Target] = None, batch_size: int = 8) -> Any:
        """Explain one input, or each of a list.

        Args:
            inputs: what the pipeline takes: a text (or {"text": ..., "text_pair": ...}), an image (PIL, path or URL),
                or a list of them.
            target: the label to explain, by name or number; default: the label with the largest logit. For token
                classification the position of a token, or (position, label). A list has one for each input.
            batch_size: how many inputs are explained at once.

        Returns:
            A TextExplanation or ImageExplanation, or a list of them.

        Raises:
            TargetError: no such label, or no such token.
            InputError: a text that the pipeline cuts in several, or images of different sizes in one batch.
            OmennError: the model cannot be explained; the error says where and why.
        """
        several = isinstance(inputs, (list, tuple))
        given = list(inputs) if several else [inputs]
        targets = target if isinstance(target, list) else [target] * len(given)
        if len(targets) != len(given):
            raise TargetError(f"{len(targets)} targets for {len(given)} inputs: give one for all, or one for each")
        if not given:
            return []
        encoded = [self._encoded(one) for one in given]
        together = self._images(encoded) if self._of_images else self._texts(encoded)
        results: list[PipelineExplanation] = []
        for start in range(0, len(given), batch_size):
            rows = slice(start, start + batch_size)
            results += self._explained({k: v[rows] for k, v in together.items()}, targets[rows])
        return results if several else results[0]

    # Inputs -------------------------------------------------------------------------------------------------------

    def _encoded(self, one: Any) -> Mapping[str, Any]:
        made = self.pipeline.preprocess(one, **self.pipeline._preprocess_params)
        if isinstance(made, Mapping):
            return made
        chunks = list(made)  # token classification may cut a text
        if len(chunks) > 1:
            raise InputError(f"the pipeline cuts this text into {len(chunks)} parts: explain them one by one")
        return chunks[0]

    def _images(self, encoded: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        sizes = sorted({tuple(one["pixel_values"].shape[1:]) for one in encoded})
        if len(sizes) > 1:
            raise InputError(f"the images are of sizes {', '.join(map(str, sizes))}: explain them one by one")
        return {"pixel_values": torch.cat([one["pixel_values"] for one in encoded])}

    def _texts(self, encoded: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        tokenizer = self.pipeline.tokenizer
        names = [name for name in tokenizer.model_input_names if name in encoded[0]]
        rows = [{name: one[name][0] for name in names} for one in encoded]
        lengths = [len(row["input_ids"]) for row in rows]
        if self.length is not None and max(lengths) > self.length:
            raise InputError(f"a text has {max(lengths)} tokens, more than length={self.length}")
        wanted = self.length or max(lengths)
        if min(lengths) < wanted:
            return dict(tokenizer.pad(rows, padding="max_length", max_length=wanted, return_tensors="pt"))
        return {name: torch.stack([row[name] for row in rows]) for name in names}

    # Explaining ---------------------------------------------------------------------------------------------------

    def _explained(self, batch: dict[str, Tensor], targets: Sequence[Target]) -> Iterable[PipelineExplanation]:
        model = self.pipeline.model
        rows = [{name: t[i] for name, t in batch.items()} for i in range(len(targets))]
        whole = self._live.of(model)(
            **{name: t.to(model.device) for name, t in batch.items()},
            target=lambda outputs: self._targets(outputs, targets, rows),
        )
        return [self._result(_row(whole, i), row) for i, row in enumerate(rows)]

    def _targets(self, outputs: Tensor, targets: Sequence[Target], rows: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """A flat position in each row of the outputs, [N]."""
        if isinstance(self.pipeline, TokenClassificationPipeline):
            places = [_place(target, row) for target, row in zip(targets, rows, strict=True)]
            labels = [self._label(label, logits[at]) for (at, label), logits in zip(places, outputs, strict=True)]
            starts = [at * outputs.shape[-1] for at, _ in places]
            return torch.tensor(starts) + torch.tensor(labels)
        return torch.tensor([self._label(target, logits) for target, logits in zip(targets, outputs, strict=True)])

    def _label(self, target: Any, logits: Tensor) -> int:
        """The number of a label; that of the largest logit for None."""
        if target is None:
            return int(logits.argmax())
        numbers = {name: number for number, name in self.pipeline.model.config.id2label.items()}
        number = numbers.get(target, target)
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(logits):
            known = ", ".join(numbers)
            raise TargetError(f"there is no label {target!r}: the model has {known} (0 to {len(logits) - 1})")
        return number

    def _result(self, explanation: Explanation, inputs: Mapping[str, Tensor]) -> PipelineExplanation:
        """The result of one row."""
        at, number = divmod(int(explanation.target), explanation.outputs.shape[-1])
        label, value = self.pipeline.model.config.id2label[number], float(explanation.value)
        C = explanation.C[0].cpu()
        if self._of_images:
            return ImageExplanation(label, value, explanation, self._image(inputs["pixel_values"]), C.sum(0))
        shown = _shown(inputs)
        tokens = self.pipeline.tokenizer.convert_ids_to_tokens(inputs["input_ids"][shown].tolist())
        scores, hidden = C.sum(-1), torch.ones(len(C), dtype=torch.bool)
        hidden[shown] = False
        token = shown.tolist().index(at) if explanation.outputs.ndim == 3 else None
        return TextExplanation(
            label, value, explanation, tokens, scores[shown], shown.tolist(), float(scores[hidden].sum()), token
        )

    def _image(self, pixels: Tensor) -> Tensor:
        """Pixels [C, H, W] as the image processor left them -> in 0..1."""
        processor = self.pipeline.image_processor
        image = pixels.float()
        if processor.do_normalize:
            image = image * _column(processor.image_std) + _column(processor.image_mean)
        return (image / (255 * processor.rescale_factor if processor.do_rescale else 255)).clamp(0, 1)


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).reshape(-1, 1, 1)


def _shown(inputs: Mapping[str, Tensor]) -> Tensor:
    """Where a text has tokens and not padding."""
    ids = inputs["input_ids"]
    return inputs.get("attention_mask", torch.ones_like(ids)).nonzero()[:, 0]


def _place(target: Any, inputs: Mapping[str, Tensor]) -> tuple[int, Any]:
    """(position in the padded text, label or None) of a token classification's target."""
    shown = _shown(inputs)
    position, label = target if isinstance(target, tuple) and len(target) == 2 else (target, None)
    if not isinstance(position, int) or isinstance(position, bool) or not 0 <= position < len(shown):
        raise TargetError(
            f"target {target!r} names no token of this text, which has {len(shown)}: give a position, or (position, "
            "label)"
        )
    return int(shown[position]), label


def _row(explanation: Explanation, i: int) -> Explanation:
    """One row of a batch's explanation, as a batch of one."""

    def one(t: Tensor | None) -> Any:
        return None if t is None else t[i : i + 1]

    inputs = {name: InputExplanation(one(e.X), one(e.C_w), one(e.C_b)) for name, e in explanation.inputs.items()}
    value, bias = one(explanation.value), explanation.bias
    table = BiasTable(list(bias), one(bias.shares), value, bias.kept)
    return Explanation(one(explanation.outputs), one(explanation.target), value, inputs, table)
