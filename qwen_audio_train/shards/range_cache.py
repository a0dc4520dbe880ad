"""A machine's cache of fetched blocks: one file a block, shared by all processes, under a cap, oldest use goes first.

Blocks, not whole shards: the plan draws short runs of samples from everywhere, so a whole shard would delay a first
batch by a gigabyte and evict what is needed next. A block is published by rename and carries a checksum, so a process
that dies half way or a disk that lies costs one more fetch, never a wrong byte. ``cache_dir`` must be node-local: the
lock that keeps the cap is.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import xxhash

HEADER = struct.Struct("<8sQ16s")
MAGIC = b"QATBLK\r\n"
LEDGER = "bytes.ledger"
KEEP_FRACTION = 0.9
"""An eviction goes down to this share of the cap, so that it is not needed again at the next block."""


class RangeCache:
    """Blocks by (version key, number). Every method may be called by any thread of any process."""

    def __init__(self, directory: Path, cap_bytes: int) -> None:
        self.directory = directory / "blocks"
        self._cap_bytes = cap_bytes

    def read(self, key: str, number: int) -> bytes | None:
        """A block, or None when it is not there or not as it was written (then it is removed)."""
        path = self._path(key, number)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        payload = raw[HEADER.size :]
        if len(raw) < HEADER.size or HEADER.unpack_from(raw) != (MAGIC, len(payload), _digest(payload)):
            path.unlink(missing_ok=True)
            return None
        with suppress(FileNotFoundError):
            os.utime(path)
        return payload

    def write(self, key: str, number: int, payload: bytes) -> None:
        """Keep a block; one that is larger than the cap is not kept."""
        raw = HEADER.pack(MAGIC, len(payload), _digest(payload)) + payload
        if len(raw) > self._cap_bytes:
            return
        path = self._path(key, number)
        with self._locked() as ledger:
            used_bytes = _read_ledger(ledger)
            if used_bytes is None or used_bytes + len(raw) > self._cap_bytes:
                used_bytes = self._evict(len(raw))
            # Counted before it is written: a process that dies in between leaves the count too high, and the next
            # eviction counts anew.
            _write_ledger(ledger, used_bytes + len(raw))
            if path.exists():
                _write_ledger(ledger, used_bytes)
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")  # one writer at a time: the lock is held
            temporary.write_bytes(raw)
            temporary.replace(path)

    def contains(self, key: str, number: int) -> bool:
        """Whether a block is there, without reading it."""
        return self._path(key, number).exists()

    def _path(self, key: str, number: int) -> Path:
        return self.directory / key[:2] / f"{key}-{number}.blk"

    @contextmanager
    def _locked(self) -> Iterator[int]:
        self.directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.directory / LEDGER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _evict(self, coming_bytes: int) -> int:
        """Make room for ``coming_bytes``; returns the bytes that stay, counted from the files themselves."""
        files: list[tuple[float, int, Path]] = []
        for folder in os.scandir(self.directory):
            if folder.is_dir(follow_symlinks=False):
                for entry in os.scandir(folder.path):
                    status = entry.stat(follow_symlinks=False)
                    files.append((status.st_mtime, status.st_size, Path(entry.path)))
        used_bytes = sum(size for _, size, _ in files)
        if used_bytes + coming_bytes <= self._cap_bytes:
            return used_bytes
        target_bytes = int(self._cap_bytes * KEEP_FRACTION) - coming_bytes
        for _, size, path in sorted(files):
            if used_bytes <= target_bytes:
                break
            path.unlink(missing_ok=True)
            used_bytes -= size
        return used_bytes


def block_runs(numbers: Iterable[int], longest: int, gap_blocks: int = 0) -> list[range]:
    """Block numbers as runs of at most ``longest`` blocks, bridging gaps of up to ``gap_blocks`` with what is there."""
    runs: list[range] = []
    for number in sorted(set(numbers)):
        if runs and number - runs[-1].stop <= gap_blocks and number - runs[-1].start < longest:
            runs[-1] = range(runs[-1].start, number + 1)
        else:
            runs.append(range(number, number + 1))
    return runs


def _digest(payload: bytes) -> bytes:
    return xxhash.xxh3_128_digest(payload)


def _read_ledger(descriptor: int) -> int | None:
    raw = os.pread(descriptor, 32, 0)
    return int(raw) if raw.isdigit() else None


def _write_ledger(descriptor: int, used_bytes: int) -> None:
    raw = str(used_bytes).encode()
    os.pwrite(descriptor, raw, 0)
    os.ftruncate(descriptor, len(raw))
