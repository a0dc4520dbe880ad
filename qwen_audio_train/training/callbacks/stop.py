"""Ctrl-C and SIGTERM end a run at a step's boundary, with a checkpoint."""

from __future__ import annotations

import logging
import os
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
        self._process = os.getpid()

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
        self.release()

    def release(self) -> None:
        """Hand signals back; also for a run that ended by an error, which the library tells no callback."""
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _note(self, number: int, _frame: Any) -> None:
        if os.getpid() != self._process:
            # A forked process (a DataLoader's worker) inherits the handler, not the run: it just ends.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True
        logger.warning("%s: stopping after this step, with a checkpoint", signal.Signals(number).name)
