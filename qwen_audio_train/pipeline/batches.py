"""A stage's batches: the plan's bins of this rank, read, decoded, featurised and collated when their step comes.

A bin's content depends on (plan, step) only. The main process walks the plan and hands bins to worker processes, which
make them whole: the number of workers is invisible. Ranks share a step's bins, so their number is too.
"""

from __future__ import annotations

import hashlib
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from qwen_audio_train.audio.draws import augmentation_key
from qwen_audio_train.errors import SampleError, ShardError
from qwen_audio_train.pipeline.clips import ClipSource, EncodedSource
from qwen_audio_train.pipeline.collate import ClipInput, Collator, num_tokens
from qwen_audio_train.pipeline.loading import BinReader, Draw, Job, JobSampler, begin_worker, jobs
from qwen_audio_train.pipeline.measure import ALL, Selection
from qwen_audio_train.pipeline.quarantine import Failure, Limits, MicroBatch, Quarantine
from qwen_audio_train.pipeline.reference_scores import REFERENCE_KEYS, ReferenceScores
from qwen_audio_train.plan.position import PlanPosition
from qwen_audio_train.plan.steps import Plan, rank_bins
from qwen_audio_train.plan.windows import Bin
from qwen_audio_train.prompts.render import Renderer
from qwen_audio_train.prompts.tasks import wording_choice
from qwen_audio_train.samples import IntArray, PreferenceRecord, Record, Rendered, RenderedPair
from qwen_audio_train.shards.reader import ShardSet

T = TypeVar("T")


@dataclass(frozen=True)
class SampleSource:
    """One source of a mixture, as batches are made from it."""

    name: str
    shards: ShardSet
    clips: ClipSource
    selection: Selection = ALL
    numbers: IntArray | None = None
    """Shape (samples,): numbers in the set; None if the source has all of the set's samples."""
    seed: int = 0
    """Of wordings and augmentation; differs from source to source (``source_seed``)."""
    reference: ReferenceScores | None = None
    """What the reference says of preference pairs, where it was asked before: their batches bring it along."""

    def number(self, sample: int) -> int:
        """In the set."""
        return sample if self.numbers is None else int(self.numbers[sample])


@dataclass(frozen=True)
class BatchBuilder:
    """Draws -> one batch.

    A sample's text and its clips come from one and the same metadata entry, and each clip is verified against the
    checksum and the length that stand there: audio cannot meet another sample's text.
    """

    sources: tuple[SampleSource, ...]
    renderer: Renderer
    collator: Collator
    is_preference: bool = False
    """Whether the sources hold pairs; an empty bin cannot tell."""
    is_strict: bool = False
    """Raise for a sample that cannot be used, in place of leaving its slot empty."""

    def build(self, draws: Sequence[Draw]) -> MicroBatch:
        """Read, render and collate the samples of a bin as they are in their epochs.

        Raises:
            SampleError, ShardError, OSError: only if ``is_strict``; else such samples are left out and reported in the
                batch.
        """
        made = _Made(self)
        records = [made.attempt(draw, self._record, draw) for draw in draws]
        renders = self._render(made, draws, records)
        rows: list[Rendered | RenderedPair] = []
        clips: list[list[ClipInput]] = []
        usable = []
        origins = []
        for draw, record, rendered in zip(draws, records, renders, strict=True):
            read = None
            if record is not None and rendered is not None:
                read = made.attempt(draw, self._clips, draw, record, rendered)
            usable.append(read is not None)
            if record is not None and rendered is not None and read is not None:
                rows.append(rendered)
                clips.append(read)
                origins.append(record.origin)
        if self.is_preference:
            batch, sizes = self.collator.pairs([row for row in rows if isinstance(row, RenderedPair)], clips)
            batch |= self._reference([draw for draw, is_usable in zip(draws, usable, strict=True) if is_usable])
        else:
            batch, sizes = self.collator.rows([row for row in rows if isinstance(row, Rendered)], clips)
        return MicroBatch(batch, sizes=sizes, usable=usable, failures=made.failures, origins=origins)

    def prefetch(self, draws: Sequence[Draw]) -> None:
        """Hint that these draws are built next: sets at URLs fetch what they will be asked for. Returns at once."""
        wanted: dict[int, list[int]] = {}
        for draw in draws:
            wanted.setdefault(draw.source, []).append(self.sources[draw.source].number(draw.sample))
        for number, samples in wanted.items():
            source = self.sources[number]
            source.shards.prefetch(samples, with_clips=not isinstance(source.clips, EncodedSource))

    def _record(self, draw: Draw) -> Record:
        source = self.sources[draw.source]
        record = source.selection.asked(source.shards.record(source.number(draw.sample)))
        is_pair = isinstance(record, PreferenceRecord)
        if is_pair != self.is_preference:
            found = "a preference pair" if is_pair else "no preference pair"
            raise SampleError(record.origin, f"{found}: this stage cannot train on it")
        if source.reference is not None:
            source.reference.require(source.number(draw.sample), record.origin)
        return record

    def _reference(self, draws: Sequence[Draw]) -> dict[str, torch.Tensor]:
        """Stored log-probabilities of the pairs, (pairs,) each, by trl's names; 0 for the one that stands for none."""
        if any(source.reference is None for source in self.sources):
            return {}
        log_probs = np.zeros((max(len(draws), 1), 2), np.float32)
        for row, draw in enumerate(draws):
            source = self.sources[draw.source]
            assert source.reference is not None
            log_probs[row] = source.reference.log_probs[source.number(draw.sample)]
        return dict(zip(REFERENCE_KEYS, torch.from_numpy(log_probs).unbind(1), strict=True))

    def _key(self, draw: Draw, clip: int) -> int:
        source = self.sources[draw.source]
        return augmentation_key(source.seed, draw.epoch, source.number(draw.sample), clip)

    def _render(
        self, made: _Made, draws: Sequence[Draw], records: Sequence[Record | None]
    ) -> list[Rendered | RenderedPair | None]:
        """With one call to the tokenizer where all is well, sample by sample to find out which is not."""
        asked = [
            None if record is None else self._as_heard(d, record) for d, record in zip(draws, records, strict=True)
        ]
        wordings = [self._wording(draw) for draw in draws]
        whole = [(record, wording) for record, wording in zip(asked, wordings, strict=True) if record is not None]
        try:
            rendered = iter(self.renderer.render_many([r for r, _ in whole], [wording for _, wording in whole]))
            return [None if record is None else next(rendered) for record in asked]
        except SampleError:
            return [
                None if record is None else made.attempt(draw, self._render_one, record, wording)
                for draw, record, wording in zip(draws, asked, wordings, strict=True)
            ]

    def _render_one(self, record: Record, wording: int) -> Rendered | RenderedPair:
        return self.renderer.render_many([record], [wording])[0]

    def _wording(self, draw: Draw) -> int:
        source = self.sources[draw.source]
        return wording_choice(source.seed, draw.epoch, source.number(draw.sample)) % source.selection.num_wordings

    def _as_heard(self, draw: Draw, record: Record) -> Record:
        hear = self.sources[draw.source].clips.heard
        return replace(record, clips=tuple(hear(clip, key=self._key(draw, k)) for k, clip in enumerate(record.clips)))

    def _clips(self, draw: Draw, record: Record, rendered: Rendered | RenderedPair) -> list[ClipInput]:
        read = self.sources[draw.source].clips.read
        clips = [read(clip, record.origin, key=self._key(draw, k)) for k, clip in enumerate(record.clips)]
        expected = (rendered.prompt if isinstance(rendered, RenderedPair) else rendered).clip_tokens
        found = tuple(num_tokens(clip) for clip in clips)
        if found != expected:
            raise SampleError(record.origin, f"clips of {found} audio tokens for spans of {expected}")
        return clips


class _Made:
    """Notes what fails while a bin is made."""

    def __init__(self, builder: BatchBuilder) -> None:
        self._builder = builder
        self.failures: list[Failure] = []

    def attempt(self, draw: Draw, make: Callable[..., T], *arguments: Any) -> T | None:
        """What ``make`` gives, or None and a note."""
        try:
            return make(*arguments)
        except (SampleError, ShardError, OSError) as error:
            if self._builder.is_strict:
                raise
            source = self._builder.sources[draw.source]
            number = source.number(draw.sample)
            shard = shard_of(source.shards, number)
            self.failures.append(
                Failure.of(error, source=source.name, dataset=source.shards.name, shard=shard, sample=number)
            )
            return None


def _end_workers(loader: weakref.ref[DataLoader[MicroBatch]]) -> None:
    held = loader()
    iterator: Any = held._iterator if held is not None else None
    if iterator is not None:
        iterator._shutdown_workers()


def shard_of(shards: ShardSet, number: int) -> str:
    """File name of the shard that holds a sample, from the description alone."""
    for shard in shards.description["shards"]:
        if number < shard["num_samples"]:
            return str(shard["file"])
        number -= shard["num_samples"]
    raise IndexError(f"no such sample in '{shards.name}'")


def source_seed(seed: int, name: str) -> int:
    """Seed of one source's wordings and augmentation: the same sample of the same name, whatever else is mixed in."""
    named = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return augmentation_key(seed, 0, named)


class PlannedBatches:
    """One rank's batches of a run of ``num_steps`` steps."""

    def __init__(
        self,
        plan: Plan,
        builder: BatchBuilder,
        *,
        num_steps: int,
        rank: int,
        world: int,
        quarantine: Quarantine | None = None,
    ) -> None:
        self.plan = plan
        self.builder = builder
        self.num_steps = num_steps
        """Steps that the run takes; those of ``skip_steps`` are not among them."""
        self.rank = rank
        self.world = world
        # Without limits of its own a run stops at the first failure.
        self.quarantine = quarantine or Quarantine(Path(), Limits(1, 0.0), rank=rank)
        self.num_workers = 0
        self.accepts_change = False
        self.reads_ahead = False
        """Whether workers are told what they read next: of use only where a source is remote."""
        self.table = ""
        """The mixture, for people."""
        self._start: PlanPosition | None = None

    def __len__(self) -> int:
        return self.num_steps * self.bins_per_rank

    @property
    def start_step(self) -> int:
        """Steps that were taken before."""
        return 0 if self._start is None else self._start.taken

    @property
    def bins_per_rank(self) -> int:
        """Micro-batches of this rank in a step."""
        return self.plan.budget.bins_per_step // self.world

    def bins(self) -> Iterator[Bin]:
        """This rank's bins from the start step to the last."""
        steps = self.plan.steps_from(self._start)
        for step in itertools.islice(steps, self.num_steps - self.start_step):
            yield from rank_bins(step, self.rank, self.world)

    def loader(self) -> DataLoader[MicroBatch]:
        """Batches from ``start_step`` on. Its length is that of the whole run, so that a resumed run counts alike."""
        loader = DataLoader(
            BinReader(self.builder),
            sampler=JobSampler(self._jobs, len(self)),
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=begin_worker,
            # A loader draws a number when it starts: from here, so that a resumed run's dropout stays in step.
            generator=torch.Generator(),
        )
        if self.num_workers:
            # Workers outlive one SIGTERM (``begin_worker``), and one is all that Python sends them at its exit
            # before it waits for them: so the loader ends them first.
            Finalize(None, _end_workers, args=(weakref.ref(loader),), exitpriority=0)
        return loader

    def _jobs(self) -> Iterator[Job]:
        return jobs(self.bins(), max(1, self.num_workers) if self.reads_ahead else 0)

    def position(self, step: int) -> str:
        """Where a checkpoint after ``step`` taken steps stands, as JSON."""
        return self.plan.position_at(self._index(step), step).to_json()

    def plan_step(self, step: int) -> int:
        """Number in the plan, as ``data.skip_steps`` counts, of the ``step``-th step (from 1) that the run takes."""
        return self._index(step) - 1

    def epoch_after(self, step: int) -> float:
        """Epochs of the mixture behind ``step`` taken steps."""
        return self.plan.epoch_at(self._index(step))

    def resume(self, position: str) -> None:
        """Start where a checkpoint stands.

        Raises:
            CheckpointError: it followed another plan and ``accepts_change`` is not set; says what changed.
        """
        self.plan, self._start = self.plan.resumed(PlanPosition.from_json(position), accept_changes=self.accepts_change)

    def _index(self, taken: int) -> int:
        """Index in the plan of the step behind so many taken ones."""
        first = 0 if self._start is None else self._start.step
        return self.plan.skips.after(first, taken - self.start_step)
