"""Names the rank and the phase that everybody waits for, when nothing moves any more.

Every rank notes its phase in a variable, which costs nothing. A thread of its own puts the note into the key-value
store that the launcher's rendezvous made (``MASTER_ADDR:MASTER_PORT``), over a connection of its own: it works across
nodes without a shared folder, and collectives play no part in it. When this rank's phase is ``runtime.hang_seconds``
old, the thread reads the notes of all: as long as any rank moves, a run is slow and there is no alarm. If none does,
each rank dumps the stacks of its threads to ``<run.dir>/hangs/rank-N.txt``, and the first that answers writes the
report. A rank whose note does not come any more (stopped, lost, or held by code that keeps the interpreter's lock) is
named as such. ``runtime.hang_exit_seconds`` after the last movement each rank ends itself by ``HANG_EXIT_CODE``.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from qwen_audio_train.config.runtime import RuntimeConfig

HANGS = "hangs"
REPORT_FILE = "report.txt"
HANG_EXIT_CODE = 70
"""Of a process that its watchdog ended (sysexits' EX_SOFTWARE)."""
_STORE_SECONDS = 10.0
"""A store that takes longer to answer is lost."""

logger = logging.getLogger(__name__)


class Phase(Enum):
    """What a rank does, in a step's order."""

    start = "start"
    """Before the first step: loading, compiling, the first collective."""
    data = "data"
    """Waits for its batches."""
    agreement = "agreement"
    """The one sum over all ranks before a step."""
    forward = "forward"
    backward = "backward"
    """Under DeepSpeed the optimiser's step too."""
    optimiser = "optimiser"
    """The gradient norm, the update, and what callbacks do."""
    log = "log"
    save = "save"


@dataclass(frozen=True, slots=True)
class Note:
    """What one rank says of itself."""

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    number: int
    """Phases entered so far. All ranks go through the same ones, so the smallest number is furthest behind."""
    age_seconds: float
    """Since it entered the phase, when it said so."""
    beat: int
    """Counts what this rank has said: a rank that lives says more."""

    @property
    def who(self) -> str:
        """For people who want to look at it."""
        return f"rank {self.rank} (host {self.host}, process {self.pid})"

    def __str__(self) -> str:
        return f"{self.who}: step {self.step}, phase {self.phase}, for {self.age_seconds:.0f} s"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the notes of all ranks say together."""

    silent: tuple[Note, ...]
    """Ranks that say nothing any more, by the last they said."""
    missing: tuple[int, ...]
    """Ranks that never said anything."""
    behind: tuple[Note, ...]
    """Ranks with the least progress among those that speak."""
    speaking: tuple[Note, ...]

    @property
    def still_seconds(self) -> float:
        """How long no speaking rank has moved."""
        return min((note.age_seconds for note in self.speaking), default=0.0)

    def __str__(self) -> str:
        if self.silent or self.missing:
            lost = [
                f"{note.who}, which does not answer (stopped, or its host is lost); last heard in step {note.step}, "
                f"phase {note.phase}"
                for note in self.silent
            ]
            lost += [f"rank {rank}: never came to the first step" for rank in self.missing]
            return "everybody waits for " + "; ".join(lost)
        if len(self.behind) < len(self.speaking):
            return "everybody waits for " + "; ".join(map(str, self.behind))
        note = self.behind[0]
        return (
            f"all ranks are in step {note.step}, phase {note.phase}, for {note.age_seconds:.0f} s: they wait for each "
            "other in a collective, or all compute; the stacks say which"
        )


def judge(first: Sequence[Note | None], then: Sequence[Note | None]) -> Verdict:
    """From two looks at the notes of all ranks, far enough apart for a living rank to have said something."""
    missing = tuple(rank for rank, note in enumerate(then) if note is None)
    pairs = [(old, new) for old, new in zip(first, then, strict=True) if new is not None]
    silent = tuple(new for old, new in pairs if old is not None and old.beat == new.beat)
    speaking = tuple(new for _, new in pairs if new not in silent)
    least = min((note.number for note in speaking), default=0)
    behind = tuple(note for note in speaking if note.number == least)
    return Verdict(silent=silent, missing=missing, behind=behind, speaking=speaking)


class Watchdog:
    """One rank's. ``hang_seconds=0`` watches nothing."""

    def __init__(
        self,
        run_dir: Path,
        *,
        rank: int = 0,
        world: int = 1,
        hang_seconds: float = 0.0,
        exit_seconds: float = 0.0,
        end: Callable[[int], Any] = os._exit,
    ) -> None:
        self.folder = run_dir / HANGS
        self._rank = rank
        self._world = world
        self._hang_seconds = hang_seconds
        self._exit_seconds = exit_seconds
        self._end = end
        # A tenth of the time is soon enough to notice; a living rank speaks so often even if it does not move.
        self._beat_seconds = min(max(hang_seconds / 10, 0.1), 15.0)
        self._gap_seconds = min(self._beat_seconds / 4, 2.0)
        self._who = (socket.gethostname(), os.getpid())
        # One tuple, replaced whole: the thread never sees half of a change.
        self._now: tuple[int, Phase, int, float] = (0, Phase.start, 0, time.monotonic())
        self._beat = 0
        self._reported = -1
        self._moved = threading.Event()
        self._ended = threading.Event()
        self._store: Any = None
        self._thread: threading.Thread | None = None

    @classmethod
    def of(cls, runtime: RuntimeConfig, run_dir: Path, *, rank: int, world: int) -> Watchdog:
        """As the configuration says."""
        hang_seconds, exit_seconds = runtime.hang_seconds, runtime.hang_exit_seconds
        return cls(run_dir, rank=rank, world=world, hang_seconds=hang_seconds, exit_seconds=exit_seconds)

    def enter(self, phase: Phase, *, step: int | None = None) -> None:
        """This rank begins a phase (of a step)."""
        last_step, _, number, _ = self._now
        self._now = (last_step if step is None else step, phase, number + 1, time.monotonic())
        self._moved.set()

    def start(self) -> None:
        """Begin to watch, in a thread that ends with the process."""
        if not self._hang_seconds or self._thread is not None:
            return
        self._store = _own_connection() if self._world > 1 else None
        self.enter(Phase.start)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no more; nobody waits for this rank from here on."""
        self._ended.set()
        self._moved.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * _STORE_SECONDS)
            self._thread = None

    def _watch(self) -> None:
        while not self._ended.is_set():
            self._moved.wait(self._beat_seconds)
            self._moved.clear()
            note = self._say()
            if note.age_seconds >= self._hang_seconds:
                self._look(note)
            elif self._reported not in (-1, note.number):
                logger.warning("rank %s moves again: step %s, phase %s", self._rank, note.step, note.phase)
                self._reported = -1
            self._ended.wait(self._gap_seconds)

    def _say(self) -> Note:
        step, phase, number, since = self._now
        self._beat += 1
        age = time.monotonic() - since
        note = Note(self._rank, *self._who, step, phase.value, number, age, self._beat)
        self._ask(lambda store: store.set(_key(self._rank), json.dumps(asdict(note))))
        return note

    def _look(self, own: Note) -> None:
        """This rank has not moved for too long: is that so of all?"""
        verdict = self._verdict(own)
        if verdict is None or verdict.still_seconds < self._hang_seconds:
            return
        if self._reported != own.number:
            self._reported = own.number
            self._report(verdict, own)
        if self._exit_seconds and verdict.still_seconds >= self._exit_seconds:
            logger.error(
                "nothing has moved for %.0f s (runtime.hang_exit_seconds=%g): rank %s ends, exit code %s",
                verdict.still_seconds,
                self._exit_seconds,
                self._rank,
                HANG_EXIT_CODE,
            )
            logging.shutdown()
            self._end(HANG_EXIT_CODE)

    def _verdict(self, own: Note) -> Verdict | None:
        """None if this rank has moved while it looked."""
        if self._world == 1:
            return judge([None], [own])
        first = self._read_all()
        deadline = time.monotonic() + 3 * self._beat_seconds
        while time.monotonic() < deadline and not self._ended.is_set():
            self._say()
            self._ended.wait(self._beat_seconds)
        current = self._say()
        if current.number != own.number:
            return None
        if self._store is None:
            # Who keeps the store (the launcher, else rank 0) is gone: this rank speaks for itself.
            return Verdict(silent=(), missing=(), behind=(current,), speaking=(current,))
        return judge(first, self._read_all())

    def _read_all(self) -> list[Note | None]:
        keys = [_key(rank) for rank in range(self._world)]

        def read(store: Any) -> list[Note | None]:
            if store.check(keys):
                return [_note(text) for text in store.multi_get(keys)]
            return [_note(store.get(key)) if store.check([key]) else None for key in keys]

        return self._ask(read) or [None] * self._world

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        """The store's answer; None without a store. Its own timeout does not cover a server that is stopped."""
        if self._store is None:
            return None
        answers: list[Any] = []
        failures: list[str] = []

        def ask(store: Any) -> None:
            try:
                answers.append(question(store))
            except Exception as error:  # the store raises whatever the connection did
                failures.append(str(error))

        asking = threading.Thread(target=ask, args=(self._store,), name="watchdog-store", daemon=True)
        asking.start()
        asking.join(min(_STORE_SECONDS, self._hang_seconds))
        if answers:
            return answers[0]
        if not self._ended.is_set():
            logger.warning(
                "rank %s: the rendezvous at %s:%s does not answer: its process or host is stopped or lost. %s",
                self._rank,
                os.environ.get("MASTER_ADDR"),
                os.environ.get("MASTER_PORT"),
                *failures or [""],
            )
        self._store = None
        return None

    def _report(self, verdict: Verdict, own: Note) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"rank-{self._rank}.txt").open("a", encoding="utf-8") as stacks:
            stacks.write(f"{_clock()} {own}\n")
            stacks.flush()
            faulthandler.dump_traceback(stacks, all_threads=True)
        _dump_flight_recorder(self.folder / f"rank-{self._rank}.collectives.json")
        if self._rank != min(note.rank for note in verdict.speaking):
            return
        told = f"nothing has moved for {verdict.still_seconds:.0f} s (runtime.hang_seconds={self._hang_seconds:g}): "
        told += str(verdict)
        others = "".join(f"  {note}\n" for note in sorted(verdict.speaking, key=lambda note: note.rank))
        with (self.folder / REPORT_FILE).open("a", encoding="utf-8") as report:
            report.write(f"{_clock()} {told}\nRanks that answer:\n{others}\n")
        logger.error("%s. Stacks of the ranks that answer: %s", told, self.folder)


def _own_connection() -> Any:
    """A second client of the store that the process group met in: the group's own is locked while it waits."""
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(*place, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=_STORE_SECONDS))
    # After a restart by the launcher the store may still hold the notes of the processes before.
    return PrefixStore(f"watchdog/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _key(rank: int) -> str:
    return f"rank-{rank}"


def _note(text: bytes) -> Note:
    return Note(**json.loads(text))


def _clock() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _dump_flight_recorder(path: Path) -> None:
    """The last collectives that this rank was given, as torch's flight recorder kept them."""
    if not dist.is_initialized():
        return
    kept = "_dump_nccl_trace_json" if dist.get_backend() == "nccl" else "_dump_fr_trace_json"
    try:
        path.write_bytes(getattr(torch._C._distributed_c10d, kept)(True, False))
    except (AttributeError, OSError, RuntimeError, TypeError) as error:
        # Not a public function of torch: what is lost is one file of a report.
        logger.warning("the flight recorder's entries could not be written: %s", error)
