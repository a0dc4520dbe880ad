from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from qwen_audio_train.errors import ShardError
from qwen_audio_train.shards.dataset import describe_set
from qwen_audio_train.shards.index import index_path, open_index
from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.shards.set_index import HEADER_BYTES, SET_INDEX_FILE, SHARD_DTYPE, open_set_index
from tests.unit.shards.conftest import write_toy_set


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_toy_set(tmp_path / "toy", num_samples=9, samples_per_shard=4)


def read_all(directory: Path) -> None:
    shards = ShardSet.open(directory)
    for i in range(len(shards)):
        shards.record(i)


def test_agrees_with_the_indexes_of_the_shards(directory: Path) -> None:
    index = open_set_index(directory / SET_INDEX_FILE, (directory / "dataset.json").read_bytes(), "here")
    tables = index.tables
    apart = [open_index(path) for path in sorted(directory.glob("*.tar"))]
    for number, shard in enumerate(apart):
        (first, last), (first_clip, last_clip) = tables.bounds(number)
        for name in ("key_hash", "json_offset", "json_xxh3", "json_bytes"):
            np.testing.assert_array_equal(tables.samples[first:last][name], shard.samples[name])
        for name in ("offset", "num_bytes", "crc32"):
            np.testing.assert_array_equal(tables.clips[first_clip:last_clip][name], shard.clips[name])
        np.testing.assert_array_equal(tables.clip_samples[first_clip:last_clip], shard.clips["num_samples"])
        np.testing.assert_array_equal(np.diff(tables.first_clip[first : last + 1]), shard.samples["num_clips"])
        index.require_sound_rows(number, "here")


def test_is_a_pure_function_of_the_shards(directory: Path) -> None:
    before, fingerprint = (directory / SET_INDEX_FILE).read_bytes(), ShardSet.open(directory).fingerprint
    describe_set(directory, "toy", reindex=True)
    assert (directory / SET_INDEX_FILE).read_bytes() == before
    assert ShardSet.open(directory).fingerprint == fingerprint


def test_any_flipped_byte_fails_closed(directory: Path) -> None:
    """Header and table of shards at opening, rows when their shard is first read."""
    path = directory / SET_INDEX_FILE
    whole = path.read_bytes()
    at_opening = HEADER_BYTES + 3 * SHARD_DTYPE.itemsize
    for position in [*range(0, at_opening, 3), *range(at_opening, len(whole), 11)]:
        flipped = bytearray(whole)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        if position < at_opening:
            with pytest.raises(ShardError, match="--reindex"):
                ShardSet.open(directory)
        else:
            with pytest.raises(ShardError, match="damaged in its rows of shard"):
                read_all(directory)


@pytest.mark.parametrize("num_bytes", [0, 8, HEADER_BYTES - 1, HEADER_BYTES, -1, -24])
def test_a_cut_file_fails_closed(directory: Path, num_bytes: int) -> None:
    path = directory / SET_INDEX_FILE
    path.write_bytes(path.read_bytes()[:num_bytes] if num_bytes else b"")
    with pytest.raises(ShardError):
        ShardSet.open(directory)


def test_longer_foreign_and_missing_files_fail_closed(directory: Path, tmp_path: Path) -> None:
    path = directory / SET_INDEX_FILE
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0")
    with pytest.raises(ShardError, match="cut or damaged"):
        ShardSet.open(directory)
    other = write_toy_set(tmp_path / "other", num_samples=5)
    os.replace(other / SET_INDEX_FILE, path)
    with pytest.raises(ShardError, match="do not belong together"):
        ShardSet.open(directory)
    path.unlink()
    with pytest.raises(ShardError, match=r"earlier version.*--reindex"):
        ShardSet.open(directory)


def test_describing_refuses_a_clip_damaged_since_it_was_indexed(directory: Path) -> None:
    clip = ShardSet.open(directory).clips(1)[0]
    with clip.shard_path.open("r+b") as file:
        file.seek(clip.offset_bytes + 100)
        file.write(b"XXXX")
    with pytest.raises(ShardError, match=f"changed at byte {clip.offset_bytes} since it was indexed"):
        describe_set(directory, "toy")


def test_describing_refuses_metadata_changed_since_it_was_indexed(directory: Path) -> None:
    tar = directory / "toy-000000.tar"
    raw = bytearray(tar.read_bytes())
    raw[raw.index(b"text 1") + 5] ^= 1
    index = index_path(tar)
    tar.write_bytes(raw)  # far from the ends, so that only the checksum tells
    assert index.exists()
    with pytest.raises(ShardError, match="since it was indexed"):
        describe_set(directory, "toy")
