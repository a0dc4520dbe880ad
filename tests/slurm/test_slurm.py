"""The stages as jobs of a real Slurm, two nodes each: undisturbed, preempted, out of time, a node lost, cancelled.

What a disturbed job ends with is bit for bit what the undisturbed one ends with, and it took the same samples.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qwen_audio_train.config.load import CONFIG_DIR
from qwen_audio_train.tracking.run_state import State, read_state
from scripts import submit
from tests.conftest import NO_SLURM
from tests.recipes.test_distributed import SETTINGS
from tests.slurm.cluster import PROGRAMS, Cluster, running, wait_until
from tests.stage_runs import Workshop

ROOT = CONFIG_DIR.parent
STEPS = 6
HELD_AFTER = 3
PATIENCE_SECONDS = 400
SETTLING_SECONDS = 3
LIMIT_MINUTES = 10
"""More than any job takes."""
ENDED = ("COMPLETED", "CANCELLED", "FAILED")
COMPARED = ("step", "loss", "grad_norm", "learning_rate", "supervised_tokens", "pairs", "rewards/margins", "epoch")


PYTHON = """#!/bin/sh
[ "$1" = -u ] && shift
case "$1" in
  recipes/*) exec {python} {recorder} "$@" ;;
  *) exec {python} "$@" ;;
esac
"""
"""Interpreter of the jobs: ranks run recorded."""


def installed() -> str:
    """Why there is no Slurm here; empty if there is."""
    if os.geteuid() != 0:
        return "not root, so a Slurm of our own cannot be started"
    if all(shutil.which(program) for program in PROGRAMS):
        return ""
    script = ["bash", str(ROOT / "scripts" / "install_slurm.sh")]
    done = subprocess.run(script, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode or not all(shutil.which(program) for program in PROGRAMS):
        return f"Slurm cannot be installed: {(done.stderr or done.stdout).strip()[-300:]}"
    return ""


pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]


@dataclass
class Run:
    """A submitted stage."""

    number: str
    stage: str
    folder: Path
    record: Path

    @property
    def is_held(self) -> bool:
        return all((self.record / f"held-rank{rank}").exists() for rank in range(2))

    @property
    def log(self) -> str:
        return "".join(path.read_text() for path in sorted((self.folder / "slurm").glob("*.out")))

    def lines(self) -> list[dict[str, Any]]:
        """The run's metrics, as far as they must be repeatable."""
        found = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: line[name] for name in COMPARED if name in line} for line in found]

    def samples(self) -> dict[tuple[int, int], Any]:
        """(step, rank) -> what was drawn. A step that was taken again after a loss must have drawn the same."""
        drawn: dict[tuple[int, int], Any] = {}
        for path in sorted(self.record.glob("*.jsonl")):
            for line in map(json.loads, path.read_text().splitlines()):
                key = (line["step"], line["rank"])
                assert drawn.setdefault(key, line["draws"]) == line["draws"], f"{path}: {key}"
        return drawn

    def starts(self) -> int:
        return len(list(self.record.glob("*-rank0.jsonl")))


class Desk:
    """Submits, watches, and notes the states it saw."""

    def __init__(self, cluster: Cluster, workshop: Workshop, folder: Path) -> None:
        self.cluster, self.workshop, self.folder = cluster, workshop, folder
        self.runs: list[Run] = []
        self.seen: dict[str, list[str]] = {}
        self.pending_since: dict[str, float] = {}
        self.python = folder / "python"
        self.python.write_text(PYTHON.format(python=sys.executable, recorder=ROOT / "tests/slurm/recorded_recipe.py"))
        self.python.chmod(self.python.stat().st_mode | stat.S_IXUSR)

    def submit(
        self, stage: str, name: str, *options: str, partition: str = "calm", hold: int = 0, sharding: str = "auto"
    ) -> Run:
        run_dir, record = self.folder / name, self.folder / f"{name}-record"
        record.mkdir(exist_ok=True)
        arguments = [stage, "--nodes=2", "--cpu-processes=1", "--cpus-per-process=1", f"--partition={partition}"]
        arguments += [f"--python={self.python}", f"--export=RECORD_DIR={record}", f"--export=HOLD_AFTER_STEP={hold}"]
        arguments += [f"--time={LIMIT_MINUTES}", f"--export=PYTHONPATH={ROOT}", *options]
        arguments += [
            f"runtime={sharding}",
            *SETTINGS,
            f"run.dir={run_dir}",
            f"run.max_steps={STEPS}",
            "checkpoint.every_steps=2",
        ]
        arguments += [f"model.start_from={self.workshop.folder / 'model'}", f"data.cache_dir={self.folder / 'cache'}"]
        arguments += [f"data.train={self.workshop.folder / stage}", *(["model=tiny"] if stage == "pretrain" else [])]
        before = set(self.cluster.ask("squeue", "--noheader", "--format=%A").split())
        assert submit.main(arguments) == 0
        (number,) = set(self.cluster.ask("squeue", "--noheader", "--format=%A").split()) - before
        run = Run(number, stage, run_dir, record)
        self.runs.append(run)
        return run

    def state(self, run: Run) -> str:
        """Of the job, noted, as are those of all others that have not ended."""
        for other in self.runs:
            if other is run or self.seen.get(other.number, [""])[-1] not in ENDED:
                self._note(other.number)
        return self.seen[run.number][-1]

    def _note(self, number: str) -> None:
        fields = self.cluster.job(number)
        state, seen = fields["JobState"], self.seen.setdefault(number, [])
        if not seen or seen[-1] != state:
            seen.append(state)
        if state != "PENDING" or fields["Restarts"] == "0":
            self.pending_since.pop(number, None)
        elif time.monotonic() - self.pending_since.setdefault(number, time.monotonic()) > SETTLING_SECONDS:
            # Slurm lets a requeued job wait for two minutes, until what was left of it is surely gone.
            now = ("starttime=now", f"timelimit={LIMIT_MINUTES}")
            self.cluster.ask("scontrol", "update", f"jobid={number}", *now, check=False)

    def until(self, run: Run, *states: str) -> None:
        states += ("FAILED",)
        wait_until(lambda: self.state(run) in states, PATIENCE_SECONDS, lambda: self.told(run))
        assert self.seen[run.number][-1] != "FAILED", self.told(run)

    def until_held(self, run: Run) -> None:
        wait_until(lambda: self.state(run) == "FAILED" or run.is_held, PATIENCE_SECONDS, lambda: self.told(run))
        assert self.state(run) == "RUNNING", self.told(run)

    def told(self, run: Run) -> str:
        return f"job {run.number}: {self.seen.get(run.number)}\n{run.log[-6000:]}"


@pytest.fixture(scope="module")
def desk(workshop, tmp_path_factory):
    reason = installed()
    if reason:
        pytest.skip(f"{NO_SLURM}: {reason}")
    folder = tmp_path_factory.mktemp("slurm")
    with pytest.MonkeyPatch.context() as patch, running(folder / "cluster") as cluster:
        patch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
        patch.chdir(ROOT)
        yield Desk(cluster, workshop, folder)


@pytest.fixture(scope="module")
def timed(desk):
    """Started first: a job whose limit comes near while it waits, not before it has taken its steps: then it is set.

    Slurm warns up to 30 s too early or too late, so that a minute or more is left to save in.
    """
    run = desk.submit("sft", "timed", "--save-margin=60", "--export=SAVE_SECONDS=50", hold=HELD_AFTER)
    desk.until_held(run)
    hours, minutes, _ = desk.cluster.job(run.number)["RunTime"].split(":")
    limit = f"timelimit={60 * int(hours) + int(minutes) + 3}"  # in minutes from the job's start
    desk.cluster.ask("scontrol", "update", f"jobid={run.number}", limit)
    return run


@pytest.fixture(scope="module")
def undisturbed(desk, timed):
    """A job of each stage, started when first asked for."""
    return {stage: desk.submit(stage, f"{stage}-undisturbed") for stage in ("pretrain", "sft", "dpo")}


def assert_ends_like(desk: Desk, run: Run, whole: Run) -> None:
    desk.until(run, "COMPLETED")
    desk.until(whole, "COMPLETED")
    assert (run.folder / "final" / "manifest.json").is_file()
    assert run.lines() == whole.lines()
    assert run.samples() == whole.samples()
    assert read_state(run.folder).state is State.finished
    said = (
        f"job {run.number} ({run.stage}): {' '.join(desk.seen[run.number])}; losses {[x['loss'] for x in run.lines()]}"
    )
    sys.stdout.write(f"{said}\n")


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
def test_a_stage_runs_on_two_nodes(desk, undisturbed, stage):
    run = undisturbed[stage]
    desk.until(run, "COMPLETED")
    lines = run.lines()
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[0]["loss"] != pytest.approx(lines[-1]["loss"], rel=1e-3), "nothing was learnt"
    samples = run.samples()
    assert set(samples) == {(step, rank) for step in range(1, STEPS + 1) for rank in range(2)}
    assert desk.cluster.job(run.number)["NodeList"] == "node[3-4]"
    state = read_state(run.folder)
    assert (state.state, state.world, state.slurm_job) == (State.finished, 2, run.number)


@pytest.mark.parametrize("sharding", ["auto", "zero2"])
def test_a_preempted_job_saves_is_requeued_and_ends_alike(desk, undisturbed, sharding):
    run = desk.submit("pretrain", f"preempted-{sharding}", partition="low", hold=HELD_AFTER, sharding=sharding)
    whole = undisturbed["pretrain"]
    if sharding != "auto":
        whole = desk.submit("pretrain", f"undisturbed-{sharding}", sharding=sharding)
    desk.until_held(run)
    everything = ["--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    higher = desk.cluster.ask("sbatch", "--parsable", *everything).strip()
    desk.until(run, "PENDING")
    assert "SIGTERM" in run.log
    assert "The run is saved; requeueing" in run.log
    saved = sorted(path.name for path in (run.folder / "checkpoints").glob("checkpoint-*"))
    assert saved[-1] == f"checkpoint-{HELD_AFTER + 1}", "the step that was under way is kept"
    assert read_state(run.folder).state is State.stopped
    wait_until(
        lambda: desk.cluster.job(higher)["JobState"] == "COMPLETED",
        PATIENCE_SECONDS,
        lambda: "the other job does not end",
    )
    assert_ends_like(desk, run, whole)
    assert run.starts() == 2


def test_a_job_that_loses_a_node_goes_on_when_there_are_enough_again(desk, undisturbed):
    run = desk.submit("dpo", "lost", partition="low", hold=HELD_AFTER)
    desk.until_held(run)
    assert len(desk.cluster.kill_node("node2")) > 2
    desk.until(run, "PENDING")
    assert read_state(run.folder).state in (State.running, State.failed)
    desk.cluster.start_node("node2")
    assert_ends_like(desk, run, undisturbed["dpo"])
    assert run.starts() >= 2  # one more where it was started before Slurm had missed the node
    assert "Resuming from" in run.log
    assert "checkpoint-2" in run.log


def test_a_cancelled_job_is_not_requeued_and_the_same_command_goes_on(desk, undisturbed):
    run = desk.submit("pretrain", "cancelled", "--launcher=torchrun", partition="low", hold=HELD_AFTER)
    desk.until_held(run)
    desk.cluster.ask("scancel", run.number)
    desk.until(run, "CANCELLED")
    assert "requeueing" not in run.log
    time.sleep(1)
    assert desk.state(run) == "CANCELLED"
    again = desk.submit("pretrain", "cancelled", "--launcher=torchrun", partition="low")
    assert_ends_like(desk, again, undisturbed["pretrain"])


def test_a_job_that_reaches_its_time_limit_goes_on(desk, timed, undisturbed):
    assert_ends_like(desk, timed, undisturbed["sft"])
    assert timed.starts() == 2
    assert "SIGUSR1: its time is nearly up" in timed.log
    assert "The run is saved; requeueing" in timed.log
    assert {"RUNNING", "COMPLETED"} <= set(desk.seen[timed.number])
    assert desk.cluster.job(timed.number)["Restarts"] == "1"
