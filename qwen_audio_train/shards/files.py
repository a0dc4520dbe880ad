"""Publishing files so that a reader sees all of one or nothing: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

TEMPORARY_SUFFIX = ".tmp"


def temporary_path(path: Path) -> Path:
    """Where ``path`` is written before it is published."""
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def publish_file(path: Path) -> None:
    """Make the temporary file of ``path`` durable and give it its name."""
    with temporary_path(path).open("rb") as file:
        os.fsync(file.fileno())
    temporary_path(path).replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_file(path: Path, data: bytes) -> None:
    """Write and publish ``data``."""
    temporary_path(path).write_bytes(data)
    publish_file(path)


def json_bytes(value: Any, *, indent: int | None = None) -> bytes:
    """Canonical JSON: equal values give equal bytes."""
    separators = (",", ": ") if indent else (",", ":")
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators)
    return text.encode()


def sha256_of_file(path: Path) -> str:
    """Hex digest of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
