"""Faults that a rank of ``rank_runs`` meets: each is a picklable ``prepare(rank)``.

File operations are counted at what Python code can see of a save: opening for writing, mkdir, rename, unlink, rmdir,
fsync, and the writers in C++ and Rust, which are cut in the middle. A fault comes *before* the n-th operation, so that
"after" it is the next number's case.
"""

from __future__ import annotations

import errno
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_EVENTS = {"os.mkdir": 0, "os.rename": 0, "os.remove": 0, "os.rmdir": 0}


@dataclass(frozen=True)
class AtOperation:
    """Kill this rank at its n-th file operation below ``folder`` (from 1). 0 counts only."""

    folder: Path
    rank: int
    number: int
    log: Path | None = None
    """Where each operation is written down, to know how many there are."""

    def __call__(self, rank: int) -> None:
        """Install."""
        if rank == self.rank:
            _Operations(self)


@dataclass(frozen=True)
class AtStep:
    """Send a signal when a step begins, or a while later."""

    rank: int
    step: int
    number: int = signal.SIGKILL
    seconds: float = 0.0
    """From the step's beginning."""

    def __call__(self, rank: int) -> None:
        """Install."""
        if rank == self.rank:
            before_step(self.step, self._strike)

    def _strike(self) -> None:
        if self.seconds:
            threading.Timer(self.seconds, os.kill, (os.getpid(), self.number)).start()
        else:
            os.kill(os.getpid(), self.number)


@dataclass(frozen=True)
class NoRoom:
    """No file of this rank may exceed so many bytes while the save of a step runs: what a full disk does to writers."""

    rank: int
    step: int
    bytes: int = 4096

    def __call__(self, rank: int) -> None:
        """Install."""
        if rank == self.rank:
            around_save(self.step, self._limited)

    @contextmanager
    def _limited(self) -> Iterator[None]:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.bytes, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@dataclass(frozen=True)
class FullDisk:
    """The file system of ``folder`` has so many bytes left while the save of a step runs."""

    folder: Path
    step: int
    bytes: int

    def __call__(self, rank: int) -> None:
        """Install."""
        if rank == 0:
            around_save(self.step, self._filled)

    @contextmanager
    def _filled(self) -> Iterator[None]:
        ballast = self.folder / "ballast"
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(self.folder).free - self.bytes))
        try:
            yield
        finally:
            ballast.unlink()


@dataclass(frozen=True)
class ReadOnly:
    """``folder`` cannot be written while the save of a step runs. Needs the right to mount."""

    folder: Path
    step: int

    def __call__(self, rank: int) -> None:
        """Install."""
        if rank == 0:
            around_save(self.step, lambda: read_only(self.folder))


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder that nobody can write, root neither."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@dataclass(frozen=True)
class FlushFails:
    """The disk reports an error when this rank flushes its files of a step."""

    rank: int
    step: int

    def __call__(self, rank: int) -> None:
        """Install."""
        if rank != self.rank:
            return
        from qwen_audio_train.checkpoint import manifest

        entries = manifest.flushed_entries

        def failing(folder: Path, names: Any) -> Any:
            if folder.name == f"checkpoint-{self.step}":
                raise OSError(errno.EIO, "Input/output error")
            return entries(folder, names)

        manifest.flushed_entries = failing


@dataclass(frozen=True)
class OneStepOff:
    """Go on one step behind where the checkpoint stands: what no check of ours may miss."""

    def __call__(self, rank: int) -> None:
        """Install."""
        from dataclasses import replace

        from qwen_audio_train.pipeline.batches import PlannedBatches

        resume = PlannedBatches.resume

        def resuming(batches: Any, position: str) -> None:
            resume(batches, position)
            later = batches.plan.position_at(batches._start.step + 1)
            batches._start = replace(later, taken=batches._start.taken)

        PlannedBatches.resume = resuming  # type: ignore[method-assign]


def around_save(step: int, around: Callable[[], AbstractContextManager[None]]) -> None:
    """Hold this rank's save of a step, and nothing of the one before, in a context."""
    from qwen_audio_train.training.saving import Saver

    save = Saver.save

    def saving(saver: Any) -> None:
        if saver._trainer.state.global_step != step:
            save(saver)
            return
        saver.settle()
        with around():
            save(saver)

    Saver.save = saving  # type: ignore[method-assign]


def before_step(step: int, strike: Callable[[], None]) -> None:
    """Call when the batches of a step are asked for."""
    from qwen_audio_train.training.planned import PlannedTraining

    get = PlannedTraining.get_batch_samples

    def getting(trainer: Any, *arguments: Any) -> Any:
        if trainer.state.global_step + 1 == step:
            strike()
        return get(trainer, *arguments)

    PlannedTraining.get_batch_samples = getting  # type: ignore[method-assign]


class _Operations:
    """Counts and kills."""

    def __init__(self, fault: AtOperation) -> None:
        self._fault = fault
        self._below = str(fault.folder)
        self._count = 0
        self._lock = threading.RLock()
        self._wrap_writers()
        fsync = os.fsync

        def flushing(descriptor: int) -> None:
            self._note("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
            fsync(descriptor)

        os.fsync = flushing
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, os.PathLike)) and flags is not None and flags & _WRITING:
                self._note("open", path)
        elif event in _EVENTS:
            self._note(event, arguments[_EVENTS[event]])

    def _note(self, what: str, path: Any) -> bool:
        """Whether this operation is the one."""
        if not str(path).startswith(self._below):
            return False
        with self._lock:
            self._count += 1
            if self._fault.log is not None:
                with open(self._fault.log, "a") as log:
                    log.write(f"{self._count} {what} {path}\n")
            if self._count == self._fault.number:
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)
        return False

    def _wrap_writers(self) -> None:
        """Between begin and end of a file that no Python code writes, or that Python writes at once."""
        import safetensors.torch
        import torch
        import transformers.modeling_utils

        save, save_file, write_text = torch.save, safetensors.torch.save_file, pathlib.Path.write_text

        def saving(state: Any, path: Any, *arguments: Any, **named: Any) -> None:
            self._note("torch.save", path)
            save(state, path, *arguments, **named)
            self._cut("torch.save half", path)

        def saving_file(tensors: Any, path: Any, *arguments: Any, **named: Any) -> None:
            self._note("safetensors", path)
            save_file(tensors, path, *arguments, **named)
            self._cut("safetensors half", path)

        def writing(path: Path, *arguments: Any, **named: Any) -> int:
            written = write_text(path, *arguments, **named)
            self._cut("write_text half", path)
            return written

        torch.save = saving
        safetensors.torch.save_file = saving_file
        if hasattr(transformers.modeling_utils, "safe_save_file"):
            transformers.modeling_utils.safe_save_file = saving_file
        pathlib.Path.write_text = writing  # type: ignore[method-assign,assignment]

    def _cut(self, what: str, path: Any) -> None:
        """The file as a kill in its middle leaves it, if it is this one's turn."""
        if self._count + 1 == self._fault.number and str(path).startswith(self._below):
            os.truncate(path, os.path.getsize(path) // 2)
        self._note(what, path)
