"""A rank that goes through the phases of a run without a model, for tests of the watchdog.

``python -m tests.recipes.watched FOLDER TROUBLE``; one process a rank. Rank 1 has the trouble, in step 3
(``stop-first``: rank 0).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from qwen_audio_train.config.runtime import Device, RuntimeConfig
from qwen_audio_train.training import runtime
from qwen_audio_train.training.watchdog import Phase, Watchdog

CONFIG = RuntimeConfig(device=Device.cpu, hang_seconds=2.5, hang_exit_seconds=8.0)
STEPS = 5


def meet() -> None:
    """A collective."""
    dist.all_reduce(torch.ones(2))


def wait_until_said(watchdog: Watchdog) -> None:
    """Until its thread has told the others where this rank is."""
    beat = watchdog._beat
    while watchdog._beat < beat + 2:  # counted before it is told: the second began after the first was told
        time.sleep(0.01)


def spend_for_ever(watchdog: Watchdog) -> None:
    while True:
        time.sleep(0.1)


def main(folder: Path, trouble: str) -> None:
    ranks = runtime.start(CONFIG, seed=0)
    watchdog = Watchdog.of(CONFIG, folder, rank=ranks.rank, world=ranks.world)
    watchdog.start()
    (folder / f"rank-{ranks.rank}.pid").write_text(str(os.getpid()))
    for step in range(1, STEPS + 1):
        is_troubled = step == 3 and ranks.rank == (0 if trouble == "stop-first" else 1)
        watchdog.enter(Phase.data, step=step)
        if is_troubled and trouble == "data":
            spend_for_ever(watchdog)
        watchdog.enter(Phase.agreement)
        meet()
        for _ in range(8):
            watchdog.enter(Phase.forward)
            if is_troubled and trouble == "slow":
                time.sleep(0.7)
            watchdog.enter(Phase.backward)
            if is_troubled and trouble.startswith("stop"):
                wait_until_said(watchdog)
                os.kill(os.getpid(), signal.SIGSTOP)
        meet()
        watchdog.enter(Phase.optimiser)
    watchdog.stop()
    ranks.wait()  # as a run does before it ends: nobody asks a store whose keeper is gone
    runtime.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
