"""Both ways to call the model. Equality of numbers with stock is in tests/invariants/."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.model.efficient import CLIP_KEYS, EfficientQwen2Audio, TokenScores
from qwen_audio_train.model.span_attention import SPANS
from tests import builders


@pytest.fixture(scope="module")
def model() -> EfficientQwen2Audio:
    stock = builders.stock_model(max_clip_seconds=1)
    efficient = EfficientQwen2Audio(copy.deepcopy(stock.config))
    efficient.load_state_dict(stock.state_dict())
    return efficient.eval()


def batch(**changes):
    return builders.text_rows([1, builders.AUDIO_ID, 2, 3], **changes)


def test_scores_are_log_probabilities_one_a_label(model):
    scores = model(**batch())
    assert isinstance(scores, TokenScores)
    assert scores.log_probs.shape == (3,)
    assert (scores.log_probs < 0).all()
    assert scores.entropy is None


def test_scores_are_laid_out_as_the_caller_lays_out_its_labels(model):
    given = batch(label_places=torch.tensor([4, 0, 3]))
    flat, placed = model(**given).log_probs, model(**given, labels=torch.zeros(2, 4)).log_probs
    assert placed.shape == (2, 3)
    assert placed.flatten().tolist() == [flat[1], 0, 0, flat[2], flat[0], 0]


def test_the_vocabulary_is_projected_only_where_a_label_is(model):
    projected = []
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: projected.append(output.shape))
    model(**batch(predict_from=torch.tensor([1, 2]), label_ids=torch.tensor([2, 3])))
    handle.remove()
    assert projected == [(2, builders.VOCAB)]


def test_no_labels_at_all_is_differentiable(model):
    nothing = torch.zeros(0, dtype=torch.long)
    given = batch(predict_from=nothing, label_ids=nothing, label_places=nothing)
    model(**given).log_probs.sum().backward()
    model(**given, labels=torch.zeros(2, 2)).log_probs.sum().backward()
    model.zero_grad()


def test_the_fields_that_trl_reads_come_when_asked(model):
    scores = model(**batch(), fused_lm_head=True)
    assert scores.entropy.shape == scores.mean_logits.shape == scores.is_top1.shape == (3,)
    assert scores.is_top1.dtype == torch.bool
    assert (scores.entropy > 0).all()


def test_encoded_clips_take_the_place_of_mels(model):
    given = batch()
    rows = {name: value for name, value in given["rows"].items() if name not in CLIP_KEYS}
    states = model.encode(**{name: given["rows"][name] for name in CLIP_KEYS})
    got = model(rows={**rows, "audio_states": states}).log_probs
    torch.testing.assert_close(got, model(**given).log_probs)


def test_a_frozen_encoder_runs_without_autograd(model):
    frozen = copy.deepcopy(model).train()
    mels = [np.ones((80, 5), np.float32)]
    assert frozen.encode_mels(mels, [3]).requires_grad
    frozen.model.audio_tower.requires_grad_(False)
    assert not frozen.encoder_learns
    assert not frozen.encode_mels(mels, [3]).requires_grad


def test_clips_encoded_together_are_what_each_is_alone(model):
    draw = np.random.default_rng(0)
    frames = [3, 14, 97, 4, 5, 98]
    mels = [draw.standard_normal((80, min(n + 2, 100))).astype(np.float32) for n in frames]
    with torch.no_grad():
        together = model.encode_mels(mels, frames)
        alone = torch.cat([model.encode_mels([mel], [n]) for mel, n in zip(mels, frames, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_a_language_model_that_drops_spans_is_refused(model):
    deaf = copy.deepcopy(model)
    forward = deaf.model.language_model.forward

    def forward_without(*args, spans, **kwargs):
        return forward(*args, **kwargs)

    deaf.model.language_model.forward = forward_without
    with pytest.raises(ConfigError, match=r"batching\.layout=padded"):
        deaf(**batch())


def test_the_saved_config_knows_nothing_of_spans(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert SPANS not in (tmp_path / "config.json").read_text()


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
