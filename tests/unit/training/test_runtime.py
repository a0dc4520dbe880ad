"""The end of a process group's threads, from what the system says of them."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from qwen_audio_train.training import runtime


@pytest.mark.parametrize(
    ("threads", "busy"),
    [
        ([("python", "R"), ("pt_gloo_runloop", "S")], False),
        ([("python", "S"), ("pt_gloo_runloop", "S"), ("pt_gloo_runloop", "R")], True),
        ([("a (name) R", "S")], False),
        ([], False),
    ],
)
def test_only_a_running_gloo_thread_is_waited_for(tmp_path, threads, busy):
    for number, (name, state) in enumerate(threads):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "stat").write_text(f"{number} ({name}) {state} 1 2 3\n")
    assert runtime._gloo_is_busy(tmp_path) is busy


@pytest.mark.parametrize(("busy", "num_looks"), [([True] * 3 + [False] * 9, 5), ([True] * 9, 5)])
def test_a_run_waits_until_threads_rest_but_not_for_ever(monkeypatch, busy, num_looks):
    """Twice in a row they must rest; a finished run must end even if one of them never does."""
    looks, slept = [], []
    monkeypatch.setattr(runtime, "time", SimpleNamespace(monotonic=lambda: sum(slept), sleep=slept.append))
    monkeypatch.setattr(runtime, "_GLOO_RESTS_SECONDS", 0.045 if all(busy) else 5.0)
    monkeypatch.setattr(runtime, "_gloo_is_busy", lambda: looks.append(0) or busy[min(len(looks), len(busy)) - 1])
    runtime._let_gloo_rest()
    assert len(looks) == num_looks


def test_this_systems_threads_can_be_read():
    ready, end = threading.Event(), threading.Event()

    def spin():
        with open("/proc/thread-self/comm", "w") as name:
            name.write("pt_gloo_runloop")
        ready.set()
        while not end.is_set():
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        assert ready.wait(10)
        # It waits for the interpreter's lock while this thread looks: some look meets it running.
        assert any(runtime._gloo_is_busy() for _ in range(2000))
    finally:
        end.set()
        thread.join()
    # A thread that was joined may still be on its way out.
    assert any(not runtime._gloo_is_busy() for _ in range(2000))


LEAVES_WHILE_GLOO_WORKS = """
import hashlib, sys, threading, time
import torch.distributed as dist
from qwen_audio_train.config.runtime import Device, RuntimeConfig
from qwen_audio_train.training import runtime

def work():
    open("/proc/thread-self/comm", "w").write("pt_gloo_runloop")
    started.set()
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        hashlib.sha256(data)  # without the interpreter's lock, and long: to a thread that waits for it, it would rest
    print("let go of its last tensor", flush=True)

data = bytes(5 * 10**7)
started = threading.Event()
dist.init_process_group("gloo", init_method=sys.argv[1], rank=0, world_size=1)
runtime.start(RuntimeConfig(device=Device.cpu), seed=0)
threading.Thread(target=work, daemon=True).start()
started.wait()
if sys.argv[2] == "stops":
    runtime.stop()
else:
    raise SystemExit("trouble")
"""


@pytest.mark.parametrize(("end", "code"), [("stops", 0), ("fails", 1)])
def test_a_program_that_joined_does_not_end_under_gloos_threads(tmp_path, end, code):
    command = [sys.executable, "-c", LEAVES_WHILE_GLOO_WORKS, f"file://{tmp_path / 'rendezvous'}", end]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "let go of its last tensor\n", done.stderr
    assert done.returncode == code
