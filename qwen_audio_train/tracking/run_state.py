"""What became of a run: ``<run.dir>/state.json``, written by the first rank, read by scripts/runs.py.

The file says how the last start of the run ended, and while it trains its modification time is the sign of life. A
process that is killed writes nothing, so ``running`` may be untrue: ``judged`` finds that out.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

STATE_FILE = "state.json"
BEAT_SECONDS = 10.0
"""A training process touches the file that often, at most once a step."""
SILENT_SECONDS = 900.0
"""A run on another machine without a sign of life for so long is called stale: longer than most steps and saves."""


class State(Enum):
    """How the last start of a run ended, or that it has not."""

    running = "running"
    finished = "finished"
    stopped = "stopped"
    """By a signal, with a checkpoint: the same command again goes on."""
    failed = "failed"
    """By an error, which ``reason`` tells."""
    stale = "stale"
    """Called running, but nothing trains there any more: killed, or its machine is gone. Never in the file."""


@dataclass(frozen=True, slots=True)
class RunState:
    """Contents of the file."""

    state: State
    stage: str
    reason: str = ""
    host: str = ""
    process: int = 0
    process_start: int = 0
    """Clock ticks after boot, so that another process of the same number is told apart; 0 where not known."""
    world: int = 1
    slurm_job: str = ""
    started: float = 0.0
    """Unix seconds."""
    ended: float | None = None

    @classmethod
    def of_this_process(cls, stage: str, world: int) -> RunState:
        """Running, from now on."""
        return cls(
            State.running,
            stage,
            host=platform.node(),
            process=os.getpid(),
            process_start=_start_ticks(os.getpid()),
            world=world,
            slurm_job=os.environ.get("SLURM_JOB_ID", ""),
            started=round(time.time(), 3),
        )

    @property
    def is_here(self) -> bool:
        """Whether this very process wrote it."""
        return self.host == platform.node() and self.process == os.getpid()

    @property
    def process_lives(self) -> bool:
        """Whether its process still runs; only to be asked on its own host."""
        ticks = _start_ticks(self.process)
        return ticks != 0 and self.process_start in (0, ticks)


def write_state(run_dir: Path, state: RunState) -> None:
    """Replace the file at once, so that a reader never sees half of it."""
    text = json.dumps({**dataclasses.asdict(state), "state": state.state.value}, indent=1) + "\n"
    aside = run_dir / f".{STATE_FILE}.{os.getpid()}"
    aside.write_text(text, encoding="utf-8")
    aside.replace(run_dir / STATE_FILE)


def read_state(run_dir: Path) -> RunState | None:
    """What the file says; None if there is none, or none that can be read."""
    try:
        fields = json.loads((run_dir / STATE_FILE).read_text(encoding="utf-8"))
        return RunState(**{**fields, "state": State(fields["state"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def end_state(run_dir: Path, state: State, reason: str = "") -> None:
    """Write down how this process's run ended; nothing where the folder is not, or no longer, this process's."""
    ours = read_state(run_dir)
    if ours is not None and ours.is_here:
        write_state(run_dir, dataclasses.replace(ours, state=state, reason=reason, ended=round(time.time(), 3)))


def beat(run_dir: Path) -> None:
    """A sign of life."""
    os.utime(run_dir / STATE_FILE)


def last_sign(run_dir: Path) -> float:
    """Unix seconds of the newest sign of life; 0 where there is none."""
    times = [path.stat().st_mtime for name in (STATE_FILE, "metrics.jsonl") if (path := run_dir / name).exists()]
    return max(times, default=0.0)


def judged(run_dir: Path, state: RunState) -> State:
    """The state, or ``stale`` for a run that only the file calls running."""
    if state.state is not State.running:
        return state.state
    if state.host == platform.node():
        return State.running if state.process_lives else State.stale
    return State.running if time.time() - last_sign(run_dir) < SILENT_SECONDS else State.stale


def _start_ticks(process: int) -> int:
    """When a process started; 0 if there is none."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return 0 if fields[0] in "ZX" else int(fields[19])
