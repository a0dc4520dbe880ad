"""What became of a run, and whose folder it is."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest

from qwen_audio_train.config.load import compose
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.tracking import run_state
from qwen_audio_train.tracking.run_folder import folder_problems, open_run_folder
from qwen_audio_train.tracking.run_state import RunState, State, end_state, judged, read_state, write_state
from tests import sets


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return sets.pretrain_set(tmp_path_factory.mktemp("sets") / "pretrain", num_samples=2)


@pytest.fixture
def config(made, tmp_path):
    def get(*overrides, stage="pretrain"):
        model = ["model=tiny", "model.start_from=a/b"]
        return compose(stage, [f"run.dir={tmp_path}", "run.max_steps=3", f"data.train={made}", *model, *overrides])

    return get


@pytest.fixture
def other_process():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    yield process
    process.kill()
    process.wait()


def with_checkpoint(folder):
    (folder / "checkpoints" / "checkpoint-2").mkdir(parents=True)


def of_process(number: int, **changes) -> RunState:
    ours = RunState.of_this_process("pretrain", 2)
    return dataclasses.replace(ours, process=number, process_start=run_state._start_ticks(number), **changes)


def test_a_state_is_read_as_it_was_written(tmp_path):
    state = RunState.of_this_process("sft", 4)
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state
    assert state.is_here
    assert judged(tmp_path, state) is State.running
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "asleep", "stage": "sft"}', '{"state": "running"}'])
def test_a_state_that_cannot_be_read_is_none(tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    assert read_state(tmp_path) is None


def test_a_run_whose_process_is_gone_is_stale(tmp_path, other_process):
    state = of_process(other_process.pid)
    write_state(tmp_path, state)
    assert judged(tmp_path, state) is State.running
    reused = dataclasses.replace(state, process_start=state.process_start - 1)
    assert judged(tmp_path, reused) is State.stale, "another process of the same number"
    other_process.kill()
    other_process.wait()
    assert judged(tmp_path, state) is State.stale


def test_a_run_elsewhere_is_stale_when_it_is_silent(tmp_path):
    state = of_process(1, host="elsewhere")
    write_state(tmp_path, state)
    assert judged(tmp_path, state) is State.running
    past = time.time() - run_state.SILENT_SECONDS - 1
    os.utime(tmp_path / "state.json", (past, past))
    assert judged(tmp_path, state) is State.stale
    run_state.beat(tmp_path)
    assert judged(tmp_path, state) is State.running


def test_only_the_process_that_trains_says_how_it_ended(tmp_path, other_process):
    write_state(tmp_path, of_process(other_process.pid))
    end_state(tmp_path, State.failed, "not mine")
    assert read_state(tmp_path).state is State.running
    write_state(tmp_path, RunState.of_this_process("sft", 1))
    end_state(tmp_path, State.failed, "out of memory")
    ended = read_state(tmp_path)
    assert (ended.state, ended.reason) == (State.failed, "out of memory")
    assert ended.ended >= ended.started


def test_the_same_command_opens_its_folder_again(config, tmp_path):
    open_run_folder(tmp_path, config(), world=2)
    with_checkpoint(tmp_path)
    changed = config("optim.learning_rate=1e-6", "runtime=zero2", "checkpoint.keep_last=5", "run.max_steps=9")
    open_run_folder(tmp_path, changed, world=4)
    assert read_state(tmp_path).world == 4


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.start_from=c/d", "model.start_from was a/b, is c/d"),
        ("trainable=llm", "trainable.encoder was True, is False"),
        ("adapter=lora", "adapter.kind was none, is lora"),
    ],
)
def test_another_run_is_refused_where_checkpoints_lie(config, tmp_path, override, says):
    open_run_folder(tmp_path, config())
    open_run_folder(tmp_path, config(override))  # nothing to lose yet
    open_run_folder(tmp_path, config())
    with_checkpoint(tmp_path)
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=says):
        open_run_folder(tmp_path, config(override))
    assert (tmp_path / "config.yaml").read_text() == before


def test_a_setting_that_is_newer_than_the_run_is_no_difference(config, tmp_path):
    open_run_folder(tmp_path, config())
    with_checkpoint(tmp_path)
    lines = (tmp_path / "config.yaml").read_text().splitlines()
    (tmp_path / "config.yaml").write_text("\n".join(line for line in lines if "checkpoint_llm" not in line))
    open_run_folder(tmp_path, config("model.checkpoint_llm=true"))


def test_another_stage_is_refused(config, made, tmp_path):
    open_run_folder(tmp_path, config())
    with_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="holds a run of stage pretrain, this is sft"):
        open_run_folder(tmp_path, config(stage="sft"))


def test_a_folder_of_other_things_is_refused(config, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"holds other things than a run \(thesis.tex\)"):
        open_run_folder(tmp_path, config())


def test_a_folder_in_which_a_process_trains_is_refused(config, tmp_path, other_process):
    open_run_folder(tmp_path, config())
    write_state(tmp_path, of_process(other_process.pid))
    with pytest.raises(ConfigError, match=f"process {other_process.pid} on .* trains there"):
        open_run_folder(tmp_path, config())
    other_process.kill()
    other_process.wait()
    open_run_folder(tmp_path, config())


def test_a_folder_of_a_run_elsewhere_is_refused_until_it_is_silent_or_its_job_is_requeued(
    config, tmp_path, monkeypatch
):
    open_run_folder(tmp_path, config())
    write_state(tmp_path, of_process(1, host="elsewhere", slurm_job="17"))
    with pytest.raises(ConfigError, match="process 1 on elsewhere trains there"):
        open_run_folder(tmp_path, config())
    assert list(folder_problems(tmp_path, config(), judges_life=False)) == [], "ranks elsewhere leave it to the first"
    past = time.time() - 100
    os.utime(tmp_path / "state.json", (past, past))
    open_run_folder(tmp_path, config())
    write_state(tmp_path, of_process(1, host="elsewhere", slurm_job="17"))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    open_run_folder(tmp_path, config())
    assert json.loads((tmp_path / "state.json").read_text())["slurm_job"] == "17"
