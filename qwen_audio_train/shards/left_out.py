"""Lists of samples that are not used, one JSON object a line: ``skipped.jsonl`` of a preparation, ``quarantine.jsonl``
of a run. Both say ``dataset``, ``shard``, ``key`` and ``reason``; who writes one may add fields.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwen_audio_train.errors import ShardError
from qwen_audio_train.samples import Origin
from qwen_audio_train.shards.files import json_bytes

REQUIRED_FIELDS = ("dataset", "shard", "key", "reason")


def left_out_line(origin: Origin, reason: str, **more: Any) -> bytes:
    """A line of such a list."""
    entry = {**more, "dataset": origin.dataset, "shard": origin.shard, "key": origin.key, "reason": reason}
    return json_bytes(entry) + b"\n"


def read_left_out(path: Path) -> list[dict[str, Any]]:
    """The entries of a list.

    Raises:
        ShardError: missing, or a line that is no such entry.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ShardError(f"'{path}' cannot be read: {error}") from error
    return [_entry(line, path, number) for number, line in enumerate(lines, start=1) if line.strip()]


def _entry(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"'{path}' line {number} is no JSON: {error}") from error
    if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in REQUIRED_FIELDS):
        raise ShardError(f"'{path}' line {number} lacks one of {', '.join(REQUIRED_FIELDS)}: {line[:80]!r}")
    return entry
