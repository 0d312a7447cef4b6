"""Hugging Face architectures at toy sizes: two layers, width 32.

A name is "model:attention" or "model/inputs:attention": attention is eager, sdpa or none (the model has no choice),
inputs are embeds (where left out), ids, or mask (embeddings with a padded row).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import Example
from . import huggingface_tables as tables
from .common import Pick, transformers

BATCH, TOKENS = 2, 10
# Explained one sample at a time. TimeSformer takes its class tokens from rows [:batch] of (batch frames, ...): those of
# the first sample; Mixtral sorts the tokens of the whole batch by expert.
MIXES = {"timesformer", "mixtral"}


def build(name: str) -> Example:
    """A model and its inputs."""
    base, _, attention = name.rpartition(":")
    base, _, kind = base.partition("/")
    batch = 1 if base in MIXES else BATCH
    if base in tables.TEXT:
        model = pretrained(*tables.TEXT[base], attention)
        inputs = text_inputs(model, kind, batch)
    else:
        head, values, key, shape = tables.SIGNALS[base]
        model = pretrained(head, values, attention)
        inputs = {key: torch.randn(batch, *shape)} | (token_ids(batch) if base in tables.WITH_TEXT else {})
    if base in tables.OUTPUTS:
        model = Pick(model, tables.OUTPUTS[base])
    return model, (), inputs


def pretrained(head: str, values: dict[str, Any], attention: str) -> nn.Module:
    """A model of a class, by the class's name, from the values of its configuration."""
    cls = getattr(transformers(), head, None) or whisper_encoder()
    values = dict(values)
    experts = values.pop("experts_implementation", None)
    config = cls.config_class(**values)
    if experts:
        config._experts_implementation = experts
    for part in (config, *(getattr(config, p, None) for p in ("text_config", "vision_config"))):
        if hasattr(part, "initializer_range"):
            part.initializer_range = 0.2  # 0.02 is for widths of a thousand
    if hasattr(config, "use_cache"):
        config.use_cache = False
    if attention == "none":
        return cls(config)
    return cls._from_config(config, attn_implementation=attention)


def whisper_encoder() -> type:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return WhisperEncoder


def text_inputs(model: nn.Module, kind: str, batch: int) -> dict[str, Tensor]:
    """The keyword inputs of a language model."""
    if kind == "ids":
        return token_ids(batch)
    width = model.get_input_embeddings().embedding_dim
    inputs = {"inputs_embeds": torch.randn(batch, TOKENS, width)}
    if kind == "mask":
        inputs["attention_mask"] = torch.ones(batch, TOKENS, dtype=torch.long)
        inputs["attention_mask"][-1, 7:] = 0
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = token_ids(batch)["input_ids"]
    return inputs


def token_ids(batch: int) -> dict[str, Tensor]:
    """Ids without the special ones, and a mask of ones."""
    ids = torch.randint(3, tables.VOCABULARY, (batch, TOKENS))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
