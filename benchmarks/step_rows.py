"""The same random rows in both sides' form: stock transformers' and ours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import WhisperFeatureExtractor

from benchmarks.random_model import Dimensions
from qwen_audio_train.audio import lengths
from qwen_audio_train.audio.features import LogMel
from qwen_audio_train.pipeline.collate import Collator, silent_clip
from qwen_audio_train.samples import ClipFeatures, Rendered, RenderedPair

PROMPT_TOKENS = 14
"""Text around the clip: a chat turn's frame and a short question."""
ANSWER_TOKENS = (25, 35)
JITTER = 0.05
"""Clips are this much shorter than the nominal length, at most."""


@dataclass(frozen=True)
class BothSides:
    """One batch, twice."""

    stock: dict[str, torch.Tensor]
    ours: dict[str, torch.Tensor]


class RowMaker:
    """Noise clips with random text."""

    def __init__(self, dims: Dimensions, device: torch.device, dtype: torch.dtype) -> None:
        self.dims, self.device, self.dtype = dims, device, dtype
        self.mel = LogMel(dims.mel_bins)
        self.padded_mel = WhisperFeatureExtractor(feature_size=dims.mel_bins)
        self.audio_id = dims.vocab - 1

    def make(self, clip_seconds: float, rows: int, *, pairs: bool, seed: int) -> BothSides:
        """``rows`` rows of one clip each; as pairs, half as many clips, each for a chosen and a rejected row."""
        draw = np.random.default_rng(seed)
        nominal = clip_seconds * lengths.SAMPLING_RATE_HZ
        sizes = [int(nominal * (1 - JITTER * draw.random())) for _ in range(rows // 2 if pairs else rows)]
        clips = [(0.1 * draw.standard_normal(size)).astype(np.float32) for size in sizes]
        features = [[ClipFeatures(self.mel(clip), lengths.mel_frames(len(clip)))] for clip in clips]
        collator = Collator(0, self.audio_id, silent_clip(self.dims.mel_bins))
        prompts = [self._prompt(draw, size) for size in sizes]
        if pairs:
            batch = collator.pairs([RenderedPair(p, self._text(draw), self._text(draw)) for p in prompts], features)
            labelled = batch.pop("completion_mask").bool()
            batch["labels"] = batch["input_ids"].where(labelled, -100)
        else:
            batch = collator.rows([_answered(p, self._text(draw)) for p in prompts], features)
        return BothSides(self._placed(self._stock(batch, clips, copies=2 if pairs else 1)), self._placed(batch))

    def _text(self, draw: np.random.Generator) -> np.ndarray:
        return draw.integers(1, self.audio_id, draw.integers(*ANSWER_TOKENS)).astype(np.int32)

    def _prompt(self, draw: np.random.Generator, num_samples: int) -> Rendered:
        text = draw.integers(1, self.audio_id, PROMPT_TOKENS)
        num_slots = lengths.audio_tokens(num_samples)
        ids = np.concatenate([text[:4], np.full(num_slots, self.audio_id), text[4:]]).astype(np.int32)
        return Rendered(ids, np.zeros(len(ids), np.bool_), (num_slots,))

    def _stock(self, batch: dict[str, torch.Tensor], clips: list[np.ndarray], copies: int) -> dict[str, torch.Tensor]:
        """The same ids and labels, with 30 s mels and a copy of a pair's clip for each of its rows."""
        padded = self.padded_mel(
            clips * copies,
            sampling_rate=lengths.SAMPLING_RATE_HZ,
            return_attention_mask=True,
            padding="max_length",
            return_tensors="pt",
        )
        text = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        return {**text, "input_features": padded.input_features, "feature_attention_mask": padded.attention_mask}

    def _placed(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name: tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)
            for name, tensor in batch.items()
        }


def _answered(prompt: Rendered, answer: np.ndarray) -> Rendered:
    supervised = np.concatenate([prompt.supervised, np.ones(len(answer), np.bool_)])
    return Rendered(np.concatenate([prompt.input_ids, answer]), supervised, prompt.clip_tokens)
