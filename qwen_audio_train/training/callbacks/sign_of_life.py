"""Shows other processes, and scripts/runs.py, that a run trains."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from qwen_audio_train.tracking.run_state import BEAT_SECONDS, beat


class SignOfLife(TrainerCallback):
    """Touches the run's state file behind a step, some seconds apart; first rank only."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._last = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One step on."""
        now = time.monotonic()
        if now - self._last >= BEAT_SECONDS:
            self._last = now
            beat(self._run_dir)
