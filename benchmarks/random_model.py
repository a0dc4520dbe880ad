"""Qwen2-Audio models of random weights, at the released dimensions and scaled down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
)

from qwen_audio_train.model.efficient import EfficientQwen2Audio

M = TypeVar("M", bound=Qwen2AudioForConditionalGeneration)


@dataclass(frozen=True)
class Dimensions:
    """A Whisper encoder and a Qwen2 language model without grouped queries."""

    mel_bins: int
    encoder_width: int
    encoder_layers: int
    encoder_heads: int
    encoder_ffn: int
    llm_width: int
    llm_layers: int
    llm_heads: int
    llm_ffn: int
    vocab: int


SIZES = {
    "7b": Dimensions(
        mel_bins=128,
        encoder_width=1280,
        encoder_layers=32,
        encoder_heads=20,
        encoder_ffn=5120,
        llm_width=4096,
        llm_layers=32,
        llm_heads=32,
        llm_ffn=11_008,
        vocab=156_032,
    ),
    # The 7B's proportions of encoder, language model and vocabulary (0.10 : 1 : 0.10), 1/165 of its size. A narrow
    # encoder spends more of its time in attention: half of a padded clip's operations, not a sixth.
    "cpu": Dimensions(
        mel_bins=128,
        encoder_width=256,
        encoder_layers=4,
        encoder_heads=4,
        encoder_ffn=1024,
        llm_width=640,
        llm_layers=8,
        llm_heads=10,
        llm_ffn=1728,
        vocab=6100,
    ),
    "small": Dimensions(
        mel_bins=80,
        encoder_width=64,
        encoder_layers=2,
        encoder_heads=2,
        encoder_ffn=256,
        llm_width=128,
        llm_layers=4,
        llm_heads=4,
        llm_ffn=344,
        vocab=4876,
    ),
}


def model_config(dims: Dimensions) -> Qwen2AudioConfig:
    """Of stock transformers, whose last id stands for audio."""
    config = Qwen2AudioConfig(
        audio_config=Qwen2AudioEncoderConfig(
            num_mel_bins=dims.mel_bins,
            d_model=dims.encoder_width,
            encoder_layers=dims.encoder_layers,
            encoder_attention_heads=dims.encoder_heads,
            encoder_ffn_dim=dims.encoder_ffn,
        ).to_dict(),
        text_config=Qwen2Config(
            hidden_size=dims.llm_width,
            intermediate_size=dims.llm_ffn,
            num_hidden_layers=dims.llm_layers,
            num_attention_heads=dims.llm_heads,
            num_key_value_heads=dims.llm_heads,
            vocab_size=dims.vocab,
        ).to_dict(),
        audio_token_index=dims.vocab - 1,
    )
    config._attn_implementation = "sdpa"
    return config


def build_plain(kind: type[M], dims: Dimensions, device: torch.device, dtype: torch.dtype, *, seed: int = 0) -> M:
    """A model of random weights, all of which train but the encoder's table of positions."""
    torch.manual_seed(seed)
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = kind(model_config(dims))
    finally:
        torch.set_default_dtype(torch.float32)
    return model.train()


def with_lora(model: Any, *, trains_encoder: bool) -> Any:
    """The model with a LoRA (r 8, q/k/v/o) in its language model, beside which at most the encoder trains."""
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=r".*language_model.*\.(q|k|v|o)_proj", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    set_encoder_trains(model, trains_encoder)
    return model.train()


def set_encoder_trains(model: Any, trains_encoder: bool) -> None:
    """Freeze or thaw the encoder; its table of positions stays frozen."""
    for name, parameter in model.named_parameters():
        if "audio_tower" in name and "embed_positions" not in name:
            parameter.requires_grad_(trains_encoder)


def build(dims: Dimensions, device: torch.device, dtype: torch.dtype, *, trains_encoder: bool) -> Any:
    """Ours, with a LoRA in its language model."""
    return with_lora(build_plain(EfficientQwen2Audio, dims, device, dtype), trains_encoder=trains_encoder)
