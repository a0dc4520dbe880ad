"""``dataset.json`` and ``dataset.idx``: what a set holds and where, beside its shards.

Both are pure functions of the shards, so they can always be rebuilt.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from qwen_audio_train.audio.lengths import SAMPLING_RATE_HZ
from qwen_audio_train.errors import ShardError
from qwen_audio_train.shards.contract import (
    CONTRACT_VERSION,
    DATASET_FILE,
    SHARD_NAME_PATTERN,
    SKIPPED_FILE,
)
from qwen_audio_train.shards.files import json_bytes, sha256_of_file, write_file
from qwen_audio_train.shards.index import ShardIndex, build_index, index_path, open_index
from qwen_audio_train.shards.metadata import parse_metadata
from qwen_audio_train.shards.set_index import CLIP_DTYPE, SAMPLE_DTYPE, SET_INDEX_FILE, SetIndexWriter
from qwen_audio_train.shards.sources import LocalShard, edges_digest

MAX_DESCRIPTION_BYTES = 64 << 20
NEVER_EQUAL = (1 << 64) - 1
NO_DESCRIPTION = "prepare the set, or describe its tars with scripts/check_shards.py --reindex"


def describe_set(
    directory: Path, name: str, *, recipe: Mapping[str, Any] | None = None, reindex: bool = False
) -> dict[str, Any]:
    """Write ``dataset.json`` and ``dataset.idx`` over all tars of ``directory``; return the content of the former.

    Args:
        recipe: what the set was prepared from, kept so that a second run can see that nothing is left to do.
        reindex: scan every tar anew instead of trusting the indexes that are there.

    Raises:
        ShardError: no tar, a tar that breaks the contract, a key in two shards, or samples of several splits.
    """
    tar_paths = sorted(directory.glob("*.tar"))
    if not tar_paths:
        raise ShardError(f"'{directory}' holds no tar; nothing to describe")
    tallies: dict[str, Counter[str]] = {field: Counter() for field in ("split", "source", "license", "task")}
    seconds_by_language: Counter[str] = Counter()
    shards = [_describe_shard(path, reindex, tallies, seconds_by_language) for path in tar_paths]
    _check_keys([open_index(path).samples["key_hash"] for path in tar_paths], directory)
    if len(tallies["split"]) != 1:
        raise ShardError(f"'{directory}' mixes splits {sorted(tallies['split'])}; a set has one")
    description = {
        "contract_version": CONTRACT_VERSION,
        "name": name,
        "split": next(iter(tallies["split"])),
        "num_samples": sum(shard["num_samples"] for shard in shards),
        "num_clips": sum(shard["num_clips"] for shard in shards),
        "seconds": round(sum(shard["seconds"] for shard in shards), 3),
        "seconds_by_language": {key: round(value, 3) for key, value in seconds_by_language.items()},
        "samples_by_task": dict(tallies["task"]),
        "samples_by_license": dict(tallies["license"]),
        "samples_by_source": dict(tallies["source"]),
        "num_skipped": _num_skipped(directory),
        "recipe": dict(recipe) if recipe is not None else None,
        "shards": shards,
    }
    raw = json_bytes(description, indent=2) + b"\n"
    write_file(directory / DATASET_FILE, raw)
    _write_set_index(tar_paths, description, raw)
    return description


def _write_set_index(tar_paths: Sequence[Path], description: Mapping[str, Any], raw_description: bytes) -> None:
    counts = {name: description[name] for name in ("num_samples", "num_clips")}
    writer = SetIndexWriter(tar_paths[0].with_name(SET_INDEX_FILE), num_shards=len(tar_paths), **counts)
    for path in tar_paths:
        index, tar = open_index(path), LocalShard(path)
        samples, clips = np.zeros(len(index.samples), SAMPLE_DTYPE), np.zeros(len(index.clips), CLIP_DTYPE)
        for name in ("key_hash", "json_offset", "json_xxh3", "json_bytes"):
            samples[name] = index.samples[name]
        for name in ("offset", "num_bytes", "crc32"):
            clips[name] = index.clips[name]
        clips["xxh3"] = list(_clip_checksums(tar, index, path))
        writer.add(
            tar_bytes=tar.size_bytes,
            edges=edges_digest(tar),
            num_clips=index.samples["num_clips"],
            clip_samples=index.clips["num_samples"],
            samples=samples,
            clips=clips,
        )
    writer.publish(raw_description)


def _clip_checksums(tar: LocalShard, index: ShardIndex, path: Path) -> Iterator[int]:
    """xxh3 of the audio that the metadata names by its sha256: reading compares it in place of that."""
    stated = (clip["sha256"] for metadata in _metadata_of(path) for clip in metadata["clips"])
    for row, sha256 in zip(index.clips, stated, strict=True):
        data = tar.read(int(row["offset"]), int(row["num_bytes"]))
        # What was damaged since it was indexed must not get a right checksum here.
        if zlib.crc32(data) != int(row["crc32"]):
            raise _changed(path, int(row["offset"]))
        checksum = xxhash.xxh3_64_intdigest(data)
        # Nor must other audio than the text was written for: these bytes are refused whenever they are read.
        yield checksum if hashlib.sha256(data).hexdigest() == sha256 else checksum ^ NEVER_EQUAL


def _changed(path: Path, offset: int) -> ShardError:
    return ShardError(f"'{path}' changed at byte {offset} since it was indexed; restore it")


def read_description(path: Path) -> dict[str, Any]:
    """The content of a ``dataset.json``, its fields checked as far as reading depends on them.

    Raises:
        ShardError: missing, not readable, of another contract version, or naming shards outside its folder.
    """
    return parse_description(read_raw_description(path, str(path)), str(path))


def read_raw_description(path: Path, where: str) -> bytes:
    """The bytes of a ``dataset.json``; ``where`` is what errors call it. Raises ShardError: missing or too big."""
    try:
        if path.stat().st_size > MAX_DESCRIPTION_BYTES:
            raise ShardError(f"'{where}' is over {MAX_DESCRIPTION_BYTES} bytes; rebuild it")
        return path.read_bytes()
    except OSError as error:
        raise ShardError(f"'{where}' is no readable set description ({error}); {NO_DESCRIPTION}") from error


def parse_description(raw: bytes, path: str) -> dict[str, Any]:
    """The content of the bytes of a ``dataset.json``. Raises ShardError as ``read_description`` does."""
    try:
        description = json.loads(raw)
        version, shards = description["contract_version"], description["shards"]
        texts = [description["name"], description["split"], *(shard["file"] for shard in shards)]
        sound = shards and all(isinstance(text, str) for text in texts)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ShardError(
            f"'{path}' is no readable set description ({type(error).__name__}: {error}); {NO_DESCRIPTION}"
        ) from error
    if version != CONTRACT_VERSION:
        raise ShardError(
            f"'{path}' is of contract version {version}, this is {CONTRACT_VERSION}; prepare the set again"
        )
    illegal = [shard["file"] for shard in shards if not SHARD_NAME_PATTERN.fullmatch(str(shard["file"]))]
    if illegal or not sound:
        raise ShardError(f"'{path}' names illegal shards {illegal[:3]}; shards lie beside it and end in .tar")
    return dict(description)


def _describe_shard(
    tar_path: Path, reindex: bool, tallies: Mapping[str, Counter[str]], seconds_by_language: Counter[str]
) -> dict[str, Any]:
    if not SHARD_NAME_PATTERN.fullmatch(tar_path.name):
        raise ShardError(f"'{tar_path}': illegal shard name; letters, digits and _ . + - only")
    index = build_index(tar_path) if reindex or not index_path(tar_path).exists() else open_index(tar_path)
    for metadata in _metadata_of(tar_path):
        for field, tally in tallies.items():
            tally.update([metadata[field]] if field in metadata else [])
        if "audio_language" in metadata:
            num_samples = sum(clip["num_samples"] for clip in metadata["clips"])
            seconds_by_language[metadata["audio_language"]] += num_samples / SAMPLING_RATE_HZ  # type: ignore[assignment]
    return {
        "file": tar_path.name,
        "bytes": tar_path.stat().st_size,
        "sha256": sha256_of_file(tar_path),
        "num_samples": len(index.samples),
        "num_clips": len(index.clips),
        "seconds": round(int(index.clips["num_samples"].sum(dtype=np.int64)) / SAMPLING_RATE_HZ, 3),
    }


def _metadata_of(tar_path: Path) -> Iterator[dict[str, Any]]:
    samples = open_index(tar_path).samples
    with tar_path.open("rb") as file:
        for row in samples:
            file.seek(int(row["json_offset"]))
            raw = file.read(int(row["json_bytes"]))
            if xxhash.xxh3_64_intdigest(raw) != int(row["json_xxh3"]):
                raise _changed(tar_path, int(row["json_offset"]))
            yield parse_metadata(raw)


def _check_keys(hashes: Sequence[np.ndarray[Any, Any]], directory: Path) -> None:
    all_hashes = np.concatenate(hashes)
    if len(np.unique(all_hashes)) < len(all_hashes):
        raise ShardError(f"'{directory}' has a key in more than one shard; keys are unique within a set")


def _num_skipped(directory: Path) -> int:
    path = directory / SKIPPED_FILE
    return len(path.read_bytes().splitlines()) if path.exists() else 0
