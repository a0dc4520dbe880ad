"""Packed rows equal padded ones, whatever a run puts around the model: a LoRA, activation checkpointing, text-only
samples, several clips in a sample. That both equal stock transformers is in test_equals_stock.py."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from qwen_audio_train.config.model import AttentionKernel
from qwen_audio_train.model.efficient import own_model
from qwen_audio_train.pipeline.loading import Draw

# Of the chat set: analysis, voice chat, text only, and two clips in one sample.
SAMPLES = [3, 1, 2, 4, 9, 7, 5]
HOWS = {
    "full": ("trainable=all",),
    "full, checkpointed": ("trainable=all", "model.checkpoint_encoder=true", "model.checkpoint_llm=true"),
    "lora": ("adapter=lora", "trainable.encoder=true", "trainable.llm=true"),
    "lora, checkpointed": ("adapter=lora", "trainable.llm=true", "model.checkpoint_llm=true"),
    "frozen encoder": ("trainable=projector_llm",),
}


def loss_and_gradients(workshop, folder, how, layout, kernel=AttentionKernel.auto):
    config = workshop.config("sft", folder / layout, *how, f"batching={layout}", "batching.bins_per_step=1")
    trainer = workshop.trainer("sft", config)
    model = trainer.model.train()
    own_model(model).attention_kernel = kernel
    perturb(model)
    batch = trainer.batches.builder.build([Draw(0, i, 0) for i in SAMPLES])
    assert batch.failures == ()
    loss = trainer.compute_loss(model, batch, num_items_in_batch=trainer.count_items(batch))
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, batch


def perturb(model) -> None:
    """Weights large enough to attend to something; adapters begin at zero."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS.keys())
@pytest.mark.parametrize("kernel", [AttentionKernel.splits, AttentionKernel.mask])
def test_packed_equals_padded(workshop, tmp_path, how, kernel):
    loss, gradients, batch = loss_and_gradients(workshop, tmp_path, how, "packed", kernel)
    expected_loss, expected, padded = loss_and_gradients(workshop, tmp_path, how, "padded")
    clips = [len(sample) for sample in (batch["rows"]["spans"].lengths, padded["rows"]["input_ids"])]
    assert clips == [len(SAMPLES), len(SAMPLES)]
    assert batch["rows"]["input_ids"].numel() < padded["rows"]["input_ids"].numel()
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert gradients.keys() == expected.keys()
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in expected.values()))
    for name, gradient in gradients.items():
        difference = float((gradient - expected[name]).norm())
        assert difference <= 1e-5 * max(float(expected[name].norm()), 1e-2 * norm), f"{name}: {difference:.2e}"


def test_a_row_whose_samples_see_each_other_is_noticed(workshop, tmp_path):
    """Or the test above could not fail."""
    config = workshop.config("sft", tmp_path, "trainable=all", "batching.bins_per_step=1")
    trainer = workshop.trainer("sft", config)
    perturb(trainer.model)
    batch = trainer.batches.builder.build([Draw(0, i, 0) for i in SAMPLES])
    apart = trainer.compute_loss(trainer.model, batch, num_items_in_batch=1)
    spans = batch["rows"]["spans"]
    first, second, *others = spans.lengths
    batch["rows"]["spans"] = replace(spans, lengths=(first + second, *others))
    together = trainer.compute_loss(trainer.model, batch, num_items_in_batch=1)
    assert abs(float(together - apart)) > 1e-4 * float(apart)
