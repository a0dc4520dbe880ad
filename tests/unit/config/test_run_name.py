"""Runs that name no folder."""

from __future__ import annotations

import re

import pytest

from qwen_audio_train.config.load import compose
from tests import sets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    shards = sets.pretrain_set(tmp_path_factory.mktemp("sets") / "pretrain", num_samples=2)

    def get(*overrides, stage="pretrain"):
        return compose(stage, ["model=tiny", "run.max_steps=3", f"data.train={shards}", *overrides]).run.dir

    return get


def test_a_name_says_stage_and_model(folder):
    assert re.fullmatch("runs/pretrain-tiny-[0-9a-f]{8}", folder())
    assert re.fullmatch("runs/sft-owner-name-[0-9a-f]{8}", folder("model.start_from=owner/name", stage="sft"))


def test_the_same_settings_find_their_folder_again(folder):
    elsewhere = ["runtime=zero2", "tracking=none", "checkpoint.keep_last=9", "data.num_workers=2"]
    assert folder() == folder(*elsewhere, "data.skip_steps=[[1,2]]")


@pytest.mark.parametrize(
    "override",
    ["run.seed=1", "run.max_steps=4", "optim.learning_rate=1e-3", "batching.bins_per_step=8", "trainable=llm"],
)
def test_other_settings_never_meet(folder, override):
    assert folder(override) != folder()


def test_a_given_folder_is_kept(folder):
    assert folder("run.dir=here") == "here"
