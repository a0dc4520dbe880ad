"""Compare what a shard's two indexes say of it, ``NAME.tar.idx`` and its rows of ``dataset.idx``, with its samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import xxhash

from qwen_audio_train.errors import ShardError
from qwen_audio_train.shards.contract import DATASET_FILE
from qwen_audio_train.shards.dataset import read_raw_description
from qwen_audio_train.shards.index import ShardIndex
from qwen_audio_train.shards.scan import ScannedSample, WholeSample
from qwen_audio_train.shards.set_index import SET_INDEX_FILE, SetIndex, Tables, open_set_index
from qwen_audio_train.shards.sources import LocalShard, edges_digest

_REMEDY = "rebuild the index (scripts/index_shards.py --rebuild)"


class IndexedRows:
    """The rows of one shard in both indexes, as far as they can be opened; each disagreement is told once.

    Reading for training follows ``dataset.idx`` alone, so that one is compared in every table.
    """

    def __init__(self, tar_path: Path, number: int, index: ShardIndex | None) -> None:
        self._tar_path = tar_path
        self._number = number
        """Of the shard in the set."""
        self._index = index
        self._set_index = _opened(tar_path.parent, number)

    def problems(self) -> Iterator[str]:
        """What is wrong before a sample is looked at."""
        if self._set_index is None:
            return
        try:
            self._set_index.require_sound_rows(self._number, str(self._tar_path.with_name(SET_INDEX_FILE)))
        except ShardError as error:
            self._set_index = None
            yield str(error)
            return
        if self._index is None:
            return  # another tar than was indexed: that was said
        row, tar = self._set_index.tables.shards[self._number], LocalShard(self._tar_path)
        if (int(row["tar_bytes"]), row["edges"].tobytes()) != (tar.size_bytes, edges_digest(tar)):
            yield f"{SET_INDEX_FILE} is of another tar; {_REMEDY}"

    def problems_of(self, sample: WholeSample, number: int) -> Iterator[str]:
        """Where the indexes differ from a sample. ``number``: of the sample in its shard."""
        if self._index is not None and not _is_in(self._index, sample.row, number):
            self._index = None
            yield f"index and tar disagree; {_REMEDY}"
        if self._set_index is not None and not _is_in_set(self._set_index.tables, self._number, sample, number):
            self._set_index = None
            yield f"{SET_INDEX_FILE} and tar disagree; {_REMEDY}"

    def count_problems(self, num_samples: int) -> Iterator[str]:
        """Whether the indexes hold more than the tar."""
        if self._index is not None and len(self._index.samples) != num_samples:
            yield f"index of {len(self._index.samples)} samples, the tar holds {num_samples}; {_REMEDY}"
        if self._set_index is not None:
            (first, last), _ = self._set_index.tables.bounds(self._number)
            if last - first != num_samples:
                yield f"{SET_INDEX_FILE} has {last - first} samples of it, the tar holds {num_samples}; {_REMEDY}"


def _opened(directory: Path, number: int) -> SetIndex | None:
    """None where the set cannot be opened, which is a finding about the set."""
    path, description = directory / SET_INDEX_FILE, directory / DATASET_FILE
    try:
        index = open_set_index(path, read_raw_description(description, str(description)), str(path))
    except ShardError:
        return None
    return index if number < len(index.tables.shards) else None


def _place(sample: ScannedSample) -> dict[str, int]:
    return {name: getattr(sample, name) for name in ("key_hash", "json_offset", "json_xxh3", "json_bytes")}


def _is_in(index: ShardIndex, sample: ScannedSample, number: int) -> bool:
    if number >= len(index.samples):
        return False
    row = index.samples[number]
    first = int(row["first_clip"])
    stored = [tuple(int(value) for value in clip) for clip in index.clips[first : first + int(row["num_clips"])]]
    found = [(clip.offset, clip.num_bytes, clip.num_samples, clip.crc32, clip.encoding) for clip in sample.clips]
    return stored == found and all(int(row[name]) == value for name, value in _place(sample).items())


def _is_in_set(tables: Tables, shard: int, sample: WholeSample, number: int) -> bool:
    (first_sample, last_sample), bounds = tables.bounds(shard)
    i = first_sample + number
    if i >= last_sample:
        return False
    first, last = int(tables.first_clip[i]), int(tables.first_clip[i + 1])
    if not bounds[0] <= first <= last <= bounds[1]:
        return False
    names = ("offset", "num_bytes", "crc32", "xxh3")
    stored = [tuple(int(clip[name]) for name in names) for clip in tables.clips[first:last]]
    clips = sample.row.clips
    checksums = [xxhash.xxh3_64_intdigest(data) for data in sample.clips]
    found = [(clip.offset, clip.num_bytes, clip.crc32, xxh3) for clip, xxh3 in zip(clips, checksums, strict=True)]
    lengths = [clip.num_samples for clip in clips]
    row = tables.samples[i]
    return (
        stored == found
        and tables.clip_samples[first:last].tolist() == lengths
        and all(int(row[name]) == value for name, value in _place(sample.row).items())
    )
