"""Shards -> shards: another size, another order, fewer samples, all FLAC. Built on ``prepare``, so it resumes.

The order of a shuffle depends on (seed, set, key) alone, not on how the samples lie now.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_audio_train.errors import ConfigError, SampleError
from qwen_audio_train.samples import Clip, Origin, PretrainRecord
from qwen_audio_train.shards.files import sha256_of_file
from qwen_audio_train.shards.left_out import read_left_out
from qwen_audio_train.shards.metadata import AnyRecord, payload_of
from qwen_audio_train.shards.prepare import SampleSpec, SetOptions, as_flac, write_dataset
from qwen_audio_train.shards.reader import ShardSet


@dataclass(frozen=True, slots=True)
class Selection:
    """Which samples of the sources are taken; an empty tuple takes all."""

    tasks: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    """Of the audio."""
    keys_file: Path | None = None
    """One key a line."""
    drop: tuple[Path, ...] = ()
    """Lists such as quarantine.jsonl; dropped samples are listed in the new set's skipped.jsonl."""

    def recipe(self) -> dict[str, Any]:
        """What the result depends on, files by their content."""
        keys = sha256_of_file(self.keys_file) if self.keys_file else None
        drop = [sha256_of_file(path) for path in self.drop]
        return {"tasks": list(self.tasks), "languages": list(self.languages), "keys": keys, "drop": drop}


def reshard(
    sources: Sequence[Path],
    directory: Path,
    name: str,
    *,
    samples_per_shard: int,
    selection: Selection,
    shuffle_seed: int | None = None,
    to_flac: bool = False,
    workers: int = 0,
) -> dict[str, Any]:
    """Write a new set of the samples of ``sources``; returns its description. Never touches the sources.

    Raises:
        ConfigError: sources of several splits, or with a key in common.
        ShardError: a source or a list cannot be read, or the folder holds another set.
    """
    sets = [ShardSet.open(path) for path in sources]
    splits = {shards.split for shards in sets}
    if len(splits) != 1:
        raise ConfigError(f"the sources are of splits {sorted(splits)}; a set has one")
    keys = Counter(shards.origin(i).key for shards in sets for i in range(len(shards))) if len(sets) > 1 else Counter()
    twice = [key for key, count in keys.items() if count > 1]
    if twice:
        raise ConfigError(
            f"{len(twice)} keys are in more than one source, such as '{twice[0]}'; keys are unique in a set"
        )
    recipe = {
        "resharded_from": [{"name": shards.name, "fingerprint": shards.fingerprint} for shards in sets],
        "selection": selection.recipe(),
        "shuffle_seed": shuffle_seed,
        "to_flac": to_flac,
    }
    options = SetOptions(
        directory=directory,
        name=name,
        split=splits.pop(),
        license="as stated by each sample",
        recipe=recipe,
        workers=workers,
        samples_per_shard=samples_per_shard,
    )
    written = write_dataset(_specs(sets, selection, shuffle_seed, to_flac=to_flac), read_stored_clip, options)
    assert written is not None, "only a part of several has no description"
    return written


StoredClip = tuple[str, Clip, Origin, bool]


def read_stored_clip(stored: StoredClip) -> tuple[bytes, str]:
    """Verified bytes of a clip, as they are or as FLAC. Raises ValueError for a clip that cannot be used."""
    directory, clip, origin, to_flac = stored
    try:
        data = _opened(directory).read_clip_bytes(clip, origin)
    except SampleError as error:
        raise ValueError(error.reason) from error
    return as_flac(data, clip.encoding) if to_flac else (data, clip.encoding)


@functools.cache
def _opened(directory: str) -> ShardSet:
    return ShardSet.open(directory)


def _specs(
    sets: Sequence[ShardSet], selection: Selection, shuffle_seed: int | None, *, to_flac: bool
) -> Iterator[SampleSpec]:
    wanted = set(selection.keys_file.read_text(encoding="utf-8").split()) if selection.keys_file else None
    entries = [entry for path in selection.drop for entry in read_left_out(path)]
    dropped = {(entry["dataset"], entry["key"]): str(entry["reason"]) for entry in entries}
    for shards, i in _order(sets, shuffle_seed):
        try:
            record = shards.record(i)
        except SampleError as error:
            yield SampleSpec(error.origin.key, {}, (), problem=error.reason)
            continue
        if not _is_selected(record, selection, wanted):
            continue
        reason = dropped.get((shards.name, record.origin.key))
        clips = tuple((str(shards.directory), clip, record.origin, to_flac) for clip in record.clips)
        skip_reason = f"dropped: {reason}" if reason is not None else None
        yield SampleSpec(record.origin.key, payload_of(record), clips, skip_reason=skip_reason)


def _order(sets: Sequence[ShardSet], shuffle_seed: int | None) -> Iterator[tuple[ShardSet, int]]:
    places = [(shards, i) for shards in sets for i in range(len(shards))]
    if shuffle_seed is not None:
        places.sort(key=lambda place: _shuffle_key(shuffle_seed, place[0].name, place[0].origin(place[1]).key))
    return iter(places)


def _shuffle_key(seed: int, dataset: str, key: str) -> bytes:
    return hashlib.blake2b(f"{seed}\n{dataset}\n{key}".encode(), digest_size=16).digest()


def _is_selected(record: AnyRecord, selection: Selection, wanted: set[str] | None) -> bool:
    if wanted is not None and record.origin.key not in wanted:
        return False
    if not selection.tasks and not selection.languages:
        return True
    if not isinstance(record, PretrainRecord):
        return False
    is_task = not selection.tasks or record.task in selection.tasks
    return is_task and (not selection.languages or record.audio_language in selection.languages)
