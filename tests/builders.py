"""Small things that many tests build: tiny stock models, clips, batches. Random weights, seconds on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import Qwen2AudioConfig, Qwen2AudioEncoderConfig, Qwen2AudioForConditionalGeneration, Qwen2Config

from qwen_audio_train.audio import lengths
from qwen_audio_train.pipeline.collate import Collator, silent_clip
from qwen_audio_train.samples import ClipFeatures, Rendered

AUDIO_ID = 255
VOCAB = 256


def tiny_config(num_mel_bins: int = 80, attn: str = "sdpa", max_clip_seconds: int = 30) -> Qwen2AudioConfig:
    """An encoder and a language model, both 32 wide with two layers. Stock pads every clip to ``max_clip_seconds``."""
    config = Qwen2AudioConfig(
        audio_config=Qwen2AudioEncoderConfig(
            d_model=32,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=64,
            num_mel_bins=num_mel_bins,
            max_source_positions=50 * max_clip_seconds,
        ).to_dict(),
        text_config=Qwen2Config(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=VOCAB,
        ).to_dict(),
        audio_token_index=AUDIO_ID,
    )
    config._attn_implementation = attn
    return config


def stock_model(seed: int = 0, max_clip_seconds: int = 30) -> Qwen2AudioForConditionalGeneration:
    """Stock transformers, fp32, random weights that are large enough to matter."""
    torch.manual_seed(seed)
    model = Qwen2AudioForConditionalGeneration(tiny_config(max_clip_seconds=max_clip_seconds))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.model.audio_tower.embed_positions.requires_grad_(False)
    return model


def noise_clip(num_samples: int, seed: int = 0) -> np.ndarray:
    """A clip of coloured noise, float32 mono 16 kHz."""
    generator = np.random.default_rng(seed + num_samples)
    return (0.1 * generator.standard_normal(num_samples)).astype(np.float32)


def text_rows(ids: list[int], **changes: Any) -> dict[str, Any]:
    """A batch of one sample, every token of which is a label; its audio slots are of one clip of one token each."""
    clips = [[ClipFeatures(np.full((80, 5), 0.3, np.float32), 3) for token in ids if token == AUDIO_ID]]
    supervised = np.ones(len(ids), np.bool_)
    rendered = Rendered(np.array(ids, np.int32), supervised, tuple(1 for _ in clips[0]))
    batch, _ = Collator(0, AUDIO_ID, silent_clip(80), "packed").rows([rendered], clips)
    batch["rows"].update(changes)
    return batch


def equal_batches(one: Any, two: Any) -> bool:
    """Whether two batches hold the same names and the same values."""
    if isinstance(one, torch.Tensor):
        return one.shape == two.shape and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal_batches(one[name], two[name]) for name in one)
    return bool(one == two)


def audio_slots(num_samples: int) -> list[int]:
    """The ids that stand for a clip of this length."""
    return [AUDIO_ID] * lengths.audio_tokens(num_samples)
