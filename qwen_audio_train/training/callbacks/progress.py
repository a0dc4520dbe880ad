"""The progress bar and the metric lines of a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from qwen_audio_train.tracking.writer import MetricWriter

LOG_INTERVAL_SECONDS = 15.0
"""Between redraws of the bar where it goes to a file."""

SHOWN = {
    "loss": ("loss", "{:.3f}"),
    "acc": ("rewards/accuracies", "{:.2f}"),
    "audio": ("audio_seconds_per_second", "{:.0f}s/s"),
    "tok": ("tokens_per_second", "{:.0f}/s"),
    "mfu": ("model_flops_utilisation", "{:.0%}"),
    "wait": ("data_wait_share", "{:.0%}"),
    "mem": ("peak_device_memory_gib", "{:.1f}G"),
}
"""What stands behind the bar: name there, name in tracking/metrics.py, form."""


class Progress(TrainerCallback):
    """A bar with step, ETA and what ``shown`` says, and a line of metrics at every log; first rank only."""

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
        self._bar.set_postfix(shown(logs))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


def shown(logs: Mapping[str, float]) -> dict[str, str]:
    """The numbers behind the bar, short: those of SHOWN that there are."""
    return {short: form.format(logs[name]) for short, (name, form) in SHOWN.items() if name in logs}
