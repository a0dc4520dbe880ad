"""Speed perturbation: the clip resampled, so that it plays faster and higher or slower and lower.

A factor is counted in hundredths, so that lengths are exact integers that a plan can use without touching audio.
"""

from __future__ import annotations

import numpy as np
import soxr

from qwen_audio_train.audio.decode import Samples
from qwen_audio_train.audio.lengths import MAX_CLIP_SAMPLES, MIN_CLIP_SAMPLES

NORMAL_SPEED = 100
"""Hundredths."""


def speed_hundredths(factor: float) -> int:
    """0.9 -> 90."""
    return round(factor * NORMAL_SPEED)


def samples_at(num_samples: int, speed: int) -> int:
    """Length of a clip of ``num_samples`` at ``speed`` hundredths, rounded up."""
    return -(-num_samples * NORMAL_SPEED // speed)


def legal_speeds(num_samples: int, speeds: tuple[int, ...]) -> tuple[int, ...]:
    """The speeds at which the clip neither exceeds 30 s nor is too short for one audio token."""
    return tuple(speed for speed in speeds if MIN_CLIP_SAMPLES <= samples_at(num_samples, speed) <= MAX_CLIP_SAMPLES)


def at_speed(samples: Samples, speed: int) -> Samples:
    """The clip at ``speed`` hundredths, ``samples_at(len(samples), speed)`` samples; linear phase (soxr HQ)."""
    if speed == NORMAL_SPEED:
        return samples
    resampled = soxr.resample(samples, speed, NORMAL_SPEED, quality="HQ")
    return exactly(np.asarray(resampled, dtype=np.float32), samples_at(len(samples), speed))


def exactly(samples: Samples, num_samples: int) -> Samples:
    """Cut, or followed by zeros, to ``num_samples``: a resampler may round a length up or down by one."""
    assert abs(len(samples) - num_samples) <= 1
    if len(samples) >= num_samples:
        return samples[:num_samples]
    return np.pad(samples, (0, num_samples - len(samples)))
