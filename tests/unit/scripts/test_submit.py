"""What is queued, and that nothing wrong ever is."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from qwen_audio_train.errors import ConfigError
from scripts import submit
from tests import sets


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return sets.pretrain_set(tmp_path_factory.mktemp("sets") / "pretrain", num_samples=2)


@pytest.fixture
def arguments(shards, tmp_path, monkeypatch):
    monkeypatch.chdir(submit.PROJECT)

    def get(*more: str, bins: int = 16) -> list[str]:
        settings = ["model=tiny", "run.max_steps=3", f"data.train={shards}", f"run.dir={tmp_path / 'run'}"]
        return ["pretrain", "--nodes=2", *settings, f"batching.bins_per_step={bins}", *more]

    return get


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """An sbatch that notes what it is given."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/queued\necho 42\n')
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "queued"


def script_of(folder: Path) -> str:
    text = (folder / "slurm" / "job.sbatch").read_text()
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    return text


def test_a_checked_script_is_queued_and_shown(arguments, queue, tmp_path, capsys):
    options = ["--partition=gpu", "--time=12:00:00", "--account=me", "--sbatch=--mem=0", "--export=A=b c"]
    assert submit.main(arguments(*options)) == 0
    assert queue.read_text() == f"--parsable {tmp_path}/run/slurm/job.sbatch\n"
    text = script_of(tmp_path / "run")
    for directive in (
        "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--partition=gpu", "--account=me", "--mem=0",
        "--time=12:00:00", "--signal=B:USR1@300", "--requeue", "--open-mode=append",
    ):  # fmt: skip
        assert f"#SBATCH {directive}\n" in text
    assert "export A='b c'\n" in text
    assert "export SAVE_SECONDS=240\n" in text
    assert f"run.dir={tmp_path / 'run'}" in text.splitlines()[-1]
    said = capsys.readouterr().out
    assert "2 with 8 processes each, 16 in all" in said
    assert "job         42" in said


def test_a_dry_run_shows_the_script_and_queues_nothing(arguments, queue, capsys):
    assert submit.main(arguments("--dry-run")) == 0
    assert not queue.exists()
    said = capsys.readouterr().out
    assert "#SBATCH --requeue" in said
    assert "Nothing is queued" in said


def test_every_problem_is_told_and_nothing_is_written_or_queued(arguments, queue, tmp_path, capsys):
    assert submit.main(arguments("optim.learning_rate=-1", "checkpoint.keep_last=0")) == 2
    said = capsys.readouterr().err
    assert "Nothing is queued. 2 problem(s)" in said
    assert "optim.learning_rate=-1.0 must be above 0" in said
    assert "checkpoint.keep_last=0" in said
    assert not queue.exists()
    assert not (tmp_path / "run").exists()


def test_a_world_that_cannot_share_a_step_is_refused(arguments, queue, capsys):
    assert submit.main(arguments(bins=12)) == 2
    assert "batching.bins_per_step=12 cannot be shared by 16 processes" in capsys.readouterr().err
    assert not queue.exists()


def test_a_sweep_is_an_array_of_runs_with_folders_of_their_own(arguments, queue, tmp_path):
    sweep = ["--sweep=optim.learning_rate=1e-4,2e-4", "--sweep=run.seed=0,1", "--max-parallel=2"]
    assert submit.main(arguments(*sweep)) == 0
    text = script_of(tmp_path / "run")
    assert "#SBATCH --array=0-3%2\n" in text
    lines = [line for line in text.splitlines() if "run_stage" in line]
    folders = [line.rpartition("run.dir=")[2].split()[0].rstrip("';") for line in lines]
    assert [line.split(")")[0].strip() for line in lines] == ["0", "1", "2", "3"]
    assert folders[1] == f"{tmp_path}/run/optim.learning_rate-1e-4__run.seed-1"
    assert len(set(folders)) == 4


@pytest.mark.parametrize("sweep", ["run.seed", "run.seed=", "=1,2"])
def test_a_sweep_needs_a_key_and_values(sweep):
    with pytest.raises(ConfigError, match="must be KEY=A,B"):
        submit.swept([], [sweep])


def test_a_sweep_of_equal_values_is_refused(arguments, queue, capsys):
    assert submit.main(arguments("--sweep=run.seed=1,1")) == 2
    assert "two runs with the same run.dir" in capsys.readouterr().err


def test_a_container_brings_its_own_python(arguments, queue, tmp_path):
    assert submit.main(arguments("--container=registry#image:1", "--container-runtime=apptainer")) == 0
    text = script_of(tmp_path / "run")
    assert "export PYTHON=python\n" in text
    assert "export CONTAINER='registry#image:1'\n" in text
    assert "export CONTAINER_RUNTIME=apptainer\n" in text


def test_relative_paths_must_mean_the_same_in_the_job(arguments, queue, tmp_path, monkeypatch, capsys):
    given = arguments()
    monkeypatch.chdir(tmp_path)
    assert submit.main(given) == 2
    assert "run this from" in capsys.readouterr().err


def test_without_slurm_it_says_so(arguments, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert submit.main(arguments()) == 1
    assert "sbatch is not on this machine" in capsys.readouterr().err
