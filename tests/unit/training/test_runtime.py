"""The end of a process group's threads, from what the system says of them."""

from __future__ import annotations

import threading

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
