"""Lengths of every sample of a source, from text and audio lengths alone: what the plan is made of.

Rendering a million samples takes minutes, so the result is kept on disk, keyed by everything it depends on, and mapped
from there: opening a source of any size reads a few numbers. Filters apply here, and samples whose metadata cannot be
used are left out here: a source is then a part of its set, and ``numbers`` says which.

    <cache_dir>/lengths/<set>-<key>/lengths.npy       (3, samples) int32: tokens, supervised tokens, encoder frames
                                    numbers.npy       (samples,) int32: number in the set; only where some are left out
                                    facts.json        counts, sums and largest values
                                    quarantine.jsonl  what could not be used, and why; only if there is any
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from qwen_audio_train.audio import lengths
from qwen_audio_train.audio.augment import Augmenter
from qwen_audio_train.errors import ConfigError, SampleError
from qwen_audio_train.pipeline.quarantine import QUARANTINE_FILE, Failure, Limits, json_line
from qwen_audio_train.prompts.render import Renderer
from qwen_audio_train.prompts.wordings import WORDINGS
from qwen_audio_train.samples import IntArray, Lengths, PretrainRecord, Record, Rendered, RenderedPair
from qwen_audio_train.shards.reader import ShardSet

RECORDS_AT_ONCE = 512
RULES_VERSION = 2
"""Raise when rendering or counting changes, so that kept lengths are not trusted any more."""
NO_LIMITS = Limits(max_consecutive=1, max_share=0.0)
"""The first sample that cannot be used stops."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which samples of a set a source has, and how they are asked."""

    tasks: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    num_wordings: int = 1
    prompt: str | None = None

    def takes(self, record: Record) -> bool:
        """Whether the filters let a record through. Conversations have neither task nor language."""
        if not isinstance(record, PretrainRecord):
            return not (self.tasks or self.languages)
        spoken = {record.audio_language, record.text_language} - {""}
        return (not self.tasks or record.task in self.tasks) and (not self.languages or spoken <= set(self.languages))

    def asked(self, record: Record) -> Record:
        """The record with the source's own prompt, where it brings none."""
        if self.prompt is not None and isinstance(record, PretrainRecord) and record.prompt is None:
            return replace(record, prompt=self.prompt)
        return record


ALL = Selection()


@dataclass(frozen=True, slots=True)
class Facts:
    """Counts of a source, so that nobody needs to look at all its lengths."""

    num_samples: int
    num_filtered: int
    """Left out by the filters."""
    num_bad: int
    """Left out because they could not be used."""
    audio_samples: int
    """At 16 kHz."""
    llm_tokens: int
    supervised_tokens: int
    encoder_frames: int
    most_llm_tokens: int
    """Of one sample."""
    most_encoder_frames: int

    @property
    def hours(self) -> float:
        """Of audio."""
        return self.audio_samples / lengths.SAMPLING_RATE_HZ / 3600


@dataclass(frozen=True, slots=True)
class Measured:
    """A source as the plan sees it."""

    lengths: Lengths
    """Mapped from disk."""
    numbers: IntArray | None
    """Shape (samples,): number in the set of each sample of the source; None if it has all of them."""
    facts: Facts
    fingerprint: str
    """Of set, tokenizer, wordings and filters: what sample numbers and lengths depend on."""
    folder: Path
    """Where it is kept; holds ``quarantine.jsonl`` if samples were bad."""


def measure(  # noqa: PLR0913 - all but three by name
    shards: ShardSet,
    renderer: Renderer,
    tokenizer: Any,
    *,
    selection: Selection = ALL,
    augmenter: Augmenter | None = None,
    limits: Limits = NO_LIMITS,
    shares_prompts: bool = True,
    cache_dir: Path,
    shows_progress: bool,
) -> Measured:
    """Token and frame counts of each sample of a source.

    With several wordings a sample's longest is counted, and its slowest with several speeds, so that a plan holds
    whichever an epoch draws.

    Args:
        shares_prompts: whether both answers of a pair continue one prompt (packed rows), or each has its own.

    Raises:
        ShardError: more samples cannot be used than ``limits`` allow, or the set itself cannot be read.
        ConfigError: the filters leave nothing.
    """
    key = _key(shards, tokenizer, selection, augmenter, shares_prompts=shares_prompts)
    folder = cache_dir / "lengths" / f"{shards.name}-{key}"
    if not folder.exists():
        # Ranks may measure at the same time; the first to finish publishes, the others' equal work is dropped.
        staged = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        _Measuring(shards, renderer, selection, augmenter, staged, shares_prompts=shares_prompts).run(
            limits, shows_progress=shows_progress
        )
        try:
            staged.rename(folder)
        except OSError:
            shutil.rmtree(staged)
    return _opened(folder, key, shards, limits)


def _opened(folder: Path, key: str, shards: ShardSet, limits: Limits) -> Measured:
    facts = Facts(**json.loads((folder / "facts.json").read_text(encoding="utf-8")))
    _require_usable(facts, len(shards), limits, folder, row=0)
    if facts.num_samples == 0:
        raise ConfigError(f"tasks and languages leave none of the {len(shards)} samples of '{shards.name}': widen them")
    table = np.load(folder / "lengths.npy", mmap_mode="r", allow_pickle=False)
    numbers = folder / "numbers.npy"
    return Measured(
        Lengths(llm_tokens=table[0], supervised_tokens=table[1], encoder_frames=table[2]),
        np.load(numbers, mmap_mode="r", allow_pickle=False) if numbers.exists() else None,
        facts,
        key,
        folder,
    )


def _require_usable(facts: Facts, num_read: int, limits: Limits, folder: Path, *, row: int) -> None:
    path = folder / QUARANTINE_FILE
    lines = path.read_text(encoding="utf-8").splitlines()[:3] if facts.num_bad else []
    limits.require(num_bad=facts.num_bad, num_read=num_read, longest_row=row, where=path, first=lines)


class _Measuring:
    """One pass over a set."""

    def __init__(
        self,
        shards: ShardSet,
        renderer: Renderer,
        selection: Selection,
        augmenter: Augmenter | None,
        folder: Path,
        *,
        shares_prompts: bool,
    ) -> None:
        self._shards = shards
        self._renderer = renderer
        self._selection = selection
        self._augmenter = augmenter
        self._folder = folder
        self._shares_prompts = shares_prompts
        self._table: Any = np.lib.format.open_memmap(
            folder / "lengths.npy", mode="w+", dtype=np.int32, shape=(3, len(shards))
        )
        self._taken = np.zeros(len(shards), np.bool_)
        self._audio_samples = 0
        self._num_bad = 0
        self._row = self._longest_row = 0
        self._first: list[str] = []

    def run(self, limits: Limits, *, shows_progress: bool) -> None:
        """Fill the folder."""
        total, name = len(self._shards), self._shards.name
        with tqdm(total=total, desc=f"Measuring {name}", unit="sample", disable=not shows_progress, leave=False) as bar:
            for start in range(0, total, RECORDS_AT_ONCE):
                stop = min(start + RECORDS_AT_ONCE, total)
                self._some([record for i in range(start, stop) if (record := self._record(i)) is not None])
                limits.require(
                    num_bad=self._num_bad,
                    num_read=total,
                    longest_row=self._longest_row,
                    where=self._folder / QUARANTINE_FILE,
                    first=self._first,
                )
                bar.update(stop - start)
        self._finish()

    def _record(self, i: int) -> tuple[int, Record] | None:
        try:
            record = self._shards.record(i)
        except SampleError as error:
            self._bad(i, error)
            return None
        self._row = 0
        return (i, self._selection.asked(record)) if self._selection.takes(record) else None

    def _some(self, numbered: Sequence[tuple[int, Record]]) -> None:
        try:
            self._count(numbered)
        except SampleError:
            for one in numbered:  # one by one, to find which
                try:
                    self._count([one])
                except SampleError as error:
                    self._bad(one[0], error)

    def _count(self, numbered: Sequence[tuple[int, Record]]) -> None:
        records = [self._longest_heard(record) for _, record in numbered]
        wordings = _longest_wordings(records, self._renderer, self._selection.num_wordings)
        renders = self._renderer.render_many(records, wordings)
        for (i, record), heard, rendered in zip(numbered, records, renders, strict=True):
            self._table[:, i] = (*_tokens(rendered, shares_prompts=self._shares_prompts), _frames(heard))
            self._taken[i] = True
            self._audio_samples += sum(clip.num_samples for clip in record.clips)

    def _longest_heard(self, record: Record) -> Record:
        if self._augmenter is None:
            return record
        planned = self._augmenter.planned_samples
        return replace(record, clips=tuple(replace(c, num_samples=planned(c.num_samples)) for c in record.clips))

    def _bad(self, i: int, error: SampleError) -> None:
        self._num_bad += 1
        self._row += 1
        self._longest_row = max(self._row, self._longest_row)
        failure = Failure.of(error, source="", dataset=self._shards.name, shard=error.origin.shard, sample=i)
        self._first += [str(error)] if len(self._first) < 3 else []
        with (self._folder / QUARANTINE_FILE).open("ab") as file:
            file.write(json_line({**asdict(failure), "step": None, "rank": None}))

    def _finish(self) -> None:
        self._table.flush()
        numbers = np.flatnonzero(self._taken).astype(np.int32)
        table = self._table
        if len(numbers) < len(self._taken):
            table = self._table[:, numbers]
            (self._folder / "lengths.npy").unlink()
            np.save(self._folder / "lengths.npy", table, allow_pickle=False)
            np.save(self._folder / "numbers.npy", numbers, allow_pickle=False)
        sums = [int(row.sum(dtype=np.int64)) for row in table]
        facts = Facts(
            num_samples=len(numbers),
            num_filtered=len(self._taken) - len(numbers) - self._num_bad,
            num_bad=self._num_bad,
            audio_samples=self._audio_samples,
            llm_tokens=sums[0],
            supervised_tokens=sums[1],
            encoder_frames=sums[2],
            most_llm_tokens=int(table[0].max(initial=0)),
            most_encoder_frames=int(table[2].max(initial=0)),
        )
        (self._folder / "facts.json").write_text(json.dumps(asdict(facts)), encoding="utf-8")


def _tokens(rendered: Rendered | RenderedPair, *, shares_prompts: bool) -> tuple[int, int]:
    """Language-model tokens and targets. With a prompt of its own each, a pair's answers take two rows as long as the
    longer one makes them."""
    if isinstance(rendered, RenderedPair):
        answers = len(rendered.chosen_ids), len(rendered.rejected_ids)
        if shares_prompts:
            return len(rendered.prompt.input_ids) + sum(answers), sum(answers)
        return 2 * (len(rendered.prompt.input_ids) + max(answers)), sum(answers)
    return len(rendered.input_ids), int(rendered.supervised.sum())


def _frames(record: Record) -> int:
    return sum(lengths.encoder_frames(lengths.mel_frames(clip.num_samples)) for clip in record.clips)


def _longest_wordings(records: Sequence[Record], renderer: Renderer, num_wordings: int) -> list[int]:
    if num_wordings == 1:
        return [0] * len(records)
    return [renderer.longest_wording(record) if isinstance(record, PretrainRecord) else 0 for record in records]


def identity(shards: ShardSet, tokenizer: Any, selection: Selection) -> dict[str, str]:
    """What the token ids of a source's samples depend on, part by part, each as text or as a hash (hex)."""
    chosen = (sorted(selection.tasks), sorted(selection.languages), selection.num_wordings, selection.prompt)
    return {
        "set": shards.fingerprint,
        "tokenizer": hashlib.blake2b(tokenizer.backend_tokenizer.to_str().encode(), digest_size=12).hexdigest(),
        "rendering": hashlib.blake2b(f"{RULES_VERSION} {WORDINGS!r}".encode(), digest_size=12).hexdigest(),
        "selection": repr(chosen),
    }


def _key(
    shards: ShardSet, tokenizer: Any, selection: Selection, augmenter: Augmenter | None, *, shares_prompts: bool
) -> str:
    digest = hashlib.blake2b(digest_size=12)
    speeds = "" if augmenter is None else augmenter.lengths_identity
    for part in (*identity(shards, tokenizer, selection).values(), speeds):
        digest.update(str(part).encode())
    if not shares_prompts:
        digest.update(b"a prompt for each answer")
    return digest.hexdigest()
