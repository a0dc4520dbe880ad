"""Who listens to signals, and until when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from qwen_audio_train.training.callbacks.stop import GracefulStop

NUMBERS = (signal.SIGINT, signal.SIGTERM)


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
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=50)
