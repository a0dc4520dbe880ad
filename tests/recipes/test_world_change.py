"""Stopped on 4 ranks, gone on with 2, then with 3: losses, samples and the optimiser are those of an unbroken run."""

from __future__ import annotations

import json
import shutil

import pytest

from qwen_audio_train.model.build import save_built
from qwen_audio_train.model.sizes import build_tiny
from tests import rank_runs, sets

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("world_change")]

STEPS = 9
STOPS = {4: 3, 2: 6, 3: STEPS}
"""Ranks -> step at which they stop."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    model, processor = build_tiny(seed=1)
    save_built(model, processor, folder / "model")
    sets.pretrain_set(folder / "set", num_samples=48)
    return folder


def run(folder, run_dir, world, steps, *overrides, stage="pretrain"):
    """A run up to a step, with a checkpoint there; its rate is constant, so that its length changes nothing."""
    settings = [*rank_runs.SETTINGS, f"model.start_from={folder / 'model'}", f"data.train={folder / 'set'}"]
    settings += [f"data.cache_dir={folder / 'cache'}", "batching.bins_per_step=12", "checkpoint.every_steps=3"]
    settings += ["optim.final_learning_rate_ratio=1", f"run.max_steps={steps}"]
    ranks = rank_runs.start(stage, [*settings, *overrides], run_dir=run_dir, world=world)
    return rank_runs.finish(ranks)


@pytest.fixture(scope="module")
def unbroken(folder):
    assert run(folder, folder / "unbroken", 1, STEPS, "trainable=all") == [0], rank_runs.told(folder / "unbroken")
    return folder / "unbroken"


@pytest.mark.parametrize("sharding", ["auto", "zero1", "zero2", "zero3"])
def test_four_ranks_then_two_then_three_go_on_as_one_run(folder, unbroken, tmp_path, sharding):
    for world, steps in STOPS.items():
        shutil.rmtree(tmp_path / "final", ignore_errors=True)
        codes = run(folder, tmp_path, world, steps, f"runtime={sharding}", "runtime.device=cpu", "trainable=all")
        assert codes == [0] * world, rank_runs.told(tmp_path)
    expected = rank_runs.losses(unbroken)
    assert rank_runs.losses(tmp_path) == pytest.approx(expected, rel=1e-4)
    assert rank_runs.keys(tmp_path) == rank_runs.keys(unbroken)
    assert expected[1] != pytest.approx(expected[STEPS], rel=1e-2), "nothing was learnt, so equality would show nothing"
    manifest = json.loads((tmp_path / "checkpoints" / f"checkpoint-{STEPS}" / "manifest.json").read_text())
    assert manifest["facts"]["world"] == 3


def test_another_sharding_is_refused_by_name(folder, tmp_path):
    zero2 = ["runtime=zero2", "runtime.device=cpu", "trainable=projector"]
    assert run(folder, tmp_path, 1, 3, *zero2) == [0], rank_runs.told(tmp_path)
    shutil.rmtree(tmp_path / "final")
    assert run(folder, tmp_path, 1, 6, "runtime=zero3", "runtime.device=cpu", "trainable=projector") == [1]
    assert "was written under ZeRO-2, and this run is ZeRO-3" in rank_runs.told(tmp_path)


@pytest.mark.parametrize("sharding", ["auto", "zero2", "zero3"])
@pytest.mark.parametrize("trains", ["adapter=lora", "trainable=projector"])
def test_what_does_not_train_is_what_it_was_on_another_number_of_ranks(folder, tmp_path, sharding, trains):
    settings = [f"runtime={sharding}", "runtime.device=cpu", trains]
    if trains == "trainable=projector":
        settings.append("optim.learning_rate=3e-2")
    for name, plan in {"whole": {1: 6}, "broken": {2: 3, 1: 6}}.items():
        for world, steps in plan.items():
            shutil.rmtree(tmp_path / name / "final", ignore_errors=True)
            codes = run(folder, tmp_path / name, world, steps, *settings)
            assert codes == [0] * world, rank_runs.told(tmp_path / name)
    expected = rank_runs.losses(tmp_path / "whole")
    assert rank_runs.losses(tmp_path / "broken") == pytest.approx(expected, rel=1e-4)
    assert rank_runs.keys(tmp_path / "broken") == rank_runs.keys(tmp_path / "whole")
    assert expected[1] != pytest.approx(expected[6], rel=1e-3), "nothing was learnt, so equality would show nothing"
