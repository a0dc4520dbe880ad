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


@pytest.mark.parametrize(("busy", "least", "most"), [([True] * 3 + [False] * 9, 5, 5), ([True] * 9, 2, 8)])
def test_a_run_waits_until_threads_rest_but_not_for_ever(monkeypatch, busy, least, most):
    """Twice in a row they must rest; a finished run must end even if one of them never does."""
    looks = []
    monkeypatch.setattr(runtime.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(runtime.dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(runtime, "_GLOO_RESTS_SECONDS", 0.05 if all(busy) else 5.0)
    monkeypatch.setattr(runtime, "_gloo_is_busy", lambda: looks.append(0) or busy[min(len(looks), len(busy)) - 1])
    runtime.stop()
    assert least <= len(looks) <= most


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
