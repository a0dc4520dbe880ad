from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwen_audio_train.errors import CheckpointError
from qwen_audio_train.model import hub
from qwen_audio_train.model.language_model import load_causal_lm
from qwen_audio_train.model.sizes import TINY_LANGUAGE_MODEL


def test_a_local_folder_is_loaded_with_its_tokenizer(tmp_path: Path) -> None:
    parts = TINY_LANGUAGE_MODEL.build(["one two", "three"], seed=0)
    parts.causal_lm.save_pretrained(tmp_path)
    parts.tokenizer.save_pretrained(tmp_path)
    loaded = load_causal_lm(str(tmp_path))
    expected = parts.causal_lm.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.causal_lm.state_dict().items())
    assert loaded.tokenizer("one three").input_ids == parts.tokenizer("one three").input_ids


@pytest.mark.parametrize("source", ["nobody/nothing", "/no/such/folder", "smollm"])
def test_an_unknown_source_is_named(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=source):
        load_causal_lm(source)
