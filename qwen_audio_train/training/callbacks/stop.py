"""Ctrl-C and SIGTERM end a run at a step's boundary, with a checkpoint."""

from __future__ import annotations

import logging
import signal
from typing import Any

from transformers import TrainerCallback

logger = logging.getLogger(__name__)


class GracefulStop(TrainerCallback):
    """The handler only sets a flag; ranks agree on it when they count the next step's items, and stop after it.

    A second Ctrl-C gives up at once.
    """

    def __init__(self) -> None:
        self.wanted = False
        self.agreed = False
        self._previous: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Listen."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop when any rank was asked to."""
        if self.agreed:
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Hand signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: Any) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True
        logger.warning("%s: stopping after this step, with a checkpoint", signal.Signals(number).name)
