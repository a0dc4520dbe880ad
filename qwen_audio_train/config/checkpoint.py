"""When to save, what to keep, whether to go on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints go to ``<run.dir>/checkpoints``; the same command again resumes from the newest whole one."""

    every_steps: int = 500
    keep_last: int = 2
    keep_every_steps: int = 0
    """Keep the checkpoints whose step is a multiple of this, too; 0 keeps none for good."""
    resume: bool = True
    """False refuses to start where checkpoints lie already."""
