"""When to save, what to keep, whether to go on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints go to ``<run.dir>/checkpoints``; the same command again resumes from the newest whole one."""

    every_steps: int = 500
    keep_last: int = 2
    resume: bool = True
    """False refuses to start where checkpoints lie already."""
