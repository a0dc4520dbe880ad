"""What model a run starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class ModelSize(Enum):
    """Every size is built by the same code (model/sizes.py); names equal values so that Hydra can match them."""

    tiny = "tiny"
    demo = "demo"
    small = "small"
    qwen2_audio_7b = "qwen2_audio_7b"
    qwen2_audio_7b_from_parts = "qwen2_audio_7b_from_parts"


class Precision(Enum):
    """Dtype that weights are held in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class AttentionKernel(Enum):
    """How a packed row attends (model/span_attention.py); all are exact. ``auto``: flash_attn or varlen for 16-bit
    values on CUDA, splits elsewhere."""

    auto = "auto"
    splits = "splits"
    varlen = "varlen"
    flash_attn = "flash_attn"
    mask = "mask"


class Quantization(Enum):
    """``nf4``: 4 bits with doubly quantised scales; ``int8``: 8 bits with outliers apart."""

    none = "none"
    nf4 = "nf4"
    int8 = "int8"


@dataclass(frozen=True)
class DemoLanguageModelConfig:
    """The small causal LM of ``model=demo``, trained from scratch beside a real Whisper encoder."""

    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    intermediate_size: int = 768
    vocab_size: int = 512
    """At most so many entries of the byte-level BPE trained on the texts of ``data.train``, specials not counted."""
    joins_characters: bool = False
    """Whether the BPE may join characters into pieces of words; without it an entry is one character. A small corpus is
    learnt by heart with pieces: held-out character error rate 0.37 with 300 joined entries against 0.25."""
    attention_dropout: float = 0.0
    """Costs a quarter of a step on a CPU, where attention then takes a slower path."""


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and from where."""

    size: ModelSize = ModelSize.tiny
    start_from: str | None = None
    """Folder of a previous stage (a full model or a LoRA adapter), or a hub id. Takes precedence over ``size``."""
    whisper: str = "openai/whisper-base"
    """Hub id or folder of the Whisper whose encoder is taken."""
    llm: str = "smollm2-135m-instruct"
    """Hub id, folder, or the name of a packaged model, for sizes that take a pretrained LM."""
    languages: list[str] = field(default_factory=lambda: ["en", "zh", "yue", "ja", "ko", "de", "es", "fr", "it", "ru"])
    """Languages whose tags a newly built tokenizer gets."""
    demo_lm: DemoLanguageModelConfig = field(default_factory=DemoLanguageModelConfig)
    precision: Precision = Precision.float32
    attention: AttentionKernel = AttentionKernel.auto
    checkpoint_encoder: bool = False
    """Keep only the inputs of the encoder's layers and recompute the rest in the backward pass: less memory, about a
    third more time of this tower. Changes nothing while the encoder is frozen: no activations are kept then."""
    checkpoint_llm: bool = False
    """The same for the language model's layers."""
    quantization: Quantization = Quantization.none
    """What the language model's frozen linear layers are held in under a LoRA (QLoRA), through bitsandbytes. Encoder,
    projector, embeddings and head stay in ``precision``."""
