"""Implicit rewards of a policy against its reference."""

from __future__ import annotations

import pytest
import torch

from qwen_audio_train.evaluation import rewards as module
from qwen_audio_train.evaluation.rewards import PairRewards, pair_rewards
from qwen_audio_train.model.load import load_model, load_processor
from qwen_audio_train.pipeline.batches import BatchBuilder, SampleSource
from qwen_audio_train.pipeline.stage import Front
from qwen_audio_train.prompts.render import Renderer
from qwen_audio_train.shards.reader import ShardSet


@pytest.fixture(scope="module")
def model_of(workshop):
    return lambda: load_model(str(workshop.folder / "model")).eval()


@pytest.fixture(scope="module")
def builder(workshop):
    shards = ShardSet.open(workshop.folder / "dpo")
    front = Front.of(load_processor(str(workshop.folder / "model")))
    source = SampleSource("dpo", shards, front.clips(shards))
    return BatchBuilder((source,), Renderer(front.tokenizer), front.collator(), is_preference=True, is_strict=True)


def test_equal_models_have_no_margin_and_no_accuracy(model_of, builder):
    found = pair_rewards(model_of(), model_of(), builder, range(5), beta=0.1)
    assert len(found.chosen) == len(found.rejected) == 5
    assert found.margin == 0.0
    assert found.accuracy == 0.0, "a tie is no win"


def test_rewards_scale_with_beta_and_do_not_depend_on_the_batch(model_of, builder, monkeypatch):
    policy, reference = model_of(), model_of()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    found = pair_rewards(policy, reference, builder, range(6), beta=0.1)
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 2)
    doubled = pair_rewards(policy, reference, builder, range(6), beta=0.2)
    assert doubled.chosen == pytest.approx([2 * value for value in found.chosen], rel=1e-4, abs=1e-6)
    assert doubled.margin == pytest.approx(2 * found.margin, rel=1e-3)
    assert found.margin != 0.0


def test_accuracy_and_margin_are_means_over_pairs():
    found = PairRewards(chosen=(1.0, 0.0, 2.0, 1.0), rejected=(0.0, 1.0, 2.0, -1.0))
    assert found.accuracy == 0.5
    assert found.margin == pytest.approx((1 - 1 + 0 + 2) / 4)
