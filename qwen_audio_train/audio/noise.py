"""Noise at a wanted signal-to-noise ratio."""

from __future__ import annotations

import numpy as np

from qwen_audio_train.audio.decode import Samples

SILENT_POWER = 1e-8
"""Mean square of -80 dB below full scale. Nothing quieter has a ratio worth aiming at: noise beside it would be
inaudible, or be the rounding of 16-bit samples blown up."""


def mixed_at(samples: Samples, noise: Samples, *, snr_db: float, start: float) -> Samples:
    """``samples`` plus a stretch of ``noise``, the ratio of their mean powers being ``snr_db``.

    A clip or a stretch of noise that is silent (below -80 dB full scale) leaves the clip as it is. The sum is not
    clipped.

    Args:
        samples: shape (num_samples,).
        noise: any length from 1; a longer one is cut, a shorter one repeated.
        start: in [0, 1), where in the noise the stretch begins.
    """
    stretch = _stretch(noise, len(samples), start)
    clip_power, noise_power = _power(samples), _power(stretch)
    if clip_power < SILENT_POWER or noise_power < SILENT_POWER:
        return samples
    factor = np.sqrt(clip_power / noise_power) * 10 ** (-snr_db / 20)
    return samples + np.float32(factor) * stretch


def _stretch(noise: Samples, num_samples: int, start: float) -> Samples:
    if len(noise) >= num_samples:
        first = int(start * (len(noise) - num_samples + 1))
        return noise[first : first + num_samples]
    first = int(start * len(noise))
    return np.resize(np.roll(noise, -first), num_samples)


def _power(samples: Samples) -> float:
    return float(np.mean(np.square(samples, dtype=np.float64)))
