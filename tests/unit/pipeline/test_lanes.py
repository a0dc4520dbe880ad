"""Work side by side comes back in order, and fails at its turn."""

from __future__ import annotations

import os
import threading
import time

import pytest
import torch

from qwen_audio_train.pipeline.lanes import AHEAD_PER_LANE, in_lanes

CPU = torch.device("cpu")


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


def test_results_come_in_the_order_of_the_work(two_cores):
    def slow_first(number):
        time.sleep(0.02 if number == 0 else 0)
        return number * 10

    assert list(in_lanes(slow_first, range(9), device=CPU)) == [number * 10 for number in range(9)]


def test_lanes_work_at_the_same_time(two_cores):
    both_here = threading.Barrier(2, timeout=60)
    list(in_lanes(lambda _: both_here.wait(), range(2), device=CPU))


def test_an_error_comes_at_its_turn(two_cores):
    def fails_at_two(number):
        if number == 2:
            raise ValueError("two")
        return number

    results = in_lanes(fails_at_two, range(9), device=CPU)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)


def test_no_more_is_under_way_than_fits(two_cores):
    taken = []
    results = in_lanes(lambda number: number, (taken.append(n) or n for n in range(100)), device=CPU)
    next(results)
    assert len(taken) == AHEAD_PER_LANE * 2


def test_a_gpu_gets_one_piece_at_a_time():
    thread = list(in_lanes(lambda _: threading.current_thread(), range(2), device=torch.device("cuda")))
    assert thread == [threading.current_thread()] * 2
