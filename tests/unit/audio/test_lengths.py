from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Qwen2AudioEncoderConfig, WhisperFeatureExtractor
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

from qwen_audio_train.audio import lengths

SWEEP = (1, 159, 160, 161, 320, 321, 322, 480, 481, 16_000, 16_001, 47_999, 479_840, 479_841, 480_000, 480_001, 500_000)


@pytest.fixture(scope="module")
def mask_frames() -> list[int]:
    """Valid frames that the released feature extractor counts; its mask does not depend on what the audio is."""
    extractor = WhisperFeatureExtractor(feature_size=80)
    clips = [np.zeros(num_samples, dtype=np.float32) for num_samples in SWEEP]
    padded = extractor.pad(
        {"input_features": [clip[:, None] for clip in clips]},
        padding="max_length",
        max_length=extractor.n_samples,
        truncation=True,
        return_attention_mask=True,
        return_tensors="np",
    )
    return padded["attention_mask"][:, :: extractor.hop_length].sum(-1).tolist()


def test_mel_frames_equal_the_feature_extractors_mask(mask_frames: list[int]) -> None:
    assert [lengths.mel_frames(num_samples) for num_samples in SWEEP] == mask_frames


def test_the_masks_subsampling_is_what_the_extractor_returns() -> None:
    extractor = WhisperFeatureExtractor(feature_size=80)
    clip = np.ones(16_001, dtype=np.float32)
    mask = extractor(clip, sampling_rate=16_000, return_attention_mask=True, return_tensors="np")["attention_mask"]
    assert mask.sum() == lengths.mel_frames(16_001)


def test_encoder_frames_and_tokens_equal_the_released_model() -> None:
    config = Qwen2AudioEncoderConfig(
        num_mel_bins=4, d_model=4, encoder_layers=1, encoder_attention_heads=1, encoder_ffn_dim=4
    )
    encoder = Qwen2AudioEncoder(config)
    frames = torch.arange(1, lengths.MAX_MEL_FRAMES + 1)
    feature_lengths, output_lengths = encoder._get_feat_extract_output_lengths(frames)
    assert [lengths.encoder_frames(frame) for frame in frames.tolist()] == feature_lengths.tolist()
    # One clip length per number of mel frames is enough: tokens depend on the mel frames alone.
    assert [lengths.audio_tokens(160 * frame) for frame in frames.tolist()] == output_lengths.tolist()


def test_shortest_clip_has_one_token_and_a_shorter_one_none() -> None:
    assert lengths.audio_tokens(lengths.MIN_CLIP_SAMPLES) == 1
    assert lengths.audio_tokens(lengths.MIN_CLIP_SAMPLES - 1) == 0


def test_input_mel_frames_hold_two_frames_of_context_up_to_30_s() -> None:
    assert lengths.input_mel_frames(16_000) == 102
    assert lengths.input_mel_frames(480_000) == 3000
