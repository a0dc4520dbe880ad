"""Floating-point operations that a training step needs: matrix products only, two operations a multiply-add.

"Model FLOPs" in the sense of PaLM's model-FLOPs utilisation (Chowdhery et al. 2022, appendix B): what the mathematics
asks for, whatever the implementation runs. Padding is not counted, nor is anything that is computed a second time
(activation checkpointing, attention kernels that recompute scores, a reference that encodes what the policy has encoded
alike). Unlike PaLM, attention counts the pairs that are seen, not the whole square. docs/metrics.md has the formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch import nn

from qwen_audio_train.model.trainable import ENCODER, PROJECTOR
from qwen_audio_train.samples import BatchSizes


class Part(Enum):
    """Of the model, in the order in which data flows through them."""

    conv1 = "conv1"
    conv2 = "conv2"
    encoder = "encoder"
    projector = "projector"
    llm = "llm"
    head = "head"
    """The projection to the vocabulary."""


_LAYERED = frozenset({Part.encoder, Part.llm})
"""Parts in which gradients run through most weights on their way to those that train."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The widths that matter. The language model's layers are those of Qwen2 and Llama: grouped queries and a gated
    feed-forward of three matrices."""

    mel_bins: int
    encoder_width: int
    encoder_layers: int
    encoder_ffn: int
    llm_width: int
    llm_layers: int
    llm_query_width: int
    """All query heads together."""
    llm_key_width: int
    """All key heads together; values are as wide."""
    llm_ffn: int
    vocab: int

    @classmethod
    def of(cls, config: Any) -> ModelShape:
        """From a Qwen2AudioConfig."""
        audio, text = config.audio_config, config.text_config
        head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return cls(
            mel_bins=audio.num_mel_bins,
            encoder_width=audio.d_model,
            encoder_layers=audio.encoder_layers,
            encoder_ffn=audio.encoder_ffn_dim,
            llm_width=text.hidden_size,
            llm_layers=text.num_hidden_layers,
            llm_query_width=head_width * text.num_attention_heads,
            llm_key_width=head_width * text.num_key_value_heads,
            llm_ffn=text.intermediate_size,
            vocab=text.vocab_size,
        )


@dataclass(frozen=True, slots=True)
class Products:
    """FLOPs of a part's forward pass."""

    with_weights: float
    of_activations: float = 0.0
    """Attention: queries with keys, and weights with values."""

    @property
    def total(self) -> float:
        """Both kinds."""
        return self.with_weights + self.of_activations


def forward_flops(shape: ModelShape, sizes: BatchSizes) -> dict[Part, Products]:
    """Of one forward pass over the real tokens and frames of ``sizes``, in the order of Part."""
    width, frames = shape.encoder_width, sizes.encoder_frames
    encoder_weights = 4 * width * width + 2 * width * shape.encoder_ffn
    query_and_output = 2 * shape.llm_width * shape.llm_query_width
    key_and_value = 2 * shape.llm_width * shape.llm_key_width
    llm_weights = query_and_output + key_and_value + 3 * shape.llm_width * shape.llm_ffn
    return {
        # Kernels of three frames; the first runs at 10 ms, the second halves that to the encoder's 20 ms.
        Part.conv1: Products(2.0 * 3 * (2 * frames) * shape.mel_bins * width),
        Part.conv2: Products(2.0 * 3 * frames * width * width),
        Part.encoder: Products(
            2.0 * shape.encoder_layers * frames * encoder_weights,
            4.0 * shape.encoder_layers * sizes.encoder_attended * width,
        ),
        Part.projector: Products(2.0 * sizes.audio_tokens * width * shape.llm_width),
        Part.llm: Products(
            2.0 * shape.llm_layers * sizes.llm_tokens * llm_weights,
            4.0 * shape.llm_layers * sizes.llm_attended * shape.llm_query_width,
        ),
        Part.head: Products(2.0 * sizes.supervised_tokens * shape.llm_width * shape.vocab),
    }


@dataclass(frozen=True, slots=True)
class StepFlops:
    """Prices a training step: forward, backward as far as what trains asks for it, and a preference's reference."""

    shape: ModelShape
    trained: frozenset[Part]
    """Parts whose own weights train."""
    adapter_parameters: Mapping[Part, int] = field(default_factory=dict)
    """Low-rank parameters that train in a part."""
    reference_passes: int = 0
    """Forward passes of a frozen reference over the same rows: 1 in DPO, 0 where its log-probabilities are stored."""

    @classmethod
    def of(cls, model: nn.Module, *, reference_passes: int = 0) -> StepFlops:
        """By what ``requires_grad`` says in a Qwen2-Audio model, adapters of peft included; also under ZeRO-3."""
        trained: set[Part] = set()
        adapters: dict[Part, int] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):  # a tied head has its own name then
            part = _part_of(name)
            if part is None or not parameter.requires_grad:
                continue
            if "lora_" in name:
                adapters[part] = adapters.get(part, 0) + int(getattr(parameter, "ds_numel", parameter.numel()))
            elif len(getattr(parameter, "ds_shape", parameter.shape)) > 1:
                trained.add(part)
        return cls(ModelShape.of(model.config), frozenset(trained), adapters, reference_passes)

    def step(self, sizes: BatchSizes) -> float:
        """Model FLOPs of a step over ``sizes``.

        Of a product with weights, the backward pass needs the gradient of its input (as much as the forward) where
        something before it trains, and that of its weights (as much again) where they train. Of a product of
        activations it needs both. Adapters cost twice their forward.
        """
        total, learns_before = 0.0, False
        for part, products in forward_flops(self.shape, sizes).items():
            adapters = 2.0 * self.adapter_parameters.get(part, 0) * _rows(part, sizes)
            trains = part in self.trained
            learns = trains or part in self.adapter_parameters
            passes_on = learns_before or (learns and part in _LAYERED)
            total += products.total + adapters
            total += products.with_weights * (passes_on + trains) + 2 * products.of_activations * passes_on
            total += 2 * adapters
            learns_before = learns_before or learns
            if learns_before:  # before that, policy and reference are one
                total += self.reference_passes * products.total
        return total


def _part_of(name: str) -> Part | None:
    """Where a parameter's product is counted; None for tables that are looked up."""
    if "embed_tokens" in name or "embed_positions" in name:
        return None
    if ENCODER in name:
        return next((part for part in (Part.conv1, Part.conv2) if f".{part.value}." in name), Part.encoder)
    if PROJECTOR in name:
        return Part.projector
    return Part.head if "lm_head" in name else Part.llm


def _rows(part: Part, sizes: BatchSizes) -> int:
    """Vectors that a part's adapters are applied to."""
    return {Part.projector: sizes.audio_tokens, Part.llm: sizes.llm_tokens, Part.head: sizes.supervised_tokens}.get(
        part, sizes.encoder_frames
    )
