"""What a training step costs by counting: floating-point operations of matrix products (two a multiply-add), and bytes
of tensors that a backward pass needs. Knows nothing of memory traffic, launches, or how well a product runs.

Counted is what is run, padding and repeated encodings included, by the arithmetic that training's own numbers use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.random_model import Dimensions
from qwen_audio_train.model.flops import ModelShape, Part, forward_flops
from qwen_audio_train.samples import BatchSizes

PADDED_FRAMES = 1500
"""Encoder frames of 30 s."""


def run_by_stock(rows: int, longest: int) -> BatchSizes:
    """``rows`` rows padded to the longest, each with a clip padded to 30 s; dense masks, logits everywhere."""
    tokens = rows * longest
    return BatchSizes(
        supervised_tokens=tokens,
        llm_tokens=tokens,
        llm_positions=tokens,
        llm_attended=tokens * longest,
        encoder_frames=rows * PADDED_FRAMES,
        encoder_positions=rows * PADDED_FRAMES,
        encoder_attended=rows * PADDED_FRAMES**2,
        audio_tokens=rows * PADDED_FRAMES // 2,
    )


def run_by_us(sizes: BatchSizes) -> BatchSizes:
    """What the collator says that a batch holds, padding taken for real."""
    return replace(sizes, llm_tokens=sizes.llm_positions, encoder_frames=sizes.encoder_positions)


@dataclass(frozen=True)
class Training:
    """Which parts of the model train, and whether a reference runs beside it."""

    encoder: bool
    llm_by_adapter: bool = False
    """Only adapters of the language model train: gradients pass its weights, which get none."""
    reference: bool = False


def run_flops(dims: Dimensions, run: BatchSizes, training: Training) -> float:
    """A part that trains costs three forwards (one more for each of two gradients), one that gradients only pass two,
    a frozen one before everything that trains one. A reference adds a forward of everything."""
    forward = forward_flops(model_shape(dims), run)
    language = sum(forward[part].total for part in (Part.llm, Part.head))
    encoder = sum(products.total for products in forward.values()) - language
    reference = 1 if training.reference else 0
    passes = 2 if training.llm_by_adapter else 3
    return encoder * ((3 if training.encoder else 1) + reference) + language * (passes + reference)


def total_flops(dims: Dimensions, runs: Sequence[BatchSizes], training: Training) -> float:
    """Of all batches of a step."""
    return sum(run_flops(dims, run, training) for run in runs)


def kept_values(dims: Dimensions, run: BatchSizes, training: Training) -> float:
    """Numbers that the forward pass keeps for the backward pass, and the logits at their most.

    Of a layer: inputs and outputs of norms, queries, keys, values, what attention gives, and the parts of the gated or
    plain MLP. Of the logits: themselves, a copy or a log-softmax, and their gradient.
    """
    encoder_layer = 9 * dims.encoder_width + 2 * dims.encoder_ffn
    llm_layer = 11 * dims.llm_width + 4 * dims.llm_ffn
    encoder = run.encoder_frames * dims.encoder_layers * encoder_layer if training.encoder else 0
    return encoder + run.llm_tokens * dims.llm_layers * llm_layer + 3.0 * run.supervised_tokens * dims.vocab


def model_shape(dims: Dimensions) -> ModelShape:
    """The benchmark's dimensions, which know no grouped queries."""
    return ModelShape(
        mel_bins=dims.mel_bins,
        encoder_width=dims.encoder_width,
        encoder_layers=dims.encoder_layers,
        encoder_ffn=dims.encoder_ffn,
        llm_width=dims.llm_width,
        llm_layers=dims.llm_layers,
        llm_query_width=dims.llm_width,
        llm_key_width=dims.llm_width,
        llm_ffn=dims.llm_ffn,
        vocab=dims.vocab,
    )
