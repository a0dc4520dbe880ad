"""Two processes of which one gets stuck: the other's report names it and what it was doing, and the run ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from qwen_audio_train.training.watchdog import HANG_EXIT_CODE
from tests.ports import free_port
from tests.recipes.test_distributed import ROOT

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("watchdog")]

WORLD = 2


def run(folder, trouble, *, stuck=None):
    """Exit codes and what was said on standard error; ``stuck`` is the rank that cannot end by itself."""
    port = str(free_port())
    processes = []
    for rank in range(WORLD):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
        environment = {**os.environ, **ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.recipes.watched", str(folder), trouble]
        with (folder / f"rank-{rank}.err").open("w") as errors:
            processes.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
            )
    deadline = time.monotonic() + 300
    codes = []
    try:
        for rank, process in enumerate(processes):
            if rank != stuck:
                codes.append(process.wait(timeout=max(1.0, deadline - time.monotonic())))
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
    return codes, [(folder / f"rank-{rank}.err").read_text() for rank in range(WORLD)]


def test_a_rank_that_waits_for_its_data_is_named_by_the_one_that_waits_for_it(tmp_path):
    codes, said = run(tmp_path, "data")
    # Both end themselves; who is the later one may meet the broken connection of the other first.
    assert HANG_EXIT_CODE in codes
    assert 0 not in codes
    report = (tmp_path / "hangs" / "report.txt").read_text()
    pid = (tmp_path / "rank-1.pid").read_text()
    (line,) = [line for line in report.splitlines() if "everybody waits for" in line]
    assert "everybody waits for rank 1 (host " in line
    assert f"process {pid}): step 3, phase data" in line
    assert "rank 0" not in line
    assert "rank 0 (host" in report.partition("Ranks that answer:")[2]
    assert "phase agreement" in report
    assert "everybody waits for rank 1" in said[0]
    assert "everybody" not in said[1], "told once"
    stacks = [(tmp_path / "hangs" / f"rank-{rank}.txt").read_text() for rank in range(WORLD)]
    assert "in meet" in stacks[0]
    assert "in spend_for_ever" in stacks[1]
    assert "in _watch" in stacks[0], "of all threads"
    collectives = json.loads((tmp_path / "hangs" / "rank-0.collectives.json").read_text())
    assert collectives["entries"][-1]["profiling_name"] == "gloo:all_reduce"


def test_a_stopped_process_is_named_with_the_phase_it_was_last_heard_in(tmp_path):
    codes, said = run(tmp_path, "stop", stuck=1)
    assert codes == [HANG_EXIT_CODE]
    (line,) = [line for line in said[0].splitlines() if "everybody waits for" in line]
    assert "everybody waits for rank 1" in line
    assert "last heard in step 3, phase backward" in line
    assert "which does not answer (stopped, or its host is lost)" in line
    assert (tmp_path / "hangs" / "rank-0.txt").exists()
    assert not (tmp_path / "hangs" / "rank-1.txt").exists()


def test_where_the_keeper_of_the_store_is_stopped_the_others_say_so_and_end(tmp_path):
    """Under torchrun the agent keeps it; here rank 0 does."""
    codes, said = run(tmp_path, "stop-first", stuck=0)
    assert codes == [HANG_EXIT_CODE]
    assert "does not answer" in said[1]
    assert "in meet" in (tmp_path / "hangs" / "rank-1.txt").read_text()


def test_a_slow_run_that_moves_makes_no_alarm(tmp_path):
    """Step 3 of rank 1 takes more than twice the limit, in pieces; rank 0 waits for all of it in one collective."""
    codes, said = run(tmp_path, "slow")
    assert codes == [0, 0], said
    assert not (tmp_path / "hangs").exists()
    assert "waits" not in "".join(said)
