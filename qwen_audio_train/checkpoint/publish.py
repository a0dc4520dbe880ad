"""A folder is either whole or absent: written aside, listed with sizes and SHA-256, published by one rename.

checkpoints/
  .step-500.inprogress/     being written, or left by a kill: never loaded, removed by the next save
  checkpoint-500/           whole: manifest.json lists every file
  latest                    name of what was published last, for people: loading looks and verifies itself
  universal-500/            checkpoint-500 for another number of ranks (universal.py); can be made again
  .replaced-checkpoint-500/ the former one while a second of the same step is published
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_audio_train.checkpoint import manifest
from qwen_audio_train.checkpoint.manifest import MANIFEST, Entry, Manifest, verify
from qwen_audio_train.errors import CheckpointError

__all__ = ["MANIFEST", "verify"]

logger = logging.getLogger(__name__)
LATEST = "latest"
UNIVERSAL_PREFIX = "universal-"
_NAME = re.compile(r"^checkpoint-(\d+)$")
_REPLACED = ".replaced-"
_DELETED = ".deleted-"


def staging_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is written before it is published."""
    return folder / f".step-{step}.inprogress"


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies when it is whole."""
    return folder / f"checkpoint-{step}"


def publish(
    staged: Path,
    target: Path,
    *,
    facts: Mapping[str, Any] | None = None,
    flushed: Mapping[str, Entry] | None = None,
) -> None:
    """Write the manifest, flush everything to disk, and make the folder appear under its name at once.

    An existing ``target`` (a re-run of the same step after a resume) is replaced; a kill in between leaves it aside,
    from where ``recover`` takes it back.

    Args:
        facts: what the manifest says of the run.
        flushed: files that other ranks flushed and hashed already.

    Raises:
        OSError: nothing was published; a former ``target`` is where it was.
    """
    known = dict(flushed or {})
    known |= manifest.flushed_entries(staged, [name for name in manifest.names_in(staged) if name not in known])
    manifest.write(staged, Manifest(known, dict(facts or {})))
    former = target.with_name(f"{_REPLACED}{target.name}")
    if target.exists():
        if former.exists():
            shutil.rmtree(former)
        os.replace(target, former)
    try:
        os.replace(staged, target)
    except OSError:
        if former.exists():
            os.replace(former, target)
        raise
    manifest.flush(target.parent)
    if former.exists():
        shutil.rmtree(former)


def point_latest(target: Path) -> None:
    """Name the folder in ``latest`` beside it, whole or not at all."""
    staged = target.with_name(f".{LATEST}.tmp")
    staged.write_text(target.name + "\n", encoding="utf-8")
    manifest.flush(staged)
    os.replace(staged, target.with_name(LATEST))
    manifest.flush(target.parent)


def recover(folder: Path) -> None:
    """Take back what a kill between two renames left aside. For the one process that writes."""
    for former in folder.glob(f"{_REPLACED}*"):
        target = former.with_name(former.name.removeprefix(_REPLACED))
        if not target.exists():
            logger.warning("Taking back %s: a kill came while it was being replaced", target)
            os.replace(former, target)


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint whose files all verify; says in the log which it passed over and why."""
    for step in sorted(_steps(folder), reverse=True):
        path = checkpoint_folder(folder, step)
        try:
            found = verify(path)
            if found.facts.get("step", step) != step:
                raise CheckpointError(f"{path}: its manifest is of step {found.facts['step']}; somebody renamed it")
        except CheckpointError as error:
            logger.warning("Passing over %s", error)
            continue
        _say_if_latest_differs(folder, path)
        return path
    return None


def retain(folder: Path, keep_last: int, *, keep_every_steps: int = 0, newest: Path | None = None) -> None:
    """Delete checkpoints that are not kept, and whatever unfinished writes lie about.

    Kept are the newest ``keep_last``, those whose step is a multiple of ``keep_every_steps`` (0: no such), and
    ``newest``: the one that was just published, so it is known to be whole. Checkpoints of later steps than its (they
    were passed over when the run resumed) take no place of others.
    """
    steps = sorted(_steps(folder))
    last = int(newest.name.partition("-")[2]) if newest is not None else max(steps, default=0)
    old = [step for step in steps if step <= last]
    kept = set(old[-max(keep_last, 1) :])
    for step in old:
        if step not in kept and not (keep_every_steps and step % keep_every_steps == 0):
            _delete(checkpoint_folder(folder, step))
    for left in (".step-*.inprogress", f"{UNIVERSAL_PREFIX}*", f".{UNIVERSAL_PREFIX}*", f"{_DELETED}*"):
        for path in folder.glob(left):
            shutil.rmtree(path)
    for former in folder.glob(f"{_REPLACED}*"):
        if former.with_name(former.name.removeprefix(_REPLACED)).exists():
            shutil.rmtree(former)


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(match.group(1)) for path in folder.iterdir() if (match := _NAME.match(path.name))]


def _delete(path: Path) -> None:
    """Under another name first: a kill in between must not leave half of it under its own."""
    doomed = path.with_name(f"{_DELETED}{path.name}")
    if doomed.exists():
        shutil.rmtree(doomed)
    os.replace(path, doomed)
    shutil.rmtree(doomed)


def _say_if_latest_differs(folder: Path, chosen: Path) -> None:
    pointer = folder / LATEST
    try:
        named = pointer.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        named = ""
    if named != chosen.name:
        logger.warning("%s says %r; the newest checkpoint that verifies is %s", pointer, named or "nothing", chosen)
