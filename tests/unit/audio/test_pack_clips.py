"""Where packed clips lie. That the encoder then gives what it gives for each alone is in tests/invariants/."""

from __future__ import annotations

import numpy as np
import pytest

from qwen_audio_train.audio.pack_clips import pack_clips
from qwen_audio_train.samples import AttentionSpans, ClipFeatures


def mel(num_frames: int, value: float, context: int = 2) -> ClipFeatures:
    return ClipFeatures(np.full((4, num_frames + context), value, np.float32), num_frames)


@pytest.mark.parametrize("frames", [[3, 12, 7], [4, 4], [5], [3000, 2999, 3]])
def test_clips_begin_at_even_frames_with_silence_between(frames):
    clips = [mel(n, k + 1.0, context=0 if n >= 2999 else 2) for k, n in enumerate(frames)]
    packed = pack_clips(clips)
    mels, is_clip = packed["mels"].numpy(), packed["mel_is_clip"].numpy()
    assert mels.shape[1] == len(is_clip)
    assert mels.shape[1] % 2 == 0
    for k, clip in enumerate(clips):
        places = np.flatnonzero(mels[0] == k + 1)
        assert places.tolist() == list(range(places[0], places[0] + clip.mel_MF.shape[1]))
        assert places[0] % 2 == 0
        assert places[-1] + 1 == mels.shape[1] or mels[0, places[-1] + 1] == 0
    assert np.array_equal(is_clip == 1, mels[0] > 0)


def test_frames_and_pools_are_the_clips_own():
    packed = pack_clips([mel(3, 1), mel(12, 2), mel(7, 3)])
    # Slots of 5 + 1, 14 + 2 (one frame of silence and one to stay even) and 9 mel frames: from 0, 6 and 22.
    assert packed["frame_source"].tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14]
    assert packed["frame_position"].tolist() == [0, 1, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert packed["pool_source"].tolist() == [0, 2, 4, 6, 8, 10]
    assert packed["clip_spans"] == AttentionSpans((2, 6, 4))


def test_an_odd_last_frame_is_attended_but_not_pooled():
    packed = pack_clips([mel(5, 1), mel(4, 2)])
    assert packed["clip_spans"] == AttentionSpans((3, 2))
    assert packed["pool_source"].tolist() == [0, 3]
