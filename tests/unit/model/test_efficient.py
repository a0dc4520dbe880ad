"""Both ways to call the model. Equality of numbers with stock is in tests/invariants/."""

from __future__ import annotations

import copy

import pytest
import torch

from qwen_audio_train.model.efficient import EfficientQwen2Audio, TokenScores
from tests import builders


@pytest.fixture(scope="module")
def model() -> EfficientQwen2Audio:
    stock = builders.stock_model(max_clip_seconds=1)
    efficient = EfficientQwen2Audio(copy.deepcopy(stock.config))
    efficient.load_state_dict(stock.state_dict())
    return efficient.eval()


def batch(**changes):
    ids = torch.tensor([[1, builders.AUDIO_ID, 2, 3]])
    given = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([[-100, -100, 2, 3]]),
        "audio_source": torch.tensor([0]), "audio_target": torch.tensor([1]),
        "mels": torch.full((1, 80, 5), 0.3), "mel_frames": torch.tensor([3]),
    }  # fmt: skip
    return given | changes


def test_scores_are_log_probabilities_where_a_label_is_and_zero_elsewhere(model):
    scores = model(**batch())
    assert isinstance(scores, TokenScores)
    assert scores.log_probs.shape == (1, 3)
    assert scores.log_probs[0, 0] == 0
    assert (scores.log_probs[0, 1:] < 0).all()
    assert scores.entropy is None


def test_the_vocabulary_is_projected_only_where_a_label_is(model):
    projected = []
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: projected.append(output.shape))
    model(**batch())
    handle.remove()
    assert projected == [(2, builders.VOCAB)]


def test_no_labels_at_all_is_differentiable(model):
    scores = model(**batch(labels=torch.full((1, 4), -100)))
    scores.log_probs.sum().backward()
    model.zero_grad()


def test_the_fields_that_trl_reads_come_when_asked(model):
    scores = model(**batch(), fused_lm_head=True)
    assert scores.entropy.shape == scores.mean_logits.shape == scores.is_top1.shape == (1, 3)
    assert scores.is_top1.dtype == torch.bool
    assert (scores.entropy[0, 1:] > 0).all()


def test_encoded_clips_take_the_place_of_mels(model):
    given = batch()
    states = model.encode(given.pop("mels"), given.pop("mel_frames")).flatten(0, 1)
    torch.testing.assert_close(model(**given, audio_states=states).log_probs, model(**batch()).log_probs)


def test_a_frozen_encoder_runs_without_autograd(model):
    frozen = copy.deepcopy(model).train()
    assert frozen.encode(torch.ones(1, 80, 5), torch.tensor([3])).requires_grad
    frozen.model.audio_tower.requires_grad_(False)
    assert not frozen.encode(torch.ones(1, 80, 5), torch.tensor([3])).requires_grad


def test_called_the_stock_way_it_is_the_stock_model(model):
    ids = torch.tensor([[1, 2, 3]])
    outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
    stock = builders.stock_model(max_clip_seconds=1).eval()
    expected = stock(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
    torch.testing.assert_close(outputs.logits, expected.logits)
    torch.testing.assert_close(outputs.loss, expected.loss)


def test_generate_takes_the_stock_inputs(model):
    ids = torch.tensor([[1, *builders.audio_slots(16_000), 2]])
    generated = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), input_features=torch.zeros(1, 80, 100),
        feature_attention_mask=torch.ones(1, 100, dtype=torch.long), max_new_tokens=2, do_sample=False,
    )  # fmt: skip
    assert generated.shape == (1, ids.shape[1] + 2)
