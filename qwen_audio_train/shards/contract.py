"""The shard contract in constants: what a member may be called, which encodings exist, how big anything may be.

Shared by the writer and the index, so that what one refuses the other never produces.
"""

from __future__ import annotations

import hashlib
import re

CONTRACT_VERSION = 1

ENCODINGS = ("flac", "wav", "mp3", "ogg", "opus")
"""Position is the code in the index: append only."""

MAX_MEMBER_BYTES = 256 << 20
MAX_METADATA_BYTES = 1 << 20
MAX_METADATA_DEPTH = 16
MAX_CLIPS_PER_SAMPLE = 64
MAX_KEY_CHARACTERS = 80
"""With its longest suffix a name then fits the 100 bytes of a plain tar header."""

KEY_PATTERN = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")
"""No dots (the first dot ends the key), hence no '..'; no leading slash."""
SHARD_NAME_PATTERN = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*\.tar")

DATASET_FILE = "dataset.json"
SKIPPED_FILE = "skipped.jsonl"
INDEX_SUFFIX = ".idx"


def key_problem(key: str) -> str | None:
    """Why ``key`` is no legal key, or None."""
    if len(key) > MAX_KEY_CHARACTERS:
        return f"key of {len(key)} characters; at most {MAX_KEY_CHARACTERS}"
    if not KEY_PATTERN.fullmatch(key):
        return f"key {key!r}; only letters, digits, '_', '-', '+' and inner '/' are allowed"
    return None


def key_hash(key: str) -> int:
    """64-bit identity of a key within its set."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def clip_suffix(position: int, num_clips: int, encoding: str) -> str:
    """Member suffix of a clip: ``flac`` when alone, else ``0.flac``, ``1.flac`` ..."""
    return encoding if num_clips == 1 else f"{position}.{encoding}"
