"""Floating-point operations of a training step: matrix products only, two operations a multiply-add."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.random_model import Dimensions

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
    """Of one step, stock or ours.

    A tower that trains costs three forwards (one more for each of two gradients); one that only passes gradients on
    costs two (adapters are too small to count); a frozen one before everything that trains costs one. Preferences add
    one forward of everything for the reference.
    """
    frames, clips = (PADDED_FRAMES, shape.rows) if stock else (shape.clip_frames, shape.clips)
    encoder = clips * encoder_flops(dims, frames)
    llm = shape.rows * llm_flops(dims, shape.row_tokens)
    head = 2.0 * dims.llm_width * dims.vocab * (shape.rows * shape.row_tokens if stock else shape.scored_tokens)
    reference = 1 if shape.pairs else 0
    return encoder * ((3 if shape.trains_encoder else 1) + reference) + (llm + head) * (2 + reference)


def encoder_flops(dims: Dimensions, frames: int, attended: int | None = None) -> float:
    """Forward, with the projector: of one clip, or of several whose (query, key) pairs of frames are ``attended``."""
    width = dims.encoder_width
    stem = 2.0 * 3 * (2 * frames * dims.mel_bins * width + frames * width * width)
    linear = 2.0 * frames * (4 * width * width + 2 * width * dims.encoder_ffn)
    attention = 4.0 * (frames * frames if attended is None else attended) * width
    projector = 2.0 * frames / 2 * width * dims.llm_width
    return stem + dims.encoder_layers * (linear + attention) + projector


def llm_flops(dims: Dimensions, tokens: int, attended: int | None = None) -> float:
    """Forward, without the vocabulary projection: of one row, or of several of ``attended`` (query, key) pairs."""
    width = dims.llm_width
    linear = 2.0 * tokens * (4 * width * width + 3 * width * dims.llm_ffn)
    attention = 4.0 * (tokens * tokens if attended is None else attended) * width
    return dims.llm_layers * (linear + attention)
