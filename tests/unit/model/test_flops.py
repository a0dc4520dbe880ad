"""Model FLOPs against torch's own counter, on stock transformers with eager attention.

Eager attention computes the whole square and every clip fills the encoder, so here the pairs that are seen are the
pairs that are computed, and the counter's number must come out but for the rotary table, which it counts and we do not
(TOLERANCE).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2AudioForConditionalGeneration

from qwen_audio_train.config.trainable import TrainableConfig
from qwen_audio_train.model.flops import ModelShape, Part, StepFlops, forward_flops
from qwen_audio_train.model.trainable import choose_trainable
from qwen_audio_train.samples import BatchSizes
from tests import builders

ROWS, FRAMES, TEXT_TOKENS = 2, 50, 9
SLOTS = FRAMES // 2
LENGTH = SLOTS + TEXT_TOKENS
TOLERANCE = 1e-3
RUN = BatchSizes(
    supervised_tokens=ROWS * LENGTH,  # stock projects every position
    llm_tokens=ROWS * LENGTH,
    llm_positions=ROWS * LENGTH,
    llm_attended=ROWS * LENGTH**2,
    encoder_frames=ROWS * FRAMES,
    encoder_positions=ROWS * FRAMES,
    encoder_attended=ROWS * FRAMES**2,
    audio_tokens=ROWS * SLOTS,
)


def tiny(*, key_heads: int = 1, llm_layers: int = 2) -> Qwen2AudioForConditionalGeneration:
    """Clips of one second, grouped queries."""
    config = builders.tiny_config(attn="eager", max_clip_seconds=1)
    config.text_config.num_key_value_heads = key_heads
    config.text_config.num_hidden_layers = llm_layers
    config.text_config.layer_types = ["full_attention"] * llm_layers
    torch.manual_seed(0)
    return Qwen2AudioForConditionalGeneration(config)


def counted(model: Any, *, backward: bool = False) -> FlopCounterMode:
    """What torch counts of a pass over RUN."""
    row = torch.tensor([1, 2] + [builders.AUDIO_ID] * SLOTS + [3] * (TEXT_TOKENS - 2))
    ids = row.repeat(ROWS, 1)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "input_features": torch.randn(ROWS, 80, 2 * FRAMES),
        "feature_attention_mask": torch.ones(ROWS, 2 * FRAMES, dtype=torch.long),
    }
    counter = FlopCounterMode(display=False)
    with counter:
        logits = model(**inputs, use_cache=False).logits
        if backward:
            logits.sum().backward()
    return counter


@pytest.mark.parametrize("key_heads", [1, 2])
def test_forward_is_what_torch_counts(key_heads):
    model = tiny(key_heads=key_heads)
    forward = forward_flops(ModelShape.of(model.config), RUN)
    counter = counted(model)
    assert sum(products.total for products in forward.values()) == pytest.approx(
        counter.get_total_flops(), rel=TOLERANCE
    )
    modules = {name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()}
    parts = {
        "model.audio_tower.conv1": forward[Part.conv1],
        "model.audio_tower.conv2": forward[Part.conv2],
        "model.multi_modal_projector": forward[Part.projector],
        "lm_head": forward[Part.head],
    }
    prefix = type(model).__name__
    assert {name: modules[f"{prefix}.{name}"] for name in parts} == {
        name: products.total for name, products in parts.items()
    }
    tower = sum(forward[part].total for part in (Part.conv1, Part.conv2, Part.encoder))
    assert modules[f"{prefix}.model.audio_tower"] == tower


@pytest.mark.parametrize(
    ("encoder", "projector", "llm"),
    [(True, True, True), (False, True, True), (False, True, False), (True, False, False), (False, False, True)],
)
def test_forward_and_backward_are_what_torch_counts(encoder, projector, llm):
    model = tiny()
    choose_trainable(model, TrainableConfig(encoder=encoder, projector=projector, llm=llm))
    expected = counted(model, backward=True).get_total_flops()
    assert StepFlops.of(model).step(RUN) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("targets", "projector", "layers", "tolerance"),
    [
        (r".*language_model.*\.(q_proj|o_proj|up_proj)", True, 2, TOLERANCE),
        # Nothing before the first adapter trains: its layer's input needs no gradient, which we do not take off.
        (r".*language_model.*\.(q_proj|k_proj|v_proj|down_proj)", False, 2, 0.05),
        (r".*language_model.*\.(q_proj|k_proj|v_proj|down_proj)", False, 16, 0.008),
        # The same in the encoder, and keys of its first layer need no gradient either.
        (r".*audio_tower.*\.(q_proj|v_proj)", False, 2, 0.05),
    ],
)
def test_adapters_cost_no_gradient_of_frozen_weights(targets, projector, layers, tolerance):
    model = tiny(llm_layers=layers)
    saved = ["multi_modal_projector"] if projector else None
    model = get_peft_model(model, LoraConfig(r=4, target_modules=targets, modules_to_save=saved))
    flops = StepFlops.of(model)
    assert flops.trained == ({Part.projector} if projector else set())
    expected = counted(model, backward=True).get_total_flops()
    assert flops.step(RUN) == pytest.approx(expected, rel=tolerance)
    unadapted = StepFlops(flops.shape, flops.trained | {Part.encoder, Part.llm}).step(RUN)
    assert unadapted > 1.1 * expected, "the tolerance would hide them"


@pytest.mark.parametrize("encoder", [True, False])
def test_a_reference_costs_a_forward_of_what_it_does_not_share(encoder):
    model, reference = tiny(), tiny().requires_grad_(False)
    choose_trainable(model, TrainableConfig(encoder=encoder))
    policy = counted(model, backward=True).get_total_flops()
    counter = counted(reference)
    of_reference = counter.get_total_flops()
    if not encoder:
        of_reference -= sum(counter.get_flop_counts()[f"{type(model).__name__}.model.audio_tower"].values())
    flops = StepFlops.of(model, reference_passes=1)
    assert flops.step(RUN) == pytest.approx(policy + of_reference, rel=TOLERANCE)
    assert StepFlops.of(model).step(RUN) == pytest.approx(policy, rel=TOLERANCE)


def test_clips_that_were_encoded_before_cost_no_encoder():
    flops = StepFlops(ModelShape.of(tiny().config), frozenset({Part.projector, Part.llm, Part.head}))
    sizes = BatchSizes(supervised_tokens=3, llm_tokens=20, llm_attended=210, audio_tokens=8)
    forward = forward_flops(flops.shape, sizes)
    assert [part for part, products in forward.items() if not products.total] == [
        Part.conv1, Part.conv2, Part.encoder,
    ]  # fmt: skip
    assert flops.step(sizes) == pytest.approx(
        3 * sum(products.total for products in forward.values()) - forward[Part.projector].total
    )


def test_padding_does_not_count():
    shape = ModelShape.of(tiny().config)
    padded = BatchSizes(llm_tokens=20, llm_positions=400, encoder_frames=10, encoder_positions=300)
    assert forward_flops(shape, padded) == forward_flops(shape, BatchSizes(llm_tokens=20, encoder_frames=10))


def test_a_tied_head_trains_with_the_embeddings():
    model = tiny()
    model.lm_head.weight = model.get_input_embeddings().weight
    choose_trainable(model, TrainableConfig(encoder=False, projector=False))
    assert StepFlops.of(model).trained == {Part.llm, Part.head}


def test_the_released_size():
    """A clip of 5 s under 195 tokens at the 7B sizes: the encoder takes 0.33 TFLOP, the language model 2.5."""
    shape = ModelShape(128, 1280, 32, 5120, 4096, 32, 4096, 4096, 11_008, 156_032)
    sizes = BatchSizes(
        supervised_tokens=30,
        llm_tokens=195,
        llm_attended=195 * 196 // 2,
        encoder_frames=250,
        encoder_attended=250**2,
        audio_tokens=125,
    )
    teraflops = {part: products.total / 1e12 for part, products in forward_flops(shape, sizes).items()}
    encoder = teraflops[Part.conv1] + teraflops[Part.conv2] + teraflops[Part.encoder]
    assert encoder == pytest.approx(0.33, abs=0.005)
    assert teraflops[Part.llm] == pytest.approx(2.5, abs=0.05)
