"""The commands of the README, for real: two gloo processes, every sharding, all three stages, equal to one process.

The sets mix clips with text-only samples and the bins are small, so that ranks meet batches without any audio.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from qwen_audio_train.model.build import save_built
from qwen_audio_train.model.sizes import build_tiny
from tests import sets
from tests.ports import free_port

# One worker runs them all, one after another: each starts processes of its own.
pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("distributed")]

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TORCHRUN = [str(BIN / "torchrun"), "--nproc-per-node", "2", "--master-port"]
STEPS = 4
SETTINGS = [
    f"run.max_steps={STEPS}",
    "batching.llm_tokens_per_bin=256",
    "batching.bins_per_step=4",
    "batching.window_samples=16",
    "tracking=none",
    "tracking.log_every_steps=1",
    "tracking.progress_bar=false",
    "optim.warmup_steps=0",
    "optim.learning_rate=1e-3",
    "runtime.device=cpu",
]
SETS = {"pretrain": sets.pretrain_set, "sft": sets.chat_set, "dpo": sets.preference_set}


class Stages:
    """A model, its sets, and losses of runs by (stage, strategy)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        model, processor = build_tiny(seed=1)
        save_built(model, processor, folder / "model")
        for stage, make in SETS.items():
            make(folder / stage)
        self._losses: dict[tuple[str, str], list[float]] = {}

    def losses(self, stage: str, strategy: str, *overrides: str) -> list[float]:
        """Loss of each step, from the run's metrics; runs it the first time it is asked for."""
        if (stage, strategy) not in self._losses:
            run_dir = self.folder / f"{stage}-{strategy}"
            command = [*self._launcher(strategy), f"recipes/{stage}.py", f"run.dir={run_dir}"]
            command += [f"model.start_from={self.folder / 'model'}", f"data.train={self.folder / stage}"]
            command += [f"data.cache_dir={self.folder / 'cache'}", *SETTINGS, *overrides]
            if stage == "pretrain":
                command += ["model=tiny"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
            )
            assert done.returncode == 0, done.stderr[-4000:]
            lines = (run_dir / "metrics.jsonl").read_text().splitlines()
            self._losses[stage, strategy] = [json.loads(line)["loss"] for line in lines]
        return self._losses[stage, strategy]

    def _launcher(self, strategy: str) -> list[str]:
        if strategy.startswith("single"):
            return [sys.executable]
        if strategy.startswith("accelerate"):
            port = str(free_port())
            return [str(BIN / "accelerate"), "launch", "--num_processes", "2", "--cpu", "--main_process_port", port]
        return [*TORCHRUN, str(free_port())]


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return Stages(tmp_path_factory.mktemp("stages"))


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_sharded_losses_equal_one_process(stages, stage, strategy):
    expected = stages.losses(stage, "single")
    got = stages.losses(stage, strategy, f"runtime={strategy}", "runtime.device=cpu")
    assert len(expected) == STEPS
    assert got == pytest.approx(expected, rel=1e-4)
    assert expected[0] != pytest.approx(expected[-1], rel=1e-3), "nothing was learnt, so equality would show nothing"


def test_plain_data_parallel_by_torchrun_equals_one_process(stages):
    assert stages.losses("sft", "ddp") == pytest.approx(stages.losses("sft", "single"), rel=1e-5)


def test_accelerate_launch_of_lora_dpo_equals_one_process(stages):
    lora = ["adapter=lora"]
    expected = stages.losses("dpo", "single-lora", *lora)
    assert stages.losses("dpo", "accelerate-lora", *lora) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("strategy", ["zero1", "zero3_offload"])
def test_other_shardings_of_pretraining_equal_one_process(stages, strategy):
    got = stages.losses("pretrain", strategy, f"runtime={strategy}", "runtime.device=cpu")
    assert got == pytest.approx(stages.losses("pretrain", "single"), rel=1e-4)


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_two_ranks_store_the_reference_as_one_process_does_and_train_like_a_live_one(stages, strategy):
    found, scores = {}, {}
    for name in ("single", strategy):
        pairs = sets.preference_set(stages.folder / f"pairs-of-{name}-{strategy}" / "dpo")
        overrides = ["preference.reference=stored", f"data.train={pairs}"]
        if name != "single":
            overrides += [f"runtime={strategy}", "runtime.device=cpu"]
        found[name] = stages.losses("dpo", f"{name}-stored-{strategy}", *overrides)
        (file,) = (pairs / "reference_scores").iterdir()
        scores[name] = (file.name, load_file(file)["log_probs"])
    assert scores[strategy][0] == scores["single"][0], "one identity"
    np.testing.assert_allclose(scores[strategy][1], scores["single"][1], rtol=1e-6, atol=1e-4)
    assert np.isfinite(scores[strategy][1]).all()
    expected = stages.losses("dpo", "single")
    for losses in found.values():
        assert losses == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_pure_bfloat16_with_sharded_float32_copies_trains(stages, strategy):
    """The weights that the optimiser moves are fp32: steps far below bf16's resolution must add up as in fp32."""
    expected = stages.losses("sft", "single")
    settings = [f"runtime={strategy}", "runtime.device=cpu", "model.precision=bfloat16"]
    got = stages.losses("sft", f"{strategy}-bfloat16", *settings)
    assert got == pytest.approx(expected, rel=2e-2)
    assert got[-1] < got[0]
    assert got != pytest.approx(expected, rel=1e-6), "nothing was computed in bfloat16"


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3"])
def test_checkpointed_towers_equal_plain_ones(stages, strategy):
    settings = [] if strategy == "ddp" else [f"runtime={strategy}", "runtime.device=cpu"]
    settings += ["model.checkpoint_encoder=true", "model.checkpoint_llm=true"]
    got = stages.losses("sft", f"{strategy}-checkpointed", *settings)
    assert got == pytest.approx(stages.losses("sft", "single"), rel=1e-4)
