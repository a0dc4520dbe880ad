"""Verify a set bit by bit: what ``ShardSet.open`` takes on trust for the sake of speed is read here in full."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from tqdm import tqdm

from qwen_audio_train.errors import SampleError, ShardError
from qwen_audio_train.shards.files import sha256_of_file
from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.shards.scan import scan_tar


def check_shards(shards: ShardSet, *, show_progress: bool = False) -> list[str]:
    """Every problem found, one sentence each: shard checksums, tar structure, metadata, clip checksums and lengths."""
    problems = [
        problem for number in range(len(shards.description["shards"])) for problem in _check_tar(shards, number)
    ]
    for i in tqdm(range(len(shards)), desc=shards.name, unit="sample", disable=not show_progress):
        problems.extend(_check_sample(shards, i))
    return problems


def _check_tar(shards: ShardSet, number: int) -> Iterator[str]:
    stated = shards.description["shards"][number]
    path = shards.directory / stated["file"]
    try:
        found = sha256_of_file(path)
        if found != stated["sha256"]:
            yield f"shard '{path}': sha256 {found}, dataset.json says {stated['sha256']}"
        for _ in scan_tar(path):
            pass
    except (OSError, ShardError) as error:
        yield str(error)


def _check_sample(shards: ShardSet, i: int) -> Iterator[str]:
    try:
        record = shards.record(i)
    except (SampleError, ShardError) as error:
        yield str(error)
        return
    for clip, crc32 in zip(record.clips, shards.clip_crc32(i), strict=True):
        try:
            shards.read_clip(clip, record.origin)
            if zlib.crc32(shards.read_clip_bytes(clip, record.origin, thorough=True)) != crc32:
                yield f"{record.origin}: crc32 of a clip differs from the index"
        except (SampleError, ShardError) as error:
            yield str(error)
