"""Samples -> log-mel at the clip's true length, equal to the same frames of the 30 s padded mel.

Three facts make the equality hold (they are what a naive cut gets wrong): the STFT must see zeros, not a reflection, to
the right of the clip; the stem's convolutions see two real frames beyond the last valid one; the floor under the log
is relative to the clip's own maximum, which silence never raises.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from transformers import WhisperFeatureExtractor

from qwen_audio_train.audio.decode import Samples
from qwen_audio_train.audio.lengths import (
    HOP_SAMPLES,
    MAX_CLIP_SAMPLES,
    SAMPLING_RATE_HZ,
    input_mel_frames,
    mel_frames,
)

STFT_MARGIN_FRAMES = 4
"""The last STFT frame is dropped and the one before sees 200 samples to its right; the rest is slack."""
MIN_COMPUTED_FRAMES = 64
"""Below about 30 frames the matrix product with the mel filters takes another path and differs by one float32 ulp."""


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """A clip's STFT is milliseconds of work; spread over threads it takes up to ten times as long."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


class LogMel:
    """Log-mel spectrogram of one clip, as ``WhisperFeatureExtractor`` computes it from the clip padded to 30 s."""

    def __init__(self, num_mel_bins: int) -> None:
        self.num_mel_bins = num_mel_bins
        self._extractor = WhisperFeatureExtractor(feature_size=num_mel_bins)

    def __call__(self, samples: Samples) -> npt.NDArray[np.float32]:
        """Mel of shape (num_mel_bins, input_mel_frames(num_samples)) for float32 samples at 16 kHz.

        Raises:
            ValueError: no samples, or more than 30 s of them.
        """
        num_samples = len(samples)
        if not 0 < num_samples <= MAX_CLIP_SAMPLES:
            raise ValueError(f"{num_samples} samples; a clip has 1 to {MAX_CLIP_SAMPLES} (30 s)")
        computed_frames = max(mel_frames(num_samples) + STFT_MARGIN_FRAMES, MIN_COMPUTED_FRAMES)
        padded = np.zeros(min(computed_frames * HOP_SAMPLES, MAX_CLIP_SAMPLES), dtype=np.float32)
        padded[:num_samples] = samples
        with _one_thread():
            features = self._extractor(padded, sampling_rate=SAMPLING_RATE_HZ, padding=False, return_tensors="np")
        mel: npt.NDArray[np.float32] = features["input_features"][0, :, : input_mel_frames(num_samples)]
        return np.ascontiguousarray(mel)
