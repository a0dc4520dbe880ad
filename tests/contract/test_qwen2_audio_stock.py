"""What the project assumes of transformers' Qwen2-Audio: when it fails, read what changed before lifting the pin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2AudioForConditionalGeneration, WhisperFeatureExtractor

from qwen_audio_train.audio.lengths import audio_tokens, encoder_frames, mel_frames
from qwen_audio_train.model.build import save_built
from qwen_audio_train.model.sizes import build_tiny
from qwen_audio_train.model.tokenizer import qwen_tokenizer_from_ranks
from qwen_audio_train.model.wheels import QWEN_RANKS, default_cache_dir, is_cached


@pytest.fixture(scope="module")
def tiny() -> Any:
    return build_tiny()


def _num_samples(num_tokens: int) -> int:
    return num_tokens * 640


@pytest.mark.parametrize("num_mel_frames", [2998, 2999, 3001])
def test_stock_encoder_takes_3000_mel_frames_only(tiny: Any, num_mel_frames: int) -> None:
    tower = tiny[0].model.audio_tower
    with pytest.raises(ValueError, match="3000"):
        tower(torch.zeros(1, 80, num_mel_frames))


@pytest.mark.parametrize("num_samples", [321, 480, 481, 16_000, 16_001, 79_999, 480_000])
def test_output_lengths_are_our_arithmetic(tiny: Any, num_samples: int) -> None:
    model, processor = tiny
    extractor: WhisperFeatureExtractor = processor.feature_extractor
    mask = extractor(
        np.zeros(num_samples, np.float32), sampling_rate=16_000, return_attention_mask=True, return_tensors="pt"
    ).attention_mask
    assert int(mask.sum()) == mel_frames(num_samples)
    frames, tokens = model.model.audio_tower._get_feat_extract_output_lengths(mask.sum(-1))
    assert (int(frames), int(tokens)) == (encoder_frames(mel_frames(num_samples)), audio_tokens(num_samples))
    ids = processor(
        text="<|AUDIO|>", audio=[np.zeros(num_samples, np.float32)], sampling_rate=16_000, return_tensors="pt"
    ).input_ids
    assert int((ids == processor.audio_token_id).sum()) == audio_tokens(num_samples)


def test_chat_template_has_the_documented_structure(tiny: Any) -> None:
    """The example of transformers' own test: one clip of 101 tokens and a question."""
    _, processor = tiny
    messages = [
        {
            "role": "user",
            "content": [{"type": "audio", "audio_url": "clip.wav"}, {"type": "text", "text": "What's that sound?"}],
        }
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    clip = np.zeros(_num_samples(101), np.float32)
    ids = processor(text=text, audio=[clip], sampling_rate=16_000, return_tensors="pt").input_ids[0].tolist()

    tokenizer = processor.tokenizer
    start, end, audio, audio_start, audio_end = tokenizer.convert_tokens_to_ids(
        ["<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
    )

    def words(part: str) -> list[int]:
        return tokenizer(part).input_ids

    assert ids == [
        start, *words("system\nYou are a helpful assistant."), end, *words("\n"),
        start, *words("user\nAudio 1: "), audio_start, *[audio] * 101, audio_end, *words("\nWhat's that sound?"), end,
        *words("\n"), start, *words("assistant\n"),
    ]  # fmt: skip


def test_audio_is_counted_over_the_whole_conversation(tiny: Any) -> None:
    _, processor = tiny
    audio = {"type": "audio", "audio_url": "x"}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [audio, audio]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [audio]},
    ]
    text = processor.apply_chat_template(messages, tokenize=False)
    span = "<|audio_bos|><|AUDIO|><|audio_eos|>\n"
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\nAudio 1: {span}Audio 2: {span}<|im_end|>\n"
        "<|im_start|>assistant\nYes.<|im_end|>\n"
        f"<|im_start|>user\nAudio 3: {span}<|im_end|>\n"
    )


def test_from_pretrained_thaws_the_position_table(tiny: Any, tmp_path: Path) -> None:
    """Why load_built freezes it again. When this fails, freezing has become unnecessary, not wrong."""
    save_built(*tiny, tmp_path / "m")
    stock = Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path / "m")
    assert stock.model.audio_tower.embed_positions.weight.requires_grad


def test_position_table_is_frozen_when_built_from_a_config(tiny: Any) -> None:
    model = Qwen2AudioForConditionalGeneration(tiny[0].config)
    assert not model.model.audio_tower.embed_positions.weight.requires_grad


@pytest.mark.skipif(not is_cached(QWEN_RANKS), reason="the ranks are not in the cache")
def test_released_vocabulary_gives_the_documented_ids() -> None:
    tokenizer = qwen_tokenizer_from_ranks(default_cache_dir() / "weights" / QWEN_RANKS.name / "qwen.tiktoken")
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "Audio 1: <|audio_bos|><|AUDIO|><|audio_eos|>\nWhat's that sound?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == 151643
    assert tokenizer(text).input_ids == [
        151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198, 14755, 220, 16, 25, 220,
        151647, 151646, 151648, 198, 3838, 594, 429, 5112, 30, 151645, 198, 151644, 77091, 198,
    ]  # fmt: skip
