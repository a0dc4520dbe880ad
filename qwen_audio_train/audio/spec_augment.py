"""SpecAugment (arXiv 1904.08779) on a log-mel of true length: warp time, then mask mel bins, then mask frames.

Only the clip's valid frames change; the context frames behind them stay what they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qwen_audio_train.audio.draws import Draws
from qwen_audio_train.samples import ClipFeatures, FloatArray

if TYPE_CHECKING:
    from qwen_audio_train.config.augment import SpecAugmentConfig


def spec_augment(clip: ClipFeatures, policy: SpecAugmentConfig, draws: Draws) -> ClipFeatures:
    """A copy of the clip, warped and masked.

    Masked values become the mean of the clip's valid frames. (The paper's mels have mean zero and are masked with
    zero. Whisper's do not: there zero is a fixed level, louder than everything in a quiet clip.)
    """
    mel_MF = clip.mel_MF.copy()
    valid_MF = mel_MF[:, : clip.mel_frames]
    num_bins, num_frames = valid_MF.shape
    point, distance = draws.unit(), draws.between(-1.0, 1.0)
    if 0 < 2 * policy.warp_frames < num_frames:
        _warp(valid_MF, point, distance, policy.warp_frames)
    level = np.float32(np.mean(valid_MF, dtype=np.float64))
    for _ in range(policy.frequency_masks):
        first, stop = _mask(draws, policy.longest_mask_bins, num_bins)
        valid_MF[first:stop] = level
    longest_frames = min(policy.longest_mask_frames, int(policy.longest_mask_share * num_frames))
    for _ in range(policy.time_masks):
        first, stop = _mask(draws, longest_frames, num_frames)
        valid_MF[:, first:stop] = level
    return ClipFeatures(mel_MF, clip.mel_frames)


def _mask(draws: Draws, longest: int, length: int) -> tuple[int, int]:
    """First and stop of a mask of 0 to ``longest`` rows, anywhere within ``length``."""
    width = draws.below(min(longest, length) + 1)
    first = draws.below(length - width + 1)
    return first, first + width


def _warp(mel_MF: FloatArray, point: float, distance: float, most_frames: int) -> None:
    """Move one point in time by up to ``most_frames`` either way, in place; both ends stay, frames are interpolated.

    The point lies at least ``most_frames`` from either end.
    """
    last = mel_MF.shape[1] - 1
    source = most_frames + point * (last - 2 * most_frames)
    target = min(max(source + distance * most_frames, 1.0), last - 1.0)  # np.interp wants rising points
    wanted = np.interp(np.arange(last + 1), [0.0, target, last], [0.0, source, last])
    left = np.minimum(wanted.astype(np.int64), last - 1)
    weight = (wanted - left).astype(np.float32)
    mel_MF[:] = mel_MF[:, left] * (1 - weight) + mel_MF[:, left + 1] * weight
