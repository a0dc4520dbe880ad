"""Kills, stops, full disks and flipped bytes: what a run loses, and whether it goes on as if nothing had been.

python benchmarks/faults.py --json FILE             # every file operation of a save, three stages, three shardings
python benchmarks/faults.py --quick --json FILE     # a sample of every kind, under 5 minutes

Tiny models on gloo ranks on this machine; dropout is on, so that the random state matters. After each fault the same
command is started again. Then losses, sample keys and final weights must be those of the unbroken run: bit for bit, or
to rounding where the number of ranks changed. ``lost_work`` counts published checkpoints that were gone or damaged by
the fault itself; ``wrong_resumes`` runs that ended well with something different. The last row is the test of the test.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fault_cases import Case, Report, Runs
from benchmarks.fault_kinds import (
    damaged_files,
    full_disk,
    kill_at_operations,
    kill_at_steps,
    kill_one_rank,
    latest_removed,
    one_step_off,
    read_only_folder,
    stopped_rank,
    world_changes,
)
from benchmarks.machine import machine

PACKAGES = ("torch", "deepspeed", "transformers", "trl", "peft")
PLAIN = [Case(stage, "auto", 1) for stage in ("pretrain", "sft", "dpo")]
SHARDED = [Case("pretrain", sharding, 2) for sharding in ("zero1", "zero2", "zero3")]


def all_faults(runs: Runs, report: Report) -> None:
    """Some 600 points."""
    for case in PLAIN:
        kill_at_operations(runs, report, case, rank=0, every=5)
        kill_at_steps(runs, report, case, steps=range(1, 7))
    for case in SHARDED:
        for rank in range(case.world):
            kill_at_operations(runs, report, case, rank=rank, every=10)
        kill_one_rank(runs, report, case, ranks=range(case.world), steps=(2, 5))
        damaged_files(runs, report, case)
    kill_one_rank(runs, report, Case("sft", "auto", 4), ranks=range(4), steps=(4,))
    for sharding in ("auto", "zero1", "zero2", "zero3"):
        kill_one_rank(runs, report, Case("pretrain", sharding, 4), ranks=(1,), steps=(4,))
    stopped_rank(runs, report, Case("pretrain", "zero2", 2))
    damaged_files(runs, report, PLAIN[0])
    latest_removed(runs, report, PLAIN[0])
    for case in (PLAIN[0], SHARDED[1], SHARDED[2]):
        full_disk(runs, report, case)
        read_only_folder(runs, report, case)
    world_changes(runs, report, [Case("pretrain", sharding, 4) for sharding in ("auto", "zero1", "zero2", "zero3")])
    one_step_off(runs, report, PLAIN[0])


def sampled_faults(runs: Runs, report: Report) -> None:
    """20 points."""
    plain, sharded = PLAIN[0], SHARDED[1]
    kill_at_operations(runs, report, plain, rank=0, at_most=5)
    kill_at_operations(runs, report, sharded, rank=0, at_most=2)
    kill_at_operations(runs, report, sharded, rank=1, at_most=1)
    kill_at_steps(runs, report, plain, steps=(2, 5))
    kill_one_rank(runs, report, sharded, ranks=(1,), steps=(4,))
    stopped_rank(runs, report, sharded)
    damaged_files(runs, report, plain, at_most=3)
    latest_removed(runs, report, plain)
    full_disk(runs, report, plain)
    read_only_folder(runs, report, plain)
    one_step_off(runs, report, plain)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the table goes")
    parser.add_argument("--quick", action="store_true", help="a sample of every kind")
    parser.add_argument("--keep", type=Path, help="folder for the runs; without it they are deleted")
    arguments = parser.parse_args()
    started = time.monotonic()
    report = Report()
    is_whole = False
    try:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            runs = Runs.make(arguments.keep or Path(folder))
            (sampled_faults if arguments.quick else all_faults)(runs, report)
        is_whole = True
    finally:  # what an interrupted run has found so far is worth keeping
        sums = {
            **report.sums(),
            "is_whole": is_whole,
            "seconds": round(time.monotonic() - started),
            **machine(PACKAGES),
        }
        if arguments.json is not None:
            arguments.json.write_text(json.dumps({**sums, "rows": report.rows}, indent=1) + "\n", encoding="utf-8")
        print(f"{report.table()}\n{json.dumps(sums, indent=1)}")
    return 0 if report.is_good() else 1


if __name__ == "__main__":
    sys.exit(main())
