"""What can go on under another number of ranks, and what is refused. That it goes on alike: test_world_change.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qwen_audio_train.checkpoint import publish, universal
from qwen_audio_train.errors import CheckpointError

CHECKPOINT = Path("runs/a/checkpoints/checkpoint-5")


@pytest.mark.parametrize("stage", [None, 1, 2, 3])
def test_the_same_sharding_goes_on(stage):
    universal.require_convertible(CHECKPOINT, was=stage, now=stage)


@pytest.mark.parametrize(
    ("was", "now", "says"),
    [
        (2, 3, "written under ZeRO-2, and this run is ZeRO-3.*runtime=zero2.*model.start_from="),
        (None, 1, "plain data parallelism.*runtime.deepspeed=null"),
        (3, None, "runtime=zero3"),
    ],
)
def test_another_sharding_is_refused_with_what_can_be_done(was, now, says):
    with pytest.raises(CheckpointError, match=says):
        universal.require_convertible(CHECKPOINT, was=was, now=now)


def test_loading_is_mended():
    """One step tensor for all sub-groups, counted up by each; the first group's weight decay in all groups."""
    weights = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))]
    groups = [{"params": [weights[0]], "weight_decay": 0.1}, {"params": [weights[1]], "weight_decay": 0.1}]
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    step = torch.tensor(5.0)
    for weight in weights:
        weight.grad = torch.ones(2)
        optimizer.state[weight] = {"step": step, "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    universal.mend_loaded(SimpleNamespace(optimizer=SimpleNamespace(optimizer=optimizer)), (0.1, 0.0))
    optimizer.step()
    assert [float(optimizer.state[weight]["step"]) for weight in weights] == [6, 6]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_a_converter_that_fails_says_why_and_leaves_nothing_whole(tmp_path):
    staged = publish.staging_folder(tmp_path, 5) / "checkpoint-5"
    (staged / "global_step5").mkdir(parents=True)
    (staged / publish.LATEST).write_text("global_step5")
    checkpoint = tmp_path / "checkpoint-5"
    publish.publish(staged, checkpoint, facts={"step": 5, "world": 2, "zero_stage": 2})
    with pytest.raises(CheckpointError, match=r"(?s)another number of ranks failed.*can't find .*_optim_states.pt"):
        universal.convert(checkpoint)
    assert not universal.universal_folder(checkpoint).exists()
    publish.verify(checkpoint)
