from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from qwen_audio_train.model import sizes
from qwen_audio_train.model.sizes import NewLanguageModel, build_demo, build_tiny, tiny_tokenizer, tiny_whisper


def test_tiny_takes_thirty_seconds_of_audio_and_is_built_in_no_time() -> None:
    started = time.process_time()
    model, processor = build_tiny()
    assert time.process_time() - started < 2
    assert sum(parameter.numel() for parameter in model.parameters()) < 200_000
    assert processor.tokenizer.convert_tokens_to_ids("<|endoftext|>") == len(tiny_tokenizer()) - 3
    prompt = "<|audio_bos|><|AUDIO|><|audio_eos|>"
    inputs = processor(text=prompt, audio=[np.zeros(480_000, np.float32)], sampling_rate=16_000, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    assert inputs.input_ids.shape == (1, 752)
    with torch.no_grad():
        assert model(**inputs).logits.shape == (1, 752, len(processor.tokenizer))


def test_demo_is_sized_by_its_arguments_and_reads_its_own_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "load_whisper", lambda source, cache_dir: tiny_whisper(max_clip_seconds=1))
    wanted = NewLanguageModel(
        hidden_size=48, num_layers=3, num_heads=4, num_key_value_heads=2, intermediate_size=56, vocab_size=270
    )
    model, processor = build_demo(["options options options"], language_model=wanted, languages=["en"])
    config = model.config.text_config
    assert (config.hidden_size, config.num_hidden_layers, config.num_key_value_heads) == (48, 3, 2)
    assert config.vocab_size == len(processor.tokenizer) <= 270 + 4
    assert len(processor.tokenizer("options").input_ids) == 1


def test_same_seed_same_tiny_model() -> None:
    first, second, other = (build_tiny(seed=seed, max_clip_seconds=1)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
