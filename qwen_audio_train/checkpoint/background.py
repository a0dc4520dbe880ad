"""Publishing beside training: once a checkpoint is written, hashing, flushing and renaming need no rank to wait.

Each rank flushes and hashes the files it wrote in a thread of its own and hands the list over in a file; the first
rank's thread waits for all lists, takes every other file of the folder on itself, and publishes. Threads take part in
no collective: the ranks agree when they join (``training/saving.py``).
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_audio_train.checkpoint import manifest, publish
from qwen_audio_train.checkpoint.manifest import Entry
from qwen_audio_train.config.checkpoint import CheckpointConfig
from qwen_audio_train.errors import CheckpointError

logger = logging.getLogger(__name__)
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint that all ranks have written aside."""

    folder: Path
    """``<run.dir>/checkpoints``."""
    step: int
    facts: Mapping[str, Any]

    @property
    def staging(self) -> Path:
        """Holds the checkpoint and the ranks' lists."""
        return publish.staging_folder(self.folder, self.step)

    @property
    def inner(self) -> Path:
        """What becomes the checkpoint."""
        return self.staging / f"checkpoint-{self.step}"

    def part(self, rank: int) -> Path:
        """A rank's list of its files."""
        return self.staging / f"part-{rank}.json"


class BackgroundPublishing:
    """One checkpoint at a time; ``join`` before the next one is written."""

    def __init__(self, config: CheckpointConfig, *, rank: int, world: int) -> None:
        self._config = config
        self._rank = rank
        self._world = world
        self._thread: threading.Thread | None = None
        self._cancelled = threading.Event()
        self.failure: Exception | None = None
        """Why this rank's share of the last one failed."""

    def start(self, written: Written, own_files: Iterable[str]) -> None:
        """Begin with this rank's share. ``own_files``: names in the checkpoint that it wrote (rank 0 finds its own)."""
        assert self._thread is None, "join the one before first"
        self.failure = None
        self._cancelled.clear()
        work = self._publish if self._rank == 0 else self._hand_over
        arguments = (written,) if self._rank == 0 else (written, tuple(own_files))
        self._thread = threading.Thread(target=self._noting, args=(work, *arguments), daemon=True, name="publish")
        self._thread.start()

    def join(self, timeout_seconds: float | None = None) -> bool:
        """Until this rank's share is done; False if it was not in that time."""
        if self._thread is not None:
            self._thread.join(timeout_seconds)
            if self._thread.is_alive():
                return False
            self._thread = None
        return True

    def cancel(self) -> None:
        """Some rank's list will not come."""
        self._cancelled.set()

    def _noting(self, work: Any, *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception as error:
            self.failure = error

    def _hand_over(self, written: Written, own_files: tuple[str, ...]) -> None:
        entries = manifest.flushed_entries(written.inner, own_files)
        path = written.part(self._rank)
        staged = path.with_suffix(".tmp")
        staged.write_text(json.dumps(manifest.entries_to_json(entries)), encoding="utf-8")
        os.replace(staged, path)

    def _publish(self, written: Written) -> None:
        flushed: dict[str, Entry] = {}
        for rank in range(1, self._world):
            flushed |= self._await_part(written, rank)
        target = publish.checkpoint_folder(written.folder, written.step)
        publish.publish(written.inner, target, facts=written.facts, flushed=flushed)
        try:
            publish.point_latest(target)
            publish.retain(
                written.folder,
                self._config.keep_last,
                keep_every_steps=self._config.keep_every_steps,
                newest=target,
            )
        except OSError as error:
            logger.error("%s is published, but what is old was not cleared away: %s", target, error)

    def _await_part(self, written: Written, rank: int) -> dict[str, Entry]:
        path = written.part(rank)
        while not path.exists():
            if self._cancelled.is_set():
                raise CheckpointError(f"{written.inner}: rank {rank} could not flush what it wrote")
            time.sleep(_POLL_SECONDS)
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {name: Entry(entry["bytes"], entry["sha256"]) for name, entry in entries.items()}
