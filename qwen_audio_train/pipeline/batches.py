"""A stage's batches: the plan's bins of this rank, read, decoded, featurised and collated when their step comes.

A bin's content depends on (plan, step) only. Worker processes make whole bins, so their number is invisible; the ranks
share a step's bins, so their number is too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from qwen_audio_train.audio import lengths
from qwen_audio_train.audio.augment import mask_token_spans
from qwen_audio_train.audio.features import LogMel
from qwen_audio_train.pipeline.collate import Batch, ClipInput, Collator
from qwen_audio_train.pipeline.encoded_clips import EncodedClips
from qwen_audio_train.plan.position import PlanPosition
from qwen_audio_train.plan.steps import Plan
from qwen_audio_train.prompts.render import Renderer
from qwen_audio_train.prompts.tasks import wording_choice
from qwen_audio_train.samples import Clip, ClipFeatures, EncodedClip, Origin, Rendered, RenderedPair
from qwen_audio_train.shards.reader import ShardSet


class ClipSource(Protocol):
    """Where a batch gets its clips from."""

    def read(self, clip: Clip, origin: Origin, *, seed: int) -> ClipInput:
        """The clip as the model takes it. ``seed`` keys augmentation by (run seed, epoch, sample)."""


@dataclass(frozen=True, slots=True)
class MelSource:
    """Decodes and featurises at true length."""

    shards: ShardSet
    log_mel: LogMel

    def read(self, clip: Clip, origin: Origin, *, seed: int) -> ClipInput:
        """Log-mel of the clip."""
        samples = self.shards.read_clip(clip, origin)
        return ClipFeatures(self.log_mel(samples), lengths.mel_frames(clip.num_samples))


@dataclass(frozen=True, slots=True)
class EncodedSource:
    """Takes what the frozen encoder said before, optionally with spans masked."""

    encoded: EncodedClips
    mask_spans: int = 0
    mask_span_tokens: int = 0

    def read(self, clip: Clip, origin: Origin, *, seed: int) -> ClipInput:
        """Encoder states of the clip."""
        states = self.encoded.read(clip).states_AD
        if self.mask_spans:
            states = mask_token_spans(states, seed=seed, spans=self.mask_spans, longest_tokens=self.mask_span_tokens)
        return EncodedClip(states)


@dataclass(frozen=True)
class BatchBuilder:
    """Sample numbers -> one batch."""

    shards: ShardSet
    renderer: Renderer
    clips: ClipSource
    collator: Collator
    seed: int = 0
    num_wordings: int = 1
    is_preference: bool = False
    """Whether the set holds pairs; an empty bin cannot tell."""

    def build(self, samples: Sequence[int], epoch: int) -> Batch:
        """Read, render and collate the samples of a bin as they are in this epoch."""
        records = [self.shards.record(int(i)) for i in samples]
        seeds = [wording_choice(self.seed, epoch, int(i)) for i in samples]
        renders = self.renderer.render_many(records, [seed % self.num_wordings for seed in seeds])
        clips = [
            [self.clips.read(clip, record.origin, seed=seed) for clip in record.clips]
            for record, seed in zip(records, seeds, strict=True)
        ]
        if self.is_preference:
            return self.collator.pairs([r for r in renders if isinstance(r, RenderedPair)], clips)
        return self.collator.rows([r for r in renders if isinstance(r, Rendered)], clips)


class PlannedBatches(Dataset[Batch]):
    """Micro-batch number -> batch, for one rank of a run of ``num_steps`` steps."""

    def __init__(self, plan: Plan, builder: BatchBuilder, *, num_steps: int, rank: int, world: int) -> None:
        self.plan = plan
        self.builder = builder
        self.num_steps = num_steps
        self.rank = rank
        self.world = world
        self.start_step = 0
        self.num_workers = 0

    def __len__(self) -> int:
        return self.num_steps * self.bins_per_rank

    @property
    def bins_per_rank(self) -> int:
        """Micro-batches of this rank in a step."""
        return self.plan.budget.bins_per_step // self.world

    def __getitem__(self, number: int) -> Batch:
        step_number, bin_number = divmod(number, self.bins_per_rank)
        step = self.plan.step(step_number)
        samples = step.bins[self.rank + bin_number * self.world]
        return self.builder.build(np.asarray(samples).tolist(), step.epoch)

    def loader(self) -> DataLoader[Batch]:
        """Batches from ``start_step`` on. Its length is that of the whole run, so that a resumed run counts alike."""
        return DataLoader(
            self,
            sampler=_FromStep(self),
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            # A loader draws a number when it starts: from here, so that a resumed run's dropout stays in step.
            generator=torch.Generator(),
        )

    def position(self, step: int) -> str:
        """Where a checkpoint after ``step`` steps stands, as JSON."""
        return PlanPosition.at(self.plan, step).to_json()

    def resume(self, position: str) -> None:
        """Start where a checkpoint stands. Raises CheckpointError if it followed another plan; says what changed."""
        self.start_step = PlanPosition.from_json(position).require_same_plan(self.plan)


class _FromStep(Sampler[int]):
    def __init__(self, batches: PlannedBatches) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._batches.start_step * self._batches.bins_per_rank, len(self._batches)))

    def __len__(self) -> int:
        return len(self._batches)
