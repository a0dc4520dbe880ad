"""Floating-point operations of a training step as it is run, with the arithmetic that training's own numbers use."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from random_model import Dimensions

from qwen_audio_train.model.flops import ModelShape, Part, forward_flops
from qwen_audio_train.samples import BatchSizes

PADDED_FRAMES = 1500
"""Encoder frames of 30 s."""


@dataclass(frozen=True)
class StepShape:
    """How much of everything a step has."""

    rows: int
    row_tokens: int
    """Length that rows are padded to."""
    scored_tokens: int
    clips: int
    """Different ones."""
    clip_frames: int
    """Encoder frames that clips are padded to at true length."""
    pairs: bool
    trains_encoder: bool

    @classmethod
    def of(cls, batch: dict[str, torch.Tensor], *, rows: int, pairs: bool, trains_encoder: bool) -> StepShape:
        """Read off one of our batches."""
        return cls(
            rows=rows,
            row_tokens=batch["input_ids"].shape[1],
            scored_tokens=int((batch["labels"] != -100).sum()),
            clips=len(batch["mels"]),
            clip_frames=min(batch["mels"].shape[-1] // 2, PADDED_FRAMES),
            pairs=pairs,
            trains_encoder=trains_encoder,
        )


def step_flops(dims: Dimensions, shape: StepShape, *, stock: bool) -> float:
    """Of one step as it is run, padding included, stock or ours.

    A tower that trains costs three forwards (one more for each of two gradients); one that only passes gradients on
    costs two (adapters are too small to count); a frozen one before everything that trains costs one. Preferences add
    one forward of everything for the reference.
    """
    frames, clips = (PADDED_FRAMES, shape.rows) if stock else (shape.clip_frames, shape.clips)
    positions = shape.rows * shape.row_tokens
    run = BatchSizes(
        supervised_tokens=positions if stock else shape.scored_tokens,
        llm_tokens=positions,
        llm_attended=positions * shape.row_tokens,
        encoder_frames=clips * frames,
        encoder_attended=clips * frames * frames,
        audio_tokens=clips * (frames // 2),
    )
    forward = forward_flops(model_shape(dims), run)
    language = sum(forward[part].total for part in (Part.llm, Part.head))
    encoder = sum(products.total for products in forward.values()) - language
    reference = 1 if shape.pairs else 0
    return encoder * ((3 if shape.trains_encoder else 1) + reference) + language * (2 + reference)


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
