"""Who listens to signals, and until when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from qwen_audio_train.training.callbacks.stop import GracefulStop

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.fixture
def stopper():
    stopper = GracefulStop()
    yield stopper
    stopper.release()


def test_signals_are_handed_back_once(stopper):
    before = [signal.getsignal(number) for number in NUMBERS]
    stopper.on_train_begin(None, None, None)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stopper.wanted
    stopper.release()
    stopper.release()
    assert [signal.getsignal(number) for number in NUMBERS] == before


FORKED = """
import os, signal, time
from qwen_audio_train.training.callbacks.stop import GracefulStop
stopper = GracefulStop()
stopper.on_train_begin(None, None, None)
reader, ready = os.pipe()
child = os.fork()
if child == 0:
    os.write(ready, b"x")  # Python drops signals that come while a fork is still under way
    time.sleep(60)
    os._exit(0)
os.read(reader, 1)
os.kill(child, signal.SIGTERM)
_, status = os.waitpid(child, 0)
assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM, status
assert not stopper.wanted
"""


def test_a_forked_worker_ends_by_the_signal_that_only_notes_in_the_run():
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=300)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_schedulers_signal_may_come_any_number_of_times(stopper, number):
    stopper.on_train_begin(None, None, None)
    for _ in range(3):
        os.kill(os.getpid(), number)
    assert stopper.wanted
    assert stopper.preempted


def test_a_second_ctrl_c_gives_up_and_is_no_preemption(stopper):
    stopper.on_train_begin(None, None, None)
    os.kill(os.getpid(), signal.SIGINT)
    assert stopper.wanted
    assert not stopper.preempted
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_ranks_that_were_not_asked_agree(stopper):
    stopper.agree(0, 0)
    assert not stopper.agreed
    stopper.agree(1, 0)
    assert (stopper.agreed, stopper.agreed_preempted) == (True, False)
    stopper.agree(2, 1)
    assert (stopper.agreed, stopper.agreed_preempted) == (True, True)
    assert not stopper.wanted, "this rank itself was never asked"
