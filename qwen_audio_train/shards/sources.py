"""Where the bytes of a set's files come from: a folder here, or (``remote``) a server that gives ranges."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from qwen_audio_train.errors import ShardError

EDGE_BYTES = 4096
ByteRange = tuple[int, int]
"""First byte and byte after the last."""


class ReadFailedError(Exception):
    """Bytes that should be there could not be had, after every attempt. The caller knows whose they are."""


class ShardBytes(Protocol):
    """An opened tar."""

    size_bytes: int

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Bytes at an offset; fewer only where the file ends.

        Raises:
            ReadFailedError: not to be had now.
            ShardError: the file is gone, forbidden, or another one than when it was opened.
        """


class ByteSource(Protocol):
    """A folder of shards, wherever it lies."""

    location: str
    """As errors print it: nothing secret in it."""

    def where(self, name: str) -> str:
        """A file of the folder, as errors print it."""

    def open_shard(self, name: str) -> ShardBytes:
        """Open a tar. Raises ShardError when it is missing or refused."""

    def metadata_path(self, name: str) -> Path:
        """Path on this machine of ``dataset.json`` or ``dataset.idx``, fetched if need be."""

    def prefetch(self, ranges: Mapping[str, Iterable[ByteRange]]) -> None:
        """Hint that these ranges of these tars are wanted soon."""


def edges_digest(shard: ShardBytes) -> bytes:
    """Checksum of a tar's two ends, as its index holds it."""
    head = shard.read(0, EDGE_BYTES)
    tail = shard.read(max(0, shard.size_bytes - EDGE_BYTES), EDGE_BYTES)
    return hashlib.blake2b(head + tail, digest_size=16).digest()


class LocalShard:
    """A tar's descriptor. Closed when the last reader lets go of it; reads carry their own position."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size_bytes = os.fstat(self._descriptor).st_size

    def read(self, offset: int, num_bytes: int) -> bytes:
        """One ``pread``."""
        return os.pread(self._descriptor, num_bytes, offset)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


class LocalFolder:
    """A folder of this machine."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        self.location = str(self.directory)

    def where(self, name: str) -> str:
        """Its path."""
        return str(self.directory / name)

    def open_shard(self, name: str) -> LocalShard:
        """Open a tar."""
        try:
            return LocalShard(self.directory / name)
        except OSError as error:
            raise ShardError(f"shard '{self.where(name)}' cannot be opened: {error}; restore it") from error

    def metadata_path(self, name: str) -> Path:
        """Where it lies."""
        return self.directory / name

    def prefetch(self, ranges: Mapping[str, Iterable[ByteRange]]) -> None:
        """Nothing: the kernel reads ahead."""
