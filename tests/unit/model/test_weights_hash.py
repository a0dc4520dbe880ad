"""A model's identity is that of its numbers, however its files divide or name what does not compute."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_audio_train.errors import CheckpointError
from qwen_audio_train.model.load import load_model
from qwen_audio_train.model.weights_hash import architecture_hash, weights_hash


@pytest.fixture
def folder(workshop, tmp_path):
    shutil.copytree(workshop.folder / "model", tmp_path / "model")
    return tmp_path / "model"


def changed(folder, change):
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(tensors) if tensors[name].dim() == 2)
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / "model.safetensors")
    return weights_hash(str(folder))


@pytest.mark.parametrize(
    "change",
    [lambda t: t + 1e-3, lambda t: t.bfloat16(), lambda t: t.reshape(-1), lambda t: t.flip(0).contiguous()],
    ids=["value", "dtype", "shape", "order"],
)
def test_a_changed_weight_changes_the_hash(folder, change):
    before = weights_hash(str(folder))
    assert changed(folder, lambda t: t) == before
    assert changed(folder, change) != before


def test_division_into_files_does_not_matter(workshop, folder):
    before = weights_hash(str(folder))
    other = folder.with_name("divided")
    load_model(str(folder)).save_pretrained(other, max_shard_size="40KB")
    assert len(list(other.glob("*.safetensors"))) > 1
    assert weights_hash(str(other)) == before
    assert architecture_hash(str(other)) == architecture_hash(str(folder))


def test_what_does_not_compute_is_left_out_of_the_configuration(workshop, folder):
    before = architecture_hash(str(folder))
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["attention_dropout"] = 0.3
    config["architectures"] = ["Another"]
    path.write_text(json.dumps(config))
    assert architecture_hash(str(folder)) == before
    config["text_config"]["rms_norm_eps"] = 0.5
    path.write_text(json.dumps(config))
    assert architecture_hash(str(folder)) != before


def test_what_cannot_be_read_is_named(folder):
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-7])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read .*restore it"):
        weights_hash(str(folder))
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor .*save the model as safetensors"):
        weights_hash(str(folder))
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="neither"):
        weights_hash(str(folder))
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not readable"):
        weights_hash(str(folder))
