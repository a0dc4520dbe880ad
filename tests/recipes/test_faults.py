"""A few points of ``benchmarks/faults.py``: a kill loses nothing that was published, and a wrong resume is seen."""

from __future__ import annotations

import pytest

from benchmarks import fault_kinds
from benchmarks.fault_cases import Case, Report, Runs

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("faults")]

PLAIN = Case("pretrain", "auto", 1)
SHARDED = Case("pretrain", "zero2", 2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs.make(tmp_path_factory.mktemp("faults"))


def test_kills_lose_nothing_and_resumes_are_exact(runs):
    report = Report()
    fault_kinds.kill_at_operations(runs, report, PLAIN, rank=0, at_most=2)
    fault_kinds.kill_at_operations(runs, report, SHARDED, rank=1, at_most=1)
    sums = report.sums()
    assert sums["tried"] == 3
    assert report.is_good(), report.rows
    assert all(row["was_killed"] for row in report.rows)


def test_sums_over_four_ranks_keep_their_order_over_a_resume(runs):
    """Two ranks would not show it: of two numbers the sum is the same in any order."""
    report = Report()
    fault_kinds.kill_one_rank(runs, report, Case("pretrain", "auto", 4), ranks=(1,), steps=(4,))
    assert report.is_good(), report.rows


def test_a_rank_that_dies_while_it_flushes_is_not_waited_for(runs):
    """The first rank waits for its list, in the background."""
    report = Report()
    names = fault_kinds.operations(runs, SHARDED, 1)
    flushing = next(number for number, name in enumerate(names, start=1) if name.startswith("fsync"))
    fault_kinds.kill_before(runs, report, SHARDED, rank=1, number=flushing, names=names)
    assert report.is_good(), report.rows
    assert report.rows[0]["others_ended_after_seconds"] < 14


def test_a_resume_one_step_off_is_seen(runs):
    report = Report()
    fault_kinds.one_step_off(runs, report, PLAIN)
    (row,) = report.rows
    assert row["caught"]
    assert "sample keys differ" in row["differences"]
