"""What the notes of all ranks say together, and when a rank that is alone speaks."""

from __future__ import annotations

import time
from dataclasses import replace

from qwen_audio_train.training.watchdog import HANG_EXIT_CODE, Note, Phase, Watchdog, judge

NOTE = Note(rank=0, host="a", pid=1, step=7, phase="backward", number=50, age_seconds=100.0, beat=10)


def notes(*numbers, beat=10, age_seconds=100.0):
    return [
        replace(NOTE, rank=rank, number=number, beat=beat, age_seconds=age_seconds)
        for rank, number in enumerate(numbers)
    ]


def test_the_ranks_with_the_least_progress_are_waited_for():
    verdict = judge(notes(50, 48, 50, 48), notes(50, 48, 50, 48, beat=11))
    assert [note.rank for note in verdict.behind] == [1, 3]
    assert str(verdict).startswith("everybody waits for rank 1 (host a, process 1): step 7, phase backward")
    assert "; rank 3 " in str(verdict)


def test_a_rank_that_says_nothing_more_comes_before_one_that_is_behind():
    then = notes(50, 48, 50, beat=11)
    then[2] = replace(then[2], beat=10)
    verdict = judge(notes(50, 48, 50), then)
    assert "everybody waits for rank 2" in str(verdict)
    assert "does not answer" in str(verdict)
    assert [note.rank for note in verdict.speaking] == [0, 1]


def test_ranks_at_one_place_are_not_blamed():
    assert str(judge(notes(50, 50), notes(50, 50, beat=11))).startswith("all ranks are in step 7, phase backward")


def test_a_rank_that_never_spoke_is_named():
    verdict = judge([*notes(50), None], [*notes(50, beat=11), None])
    assert str(verdict) == "everybody waits for rank 1: never came to the first step"


def test_one_rank_that_moves_is_enough_for_no_alarm():
    then = notes(50, 48, beat=11)
    then[1] = replace(then[1], age_seconds=0.3)
    assert judge(notes(50, 47), then).still_seconds == 0.3


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def test_one_process_reports_dumps_and_ends(tmp_path):
    codes = []
    watchdog = Watchdog(tmp_path, hang_seconds=0.3, exit_seconds=1.0, end=codes.append)
    watchdog.start()
    watchdog.enter(Phase.save, step=3)
    wait_for(lambda: codes)
    watchdog.stop()
    assert codes[0] == HANG_EXIT_CODE
    assert "all ranks are in step 3, phase save" in (tmp_path / "hangs" / "report.txt").read_text()
    assert "in wait_for" in (tmp_path / "hangs" / "rank-0.txt").read_text()


def test_a_process_that_moves_again_is_not_ended_and_reported_anew(tmp_path, caplog):
    codes = []
    watchdog = Watchdog(tmp_path, hang_seconds=0.3, exit_seconds=60.0, end=codes.append)
    watchdog.start()
    report = tmp_path / "hangs" / "report.txt"
    for hang in (1, 2):
        watchdog.enter(Phase.data, step=hang)
        wait_for(lambda hang=hang: report.exists() and report.read_text().count("nothing has moved") == hang)
    watchdog.enter(Phase.forward)
    wait_for(lambda: "moves again: step 2, phase forward" in caplog.text)
    watchdog.stop()
    assert codes == []


def test_nothing_is_watched_where_it_is_turned_off(tmp_path):
    watchdog = Watchdog(tmp_path)
    watchdog.start()
    watchdog.enter(Phase.data)
    time.sleep(0.1)
    watchdog.stop()
    assert not (tmp_path / "hangs").exists()
