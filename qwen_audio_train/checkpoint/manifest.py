"""What a published folder holds: every file with its size and SHA-256, and a few facts about the run.

{"digest": SHA-256 of the rest, "facts": {"step": 500, "world": 8}, "files": {"a": {"bytes": 1, "sha256": "b0..."}}}
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_audio_train.errors import CheckpointError

MANIFEST = "manifest.json"
_HASHING_THREADS = 4
"""Of one process. Hashing large files lets go of the interpreter's lock."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the folder."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Names, relative to the folder, and what they hold."""

    files: dict[str, Entry]
    facts: dict[str, Any] = field(default_factory=dict)
    """JSON values. Of a checkpoint: ``step``, ``world`` (ranks that wrote it), ``zero_stage`` (None: no DeepSpeed)."""


def names_in(folder: Path) -> list[str]:
    """All files of a folder and its folders, as a manifest names them."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(name for path in paths if (name := path.relative_to(folder).as_posix()) != MANIFEST)


def flushed_entries(folder: Path, names: Iterable[str]) -> dict[str, Entry]:
    """Force these files to the disk, and say what they hold. Raises OSError."""

    def one(name: str) -> tuple[str, Entry]:
        flush(folder / name)
        return name, _entry(folder / name)

    with ThreadPoolExecutor(_HASHING_THREADS) as threads:
        return dict(threads.map(one, names))


def write(folder: Path, manifest: Manifest) -> None:
    """Write the list and force it and the names of all files to the disk."""
    content = _content(manifest)
    path = folder / MANIFEST
    text = json.dumps({"digest": _digest(content), **content}, indent=1, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
    flush(path)
    for inner in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        flush(inner)
    flush(folder)


def read(folder: Path) -> Manifest:
    """The list of a published folder, whose files are not looked at.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder}: it has no {MANIFEST}, so it was never finished; delete it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest = content.pop("digest", None)
        files = {name: Entry(int(entry["bytes"]), str(entry["sha256"])) for name, entry in content["files"].items()}
        manifest = Manifest(files, content.get("facts", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}: {MANIFEST} is not readable ({error}); delete the checkpoint") from error
    # Folders of earlier versions have neither facts nor a digest.
    if digest != _digest(content) and not (digest is None and content.keys() == {"files"}):
        raise CheckpointError(f"{folder}: {MANIFEST} differs from its own digest; delete the checkpoint")
    return manifest


def verify(folder: Path) -> Manifest:
    """Check every listed file's size and hash.

    Raises:
        CheckpointError: no readable manifest; or naming the first file that is missing or differs.
    """
    manifest = read(folder)
    for name, entry in manifest.files.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != entry.bytes:
            raise CheckpointError(f"{folder}: file {name} is missing or has another size than the manifest says")
    with ThreadPoolExecutor(_HASHING_THREADS) as threads:
        found = threads.map(lambda name: _readable_sha256(folder, name), manifest.files)
        for (name, entry), sha256 in zip(manifest.files.items(), found, strict=True):
            if sha256 != entry.sha256:
                raise CheckpointError(f"{folder}: the bytes of {name} differ from the manifest")
    return manifest


def entries_to_json(entries: Mapping[str, Entry]) -> dict[str, dict[str, Any]]:
    """As the manifest holds them."""
    return {name: {"bytes": entry.bytes, "sha256": entry.sha256} for name, entry in entries.items()}


def flush(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(manifest: Manifest) -> str:
    """SHA-256 that tells one manifest from another."""
    return _digest(_content(manifest))


def _content(manifest: Manifest) -> dict[str, Any]:
    return {"facts": manifest.facts, "files": entries_to_json(manifest.files)}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _entry(path: Path) -> Entry:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Entry(os.fstat(file.fileno()).st_size, sha256)


def _readable_sha256(folder: Path, name: str) -> str:
    try:
        return _entry(folder / name).sha256
    except OSError as error:
        raise CheckpointError(f"{folder}: file {name} cannot be read ({error})") from error
