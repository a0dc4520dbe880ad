"""Every rank makes the same module calls whatever its batch holds: mixed batches at random under ZeRO-3, no hang.

1,000 batches, four a step, on two ranks; MIXED_STEPS and MIXED_RANKS (2 or 4) take others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from qwen_audio_train.model.build import save_built
from qwen_audio_train.model.sizes import build_tiny
from qwen_audio_train.training.watchdog import HANG_EXIT_CODE
from tests import sets
from tests.ports import free_port
from tests.recipes.mixed import KINDS, KINDS_MET
from tests.recipes.test_distributed import ROOT, SETTINGS, TORCHRUN

STEPS = int(os.environ.get("MIXED_STEPS", "250"))
RANKS = int(os.environ.get("MIXED_RANKS", "2"))
SECONDS = 120 + 2 * STEPS
pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("mixed_batches"), pytest.mark.timeout(2 * SECONDS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    model, processor = build_tiny(seed=1)
    save_built(model, processor, folder / "model")
    sets.chat_set(folder / "set")
    return folder


def torchrun():
    """Begins a command on all ranks."""
    return [TORCHRUN[0], "--nproc-per-node", str(RANKS), "--master-port", str(free_port())]


def run(folder, name, launcher, *words, steps=STEPS):
    command = [*launcher, "-m", "tests.recipes.mixed", *words, f"run.dir={folder / name}", "trainable=all"]
    command += [f"model.start_from={folder / 'model'}", f"data.train={folder / 'set'}"]
    # Bins of one or two samples, so that an epoch has many; the batches stand for nothing that is in the set.
    command += [f"data.cache_dir={folder / 'cache'}", *SETTINGS, "optim.learning_rate=1e-4"]
    command += [f"run.max_steps={steps}", "batching.llm_tokens_per_bin=128"]
    environment = {
        **os.environ,
        KINDS_MET: str(folder / f"{name}-kinds"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def losses(folder, name):
    return [json.loads(line)["loss"] for line in (folder / name / "metrics.jsonl").read_text().splitlines()]


def test_mixed_batches_under_zero3_end_and_equal_one_process(folder):
    done = run(folder, "zero3", torchrun(), "runtime=zero3", "runtime.device=cpu", "runtime.hang_seconds=60")
    assert done.returncode == 0, done.stderr[-4000:]
    assert not (folder / "zero3" / "hangs").exists()
    met = [(folder / f"zero3-kinds-{rank}").read_text().splitlines() for rank in range(RANKS)]
    assert all(set(kinds) == set(KINDS) for kinds in met)
    silent = ("text", "empty")
    apart = sum((one in silent) != (other in silent) for one, other in zip(*met[:2], strict=True))
    assert apart > len(met[0]) / 4, "often one rank has audio and the other none"
    assert sum(map(len, met)) == 4 * STEPS
    alone = run(folder, "single", [sys.executable])
    assert alone.returncode == 0, alone.stderr[-4000:]
    assert len(losses(folder, "single")) == STEPS
    assert losses(folder, "zero3") == pytest.approx(losses(folder, "single"), rel=1e-3)
    assert losses(folder, "zero3")[:10] == pytest.approx(losses(folder, "single")[:10], rel=1e-4)


def test_a_builder_that_leaves_the_dummy_clip_out_is_caught(folder):
    limits = ["runtime.hang_seconds=5", "runtime.hang_exit_seconds=15"]
    started = time.monotonic()
    done = run(
        folder, "careless", torchrun(), "--without-dummy", "runtime=zero3", "runtime.device=cpu", *limits, steps=20
    )
    assert done.returncode != 0
    assert time.monotonic() - started < SECONDS / 2
    is_named = "nothing has moved" in done.stderr and f"exit code {HANG_EXIT_CODE}" in done.stderr
    # gloo compares the sizes of what two ranks send each other; where they happen to agree, or with NCCL, it is a hang.
    is_refused = "Is there a distributed collective mismatch" in done.stderr
    assert is_named or is_refused, done.stderr[-4000:]


def test_the_careless_builder_trains_where_there_is_nobody_to_wait_for(folder):
    """So that the test above fails for the reason it names."""
    done = run(folder, "careless-single", [sys.executable], "--without-dummy", steps=3)
    assert done.returncode == 0, done.stderr[-4000:]
