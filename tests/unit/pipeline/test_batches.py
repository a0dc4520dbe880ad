"""A step's batches do not depend on how many ranks or workers make them."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch

from qwen_audio_train.errors import CheckpointError
from qwen_audio_train.model.load import load_processor
from qwen_audio_train.pipeline.batches import BatchBuilder
from qwen_audio_train.pipeline.stage import Front, num_steps, stage_batches
from qwen_audio_train.plan.steps import Plan
from tests import builders

STEPS = 7


@pytest.fixture
def config(workshop, tmp_path):
    """Steps of four bins, over more than one epoch."""
    return workshop.config("sft", tmp_path, "batching.bins_per_step=4", "trainable=llm", steps=STEPS)


@pytest.fixture
def batches(workshop, config):
    front = Front.of(load_processor(str(workshop.folder / "model")))
    return lambda rank, world: stage_batches(config, front, rank=rank, world=world)


def rows_of_steps(made, monkeypatch) -> list[Counter[tuple[int, int]]]:
    """For each step the samples and epochs that this rank's batches hold."""
    drawn: list[list[tuple[int, int]]] = []
    build = BatchBuilder.build

    def recording(builder, draws):
        drawn.append([(draw.epoch, draw.sample) for draw in draws])
        return build(builder, draws)

    with monkeypatch.context() as patch:
        patch.setattr(BatchBuilder, "build", recording)
        assert len(list(made.loader())) == len(made) == STEPS * made.bins_per_rank
    starts = range(0, len(drawn) + 1, made.bins_per_rank)
    return [Counter(item for bin_ in drawn[a:b] for item in bin_) for a, b in pairwise(starts)]


def test_a_steps_samples_do_not_depend_on_the_number_of_ranks(batches, monkeypatch):
    alone = rows_of_steps(batches(0, 1), monkeypatch)
    assert len(alone) == STEPS
    assert max(epoch for step in alone for epoch, _ in step) >= 1
    for world in (2, 4):
        ranks = [rows_of_steps(batches(rank, world), monkeypatch) for rank in range(world)]
        assert [sum(parts, Counter()) for parts in zip(*ranks, strict=True)] == alone


def test_an_epoch_holds_every_sample_once(batches, monkeypatch):
    made = batches(0, 1)
    steps = rows_of_steps(made, monkeypatch)
    assert sum(steps, Counter()).most_common(1)[0][1] == 1
    first = [sample for step in steps for epoch, sample in step if epoch == 0]
    assert sorted(first) == list(range(24))


def test_the_number_of_workers_is_invisible(batches):
    alone, helped = batches(0, 2), batches(0, 2)
    helped.num_workers = 2
    for expected, got in zip(alone.loader(), helped.loader(), strict=True):
        assert builders.equal_batches(expected, got)


def test_a_loader_leaves_the_global_random_state_alone(batches):
    """Or dropout after a resume, which starts a loader once more, would differ."""
    before = torch.get_rng_state()
    next(iter(batches(0, 1).loader()))
    assert torch.equal(torch.get_rng_state(), before)


def test_resuming_starts_at_the_step_and_keeps_the_length(batches):
    whole, resumed = batches(0, 1), batches(0, 1)
    resumed.resume(whole.position(5))
    rest = list(resumed.loader())
    assert len(rest) == 2 * whole.bins_per_rank
    assert len(resumed.loader()) == len(whole.loader())
    for expected, got in zip(list(whole.loader())[5 * whole.bins_per_rank :], rest, strict=True):
        assert torch.equal(expected["rows"]["input_ids"], got["rows"]["input_ids"])


def test_a_position_of_another_plan_is_refused(workshop, batches, config, tmp_path):
    other = workshop.config("sft", tmp_path, "run.seed=3", "batching.bins_per_step=4", steps=STEPS)
    front = Front.of(load_processor(str(workshop.folder / "model")))
    position = stage_batches(other, front, rank=0, world=1).position(2)
    with pytest.raises(CheckpointError, match="seed was 3, is 0"):
        batches(0, 1).resume(position)


def test_epochs_are_counted_in_the_plans_steps_without_those_left_out(workshop, batches, tmp_path):
    plan = batches(0, 1).plan
    config = workshop.config("sft", tmp_path, "run.max_steps=null", "run.epochs=2")
    both = plan.steps_in_epoch(0) + plan.steps_in_epoch(1)
    assert num_steps(config, plan) == both
    skipping = Plan(plan.sources, seed=plan.seed, budget=plan.budget, skip_steps=[[1, 2]])
    assert num_steps(config, skipping) == both - 2
