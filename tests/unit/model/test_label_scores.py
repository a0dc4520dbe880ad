"""Scores of labels in one chunk and in many, against log_softmax of everything."""

from __future__ import annotations

import pytest
import torch

from qwen_audio_train.model.label_scores import score_labels

VOCABULARY, WIDTH, NUM_LABELS = 50, 6, 23


@pytest.fixture
def made():
    torch.manual_seed(0)
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
    return head, torch.randn(NUM_LABELS, WIDTH, requires_grad=True), torch.randint(0, VOCABULARY, (NUM_LABELS,))


def gradients(log_probs, head, hidden):
    weight = torch.linspace(-1, 1, NUM_LABELS)
    return torch.autograd.grad((log_probs * weight).sum(), [hidden, head.weight])


@pytest.mark.parametrize("max_logits", [VOCABULARY * NUM_LABELS, VOCABULARY * 7, VOCABULARY, 1])
def test_scores_and_gradients_are_those_of_all_logits_at_once(made, max_logits):
    head, hidden, ids = made
    (got,) = score_labels(head, hidden, ids, vocabulary=VOCABULARY, max_logits=max_logits)
    expected = head(hidden).log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients(got, head, hidden), gradients(expected, head, hidden), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("max_logits", [VOCABULARY * NUM_LABELS, VOCABULARY * 7])
def test_details_are_those_of_all_logits_at_once(made, max_logits):
    head, hidden, ids = made
    options = {"vocabulary": VOCABULARY, "details": True, "max_logits": max_logits}
    _, entropy, mean_logits, is_top1 = score_labels(head, hidden, ids, **options)
    logits = head(hidden)
    probabilities = logits.softmax(-1)
    torch.testing.assert_close(entropy, -(probabilities * probabilities.log()).sum(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean_logits, logits.mean(-1))
    assert is_top1.tolist() == (logits.argmax(-1) == ids).tolist()
    assert not entropy.requires_grad


def test_no_chunk_projects_more_than_it_may(made):
    head, hidden, ids = made
    rows = []
    head.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    (log_probs,) = score_labels(head, hidden, ids, vocabulary=VOCABULARY, max_logits=7 * VOCABULARY)
    assert rows == [7, 7, 7, 2]
    log_probs.sum().backward()
    assert sorted(rows) == [2, 2, *[7] * 6], "projected again in the backward pass"


def test_without_labels_the_head_is_called_once_and_gradients_are_zero(made):
    head, hidden, ids = made
    calls = []
    head.register_forward_hook(lambda *_: calls.append(1))
    (log_probs,) = score_labels(head, hidden[:0], ids[:0], vocabulary=VOCABULARY)
    log_probs.sum().backward()
    assert calls == [1]
    assert not head.weight.grad.any()


def test_scores_of_16_bit_states_are_added_up_in_32(made):
    head, hidden, ids = made
    (log_probs,) = score_labels(head.bfloat16(), hidden.bfloat16(), ids, vocabulary=VOCABULARY)
    assert log_probs.dtype == torch.float32
