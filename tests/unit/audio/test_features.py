from __future__ import annotations

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from qwen_audio_train.audio.features import LogMel
from qwen_audio_train.audio.lengths import input_mel_frames, mel_frames

SWEEP = (321, 322, 480, 481, 962, 16_000, 16_159, 47_999, 479_999, 480_000)


def noise(num_samples: int) -> np.ndarray:
    # Loud up to the last sample: a reflection or a cut at the right edge would show.
    return (0.2 * np.random.default_rng(num_samples).standard_normal(num_samples)).astype(np.float32)


@pytest.mark.parametrize("num_mel_bins", [80, 128])
def test_equals_the_30_s_padded_mel_to_the_last_bit(num_mel_bins: int) -> None:
    log_mel = LogMel(num_mel_bins)
    extractor = WhisperFeatureExtractor(feature_size=num_mel_bins)
    for num_samples in SWEEP:
        samples = noise(num_samples)
        padded = extractor(samples, sampling_rate=16_000, padding="max_length", return_tensors="np")
        frames = input_mel_frames(num_samples)
        mel = log_mel(samples)
        assert mel.shape == (num_mel_bins, frames)
        assert mel.dtype == np.float32
        np.testing.assert_array_equal(mel, padded["input_features"][0, :, :frames], err_msg=str(num_samples))


def test_a_naive_cut_is_told_apart() -> None:
    """The test above can fail: the mel of the bare clip differs from the padded one at its right edge."""
    samples = noise(16_000)
    extractor = WhisperFeatureExtractor(feature_size=80)
    naive = extractor(samples, sampling_rate=16_000, padding=False, return_tensors="np")["input_features"][0]
    last = mel_frames(16_000) - 1
    assert np.abs(naive[:, last] - LogMel(80)(samples)[:, last]).max() > 1e-3


def test_silence_is_finite() -> None:
    assert np.isfinite(LogMel(80)(np.zeros(1000, dtype=np.float32))).all()


@pytest.mark.parametrize("num_samples", [0, 480_001])
def test_refuses_what_would_have_to_be_cut(num_samples: int) -> None:
    with pytest.raises(ValueError, match=f"{num_samples} samples"):
        LogMel(80)(np.zeros(num_samples, dtype=np.float32))
