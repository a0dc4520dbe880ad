"""4 ranks with 2 workers each, killed; 2 without workers, killed; 8 with one: one run, sample for sample."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests import sets
from tests.invariants import chain

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("chain")]

CHAIN = [(4, 2, 12), (2, 0, 30), (8, 1, None)]
"""Ranks, workers, and how many steps are in the log when all are killed."""
STEPS_TO_KILL_IN = 8
"""A run that is not killed so many steps later, since this process was kept waiting, waits for it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    sets.pretrain_set(folder / "large", num_samples=90)
    sets.pretrain_set(folder / "small", num_samples=13)
    return folder


@pytest.fixture(scope="module")
def whole(folder) -> dict[int, list[Any]]:
    return chain.unbroken(folder)


@pytest.fixture(scope="module")
def logged(folder) -> list[dict[str, Any]]:
    """What the chain of runs wrote."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.invariants.chain"])
    for world, workers, kill_at in CHAIN:
        rendezvous = folder / f"rendezvous-{world}"
        held_at = None if kill_at is None else kill_at + STEPS_TO_KILL_IN
        ranks = [
            context.Process(target=chain.rank_of_run, args=(folder, rendezvous, rank, world, workers, held_at))
            for rank in range(world)
        ]
        for process in ranks:
            process.start()
        try:
            if kill_at is not None:
                wait_for(folder / "log.jsonl", kill_at, ranks)
                for process in ranks:
                    os.kill(process.pid, signal.SIGKILL)
            for process in ranks:
                process.join(300)
            ends = [process.exitcode for process in ranks]
            assert ends == [0 if kill_at is None else -signal.SIGKILL] * world
        finally:
            for process in ranks:
                process.kill()
    return lines(folder / "log.jsonl")


def lines(log: Path) -> list[dict[str, Any]]:
    """Whole lines: a kill may have cut the last one of its run short."""
    found = []
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def wait_for(log: Path, step: int, ranks: list[Any]) -> None:
    deadline = time.monotonic() + 240
    while not any(line["step"] >= step for line in lines(log)):
        assert all(process.exitcode is None for process in ranks), "a rank ended by itself"
        assert time.monotonic() < deadline, "the run did not get so far"
        time.sleep(0.05)


def differences(log: list[dict[str, Any]], whole: dict[int, list[Any]]) -> list[str]:
    """In what a log, repeated steps included, is not the unbroken run."""
    found = [f"step {line['step']} of {line['world']} ranks" for line in log if line["bins"] != whole[line["step"]]]
    missing = whole.keys() - {line["step"] for line in log}
    return found + [f"step {step} is missing" for step in sorted(missing)]


def test_a_chain_of_killed_runs_equals_the_unbroken_run_sample_for_sample(logged, whole):
    assert differences(logged, whole) == []
    assert [world for world, *_ in CHAIN] == list(dict.fromkeys(line["world"] for line in logged))
    assert len(whole) == chain.NUM_STEPS
    kills = [(one, two) for one, two in pairwise(logged) if one["world"] != two["world"]]
    assert all(two["step"] <= one["step"] + 1 for one, two in kills), "goes on from a position at or before the kill"
    assert all(two["step"] > 0 for _, two in kills), "and not from the start"


def test_the_unbroken_run_draws_both_sources_over_several_epochs(whole):
    rows = [row for bins in whole.values() for members in bins for row in members]
    assert {row[0] for row in rows} == {0, 1}
    assert max(row[1] for row in rows if row[0] == 1) >= 2
    assert len({tuple(row) for row in rows}) == len(rows), "no sample twice in an epoch of its source"


@pytest.mark.parametrize("shift", [-1, 1])
def test_the_comparison_notices_a_run_that_goes_on_one_step_off(logged, whole, shift):
    last = CHAIN[-1][0]
    shifted = [line if line["world"] != last else {**line, "bins": whole.get(line["step"] + shift)} for line in logged]
    assert len(differences(shifted, whole)) == sum(line["world"] == last for line in logged)


def test_the_comparison_notices_two_samples_of_a_step_that_changed_places(logged, whole):
    swapped = json.loads(json.dumps(logged))
    bins = swapped[20]["bins"]
    bins[0][0], bins[1][0] = bins[1][0], bins[0][0]
    assert len(differences(swapped, whole)) == 1
