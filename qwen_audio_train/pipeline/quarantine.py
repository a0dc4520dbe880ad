"""Samples that cannot be used: noted, left out without moving any other sample, and stopping the run where too many.

A failed sample leaves its slot in its bin empty. Workers hand failures over with the batch; the main process of each
rank writes them to ``<run.dir>/quarantine.jsonl``; the counts go through the step's one sum over all ranks, so that all
ranks stop at the same step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_audio_train.errors import SampleError, ShardError
from qwen_audio_train.samples import BatchSizes, Origin

QUARANTINE_FILE = "quarantine.jsonl"
LEAST_SAMPLES_JUDGED = 10_000
"""A share is taken of at least so many samples: the first bad one of a run would be all of it."""
_REASONS_TOLD = 3


@dataclass(frozen=True, slots=True)
class Failure:
    """One sample that could not be used, and why."""

    source: str
    """Name in the mixture."""
    dataset: str
    shard: str
    key: str
    """Empty where not even the key could be read."""
    sample: int
    """Number in its set."""
    reason: str

    @classmethod
    def of(cls, error: Exception, *, source: str, dataset: str, shard: str, sample: int) -> Failure:
        """From what was raised while the sample was read, decoded or rendered."""
        if isinstance(error, SampleError):
            origin = error.origin
            return cls(source, origin.dataset, origin.shard, origin.key, sample, error.reason)
        return cls(source, dataset, shard, "", sample, f"{type(error).__name__}: {error}")

    def __str__(self) -> str:
        return f"sample {self.sample} '{self.key}' of {self.source} (shard {self.shard}): {self.reason}"


class MicroBatch(dict[str, Any]):
    """The batch of one bin (see collate.py), its sizes, and what of the bin could not be used."""

    def __init__(
        self,
        batch: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
        *,
        sizes: BatchSizes | None = None,
        usable: Sequence[bool] = (),
        failures: Sequence[Failure] = (),
        origins: Sequence[Origin] = (),
    ) -> None:
        super().__init__(batch)
        self.sizes = sizes or BatchSizes()
        self.usable = tuple(usable)
        """One entry a slot of the bin, in its order."""
        self.failures = tuple(failures)
        self.origins = tuple(origins)
        """Of the samples that are in it, in the order of their rows."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When bad samples stop a run."""

    max_consecutive: int
    max_share: float

    def exceeded(self, *, num_bad: int, num_read: int, longest_row: int) -> str | None:
        """Which limit is exceeded, in words; None if none is."""
        if longest_row >= self.max_consecutive:
            return f"{longest_row} samples in a row, data.max_bad_consecutive={self.max_consecutive}"
        if num_bad > self.max_share * max(num_read, LEAST_SAMPLES_JUDGED):
            judged = f"{num_bad} of {num_read} samples read"
            return f"{judged}, data.max_bad_share={self.max_share} (of at least {LEAST_SAMPLES_JUDGED})"
        return None

    def require(self, *, num_bad: int, num_read: int, longest_row: int, where: Path, first: Sequence[str]) -> None:
        """Raises ShardError with a report if a limit is exceeded."""
        limit = self.exceeded(num_bad=num_bad, num_read=num_read, longest_row=longest_row)
        if limit is None:
            return
        told = "".join(f"\n  {reason}" for reason in first[:_REASONS_TOLD])
        raise ShardError(
            f"too many unusable samples: {limit}. All are listed in {where}; the first:{told or ' not on this rank'}\n"
            "Verify the sets with scripts/check_shards.py and restore or drop what is broken; or raise the limit"
        )


class Quarantine:
    """What one rank has left out since the process started. Lives in the main process, not in workers."""

    def __init__(self, run_dir: Path, limits: Limits, *, rank: int) -> None:
        self.path = run_dir / QUARANTINE_FILE
        self.limits = limits
        self.rank = rank
        self.num_bad = 0
        """Over all ranks."""
        self.num_read = 0
        self._first: list[str] = []
        self._row = 0
        self._longest_row = 0

    def note(self, batches: Iterable[Mapping[str, Any]], step: int) -> tuple[int, int, int]:
        """Write down a step's failures of this rank.

        Returns:
            What is to be summed over the ranks: samples read, samples failed, and 1 if this rank has seen too many in
            a row.
        """
        num_read = num_bad = 0
        for batch in batches:
            if not isinstance(batch, MicroBatch):
                continue
            for usable in batch.usable:
                self._row = 0 if usable else self._row + 1
                self._longest_row = max(self._longest_row, self._row)
            num_read += len(batch.usable)
            num_bad += len(batch.failures)
            self._write(batch.failures, step)
        return num_read, num_bad, int(self._longest_row >= self.limits.max_consecutive)

    def settle(self, num_read: int, num_bad: int, num_ranks_with_row: int) -> None:
        """Take the sums over all ranks. Raises ShardError, on every rank alike, if a limit is exceeded."""
        self.num_read += num_read
        self.num_bad += num_bad
        row = max(self._longest_row, self.limits.max_consecutive) if num_ranks_with_row else 0
        self.limits.require(
            num_bad=self.num_bad, num_read=self.num_read, longest_row=row, where=self.path, first=self._first
        )

    def _write(self, failures: Sequence[Failure], step: int) -> None:
        if not failures:
            return
        room = _REASONS_TOLD - len(self._first)
        self._first += [str(failure) for failure in failures[:room]]
        # One write a line to a file opened for appending: ranks of one machine do not mix their lines.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            for failure in failures:
                os.write(descriptor, json_line({**asdict(failure), "step": step, "rank": self.rank}))
        finally:
            os.close(descriptor)


def json_line(values: Mapping[str, object]) -> bytes:
    """One line of a .jsonl file."""
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"
