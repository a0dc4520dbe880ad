"""From the plan's bins to a DataLoader's workers, each of which is told which bin it will get next.

A loader deals its bins out to the workers in turn, so the next bin of a worker is as many bins further on as there are
workers: it can fetch that bin's bytes while it makes the one before.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from torch.utils.data import Dataset, Sampler

from qwen_audio_train.pipeline.quarantine import MicroBatch
from qwen_audio_train.plan.windows import Bin


class Draw(NamedTuple):
    """One slot of a bin: which sample of which source, the how-many-th time."""

    source: int
    sample: int
    epoch: int


class Job(NamedTuple):
    """What a worker gets."""

    planned: Bin
    following: Bin | None
    """The bin that the same worker gets next; None where it need not know, and after the last."""


class Builder(Protocol):
    """Draws -> one batch."""

    def build(self, draws: Sequence[Draw]) -> MicroBatch:
        """The batch of a bin."""

    def prefetch(self, draws: Sequence[Draw]) -> None:
        """Hint that this bin will be built next."""


def jobs(bins: Iterator[Bin], ahead: int) -> Iterator[Job]:
    """Each bin with the one that comes ``ahead`` bins after it; with ``ahead`` 0 none, and nothing is planned early."""
    if ahead == 0:
        yield from (Job(planned, None) for planned in bins)
        return
    waiting: deque[Bin] = deque()
    for following in bins:
        if len(waiting) == ahead:
            yield Job(waiting.popleft(), following)
        waiting.append(following)
    yield from (Job(planned, None) for planned in waiting)


class BinReader(Dataset[MicroBatch]):
    """All that a worker process gets: it knows nothing of the plan."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder

    def __getitem__(self, job: Job) -> MicroBatch:
        if job.following is not None:
            self._builder.prefetch(_draws(job.following))
        return self._builder.build(_draws(job.planned))


class JobSampler(Sampler[Job]):
    """Walks the jobs; starts over with each iterator."""

    def __init__(self, walk: Callable[[], Iterator[Job]], length: int) -> None:
        self._walk = walk
        self._length = length

    def __iter__(self) -> Iterator[Job]:
        return self._walk()

    def __len__(self) -> int:
        return self._length


def begin_worker(_worker: int) -> None:
    """In a worker process: end with the run, and not before it."""
    outlive_signals()
    run = multiprocessing.parent_process()
    if run is not None:
        threading.Thread(target=_end_with, args=(run.sentinel,), name="end-with-run", daemon=True).start()


def outlive_signals() -> None:
    """Leave the signals that stop a run to the run.

    Terminals and schedulers signal every process of a job, and a loader whose worker ends by it fails the run before
    its checkpoint. A worker ends with its loader or its run. One that hangs gets a SIGTERM from each, so that the
    second one counts. Torch has put handlers of its own by now, which would end the worker at the first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_at_the_next)


def _end_at_the_next(number: int, _frame: Any) -> None:
    signal.signal(number, signal.SIG_DFL)


def _end_with(sentinel: int) -> None:
    """Torch's worker looks for another parent process to know that its run was killed. Under a fork server, Python's
    default from 3.14 on, the server is the parent and lives as long as its workers do: they would stay for ever.
    """
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _draws(planned: Bin) -> list[Draw]:
    columns = (planned.sources.tolist(), planned.samples.tolist(), planned.epochs.tolist())
    return [Draw(*draw) for draw in zip(*columns, strict=True)]
