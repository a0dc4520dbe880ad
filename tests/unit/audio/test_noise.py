"""Noise at the ratio asked for, whatever its length."""

from __future__ import annotations

import numpy as np
import pytest

from qwen_audio_train.audio.noise import mixed_at
from tests.builders import noise_clip


def measured_snr_db(clip: np.ndarray, mixed: np.ndarray) -> float:
    added = mixed.astype(np.float64) - clip
    return 10 * np.log10(np.mean(clip.astype(np.float64) ** 2) / np.mean(added**2))


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 7.3, 20.0, 40.0])
@pytest.mark.parametrize("num_noise_samples", [1000, 15_999, 16_000, 16_001, 100_000])
def test_ratio_is_met_within_a_tenth_of_a_decibel(snr_db: float, num_noise_samples: int) -> None:
    clip = noise_clip(16_000, seed=1)
    # Loudness that changes along the noise: the stretch counts, not the whole.
    noise = noise_clip(num_noise_samples, seed=2) * np.linspace(0.1, 3, num_noise_samples, dtype=np.float32)
    for start in (0.0, 0.4, 0.999):
        mixed = mixed_at(clip, noise, snr_db=snr_db, start=start)
        assert mixed.dtype == np.float32
        assert len(mixed) == len(clip)
        assert abs(measured_snr_db(clip, mixed) - snr_db) < 0.1


def test_a_long_noise_is_cut_at_the_drawn_start() -> None:
    clip, noise = noise_clip(100, seed=1), noise_clip(1000, seed=2)
    for start, first in ((0.0, 0), (0.5, 450), (1 - 2**-53, 900)):
        added = mixed_at(clip, noise, snr_db=0, start=start) - clip
        stretch = noise[first : first + 100]
        np.testing.assert_allclose(added / np.abs(added).max(), stretch / np.abs(stretch).max(), atol=1e-5)


def test_a_short_noise_is_repeated_from_the_drawn_start() -> None:
    clip, noise = noise_clip(100, seed=1), noise_clip(30, seed=2)
    added = mixed_at(clip, noise, snr_db=0, start=0.5) - clip
    stretch = noise[(15 + np.arange(100)) % 30]
    np.testing.assert_allclose(added / np.abs(added).max(), stretch / np.abs(stretch).max(), atol=1e-5)


def test_silence_on_either_side_leaves_the_clip() -> None:
    clip, silence = noise_clip(100), np.zeros(50, np.float32)
    assert mixed_at(clip, silence, snr_db=0, start=0.0) is clip
    assert mixed_at(silence, clip, snr_db=0, start=0.0) is silence
    nearly = np.full(50, 0.9e-4, np.float32)  # one step of 16 bits is 3e-5
    assert mixed_at(nearly, clip, snr_db=0, start=0.0) is nearly


def test_a_loud_sum_is_not_clipped() -> None:
    clip = np.full(1000, 0.9, np.float32)
    mixed = mixed_at(clip, np.full(1000, 0.5, np.float32), snr_db=0, start=0.0)
    np.testing.assert_allclose(mixed, 1.8, rtol=1e-6)
