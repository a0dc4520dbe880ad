"""A save that fails on one rank alone is given up by all; the run goes on and what was published before stays."""

from __future__ import annotations

import pytest

from qwen_audio_train.checkpoint import publish
from qwen_audio_train.model.build import save_built
from qwen_audio_train.model.sizes import build_tiny
from tests import fault_hooks, rank_runs, sets

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("failed_saves")]

STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saves")
    model, processor = build_tiny(seed=1)
    save_built(model, processor, folder / "model")
    sets.pretrain_set(folder / "set")
    return folder


def run(folder, run_dir, fault, *overrides):
    """Two ranks, saving every second step."""
    settings = [*rank_runs.SETTINGS, f"model.start_from={folder / 'model'}", f"data.train={folder / 'set'}"]
    settings += [f"data.cache_dir={folder / 'cache'}", "batching.bins_per_step=2", "batching.window_samples=16"]
    settings += ["checkpoint.every_steps=2", "checkpoint.keep_last=9", f"run.max_steps={STEPS}", "trainable=all"]
    ranks = rank_runs.start("pretrain", [*settings, *overrides], run_dir=run_dir, world=2, prepare=fault)
    return rank_runs.finish(ranks)


@pytest.mark.parametrize("sharding", ["auto", "zero2", "zero3"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_room_keeps_neither_itself_nor_the_others_from_training(folder, tmp_path, sharding, rank):
    if sharding == "auto" and rank:
        fault = fault_hooks.NoRoom(rank, 4, bytes=1024)  # all it writes is its random state
    else:
        fault = fault_hooks.NoRoom(rank, 4)
    codes = run(folder, tmp_path, fault, f"runtime={sharding}", "runtime.device=cpu")
    assert codes == [0, 0], rank_runs.told(tmp_path)
    said = rank_runs.told(tmp_path)
    assert f"rank {rank}: the checkpoint could not be written" in said
    assert "NOT SAVED: there is no checkpoint of step 4" in said
    found = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert found == ["checkpoint-2", "checkpoint-6", "latest"]
    for step in (2, 6):
        publish.verify(tmp_path / "checkpoints" / f"checkpoint-{step}")
    assert len(rank_runs.losses(tmp_path)) == STEPS


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_cannot_flush_makes_the_checkpoint_absent(folder, tmp_path, rank):
    codes = run(folder, tmp_path, fault_hooks.FlushFails(rank, 4), "runtime=zero2", "runtime.device=cpu")
    said = rank_runs.told(tmp_path)
    assert codes == [0, 0], said
    assert "Input/output error" in said
    assert "NOT SAVED: there is no checkpoint of step 4" in said
    found = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert found == ["checkpoint-2", "checkpoint-6", "latest"]
