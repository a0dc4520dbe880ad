"""Qwen2-Audio models of random weights, at the released dimensions and scaled down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2AudioConfig, Qwen2AudioEncoderConfig, Qwen2Config

from qwen_audio_train.model.efficient import EfficientQwen2Audio


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


def build(dims: Dimensions, device: torch.device, dtype: torch.dtype, *, trains_encoder: bool) -> Any:
    """A model of random weights with a LoRA (r 8, q/k/v/o) in its language model."""
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
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with device:
        model = EfficientQwen2Audio(config)
    torch.set_default_dtype(torch.float32)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=r".*language_model.*\.(q|k|v|o)_proj", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    if trains_encoder:
        tower = model.get_base_model().model.audio_tower
        tower.requires_grad_(True).embed_positions.requires_grad_(False)
    return model.train()
