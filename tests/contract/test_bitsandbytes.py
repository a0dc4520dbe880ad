"""What we assume of bitsandbytes, and of how transformers loads through it. All of it holds on the CPU too."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch
from transformers import BitsAndBytesConfig
from transformers.quantizers.quantizers_utils import should_convert_module

from qwen_audio_train.model.knobs import STAYS_UNQUANTISED


def test_modules_to_skip_are_matched_from_the_start_of_their_full_name():
    encoder_layer = "model.audio_tower.layers.0.fc1"
    assert not should_convert_module(encoder_layer, list(STAYS_UNQUANTISED))
    assert not should_convert_module("model.multi_modal_projector.linear", list(STAYS_UNQUANTISED))
    assert not should_convert_module("lm_head", list(STAYS_UNQUANTISED))
    assert should_convert_module("model.language_model.layers.0.mlp.up_proj", list(STAYS_UNQUANTISED))
    assert should_convert_module(encoder_layer, ["audio_tower"]), "a tower's last name alone would do: shorten ours"


def test_the_config_says_what_we_ask_for():
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["lm_head"])
    assert config.llm_int8_skip_modules == ["lm_head"]
    assert config.bnb_4bit_quant_type == "nf4"


def _four_bits(weight):
    layer = bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    layer.weight = bnb.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
    return layer.to("cpu")


def _eight_bits(weight):
    layer = bnb.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    return layer.to("cpu")


@pytest.mark.parametrize(("make", "tolerance"), [(_four_bits, 0.2), (_eight_bits, 0.03)])
def test_gradients_pass_through_quantised_weights(make, tolerance):
    torch.manual_seed(0)
    weight, x = torch.randn(64, 64), torch.randn(8, 64)
    layer = make(weight)
    inputs, exact = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    out, expected = layer(inputs), exact @ weight.T
    (out.square().sum() / 2).backward()
    (expected.square().sum() / 2).backward()
    for got, wanted in ((out, expected), (inputs.grad, exact.grad)):
        assert 0 < (got - wanted).norm() / wanted.norm() < tolerance
    assert not layer.weight.is_floating_point()


def test_a_packed_weight_knows_its_true_size():
    assert _four_bits(torch.randn(64, 64)).weight.quant_state.shape == (64, 64)


def test_8_bit_states_begin_at_4096_elements_and_follow_adamw():
    torch.manual_seed(0)
    start = torch.randn(64, 64)
    weights = {name: torch.nn.Parameter(start.clone()) for name in ("exact", "large", "small")}
    weights["small"] = torch.nn.Parameter(start[:32].clone())
    exact = torch.optim.AdamW([weights["exact"]], lr=1e-2)
    compressed = bnb.optim.AdamW8bit([weights["large"], weights["small"]], lr=1e-2)
    for _ in range(5):
        for weight in weights.values():
            weight.grad = weight.detach().clone()
        exact.step()
        compressed.step()
    assert compressed.state[weights["large"]]["state1"].dtype == torch.uint8
    assert compressed.state[weights["small"]]["state1"].dtype == torch.float32
    moved = (weights["exact"] - start).norm()
    assert (weights["large"] - weights["exact"]).norm() / moved < 0.1
