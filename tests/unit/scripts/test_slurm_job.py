"""When a batch script requeues its job, with a Slurm of two small programs. The real one: tests/slurm/."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from qwen_audio_train.config.load import CONFIG_DIR

ROOT = CONFIG_DIR.parent
SCONTROL = """#!/usr/bin/env bash
case "$*" in
  "show hostnames"*) printf 'alpha\\nbeta\\n' ;;
  *"show node alpha") echo "NodeName=alpha Arch=x86 NodeAddr=10.0.0.7 NodeHostName=alpha" ;;
  *"show job"*) echo "JobId=7 JobState=$STATE Comment=$COMMENT PreemptTime=$PREEMPT_TIME Restarts=0" ;;
  *) echo "$*" >>"$DONE" ;;
esac
"""
SRUN = """#!/usr/bin/env bash
echo "srun $*" >>"$DONE"
env | grep -E '^(MASTER|TORCH_|NCCL_)' >>"$DONE"
trap 'sleep ${STOP_SECONDS:-0.2}; exit ${CODE_AFTER_USR1:-75}' USR1
touch "$DONE.started"
[ -n "${SRUN_SECONDS:-}" ] && { sleep "$SRUN_SECONDS" >/dev/null & wait; }
exit "$CODE"
"""


@pytest.fixture
def job(tmp_path):
    """Starts a batch script under a made-up Slurm."""
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN), ("sleep600", "")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    script = tmp_path / "job.sh"
    script.write_text(
        "source scripts/slurm/job.sh\nsleep() { [ $1 = 600 ] || exec sleep $1; }\nrun_stage sft a=b 'c=d e'\n"
    )
    started: list[subprocess.Popen[str]] = []

    def start(code: int = 0, **changes: str) -> subprocess.Popen[str]:
        slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "[alpha,beta]", "SLURM_JOB_NUM_NODES": "2"}
        made_up = {"STATE": "RUNNING", "COMMENT": "(null)", "PREEMPT_TIME": "None", "CODE": str(code)}
        environment = {
            **os.environ,
            **slurm,
            **made_up,
            "PROCESSES_PER_NODE": "8",
            "SLURM_CPUS_PER_TASK": "12",
            **changes,
        }
        environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DONE": str(tmp_path / "done")}
        started.append(
            subprocess.Popen(["bash", str(script)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        )
        return started[-1]

    start.done = lambda: (tmp_path / "done").read_text() if (tmp_path / "done").exists() else ""
    start.runs = (tmp_path / "done.started").exists
    yield start
    for process in started:
        process.kill()
        process.wait()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=100)
    return process.returncode, said


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_what_is_done_or_has_to_be_mended_is_not_requeued(job, code):
    assert ended(job(code))[0] == code
    assert "requeue" not in job.done()


@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_a_step_gets_every_node_its_cores_and_its_settings(job, launcher):
    assert ended(job(0, LAUNCHER=launcher))[0] == 0
    done = job.done()
    tasks = "--ntasks=16 --ntasks-per-node=8 --cpus-per-task=12"
    if launcher == "torchrun":
        tasks = "--ntasks=2 --ntasks-per-node=1 --cpus-per-task=96"
    assert f"--nodes=2 {tasks} bash scripts/slurm/task.sh recipes/sft.py a=b c=d e\n" in done
    assert "MASTER_ADDR=10.0.0.7\n" in done
    assert "TORCH_FR_BUFFER_SIZE=20000\n" in done
    assert "TORCH_NCCL_DUMP_ON_TIMEOUT=1\n" in done


def test_another_start_takes_another_port(job):
    def port(**changes: str) -> str:
        ended(job(0, **changes))
        return job.done().rpartition("MASTER_PORT=")[2].partition("\n")[0]

    assert len({port(), port(SLURM_RESTART_COUNT="1"), port(SLURM_JOB_ID="8")}) == 3


def test_a_saved_run_is_requeued(job):
    code, said = ended(job(75))
    assert code == 75
    assert job.done().endswith("requeue 7\n")
    assert "The run is saved; requeueing job 7 (restart 1)" in said


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING"])
def test_a_cancelled_job_is_not(job, state):
    code, said = ended(job(75, STATE=state))
    assert code == 75
    assert "requeue" not in job.done()
    assert f"job 7 is {state}" in said


def test_restarts_have_an_end(job):
    assert ended(job(75, SLURM_RESTART_COUNT="3", MAX_RESTARTS="3"))[0] == 75
    assert "requeue" not in job.done()


def test_a_job_that_was_preempted_before_it_could_save_is_requeued(job):
    ended(job(143, PREEMPT_TIME="2026-01-01T00:00:00"))
    assert "requeue 7" in job.done()
    assert "failures" not in job.done()


@pytest.mark.parametrize("code", [70, 134, 137])
def test_what_nobody_foresaw_is_tried_again_a_few_times(job, code):
    ended(job(code))
    assert "update jobid=7 comment=failures:1\nrequeue 7\n" in job.done()
    ended(job(code, COMMENT="failures:2"))
    assert "update jobid=7 comment=failures:3\nrequeue 7\n" in job.done()
    before = job.done().count("requeue")
    assert ended(job(code, COMMENT="failures:3"))[0] == code
    assert job.done().count("requeue") == before


def test_sigusr1_is_handed_on_and_the_saved_run_is_requeued(job):
    process = job(0, SRUN_SECONDS="90")
    wait_for(job.runs)
    process.send_signal(signal.SIGUSR1)
    code, said = ended(process)
    assert code == 75
    assert "asking all ranks to save and stop" in said
    assert job.done().endswith("requeue 7\n")


def test_a_run_that_does_not_save_in_time_is_requeued_anyway(job):
    process = job(0, SRUN_SECONDS="90", STOP_SECONDS="4", CODE_AFTER_USR1="0", SAVE_SECONDS="0.1")
    wait_for(job.runs)
    process.send_signal(signal.SIGUSR1)
    _, said = ended(process)
    assert "Not stopped 0.1 s after SIGUSR1: requeued" in said
    assert "requeue 7" in job.done()


def test_batch_scripts_and_the_submitter_share_their_options():
    for stage in ("pretrain", "sft", "dpo"):
        text = Path(ROOT / "scripts" / "slurm" / f"{stage}.sbatch").read_text()
        assert text.endswith(f'source scripts/slurm/job.sh\nrun_stage {stage} "$@"\n')
        for option in ("--requeue", "--signal=B:USR1@300", "--open-mode=append"):
            assert f"#SBATCH {option}\n" in text


def wait_for(is_so) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)
