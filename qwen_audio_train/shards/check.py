"""Verify a set bit by bit: what opening it takes on trust for the sake of speed is read here in full.

One process a shard, one pass over its bytes; a bad sample or a bad shard is a finding, and the check goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from qwen_audio_train.audio.decode import decode_audio
from qwen_audio_train.audio.lengths import SAMPLING_RATE_HZ
from qwen_audio_train.errors import ShardError
from qwen_audio_train.shards.contract import DATASET_FILE
from qwen_audio_train.shards.dataset import read_description
from qwen_audio_train.shards.files import TEMPORARY_SUFFIX, sha256_of_file
from qwen_audio_train.shards.index import ShardIndex, open_index
from qwen_audio_train.shards.indexed_rows import IndexedRows
from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.shards.scan import WholeSample, scan_whole_samples
from qwen_audio_train.shards.writer import clip_length_problem

SILENT_PEAK = 1e-4
"""Of full scale (-80 dB). Silence is legal audio, but under a text it is nearly always a mistake."""
SET_WIDE = "(set)"

Level = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or worth a look."""

    level: Level
    dataset: str
    shard: str
    key: str
    """Empty where it is about the shard or the set."""
    reason: str

    def __str__(self) -> str:
        return f"{self.dataset} {self.shard}{' ' + self.key if self.key else ''}: {self.reason}"


@dataclass(slots=True)
class SetReport:
    """What was looked at and what was found."""

    dataset: str
    num_shards: int = 0
    num_samples: int = 0
    num_clips: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        """Findings that make the set unfit."""
        return [finding for finding in self.findings if finding.level == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """Findings to look at."""
        return [finding for finding in self.findings if finding.level == "warning"]


@dataclass(slots=True)
class _ShardReport:
    dataset: str
    shard: str
    findings: list[Finding] = field(default_factory=list)
    key_hashes: list[int] = field(default_factory=list)
    num_clips: int = 0
    num_audio_samples: int = 0
    num_bad: int = 0
    """Samples that could not be looked at further."""

    def bad(self, key: str, reason: str) -> None:
        self.num_bad += 1
        self.error(reason, key)

    def error(self, reason: str, key: str = "") -> None:
        self.findings.append(Finding("error", self.dataset, self.shard, key, reason))

    def errors(self, reasons: Iterable[str]) -> None:
        for reason in reasons:
            self.error(reason)

    def warning(self, reason: str, key: str = "") -> None:
        self.findings.append(Finding("warning", self.dataset, self.shard, key, reason))


def check_set(path: Path, *, workers: int = 0, limit: int | None = None, show_progress: bool = False) -> SetReport:
    """Check a set, given its folder or its ``dataset.json``: checksums, structure, metadata, and every clip decoded.

    Args:
        workers: processes; 0 works in this one.
        limit: check only so many samples, from the first on; whole-file checksums are then left out.
    """
    directory = path.parent if path.name == DATASET_FILE else path
    try:
        description = read_description(directory / DATASET_FILE)
    except ShardError as error:
        report = SetReport(directory.name)
        report.findings.append(Finding("error", directory.name, SET_WIDE, "", str(error)))
        return report
    report = SetReport(str(description["name"]))
    jobs = list(_jobs(directory, description, limit))
    with tqdm(
        total=sum(job[3] for job in jobs), desc=report.dataset, unit="sample", disable=not show_progress
    ) as progress:
        shard_reports: list[_ShardReport] = []
        for shard_report, num_expected in _run(jobs, workers):
            shard_reports.append(shard_report)
            progress.update(num_expected)
            progress.set_postfix(errors=sum(f.level == "error" for r in shard_reports for f in r.findings))
    for shard_report in sorted(shard_reports, key=lambda shard_report: shard_report.shard):
        report.num_shards += 1
        report.num_samples += len(shard_report.key_hashes)
        report.num_clips += shard_report.num_clips
        report.seconds += shard_report.num_audio_samples / SAMPLING_RATE_HZ
        report.findings += shard_report.findings
    hashes = [np.array(shard_report.key_hashes, np.uint64) for shard_report in shard_reports]
    report.findings += _set_findings(directory, description, hashes)
    return report


_Job = tuple[Path, str, Mapping[str, Any], int, bool, int]


def _jobs(directory: Path, description: Mapping[str, Any], limit: int | None) -> Iterator[_Job]:
    left = limit
    for number, shard in enumerate(description["shards"]):
        num_samples = int(shard.get("num_samples", 0))
        stated = {**shard, "split": description["split"]}
        if left is None:
            yield directory, str(description["name"]), stated, num_samples, True, number
        elif left > 0:
            num_samples = min(left, num_samples)
            left -= num_samples
            yield directory, str(description["name"]), stated, num_samples, False, number


def _run(jobs: Iterable[_Job], workers: int) -> Iterator[tuple[_ShardReport, int]]:
    if workers == 0:
        for job in jobs:
            yield _check_shard(*job), job[3]
        return
    with ProcessPoolExecutor(workers) as pool:
        futures = {pool.submit(_check_shard, *job): job[3] for job in jobs}
        try:
            for future in as_completed(futures):
                yield future.result(), futures[future]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _check_shard(
    directory: Path, dataset: str, stated: Mapping[str, Any], num_samples: int, whole: bool, number: int
) -> _ShardReport:
    tar_path = directory / stated["file"]
    report = _ShardReport(dataset, tar_path.name)
    index: ShardIndex | None = None
    try:
        index = open_index(tar_path)
    except ShardError as error:
        report.error(str(error))
    rows = IndexedRows(tar_path, number, index)
    try:
        report.errors(rows.problems())
        samples = scan_whole_samples(tar_path, on_bad=report.bad)
        for sample in samples if whole else islice(samples, num_samples):
            if _check_sample(sample, stated, report):
                report.errors(rows.problems_of(sample, len(report.key_hashes) + report.num_bad - 1))
        if whole:
            report.errors(rows.count_problems(len(report.key_hashes) + report.num_bad))
            report.errors(_differing(tar_path, stated, report))
    except (OSError, ShardError) as error:
        report.error(str(error))
    return report


def _differing(tar_path: Path, stated: Mapping[str, Any], report: _ShardReport) -> Iterator[str]:
    found: dict[str, Any] = {"num_samples": len(report.key_hashes), "num_clips": report.num_clips}
    found |= {"bytes": tar_path.stat().st_size, "sha256": sha256_of_file(tar_path)}
    for name, value in found.items():
        if value != stated.get(name):
            yield f"{name} is {value}, {DATASET_FILE} says {stated.get(name)}"


def _check_sample(sample: WholeSample, stated: Mapping[str, Any], report: _ShardReport) -> bool:
    """Whether the bytes are those that the metadata states; whatever else is wrong goes into the report too."""
    key, is_intact = sample.row.key, True
    report.key_hashes.append(sample.row.key_hash)
    if sample.metadata["split"] != stated["split"]:
        report.error(f"split '{sample.metadata['split']}' in a set of split '{stated['split']}'", key)
    for data, clip in zip(sample.clips, sample.metadata["clips"], strict=True):
        report.num_clips += 1
        report.num_audio_samples += clip["num_samples"]
        if hashlib.sha256(data).hexdigest() != clip["sha256"]:
            report.error("checksum of a clip differs from its metadata: damaged, or another sample's audio", key)
            is_intact = False
            continue
        if problem := clip_length_problem(clip["num_samples"]):
            report.error(problem, key)
            continue
        try:
            audio = decode_audio(data, clip["encoding"])
        except ValueError as error:
            report.error(f"clip does not decode: {error}", key)
            continue
        if len(audio) != clip["num_samples"]:
            report.error(f"clip has {len(audio)} samples at 16 kHz, its metadata says {clip['num_samples']}", key)
        elif float(np.abs(audio).max(initial=0.0)) < SILENT_PEAK:
            report.warning(f"silence: {len(audio) / SAMPLING_RATE_HZ:.2f} s without a value over {SILENT_PEAK:g}", key)
    return is_intact


def _set_findings(
    directory: Path, description: Mapping[str, Any], key_hashes: list[npt.NDArray[np.uint64]]
) -> Iterator[Finding]:
    name = str(description["name"])
    hashes = np.concatenate(key_hashes) if key_hashes else np.zeros(0, np.uint64)
    if num_twice := len(hashes) - len(np.unique(hashes)):
        yield Finding("error", name, SET_WIDE, "", f"{num_twice} keys are in more than one shard")
    try:
        ShardSet.open(directory)
    except ShardError as error:
        yield Finding("error", name, SET_WIDE, "", f"cannot be opened: {error}")
    described = {shard["file"] for shard in description["shards"]}
    for path in sorted(directory.iterdir()):
        if path.suffix == ".tar" and path.name not in described:
            yield Finding("warning", name, path.name, "", f"lies in the folder, {DATASET_FILE} does not name it")
        if path.suffix == TEMPORARY_SUFFIX:
            yield Finding("warning", name, path.name, "", "left over from a writing that was stopped")
