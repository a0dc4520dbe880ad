"""The list of runs tells each state apart."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from qwen_audio_train.config.load import compose
from qwen_audio_train.tracking.run_folder import open_run_folder
from qwen_audio_train.tracking.run_state import RunState, State, end_state, write_state
from scripts.runs import main
from tests import sets

NO_PROCESS = 2**22 + 1


@pytest.fixture
def runs(tmp_path):
    """One run of each state, some of them nested."""
    shards = sets.pretrain_set(tmp_path / "set", num_samples=2)
    folder = tmp_path / "runs"

    def make(name: str, steps: int) -> Path:
        run_dir = folder / name
        config = compose("pretrain", ["model=tiny", "run.max_steps=9", f"data.train={shards}", f"run.dir={run_dir}"])
        open_run_folder(run_dir, config, world=2)
        lines = [json.dumps({"step": step, "loss": 5 - step / 10}) for step in range(1, steps + 1)]
        (run_dir / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 77, "lo']))
        for step in (2, 4):
            (run_dir / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
            (run_dir / "checkpoints" / f"checkpoint-{step}" / "manifest.json").write_text("{}")
        (run_dir / "checkpoints" / "checkpoint-6").mkdir()
        return run_dir

    make("running", 5)
    end_state(make("stopped", 4), State.stopped, "a checkpoint of step 4 of 9 is saved")
    end_state(make("sweep/failed", 3), State.failed, "OutOfMemoryError: tried\nto allocate")
    stale = make("sweep/stale", 5)
    write_state(stale, dataclasses.replace(RunState.of_this_process("pretrain", 2), process=NO_PROCESS))
    done = make("finished", 9)
    (done / "final").mkdir()
    (done / "final" / "manifest.json").write_text("{}")
    end_state(done, State.finished)
    (make("opened", 0) / "state.json").unlink()
    (folder / "cache").mkdir()
    return folder


def test_each_state_is_told_apart(runs, capsys):
    assert main([str(runs), "--json"]) == 0
    rows = {Path(row["folder"]).name: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert {name: row["state"] for name, row in rows.items()} == {name: name for name in rows}
    assert set(rows) == {"running", "stopped", "failed", "stale", "finished", "opened"}
    stopped = rows["stopped"]
    assert (stopped["step"], stopped["steps"], stopped["checkpoint"], stopped["world"]) == (4, 9, 4, 2)
    assert stopped["loss"] == pytest.approx(4.6)
    assert stopped["reason"] == "a checkpoint of step 4 of 9 is saved"
    assert rows["opened"]["step"] is None


def test_a_result_counts_more_than_a_run_that_died_behind_it(runs, capsys):
    write_state(runs / "finished", RunState.of_this_process("pretrain", 2))
    killed = dataclasses.replace(RunState.of_this_process("pretrain", 2), process=NO_PROCESS)
    write_state(runs / "finished", killed)
    assert main([str(runs / "finished"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "finished"


def test_the_table_is_one_line_a_run(runs, capsys):
    assert main([str(runs), "--state", "failed", "stale"]) == 0
    head, failed, stale = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "state", "stage", "step", "loss", "checkpoint", "silent"]
    assert "OutOfMemoryError: tried to allocate" in failed
    assert "3/9" in failed
    assert stale.split()[1:4] == ["stale", "pretrain", "5/9"]


def test_no_runs_and_no_folder(tmp_path, capsys):
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no runs\n"
    assert main([str(tmp_path / "nowhere")]) == 2
