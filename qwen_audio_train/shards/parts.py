"""Dividing the preparation of one set among machines that share nothing but a file system.

Shard n is written by part n modulo the number of parts. A part works in a folder of its own inside the set's and moves
finished shards out of it, the index last, so that no two processes write the same file and a shard that has its name is
whole. When it is through, a part leaves a record of how many shards its listing came to; finishing a set needs the
records of all parts, and that they agree.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_audio_train.errors import ConfigError, ShardError
from qwen_audio_train.shards.contract import SKIPPED_FILE
from qwen_audio_train.shards.dataset import describe_set
from qwen_audio_train.shards.files import TEMPORARY_SUFFIX, json_bytes, write_file
from qwen_audio_train.shards.index import index_path
from qwen_audio_train.shards.writer import SKIPPED_PART_SUFFIX, shard_name

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.json"
"""Lies in the folder while a set is being prepared; the finished set has its recipe in ``dataset.json``."""
RECORD_NAME = re.compile(r"part-(\d+)-of-(\d+)\.json")
NAMED_AT_MOST = 10
"""Missing parts that an error names."""


@dataclass(frozen=True, slots=True)
class Part:
    """Part ``index`` of ``count``, counted from 0."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(f"part {self.index}/{self.count}: expected I/N with 0 <= I < N, the first part is 0/N")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def file_stem(self) -> str:
        """Begins the name of everything that this part keeps in the set's folder while it works."""
        return f"part-{self.index:05d}-of-{self.count:05d}"

    @classmethod
    def parse(cls, text: str) -> Part:
        """From ``I/N``. Raises ConfigError."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None:
            raise ConfigError(f"--part {text}: expected I/N, for instance 0/8")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Part | None:
        """The part that a SLURM array task is, or None outside of an array.

        Raises:
            ConfigError: an array with gaps, as in ``--array=3,7``: its task ids do not tell the parts.
        """
        if "SLURM_ARRAY_TASK_ID" not in environment or "SLURM_ARRAY_TASK_COUNT" not in environment:
            return None
        task, count = int(environment["SLURM_ARRAY_TASK_ID"]), int(environment["SLURM_ARRAY_TASK_COUNT"])
        first, step = (int(environment.get(f"SLURM_ARRAY_TASK_{name}", default)) for name, default in RANGE_OF_ARRAY)
        index, rest = divmod(task - first, step)
        if rest or not 0 <= index < count:
            raise ConfigError(
                f"SLURM array task {task} of {count} is in an array with gaps; say which part: --part I/N"
            )
        return cls(index, count)


ALL = Part()
"""One process tree writes the whole set."""
RANGE_OF_ARRAY = (("MIN", "0"), ("STEP", "1"))


class Listing:
    """Counts samples as they are listed and digests their keys: machines that list alike have equal records."""

    def __init__(self, samples_per_shard: int) -> None:
        self.num_samples = 0
        self._samples_per_shard = samples_per_shard
        self._digest = hashlib.sha256()

    def add(self, keys: Iterable[str]) -> None:
        """The keys of the next samples, in their order."""
        for key in keys:
            self.num_samples += 1
            self._digest.update(key.encode() + b"\n")

    def record(self) -> dict[str, Any]:
        """What a part leaves behind when it is through."""
        num_shards = -(-self.num_samples // self._samples_per_shard)
        return {"num_samples": self.num_samples, "num_shards": num_shards, "keys_sha256": self._digest.hexdigest()}


@contextmanager
def workplace(directory: Path, part: Part) -> Iterator[Path]:
    """A folder inside the set's that no other process writes into; what an earlier, killed one left is removed.

    Two processes of the same part are a mistake; the one that loses its folder stops, and no file is harmed.
    """
    remove_workplaces(directory, part.file_stem)
    folder = Path(tempfile.mkdtemp(prefix=f"{part.file_stem}.", dir=directory))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_workplaces(directory: Path, stem: str = "part-") -> None:
    """Remove what processes that were killed left behind."""
    for leftover in directory.glob(f"{stem}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)


def is_written(tar_path: Path) -> bool:
    """Whether a shard is whole: its index is there, or all that it would hold was left out."""
    nothing_left = tar_path.with_suffix(SKIPPED_PART_SUFFIX).exists() and not tar_path.exists()
    return index_path(tar_path).exists() or nothing_left


def move_shard(staged: Path, tar_path: Path) -> None:
    """Give a shard that was written in a workplace its final name: first the tar, the index last (see is_written)."""
    skipped = staged.with_suffix(SKIPPED_PART_SUFFIX)
    if not skipped.exists():
        tar_path.with_suffix(SKIPPED_PART_SUFFIX).unlink(missing_ok=True)
    for source in (staged, skipped, index_path(staged)):
        if source.exists():
            source.replace(tar_path.with_name(source.name))
    folder = os.open(tar_path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_record(directory: Path, part: Part, listing: Listing, folder: Path) -> None:
    """Say that ``part`` is through. ``folder`` is its workplace."""
    name = f"{part.file_stem}.json"
    write_file(folder / name, json_bytes(listing.record()))
    (folder / name).replace(directory / name)


def finish_set(directory: Path, name: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a folder of whole shards into a set and return its description.

    Nothing that a second try would need is removed before the set is described.

    Raises:
        ShardError: see ``describe_set``.
    """
    skipped = sorted(directory.glob(f"*{SKIPPED_PART_SUFFIX}"))
    if skipped:
        write_file(directory / SKIPPED_FILE, b"".join(path.read_bytes() for path in skipped))
    description = describe_set(directory, name, recipe=recipe)
    tidy(directory)
    logger.info(
        "%s: %d samples, %.2f h, %d skipped",
        *(directory, description["num_samples"], description["seconds"] / 3600, description["num_skipped"]),
    )
    return description


def tidy(directory: Path) -> None:
    """Remove from a described set what was needed to make it."""
    remove_workplaces(directory)
    for pattern in (f"*{SKIPPED_PART_SUFFIX}", f"*{TEMPORARY_SUFFIX}", "part-*.json", RECIPE_FILE):
        for path in directory.glob(pattern):
            path.unlink(missing_ok=True)


def check_parts(directory: Path, name: str) -> None:
    """Check that all parts of a set are through and agree.

    Raises:
        ShardError: says which parts are missing, listed other samples than the rest, or lost a shard.
    """
    records = _complete_records(directory)
    first = records[0]
    odd = [str(Part(index, len(records))) for index, record in enumerate(records) if record != first]
    if odd:
        raise ShardError(
            f"'{directory}': part {', '.join(odd[:NAMED_AT_MOST])} listed other samples than part 0 ({first}); all "
            "need the same --input and options: remove the folder and prepare it again"
        )
    lost = [n for n in range(first["num_shards"]) if not is_written(directory / shard_name(name, n))]
    if lost:
        part = Part(lost[0] % len(records), len(records))
        raise ShardError(
            f"'{directory}': {len(lost)} shards are gone, the first is {shard_name(name, lost[0])}; run --part {part}"
        )


def _complete_records(directory: Path) -> list[dict[str, Any]]:
    found: dict[int, dict[int, dict[str, Any]]] = {}
    for path in directory.glob("part-*.json"):
        if match := RECORD_NAME.fullmatch(path.name):
            found.setdefault(int(match[2]), {})[int(match[1])] = json.loads(path.read_bytes())
    if not found:
        raise ShardError(f"no part of '{directory}' is through; run --part 0/N to N-1/N, then --finish")
    # A set may have been begun with another number of parts; what counts is the one that got furthest.
    count = max(found, key=lambda count: len(found[count]) / count)
    missing = [str(Part(index, count)) for index in range(count) if index not in found[count]]
    if missing:
        more = f" and {len(missing) - NAMED_AT_MOST} more" if len(missing) > NAMED_AT_MOST else ""
        named = ", ".join(missing[:NAMED_AT_MOST]) + more
        raise ShardError(
            f"'{directory}': {len(missing)} of {count} parts are not through: {named}; run them (--part I/{count}), "
            "then --finish again"
        )
    return [found[count][index] for index in range(count)]
