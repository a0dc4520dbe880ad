"""``NAME.tar.idx``: where every sample and clip of a tar lies, so that any of them is one ``pread`` away.

Building the index is also the gate: a tar that is cut, interleaved, compressed, or holds anything but well-named
regular files and sound metadata gets none, and without an index nothing is read. Opening compares the tar's size and
the hash of its two ends with what was indexed, and fails closed.

Layout, little-endian: 64-byte header, then ``SAMPLE_DTYPE`` rows, then ``CLIP_DTYPE`` rows.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen_audio_train.errors import ShardError
from qwen_audio_train.shards.contract import INDEX_SUFFIX
from qwen_audio_train.shards.files import write_file
from qwen_audio_train.shards.scan import scan_tar
from qwen_audio_train.shards.sources import LocalShard, edges_digest

MAGIC = b"QATIDX\r\n"
INDEX_VERSION = 2
"""1 had no checksum of the metadata."""
HEADER = struct.Struct("<8sII QQQ 16s8s")

SAMPLE_DTYPE = np.dtype(
    [
        ("key_hash", "<u8"),
        ("json_offset", "<u8"),
        ("json_xxh3", "<u8"),
        ("json_bytes", "<u4"),
        ("first_clip", "<u4"),
        ("num_clips", "<u4"),
    ]
)
CLIP_DTYPE = np.dtype(
    [("offset", "<u8"), ("num_bytes", "<u4"), ("num_samples", "<u4"), ("crc32", "<u4"), ("encoding", "<u4")]
)

StructArray = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """An opened index: two tables mapped from the file, nothing per sample in Python."""

    header: bytes
    """The 64 bytes; equal headers mean equal index and equal tar (size and both ends)."""
    samples: StructArray
    """Shape (num_samples,), ``SAMPLE_DTYPE``."""
    clips: StructArray
    """Shape (num_clips,), ``CLIP_DTYPE``."""


def index_path(tar_path: Path) -> Path:
    """Where the index of a tar lies."""
    return tar_path.with_name(tar_path.name + INDEX_SUFFIX)


def build_index(tar_path: Path) -> ShardIndex:
    """Scan a tar, write its index beside it, and open it.

    Raises:
        ShardError: the tar breaks the shard contract (see ``scan.scan_tar``).
    """
    sample_rows: list[tuple[int, ...]] = []
    clip_rows: list[tuple[int, ...]] = []
    for sample in scan_tar(tar_path):
        place = (sample.key_hash, sample.json_offset, sample.json_xxh3, sample.json_bytes)
        sample_rows.append((*place, len(clip_rows), len(sample.clips)))
        clip_rows.extend(
            (clip.offset, clip.num_bytes, clip.num_samples, clip.crc32, clip.encoding) for clip in sample.clips
        )
    body = np.array(sample_rows, SAMPLE_DTYPE).tobytes() + np.array(clip_rows, CLIP_DTYPE).tobytes()
    header = HEADER.pack(
        MAGIC,
        INDEX_VERSION,
        0,
        tar_path.stat().st_size,
        len(sample_rows),
        len(clip_rows),
        edges_digest(LocalShard(tar_path)),
        _body_digest(body),
    )
    write_file(index_path(tar_path), header + body)
    return open_index(tar_path)


def open_index(tar_path: Path) -> ShardIndex:
    """Map the index of ``tar_path``.

    Raises:
        ShardError: the tar or its index is missing, the index is damaged or of another version, or the tar is not
            the one that was indexed.
    """
    path = index_path(tar_path)
    remedy = "if the tar is as it should be, rebuild with scripts/check_shards.py --reindex, else restore it"
    try:
        raw: npt.NDArray[Any] = np.memmap(path, dtype=np.uint8, mode="r")
        tar_bytes = tar_path.stat().st_size
    except (OSError, ValueError) as error:
        raise ShardError(f"shard '{tar_path}' cannot be opened: {error}; {remedy}") from error
    header = raw[: HEADER.size].tobytes()
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise ShardError(f"'{path}' is not a shard index; {remedy}")
    _, version, _, indexed_bytes, num_samples, num_clips, edges, body_digest = HEADER.unpack(header)
    if version != INDEX_VERSION:
        raise ShardError(f"'{path}' is of version {version}, this is {INDEX_VERSION}; {remedy}")
    samples_end = HEADER.size + num_samples * SAMPLE_DTYPE.itemsize
    if len(raw) != samples_end + num_clips * CLIP_DTYPE.itemsize or body_digest != _body_digest(raw[HEADER.size :]):
        raise ShardError(f"'{path}' is damaged; {remedy}")
    if tar_bytes != indexed_bytes or edges != edges_digest(LocalShard(tar_path)):
        raise ShardError(f"'{tar_path}' ({tar_bytes} bytes) is not the tar indexed ({indexed_bytes} bytes); {remedy}")
    return ShardIndex(
        header=header,
        samples=raw[HEADER.size : samples_end].view(SAMPLE_DTYPE),
        clips=raw[samples_end:].view(CLIP_DTYPE),
    )


def _body_digest(body: Any) -> bytes:
    return hashlib.blake2b(body, digest_size=8).digest()
