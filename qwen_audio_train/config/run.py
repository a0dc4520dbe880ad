"""What makes one run this run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunConfig:
    """Name, place, length and seed."""

    dir: str = ""
    """Folder of the run: composed config, versions, metrics, checkpoints, and the result under ``final/``.
    Empty: ``runs/`` and a name made of stage, model and a hash of the settings, so that the same command finds it again
    and runs with other settings never meet."""
    seed: int = 0
    """Seeds the plan, new weights and dropout."""
    max_steps: int | None = None
    """Optimiser steps; exactly one of this and ``epochs``."""
    epochs: float | None = None
    """Passes over the data, turned into steps by the plan."""
