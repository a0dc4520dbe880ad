#!/usr/bin/env python
"""Verify prepared sets: every shard's sha256 and structure, every clip's checksum, length and decodability.

python scripts/check_shards.py data/my_set data/another
python scripts/check_shards.py data/my_set --limit 1000 --json findings.json

Exit code 1 when a set has errors; warnings (silence, stray files) leave it at 0. A bad sample does not stop the check.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwen_audio_train.errors import ShardError
from qwen_audio_train.shards.check import SetReport, check_set
from qwen_audio_train.shards.index_set import index_set

MAX_LISTED = 50


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path, help="folders that hold shards and their dataset.json")
    parser.add_argument("--limit", type=int, help="at most so many samples a set, and no checksums of whole files")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (%(default)s)")
    parser.add_argument("--json", type=Path, help="write everything found into this file")
    parser.add_argument(
        "--reindex",
        action="store_true",
        help="first rebuild indexes and dataset.json from the tars (as scripts/index_shards.py --rebuild does)",
    )
    options = parser.parse_args(arguments)
    if options.workers < 0 or (options.limit is not None and options.limit < 1):
        parser.error("--workers counts from 0 and --limit from 1")
    return options


def show(directory: Path, report: SetReport) -> None:
    """Print the findings, errors last, and a line that sums up."""
    for label, findings in (("warn", report.warnings), ("BAD ", report.errors)):
        for finding in findings[:MAX_LISTED]:
            print(f"{label} {finding}")
        if len(findings) > MAX_LISTED:
            print(f"{label} ... and {len(findings) - MAX_LISTED} more (--json lists all)")
    verdict = "BAD " if report.errors else "good"
    counts = f"{len(report.errors)} errors, {len(report.warnings)} warnings"
    extent = f"{report.num_shards} shards, {report.num_samples} keys, {report.num_clips} clips"
    print(f"{verdict} {directory}: {counts} in {extent}, {report.seconds / 3600:.2f} h")


def as_json(directory: Path, report: SetReport) -> dict[str, Any]:
    """A report as plain values."""
    findings = [asdict(finding) for finding in report.findings]
    counts = {"errors": len(report.errors), "warnings": len(report.warnings)}
    return {**asdict(report), "directory": str(directory), **counts, "findings": findings}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    reports = []
    for directory in options.sets:
        if options.reindex:
            try:
                indexed = index_set(directory, workers=options.workers, rebuild=True, show_progress=True)
            except ShardError as error:
                indexed = None
                print(f"BAD  {error}")
            for problem in indexed.problems if indexed else ():
                print(f"BAD  {problem}")
        report = check_set(directory, workers=options.workers, limit=options.limit, show_progress=True)
        show(directory, report)
        reports.append((directory, report))
    if options.json:
        options.json.write_text(json.dumps([as_json(*item) for item in reports], indent=1) + "\n", encoding="utf-8")
    return int(any(report.errors for _, report in reports))


if __name__ == "__main__":
    sys.exit(main())
