"""A stage's batches: the plan's bins of this rank, read, decoded, featurised and collated when their step comes.

A bin's content depends on (plan, step) only. Worker processes make whole bins, so their number is invisible; the ranks
share a step's bins, so their number is too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from qwen_audio_train.audio import lengths
from qwen_audio_train.audio.augment import mask_token_spans
from qwen_audio_train.audio.features import LogMel
from qwen_audio_train.pipeline.collate import Batch, ClipInput, Collator
from qwen_audio_train.pipeline.encoded_clips import EncodedClips
from qwen_audio_train.plan.position import PlanPosition
from qwen_audio_train.plan.steps import Plan, rank_bins
from qwen_audio_train.plan.windows import Bin
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

    def build(self, samples: Sequence[int], epoch: int | Sequence[int]) -> Batch:
        """Read, render and collate the samples of a bin as they are in this epoch (one for all, or one a sample)."""
        epochs = [epoch] * len(samples) if isinstance(epoch, int) else epoch
        records = [self.shards.record(int(i)) for i in samples]
        seeds = [wording_choice(self.seed, drawn, int(i)) for drawn, i in zip(epochs, samples, strict=True)]
        renders = self.renderer.render_many(records, [seed % self.num_wordings for seed in seeds])
        clips = [
            [self.clips.read(clip, record.origin, seed=seed) for clip in record.clips]
            for record, seed in zip(records, seeds, strict=True)
        ]
        if self.is_preference:
            return self.collator.pairs([r for r in renders if isinstance(r, RenderedPair)], clips)
        return self.collator.rows([r for r in renders if isinstance(r, Rendered)], clips)


@dataclass(frozen=True, slots=True)
class PlannedBin:
    """What the loader hands to a worker: the bin itself, so that workers plan nothing."""

    step: int
    """The plan's number of the step that the bin belongs to."""
    epoch: int
    """Of the mixture."""
    bin: Bin


class PlannedBatches:
    """One rank's batches of a run of ``num_steps`` steps."""

    def __init__(self, plan: Plan, builder: BatchBuilder, *, num_steps: int, rank: int, world: int) -> None:
        self.plan = plan
        self.builder = builder
        self.num_steps = num_steps
        """Steps that are run; those that the plan leaves out do not count."""
        self.rank = rank
        self.world = world
        self.start = plan.position_at(0)
        self.num_workers = 0

    def __len__(self) -> int:
        return self.num_steps * self.bins_per_rank

    @property
    def start_step(self) -> int:
        """Steps that were run before."""
        return self.start.taken

    @property
    def bins_per_rank(self) -> int:
        """Micro-batches of this rank in a step."""
        return self.plan.budget.bins_per_step // self.world

    def planned_bins(self) -> Iterator[PlannedBin]:
        """This rank's bins from the start position on, to the run's last."""
        steps = islice(self.plan.steps_from(self.start), max(0, self.num_steps - self.start.taken))
        for step in steps:
            for bin_ in rank_bins(step, self.rank, self.world):
                yield PlannedBin(step.index, step.epoch, bin_)

    def loader(self) -> DataLoader[Batch]:
        """Batches from the start position on. Its length is that of the whole run, so that a resumed run counts
        alike."""
        return DataLoader(
            _BinReader(self.builder),
            sampler=_PlannedSampler(self),  # type: ignore[arg-type]
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            # A loader draws a number when it starts: from here, so that a resumed run's dropout stays in step.
            generator=torch.Generator(),
        )

    def position(self, step: int) -> str:
        """Where a checkpoint stands after ``step`` steps were run, as JSON."""
        return self.plan.position_at(self._index(step), step).to_json()

    def epoch_after(self, step: int) -> float:
        """Passes over the data when ``step`` steps were run."""
        return self.plan.epoch_at(self._index(step))

    def resume(self, position: str, *, accept_changes: bool = False) -> None:
        """Start where a checkpoint stands.

        Raises:
            CheckpointError: it followed another plan, and that is not accepted; says what changed.
        """
        self.plan, self.start = self.plan.resumed(PlanPosition.from_json(position), accept_changes=accept_changes)

    def _index(self, taken: int) -> int:
        return self.plan.skips.after(self.start.step, taken - self.start.taken)


class _BinReader(Dataset[Batch]):
    """All that a worker process gets: it knows nothing of the plan."""

    def __init__(self, builder: BatchBuilder) -> None:
        self._builder = builder

    def __getitem__(self, planned: PlannedBin) -> Batch:  # type: ignore[override]
        epochs = planned.bin.epochs.tolist()
        alike = len(set(epochs)) <= 1
        return self._builder.build(planned.bin.samples.tolist(), (epochs or [planned.epoch])[0] if alike else epochs)


class _PlannedSampler(Sampler[PlannedBin]):
    def __init__(self, batches: PlannedBatches) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[PlannedBin]:
        return self._batches.planned_bins()

    def __len__(self) -> int:
        return len(self._batches)
