"""Ctrl-C, SIGTERM and SIGUSR1 end a run at a step's boundary, with a checkpoint."""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

from transformers import TrainerCallback

logger = logging.getLogger(__name__)

PREEMPTION_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send: SIGTERM when a job has to make room, SIGUSR1 (by our batch scripts) before its time is up."""


class GracefulStop(TrainerCallback):
    """The handler only sets a flag; ranks agree on it when they count the next step's items, and stop after it.

    A second Ctrl-C gives up at once. A scheduler's signals are never impatient: they come to every process of a job,
    and again from launchers, so that one request may be heard several times.
    """

    def __init__(self) -> None:
        self.wanted = False
        self.preempted = False
        """Whether it was a scheduler that asked, of this rank."""
        self.agreed = False
        self.agreed_preempted = False
        """Whether a scheduler asked any rank."""
        self._interrupts = 0
        self._previous: dict[int, Any] = {}
        self._process = os.getpid()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Listen."""
        for number in (signal.SIGINT, *PREEMPTION_SIGNALS):
            self._previous[number] = signal.signal(number, self._note)

    def agree(self, num_wanting: float, num_preempted: float) -> None:
        """Take up the sums of ``wanted`` and ``preempted`` over all ranks, which are the same on each."""
        self.agreed = num_wanting > 0
        self.agreed_preempted = num_preempted > 0

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
            # A forked process inherits the handler, not the run: it just ends (pipeline/loading.py: workers do not).
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
        else:
            self.preempted = True
        if not self.wanted:
            logger.warning("%s: stopping after this step, with a checkpoint", signal.Signals(number).name)
        self.wanted = True
