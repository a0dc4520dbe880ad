"""Where one rank alone meets a loss or gradient that is no number, no rank applies the step: plain and under ZeRO."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from qwen_audio_train.model.build import save_built
from qwen_audio_train.model.sizes import build_tiny
from tests import sets
from tests.ports import free_port
from tests.recipes.test_distributed import ROOT, SETTINGS, TORCHRUN

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("skipped_steps")]

STEPS = 6
SPIKES = ["optim.spike_factor=3.0", "optim.spike_window_steps=4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faulty")
    model, processor = build_tiny(seed=1)
    save_built(model, processor, folder / "model")
    sets.pretrain_set(folder / "set")
    return folder


def run(folder, name, fault):
    """A faulty run's loss and learning rate by step, and the lines of what it left out."""
    strategy = name.partition("-")[0]
    launcher = [sys.executable] if strategy == "single" else [*TORCHRUN, str(free_port())]
    command = [*launcher, "-m", "tests.recipes.faulty", "pretrain", fault, f"run.dir={folder / name}", "model=tiny"]
    command += [f"model.start_from={folder / 'model'}", f"data.train={folder / 'set'}", "trainable=all"]
    command += [f"data.cache_dir={folder / 'cache'}", *SETTINGS, f"run.max_steps={STEPS}", *SPIKES]
    if strategy.startswith("zero"):
        command += [f"runtime={strategy}", "runtime.device=cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    metrics = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    written = [
        json.loads(line)
        for file in ("nonfinite.jsonl", "spikes.jsonl")
        if (folder / name / file).exists()
        for line in (folder / name / file).read_text().splitlines()
    ]
    return {line["step"]: (line["loss"], line["learning_rate"]) for line in metrics if "loss" in line}, written


@pytest.fixture(scope="module")
def alone(folder):
    """Loss and learning rate by step of one process that meets the NaN itself."""
    return run(folder, "single", "loss:0:3")[0]


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3"])
def test_no_rank_applies_a_step_that_one_rank_cannot(folder, alone, strategy):
    """Left out alike by one process and by two of which only one met it."""
    steps, written = run(folder, strategy, "loss:1:3")
    assert list(steps) == list(alone) == [1, 2, 4, 5, 6]
    for step, (loss, learning_rate) in steps.items():
        assert loss == pytest.approx(alone[step][0], rel=1e-4)
        assert learning_rate == pytest.approx(alone[step][1], rel=1e-9)
    assert steps[1][0] != pytest.approx(steps[6][0], rel=1e-3), "nothing was learnt, so equality would show nothing"
    assert {(line["rank"], line["step"], line["why"]) for line in written} == {(1, 3, "loss")}
    assert all(line["key"].startswith("p-") for line in written)


@pytest.mark.parametrize(("strategy", "kind"), [("ddp", "gradient"), ("zero3", "spike"), ("zero2", "gradient")])
def test_both_ranks_write_down_their_part_of_what_only_all_can_tell(folder, strategy, kind):
    steps, written = run(folder, f"{strategy}-{kind}", f"{kind}:1:4")
    assert list(steps) == [1, 2, 3, 5, 6]
    assert {(line["rank"], line["step"], line["why"]) for line in written} == {(0, 4, kind), (1, 4, kind)}
