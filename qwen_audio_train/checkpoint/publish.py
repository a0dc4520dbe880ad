"""A folder is either whole or absent: written aside, listed with sizes and SHA-256, published by one rename.

checkpoints/
  .step-500.inprogress/     being written, or left by a kill: never loaded, removed by the next save
  checkpoint-500/           whole: manifest.json lists every file
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path

from qwen_audio_train.errors import CheckpointError

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"
_NAME = re.compile(r"^checkpoint-(\d+)$")


def staging_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is written before it is published."""
    return folder / f".step-{step}.inprogress"


def publish(staged: Path, target: Path) -> None:
    """Write the manifest, flush everything to disk, and make the folder appear under its name at once.

    An existing ``target`` (a re-run of the same step after a resume) is replaced.
    """
    entries = {}
    for path in sorted(p for p in staged.rglob("*") if p.is_file()):
        entries[path.relative_to(staged).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        _flush(path)
    manifest = staged / MANIFEST
    manifest.write_text(json.dumps({"files": entries}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    _flush(manifest)
    _flush(staged)
    if target.exists():
        shutil.rmtree(target)
    os.replace(staged, target)
    _flush(target.parent)


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint whose files all verify; says in the log which it passed over and why."""
    found = []
    for path in folder.glob("checkpoint-*"):
        match = _NAME.match(path.name)
        if match:
            found.append((int(match.group(1)), path))
    for _, path in sorted(found, reverse=True):
        try:
            verify(path)
        except CheckpointError as error:
            logger.warning("Passing over %s", error)
            continue
        return path
    return None


def verify(path: Path) -> None:
    """Check every listed file's size and hash.

    Raises:
        CheckpointError: no readable manifest; or naming the first file that is missing or differs.
    """
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise CheckpointError(f"{path}: it has no {MANIFEST}, so it was never finished; delete it")
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: {MANIFEST} is not readable ({error}); delete the checkpoint") from error
    for name, (num_bytes, sha256) in expected.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != num_bytes:
            raise CheckpointError(f"{path}: file {name} is missing or has another size than the manifest says")
        if _sha256(file) != sha256:
            raise CheckpointError(f"{path}: the bytes of {name} differ from the manifest")


def retain(folder: Path, keep_last: int) -> None:
    """Delete all but the newest ``keep_last`` checkpoints, and whatever unfinished writes lie about."""
    numbered = sorted((int(m.group(1)), p) for p in folder.iterdir() if (m := _NAME.match(p.name)))
    for _, path in numbered[: -max(keep_last, 1)]:
        shutil.rmtree(path)
    for path in folder.glob(".step-*.inprogress"):
        shutil.rmtree(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
