"""What trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qwen_audio_train.config.adapter import AdapterConfig, AdapterKind
from qwen_audio_train.config.trainable import TrainableConfig
from qwen_audio_train.model.efficient import EfficientQwen2Audio
from qwen_audio_train.model.trainable import (
    choose_trainable,
    count_parameters,
    disable_dropout,
    lora_config,
    with_adapter,
)
from tests import builders

TOWERS = {"encoder": "audio_tower", "projector": "multi_modal_projector", "llm": "language_model"}


def fresh() -> EfficientQwen2Audio:
    return EfficientQwen2Audio(builders.tiny_config(max_clip_seconds=1))


@pytest.mark.parametrize("on", [("encoder",), ("projector",), ("llm",), ("projector", "llm"), tuple(TOWERS)])
def test_towers_train_as_chosen_and_positions_never(on):
    model = fresh()
    choose_trainable(model, TrainableConfig(**{name: name in on for name in TOWERS}))
    for name, parameter in model.named_parameters():
        tower = next((tower for tower, part in TOWERS.items() if part in name), "llm")  # the head is the LLM's
        assert parameter.requires_grad == (tower in on and "embed_positions" not in name), name
    counts = count_parameters(model)
    assert set(counts) == set(TOWERS)
    for tower, (trained, total) in counts.items():
        assert (trained > 0) == (tower in on)
        assert trained <= total
    assert sum(total for _, total in counts.values()) == sum(p.numel() for p in model.parameters())


def test_lora_goes_where_the_towers_train_and_the_base_stays_frozen():
    adapter = AdapterConfig(kind=AdapterKind.lora, rank=2)
    places = {}
    for name in ("llm", "encoder"):
        trainable = TrainableConfig(**{tower: tower == name for tower in TOWERS})
        model = with_adapter(fresh(), lora_config(adapter, trainable))
        learns = [n for n, p in model.named_parameters() if p.requires_grad]
        assert learns
        assert all("lora_" in n and TOWERS[name] in n for n in learns)
        places[name] = {n.split(".lora_")[0].rpartition(".")[2] for n in learns}
    assert places["llm"] == set(adapter.llm_modules)
    assert places["encoder"] == {"q_proj", "v_proj"}


def test_a_projector_beside_adapters_trains_in_full():
    lora = lora_config(AdapterConfig(kind=AdapterKind.lora, rank=2), TrainableConfig(False, True, True))
    model = with_adapter(fresh(), lora)
    learns = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert [name for name in learns if "lora_" not in name and "multi_modal_projector" in name]
    assert not [name for name in learns if "audio_tower" in name]


def test_without_an_adapter_the_model_is_left_as_it_is():
    model = fresh()
    assert lora_config(AdapterConfig(), TrainableConfig()) is None
    assert with_adapter(model, None) is model


def test_disabled_dropout_leaves_nothing_random():
    config = builders.tiny_config(max_clip_seconds=1)
    config.text_config.attention_dropout = 0.5
    for name in ("dropout", "attention_dropout", "activation_dropout"):
        setattr(config.audio_config, name, 0.5)
    config.audio_config.encoder_layerdrop = 0.5
    model = EfficientQwen2Audio(config).train()
    model.extra = nn.Dropout(0.5)

    def score() -> torch.Tensor:
        return model(**builders.text_rows([1, builders.AUDIO_ID, 2, 3])).log_probs

    assert not torch.equal(score(), score())
    disable_dropout(model)
    assert torch.equal(score(), score())
    assert model.extra.p == 0.0
