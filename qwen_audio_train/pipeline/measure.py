"""Lengths of every sample of a set, from text and audio lengths alone: what the plan is made of.

Rendering a million samples takes minutes, so the result is kept on disk, keyed by everything it depends on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from qwen_audio_train.audio import lengths
from qwen_audio_train.prompts.render import Renderer
from qwen_audio_train.prompts.wordings import WORDINGS
from qwen_audio_train.samples import IntArray, Lengths, PretrainRecord, Record, Rendered, RenderedPair
from qwen_audio_train.shards.reader import ShardSet

RECORDS_AT_ONCE = 512
RULES_VERSION = 1
"""Raise when rendering or counting changes, so that kept lengths are not trusted any more."""


def measure(
    shards: ShardSet, renderer: Renderer, tokenizer: Any, *, num_wordings: int, cache_dir: Path, shows_progress: bool
) -> Lengths:
    """Token and frame counts of each sample.

    With several wordings a sample's longest is counted, so that a plan holds whichever wording an epoch draws.

    Raises:
        SampleError: a sample that cannot be rendered; names it.
    """
    key = _key(shards, tokenizer, num_wordings)
    path = cache_dir / "lengths" / f"{shards.name}-{key}.npy"
    if path.exists():
        return _as_lengths(np.load(path, allow_pickle=False))
    table = np.zeros((3, len(shards)), np.int32)
    bar = tqdm(
        total=len(shards), desc=f"Measuring {shards.name}", unit="sample", disable=not shows_progress, leave=False
    )
    for start in range(0, len(shards), RECORDS_AT_ONCE):
        stop = min(start + RECORDS_AT_ONCE, len(shards))
        records = [shards.record(i) for i in range(start, stop)]
        renders = renderer.render_many(records, _longest_wordings(records, renderer, num_wordings))
        for i, (record, rendered) in enumerate(zip(records, renders, strict=True), start=start):
            table[:, i] = (*_tokens(rendered), _frames(record))
        bar.update(stop - start)
    bar.close()
    _write(path, table)
    return _as_lengths(table)


def _tokens(rendered: Rendered | RenderedPair) -> tuple[int, int]:
    """Language-model tokens and targets. A pair takes two rows as long as its longer answer makes them."""
    if isinstance(rendered, RenderedPair):
        answers = len(rendered.chosen_ids), len(rendered.rejected_ids)
        return 2 * (len(rendered.prompt.input_ids) + max(answers)), sum(answers)
    return len(rendered.input_ids), int(rendered.supervised.sum())


def _frames(record: Record) -> int:
    return sum(lengths.encoder_frames(lengths.mel_frames(clip.num_samples)) for clip in record.clips)


def _longest_wordings(records: Sequence[Record], renderer: Renderer, num_wordings: int) -> list[int]:
    if num_wordings == 1:
        return [0] * len(records)
    return [renderer.longest_wording(record) if isinstance(record, PretrainRecord) else 0 for record in records]


def _as_lengths(table: IntArray) -> Lengths:
    return Lengths(llm_tokens=table[0], supervised_tokens=table[1], encoder_frames=table[2])


def _key(shards: ShardSet, tokenizer: Any, num_wordings: int) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for part in (shards.fingerprint, tokenizer.backend_tokenizer.to_str(), repr(WORDINGS), num_wordings, RULES_VERSION):
        digest.update(str(part).encode())
    return digest.hexdigest()


def _write(path: Path, table: IntArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Ranks may measure at the same time; each publishes the same bytes by its own rename.
    staged = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npy")
    np.save(staged, table, allow_pickle=False)
    os.replace(staged, path)
