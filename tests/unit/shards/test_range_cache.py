from __future__ import annotations

import contextlib
import multiprocessing
import os
from pathlib import Path

import pytest

from qwen_audio_train.shards.range_cache import HEADER, RangeCache, block_runs

KEY = "ab" * 16
CAP_BYTES = 10_000


def blocks_of(directory: Path) -> list[Path]:
    return sorted(directory.glob("blocks/*/*"))


def bytes_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in blocks_of(directory))


def test_keeps_what_it_is_given(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, CAP_BYTES)
    assert cache.read(KEY, 0) is None
    cache.write(KEY, 0, b"hello")
    cache.write(KEY, 1, b"")
    assert RangeCache(tmp_path, CAP_BYTES).read(KEY, 0) == b"hello"
    assert cache.read(KEY, 1) == b""
    assert cache.read("cd" * 16, 0) is None


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, CAP_BYTES)
    for number in range(9):
        cache.write(KEY, number, bytes(1000))
        os.utime(tmp_path / "blocks" / "ab" / f"{KEY}-{number}.blk", (number + 1, number + 1))
    assert cache.read(KEY, 0) is not None
    cache.write(KEY, 9, bytes(1000))
    kept = [number for number in range(10) if cache.contains(KEY, number)]
    assert 0 in kept
    assert 9 in kept
    assert 1 not in kept
    assert bytes_of(tmp_path) <= CAP_BYTES


def test_a_block_larger_than_the_cap_is_not_kept(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, CAP_BYTES)
    cache.write(KEY, 0, bytes(CAP_BYTES))
    assert blocks_of(tmp_path) == []


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "swap"])
def test_a_damaged_block_is_not_believed(tmp_path: Path, damage: str) -> None:
    cache = RangeCache(tmp_path, CAP_BYTES)
    cache.write(KEY, 0, b"x" * 100)
    path = blocks_of(tmp_path)[0]
    raw = path.read_bytes()
    flipped = raw[:-1] + bytes([raw[-1] ^ 1])
    path.write_bytes({"flip": flipped, "cut": raw[:-1], "empty": b"", "swap": raw[: HEADER.size] + b"y" * 100}[damage])
    assert cache.read(KEY, 0) is None
    cache.write(KEY, 0, b"x" * 100)
    assert cache.read(KEY, 0) == b"x" * 100


def test_a_lost_count_is_made_anew(tmp_path: Path) -> None:
    cache = RangeCache(tmp_path, CAP_BYTES)
    for number in range(9):
        cache.write(KEY, number, bytes(1000))
    (tmp_path / "blocks" / "bytes.ledger").write_bytes(b"")
    for number in range(20, 40):
        cache.write(KEY, number, bytes(1000))
        assert bytes_of(tmp_path) <= CAP_BYTES


def bytes_there(folder: Path) -> int:
    """While another process takes files away."""
    total = 0
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            total += entry.stat().st_size
    return total


def _fill(arguments: tuple[Path, int]) -> int:
    directory, worker = arguments
    cache, most = RangeCache(directory, CAP_BYTES), 0
    for number in range(60):
        payload = bytes([number]) * 1000
        if (found := cache.read(KEY, number)) is not None:
            assert found == payload
        cache.write(KEY, number, payload)
        cache.write("cd" * 16, 1000 * worker + number, payload)
        if number % 5 == 0:
            most = max(most, bytes_there(directory / "blocks" / "ab"))
    return most


def test_two_processes_keep_one_cap(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        most = pool.map(_fill, [(tmp_path, worker) for worker in range(2)])
    assert max(most) <= CAP_BYTES
    assert 0 < bytes_of(tmp_path) <= CAP_BYTES
    assert int((tmp_path / "blocks" / "bytes.ledger").read_text()) == bytes_of(tmp_path)


def test_gaps_are_bridged_and_requests_capped() -> None:
    assert block_runs([1, 3, 9, 2], longest=4) == [range(1, 4), range(9, 10)]
    assert block_runs([1, 3, 9], longest=4) == [range(1, 2), range(3, 4), range(9, 10)]
    assert block_runs([1, 3, 9], longest=4, gap_blocks=1) == [range(1, 4), range(9, 10)]
    assert block_runs(range(10), longest=4) == [range(4), range(4, 8), range(8, 10)]
