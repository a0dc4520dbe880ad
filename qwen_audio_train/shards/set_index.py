"""``dataset.idx``: all indexes of a set in one mapped file, so that opening costs the same for any number of samples.

Opening reads the header and one row a shard. The rows of samples and clips are mapped and touched when asked for; each
shard's rows have a checksum of their own, compared together with the tar's size and ends when that shard is opened.

Layout, little-endian, each table 8-byte aligned: header, ``SHARD_DTYPE`` rows, first clip of each sample (int64, one
more than samples), length of each clip (uint32), ``SAMPLE_DTYPE`` rows, ``CLIP_DTYPE`` rows. The two tables that
planning reads stand alone, so that it maps 12 bytes a sample and no more.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from qwen_audio_train.errors import ShardError
from qwen_audio_train.shards.files import publish_file, temporary_path

SET_INDEX_FILE = "dataset.idx"
MAGIC = b"QATSET\r\n"
SET_INDEX_VERSION = 3
"""1 were sets without this file, whose shards were all opened one by one; 2 had no checksum of the metadata."""
HEADER = struct.Struct("<8sII QQQ 16s16s")
HEADER_BYTES = HEADER.size + 16
MAX_ROWS = 1 << 40

SHARD_DTYPE = np.dtype(
    [("first_sample", "<u8"), ("first_clip", "<u8"), ("tar_bytes", "<u8"), ("edges", "V16"), ("rows", "V16")]
)
SAMPLE_DTYPE = np.dtype(
    [("key_hash", "<u8"), ("json_offset", "<u8"), ("json_xxh3", "<u8"), ("json_bytes", "<u4"), ("unused", "<u4")]
)
CLIP_DTYPE = np.dtype([("offset", "<u8"), ("xxh3", "<u8"), ("num_bytes", "<u4"), ("crc32", "<u4")])

REMEDY = "rebuild it with scripts/check_shards.py --reindex"
StructArray = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Tables:
    """The arrays of a set index, all views of one mapping."""

    shards: StructArray
    """Shape (num_shards,), ``SHARD_DTYPE``."""
    first_clip: npt.NDArray[np.int64]
    """Shape (num_samples + 1,): clips of sample i are first_clip[i] up to first_clip[i + 1]."""
    clip_samples: npt.NDArray[np.uint32]
    """Shape (num_clips,): length of each clip in 16 kHz samples."""
    samples: StructArray
    """Shape (num_samples,), ``SAMPLE_DTYPE``."""
    clips: StructArray
    """Shape (num_clips,), ``CLIP_DTYPE``."""

    @classmethod
    def of(cls, raw: npt.NDArray[np.uint8], counts: tuple[int, int, int]) -> Tables:
        """Views of the tables in the bytes of a file; ``counts`` of shards, samples and clips."""
        views = []
        for (start, stop), dtype in zip(_spans(counts), _dtypes(), strict=True):
            views.append(raw[start:stop].view(dtype))
        return cls(*views)

    def rows_digest(self, number: int) -> bytes:
        """Checksum of everything the tables say about one shard."""
        (first_sample, last_sample), (first_clip, last_clip) = self.bounds(number)
        digest = xxhash.xxh3_128()
        digest.update(self.first_clip[first_sample : last_sample + 1].data)
        digest.update(self.clip_samples[first_clip:last_clip].data)
        digest.update(self.samples[first_sample:last_sample].view(np.uint8).data)
        digest.update(self.clips[first_clip:last_clip].view(np.uint8).data)
        return digest.digest()

    def bounds(self, number: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """First and last-plus-one sample, and clip, of a shard."""
        row, is_last = self.shards[number], number + 1 == len(self.shards)
        last_sample = len(self.samples) if is_last else int(self.shards[number + 1]["first_sample"])
        last_clip = len(self.clips) if is_last else int(self.shards[number + 1]["first_clip"])
        return (int(row["first_sample"]), last_sample), (int(row["first_clip"]), last_clip)


@dataclass(frozen=True, slots=True)
class SetIndex:
    """An opened ``dataset.idx``."""

    header: bytes
    """Equal headers mean equal sets: it holds checksums of ``dataset.json`` and of all rows."""
    tables: Tables

    def require_sound_rows(self, number: int, where: str) -> None:
        """Compare a shard's rows with their checksum.

        Raises:
            ShardError: the file was damaged after it was written.
        """
        tables = self.tables
        (first_sample, last_sample), (first_clip, last_clip) = tables.bounds(number)
        in_order = 0 <= first_sample <= last_sample <= len(tables.samples) and first_clip <= last_clip
        if not in_order or tables.rows_digest(number) != tables.shards[number]["rows"].tobytes():
            raise ShardError(f"'{where}' is damaged in its rows of shard {number}; {REMEDY}")


class SetIndexWriter:
    """Fills a ``dataset.idx`` shard by shard, in a mapped temporary file, and publishes it whole."""

    def __init__(self, path: Path, *, num_shards: int, num_samples: int, num_clips: int) -> None:
        self._path = path
        self._counts = (num_shards, num_samples, num_clips)
        self._raw: npt.NDArray[Any] = np.memmap(
            temporary_path(path), dtype=np.uint8, mode="w+", shape=(_file_bytes(self._counts),)
        )
        self._tables = Tables.of(self._raw, self._counts)
        self._num_shards = 0
        self._first_sample = 0
        self._first_clip = 0

    def add(
        self,
        *,
        tar_bytes: int,
        edges: bytes,
        num_clips: npt.NDArray[Any],
        clip_samples: npt.NDArray[Any],
        samples: StructArray,
        clips: StructArray,
    ) -> None:
        """Add a shard: the number of clips of each of its samples, and its rows."""
        tables, first_sample, first_clip = self._tables, self._first_sample, self._first_clip
        last_sample, last_clip = first_sample + len(samples), first_clip + len(clips)
        tables.shards[self._num_shards] = (first_sample, first_clip, tar_bytes, edges, bytes(16))
        tables.first_clip[first_sample] = first_clip
        tables.first_clip[first_sample + 1 : last_sample + 1] = first_clip + np.cumsum(num_clips, dtype=np.int64)
        tables.clip_samples[first_clip:last_clip] = clip_samples
        tables.samples[first_sample:last_sample] = samples
        tables.clips[first_clip:last_clip] = clips
        self._num_shards, self._first_sample, self._first_clip = self._num_shards + 1, last_sample, last_clip

    def publish(self, description: bytes) -> None:
        """Sum up and give the file its name. ``description``: the bytes of the ``dataset.json`` it belongs to."""
        assert (self._num_shards, self._first_sample, self._first_clip) == self._counts, "rows are missing"
        for number in range(self._num_shards):
            self._tables.shards[number]["rows"] = np.void(self._tables.rows_digest(number))
        header = HEADER.pack(
            MAGIC, SET_INDEX_VERSION, 0, *self._counts, _digest(description), _digest(self._tables.shards.tobytes())
        )
        self._raw[:HEADER_BYTES] = np.frombuffer(header + _digest(header), np.uint8)
        assert isinstance(self._raw, np.memmap)
        self._raw.flush()
        publish_file(self._path)


def open_set_index(path: Path, description: bytes, where: str) -> SetIndex:
    """Map a ``dataset.idx``; the cost grows with the number of shards only.

    Args:
        description: the bytes of the ``dataset.json`` beside it.
        where: what errors call the file.

    Raises:
        ShardError: missing, cut, damaged, of another version, or of another ``dataset.json``.
    """
    try:
        raw: npt.NDArray[Any] = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
    except FileNotFoundError:
        raise ShardError(f"'{where}' is missing: the set was prepared by an earlier version; {REMEDY}") from None
    except (OSError, ValueError) as error:
        raise ShardError(f"'{where}' cannot be opened: {error}; {REMEDY}") from error
    header = raw[:HEADER_BYTES].tobytes()
    if not header.startswith(MAGIC):
        raise ShardError(f"'{where}' is not the index of a set; {REMEDY}")
    if len(header) < HEADER_BYTES or _digest(header[: HEADER.size]) != header[HEADER.size :]:
        raise ShardError(f"'{where}' is damaged in its header; {REMEDY}")
    _, version, _, *counts, description_digest, shards_digest = HEADER.unpack(header[: HEADER.size])
    if version != SET_INDEX_VERSION:
        raise ShardError(f"'{where}' is of version {version}, this is {SET_INDEX_VERSION}; {REMEDY}")
    sizes = (counts[0], counts[1], counts[2])
    if max(sizes) > MAX_ROWS or len(raw) != _file_bytes(sizes):
        raise ShardError(f"'{where}' is cut or damaged: {len(raw)} bytes, expected {_file_bytes(sizes)}; {REMEDY}")
    if description_digest != _digest(description):
        raise ShardError(f"'{where}' and its dataset.json do not belong together; {REMEDY}")
    tables = Tables.of(raw, sizes)
    if _digest(tables.shards.tobytes()) != shards_digest:
        raise ShardError(f"'{where}' is damaged in its table of shards; {REMEDY}")
    return SetIndex(header, tables)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _dtypes() -> tuple[np.dtype[Any], ...]:
    return SHARD_DTYPE, np.dtype("<i8"), np.dtype("<u4"), SAMPLE_DTYPE, CLIP_DTYPE


def _spans(counts: tuple[int, int, int]) -> list[tuple[int, int]]:
    num_shards, num_samples, num_clips = counts
    lengths = (num_shards, num_samples + 1, num_clips, num_samples, num_clips)
    spans, start = [], HEADER_BYTES
    for dtype, length in zip(_dtypes(), lengths, strict=True):
        spans.append((start, start + dtype.itemsize * length))
        start = -(-spans[-1][1] // 8) * 8
    return spans


def _file_bytes(counts: tuple[int, int, int]) -> int:
    return _spans(counts)[-1][1]
