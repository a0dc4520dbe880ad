"""The SFT command on batches of every kind, at random: ``python -m tests.recipes.mixed [--without-dummy] [overrides]``.

What is in a bin hangs on the bin alone, so that any number of ranks sees the same batches: clips only, text only, one
row with many clips, nothing (all of its samples were set aside), or some of each. ``--without-dummy`` is the mistake
that the tests must catch: a batch without audio has no clip, and the model leaves the encoder and the projector out.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen_audio_train.audio import lengths
from qwen_audio_train.model.efficient import CLIP_KEYS, EfficientQwen2Audio
from qwen_audio_train.pipeline.batches import BatchBuilder
from qwen_audio_train.pipeline.loading import Draw
from qwen_audio_train.pipeline.quarantine import MicroBatch
from qwen_audio_train.samples import ClipFeatures, Origin, Rendered
from recipes import sft

KINDS = {"clips": (1, 1), "text": (0,), "many clips": (6,), "empty": (), "some of each": (0, 2, 1)}
"""Clips of each row of a batch."""
KINDS_MET = "MIXED_KINDS_MET"
"""Environment variable with the beginning of a file's name: each rank appends the kinds it met to its own."""
TEXT_IDS = 200
"""Ids of the toy tokenizer that are plain text."""


def kind_of(draws: Sequence[Draw]) -> str:
    """The kind of a bin's batch."""
    return list(KINDS)[int(_generator(draws).integers(len(KINDS)))]


def mixed_batch(builder: BatchBuilder, draws: Sequence[Draw]) -> MicroBatch:
    """In place of ``BatchBuilder.build``."""
    generator = _generator(draws)
    kind = list(KINDS)[int(generator.integers(len(KINDS)))]
    with Path(f"{os.environ[KINDS_MET]}-{os.environ.get('RANK', '0')}").open("a") as met:
        met.write(kind + "\n")
    renders, clips = [], []
    for num_clips in KINDS[kind]:
        read = [_clip(generator, builder.collator.dummy.mel_MF.shape[0]) for _ in range(num_clips)]
        tokens = tuple(lengths.encoder_frames(clip.mel_frames) // 2 for clip in read)
        text = generator.integers(0, TEXT_IDS, size=int(generator.integers(3, 20)))
        ids = np.concatenate([np.full(sum(tokens), builder.collator.audio_id), text]).astype(np.int32)
        supervised = np.arange(len(ids)) >= sum(tokens)
        renders.append(Rendered(ids, supervised, tokens))
        clips.append(read)
    origins = [Origin("mixed", kind, str(draw.sample)) for draw in draws[: len(renders)]]
    batch, sizes = builder.collator.rows(renders, clips)
    return MicroBatch(batch, sizes=sizes, usable=[True] * len(draws), origins=origins)


def without_dummy(builder: BatchBuilder, draws: Sequence[Draw]) -> MicroBatch:
    """The same, with the mistake."""
    batch = mixed_batch(builder, draws)
    if not any(KINDS[kind_of(draws)]):
        for name in CLIP_KEYS:
            del batch["rows"][name]
    return batch


def _generator(draws: Sequence[Draw]) -> np.random.Generator:
    told = ",".join(f"{draw.source}:{draw.sample}:{draw.epoch}" for draw in draws)
    return np.random.default_rng(int.from_bytes(hashlib.sha256(told.encode()).digest()[:8], "big"))


def _clip(generator: np.random.Generator, num_mel_bins: int) -> ClipFeatures:
    num_samples = int(generator.integers(2_000, 20_000))
    frames = lengths.input_mel_frames(num_samples)
    mel = generator.standard_normal((num_mel_bins, frames)).astype(np.float32)
    return ClipFeatures(mel, lengths.mel_frames(num_samples))


def leave_modules_out() -> None:
    """Let the model take a batch without any clip, by not calling what needs one."""
    embed = EfficientQwen2Audio.embed

    def careless(self: Any, input_ids: torch.Tensor, source: Any, target: Any, **clips: Any) -> Any:
        if not clips:
            return self.get_input_embeddings()(input_ids)
        return embed(self, input_ids, source, target, **clips)

    EfficientQwen2Audio.embed = careless  # type: ignore[method-assign]


if __name__ == "__main__":
    overrides = [word for word in sys.argv[1:] if word != "--without-dummy"]
    is_careless = len(overrides) < len(sys.argv) - 1
    sys.argv = ["recipes/sft.py", *overrides]
    BatchBuilder.build = without_dummy if is_careless else mixed_batch  # type: ignore[method-assign]
    if is_careless:
        leave_modules_out()
    sft.main()
