"""A recipe writes down how it ended."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from qwen_audio_train.errors import PreemptedError
from qwen_audio_train.tracking.run_state import RunState, State, read_state, write_state
from qwen_audio_train.training import run
from qwen_audio_train.training.callbacks.sign_of_life import SignOfLife


def config(folder):
    return SimpleNamespace(run=SimpleNamespace(dir=str(folder)))


@pytest.mark.parametrize(
    ("raised", "state", "reason"),
    [
        (None, State.finished, ""),
        (PreemptedError("a checkpoint of step 2 of 4 is saved"), State.stopped, "a checkpoint of step 2 of 4 is saved"),
        (KeyboardInterrupt(), State.stopped, "Ctrl-C"),
        (MemoryError("tried to allocate"), State.failed, "MemoryError: tried to allocate"),
        (SystemExit(3), State.failed, "SystemExit: 3"),
    ],
)
def test_how_a_recipe_ends_is_written_down_and_raised_on(tmp_path, raised, state, reason):
    @run.to_its_end
    def main(_config):
        write_state(tmp_path, RunState.of_this_process("sft", 1))
        if raised is not None:
            raise raised

    if raised is None:
        main(config(tmp_path))
    else:
        with pytest.raises(type(raised)):
            main(config(tmp_path))
    assert (read_state(tmp_path).state, read_state(tmp_path).reason) == (state, reason)


def test_a_run_that_was_refused_its_folder_leaves_the_others_state_alone(tmp_path):
    write_state(tmp_path, RunState(State.running, "sft", host="elsewhere", process=1))
    before = (tmp_path / "state.json").read_bytes()

    @run.to_its_end
    def main(_config):
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - nothing but its passing on matters
        main(config(tmp_path))
    assert (tmp_path / "state.json").read_bytes() == before


def test_a_step_is_a_sign_of_life_but_not_every_one(tmp_path):
    write_state(tmp_path, RunState.of_this_process("sft", 1))
    state = tmp_path / "state.json"
    sign = SignOfLife(tmp_path)
    os.utime(state, (0, 0))
    sign.on_step_end(None, None, None)
    assert state.stat().st_mtime > 0
    os.utime(state, (0, 0))
    sign.on_step_end(None, None, None)
    assert state.stat().st_mtime == 0
