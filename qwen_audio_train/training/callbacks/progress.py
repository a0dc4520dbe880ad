"""The progress bar and the metric lines of a run."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from qwen_audio_train.tracking.writer import MetricWriter

LOG_INTERVAL_SECONDS = 15.0
"""Between redraws of the bar where it goes to a file."""


class Progress(TrainerCallback):
    """A bar with step, loss, audio-seconds/s, tokens/s and ETA, and a line of metrics at every log; first rank only."""

    def __init__(self, title: str, writer: MetricWriter | None, *, shows_bar: bool) -> None:
        self._title = title
        self._writer = writer
        self._shows_bar = shows_bar
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar where the run resumes."""
        if self._writer is not None:
            self._bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc=self._title,
                unit="step",
                disable=not self._shows_bar,
                dynamic_ncols=True,
                mininterval=1.0 if sys.stderr.isatty() else LOG_INTERVAL_SECONDS,
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One step on."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Write the numbers down and show the ones people watch."""
        if self._writer is None or not logs or "loss" not in logs:
            return
        self._writer.write(state.global_step, logs)
        shown = {
            "loss": f"{logs['loss']:.3f}",
            "audio": f"{logs['audio_seconds_per_second']:.0f}s/s",
            "tok": f"{logs['tokens_per_second']:.0f}/s",
        }
        if "rewards/accuracies" in logs:
            shown["acc"] = f"{logs['rewards/accuracies']:.2f}"
        self._bar.set_postfix(shown)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
