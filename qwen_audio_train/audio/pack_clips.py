"""Clips laid end to end for one run of the encoder, with every index it needs.

A clip's mels begin at an even frame, so that the stem's stride of two falls on the clip's own frames, and at least one
frame of zeros follows, which the first convolution sees where a clip of its own would be padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from qwen_audio_train.audio import lengths
from qwen_audio_train.samples import AttentionSpans, ClipFeatures

LEAST_GAP_FRAMES = 1


def pack_clips(clips: Sequence[ClipFeatures]) -> dict[str, Any]:
    """What ``EfficientQwen2Audio.encode`` takes.

    Returns:
        ``mels`` (M, F) and ``mel_is_clip`` (F,); ``frame_source``, ``frame_position`` (E,) and ``pool_source`` (A,) as
        ``model/true_length.py`` says; ``clip_spans``, the clips as spans of the E encoder frames.
    """
    widths = [clip.mel_MF.shape[1] for clip in clips]
    starts = _starts(widths)
    total = starts[-1] + widths[-1] + (starts[-1] + widths[-1]) % 2
    mels = np.zeros((clips[0].mel_MF.shape[0], total), np.float32)
    is_clip = np.zeros(total, np.float32)
    for clip, start, width in zip(clips, starts, widths, strict=True):
        mels[:, start : start + width] = clip.mel_MF
        is_clip[start : start + width] = 1
    frames = [lengths.encoder_frames(clip.mel_frames) for clip in clips]
    firsts = np.cumsum([0, *frames])[:-1].tolist()
    arrays = {
        "mels": mels,
        "mel_is_clip": is_clip,
        "frame_source": np.concatenate([s // 2 + np.arange(n) for s, n in zip(starts, frames, strict=True)]),
        "frame_position": np.concatenate([np.arange(n) for n in frames]),
        "pool_source": np.concatenate([f + 2 * np.arange(n // 2) for f, n in zip(firsts, frames, strict=True)]),
    }
    packed: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return packed | {"clip_spans": AttentionSpans(tuple(frames))}


def _starts(widths: Sequence[int]) -> list[int]:
    starts = [0]
    for width in widths[:-1]:
        end = starts[-1] + width + LEAST_GAP_FRAMES
        starts.append(end + end % 2)
    return starts
