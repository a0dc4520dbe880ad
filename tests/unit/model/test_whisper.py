from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, WhisperForConditionalGeneration

from qwen_audio_train.errors import CheckpointError, ConfigError
from qwen_audio_train.model import hub, whisper
from qwen_audio_train.model.sizes import tiny_whisper
from qwen_audio_train.model.tokenizer import train_byte_level_bpe
from qwen_audio_train.model.whisper import WHISPER_BASE_ID, WhisperTranscriber, load_whisper


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: None)


def _tiny_model() -> WhisperForConditionalGeneration:
    config = tiny_whisper(max_clip_seconds=1).config
    config.vocab_size, config.decoder_layers, config.decoder_attention_heads = 300, 1, 2
    config.decoder_ffn_dim, config.max_target_positions = 32, 40
    config.pad_token_id = config.eos_token_id = config.bos_token_id = 299
    config.decoder_start_token_id = 290
    torch.manual_seed(0)
    return WhisperForConditionalGeneration(config).eval()


def test_a_local_folder_is_loaded(tmp_path: Path) -> None:
    model = _tiny_model()
    model.save_pretrained(tmp_path)
    tiny_whisper(max_clip_seconds=1).feature_extractor.save_pretrained(tmp_path)
    parts = load_whisper(str(tmp_path))
    assert parts.encoder_state is not None
    expected = model.model.encoder.state_dict()
    assert parts.encoder_state.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in parts.encoder_state.items())
    assert parts.feature_extractor.chunk_length == 1


def test_only_whisper_base_falls_back_to_packages_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, extractor = _tiny_model(), tiny_whisper(max_clip_seconds=1).feature_extractor
    monkeypatch.setattr(whisper, "fetch", lambda payload, cache_dir: tmp_path)
    monkeypatch.setattr(whisper, "_load_packaged", lambda folder: (model, extractor))
    with caplog.at_level(logging.WARNING):
        assert load_whisper(WHISPER_BASE_ID).config is model.config
    assert "hub is out of reach" in caplog.text
    with pytest.raises(CheckpointError, match="openai/whisper-small"):
        load_whisper("openai/whisper-small")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    model = _tiny_model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors only"):
        load_whisper(str(tmp_path))


def test_a_missing_weight_is_an_error(tmp_path: Path) -> None:
    model = _tiny_model()
    state = {name: tensor for name, tensor in model.state_dict().items() if "encoder.layers.1.fc1" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    tiny_whisper(max_clip_seconds=1).feature_extractor.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"lacks 2 .*encoder\.layers\.1\.fc1"):
        load_whisper(str(tmp_path))


def test_transcribes_greedily_in_the_language_asked_for() -> None:
    model = _tiny_model()
    model.generation_config = GenerationConfig(
        bos_token_id=299, eos_token_id=299, pad_token_id=299, decoder_start_token_id=290, is_multilingual=True,
        lang_to_id={"<|en|>": 291, "<|de|>": 292}, task_to_id={"transcribe": 293, "translate": 294},
        no_timestamps_token_id=295, return_timestamps=False,
    )  # fmt: skip
    starts = []
    model.model.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: starts.append(kwargs["input_ids"]), with_kwargs=True
    )
    transcriber = WhisperTranscriber(
        model, train_byte_level_bpe(["a b"], 300), tiny_whisper(max_clip_seconds=1).feature_extractor
    )
    clips = [np.zeros(8000, np.float32), np.ones(4000, np.float32)]
    assert len(transcriber.transcribe(clips, "de", max_new_tokens=3)) == 2
    assert starts[0].tolist() == [[290, 292, 293, 295]] * 2
    assert len(starts) == 3
    with pytest.raises(ConfigError, match=r"'xx'; it knows de, en"):
        transcriber.transcribe(clips, "xx")
