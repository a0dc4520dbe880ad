"""A signal to one rank alone stops all at the same step, saved, with exit code 75; the run then ends alike."""

from __future__ import annotations

import json
import signal
import time

import pytest

from qwen_audio_train.config.load import EXIT_SAVED
from qwen_audio_train.model.build import save_built
from qwen_audio_train.model.sizes import build_tiny
from qwen_audio_train.tracking.run_state import State, read_state
from tests import sets
from tests.ports import free_port
from tests.recipes.test_quarantine_stop import WORLD, start

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("preemption")]

STEPS = 60


def metrics(folder) -> list[dict]:
    path = folder / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def end(processes) -> list[int]:
    deadline = time.monotonic() + 500
    try:
        return [process.wait(timeout=max(1.0, deadline - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()


def run(folder, *, stops: bool) -> list[int]:
    """Exit codes of the ranks; the second rank is sent a signal behind the third step."""
    port = str(free_port())
    processes = [start(folder, rank, port, f"run.max_steps={STEPS}", "data.num_workers=1") for rank in range(WORLD)]
    while stops and len(metrics(folder)) < 3 and all(process.poll() is None for process in processes):
        time.sleep(0.02)
    if stops:
        processes[1].send_signal(signal.SIGUSR1)
    return end(processes)


@pytest.fixture
def folders(tmp_path):
    """Two folders with the same model and set."""
    for name in ("stopped", "whole"):
        model, processor = build_tiny(seed=1)
        save_built(model, processor, tmp_path / name / "model")
        sets.pretrain_set(tmp_path / name / "set")
    return tmp_path / "stopped", tmp_path / "whole"


def test_one_rank_that_is_told_stops_all_and_the_run_goes_on_alike(folders):
    stopped, whole = folders
    codes = run(stopped, stops=True)
    said = [(stopped / f"rank{rank}.err").read_text() for rank in range(WORLD)]
    assert codes == [EXIT_SAVED] * WORLD, said
    taken = metrics(stopped)[-1]["step"]
    assert 3 <= taken < STEPS
    assert (stopped / "run" / "checkpoints" / f"checkpoint-{taken}" / "manifest.json").is_file()
    assert all(f"a checkpoint of step {taken} of {STEPS} is saved" in text for text in said)
    assert "SIGUSR1" in said[1]
    assert "SIGUSR1" not in said[0]
    assert read_state(stopped / "run").state is State.stopped
    assert run(stopped, stops=False) == run(whole, stops=False) == [0, 0]
    assert [line["loss"] for line in metrics(stopped)] == [line["loss"] for line in metrics(whole)]
