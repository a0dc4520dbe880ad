"""What a stage left behind is opened whole, or not at all."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_audio_train.config.adapter import AdapterConfig, AdapterKind
from qwen_audio_train.config.model import ModelConfig, Precision
from qwen_audio_train.config.trainable import TrainableConfig
from qwen_audio_train.errors import CheckpointError
from qwen_audio_train.model.load import base_of, is_adapter, load_model
from qwen_audio_train.model.trainable import lora_config, with_adapter
from tests import builders


@pytest.fixture(scope="module")
def folder(workshop):
    return workshop.folder / "model"


def test_dtype_as_asked(folder):
    model = load_model(str(folder), ModelConfig(precision=Precision.bfloat16))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not model.is_gradient_checkpointing
    assert load_model(str(folder)).dtype == torch.float32


def test_the_sinusoid_table_stays_frozen(folder):
    assert not load_model(str(folder)).model.audio_tower.embed_positions.weight.requires_grad


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_an_incomplete_model_is_refused_by_name(folder, tmp_path, change):
    shutil.copytree(folder, tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    if change == "missing":
        del weights["multi_modal_projector.linear.weight"]
    else:
        weights["language_model.extra.weight"] = torch.zeros(1)
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{change}_keys.*(multi_modal_projector|extra)"):
        load_model(str(tmp_path / "m"))


def test_an_adapter_is_merged_into_its_base(folder, tmp_path):
    torch.manual_seed(0)
    lora = lora_config(AdapterConfig(kind=AdapterKind.lora, rank=2), TrainableConfig(False, True, True))
    adapted = with_adapter(load_model(str(folder)), lora)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(tmp_path)
    assert is_adapter(str(tmp_path))
    assert base_of(str(tmp_path)) == str(folder)
    merged = load_model(str(tmp_path))
    assert not hasattr(merged, "peft_config") or not merged.peft_config
    batch = builders.text_rows([1, 2, 3, 4])
    expected, plain = adapted.eval()(**batch).log_probs, load_model(str(folder)).eval()(**batch).log_probs
    got = merged.eval()(**batch).log_probs
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert (got - plain).abs().max() > 1e-3
    trains = {name: parameter.requires_grad for name, parameter in merged.named_parameters()}
    assert [name for name, learns in trains.items() if not learns] == ["model.audio_tower.embed_positions.weight"]


def test_an_adapter_that_names_no_base_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2}))
    with pytest.raises(CheckpointError, match="does not name its base"):
        base_of(str(tmp_path))
