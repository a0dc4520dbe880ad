"""Masks keep to the policy, over a thousand keys."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from qwen_audio_train.audio.augment import Augmenter
from qwen_audio_train.audio.draws import augmentation_key
from qwen_audio_train.config.augment import AugmentConfig, SpecAugmentConfig
from qwen_audio_train.samples import ClipFeatures

CONTEXT = 2
KEYS = [augmentation_key(0, 0, sample) for sample in range(1000)]


def clip(num_frames: int, num_bins: int = 128) -> ClipFeatures:
    mel = np.random.default_rng(num_frames).standard_normal((num_bins, num_frames + CONTEXT)).astype(np.float32)
    return ClipFeatures(mel, num_frames)


def augmenter(**values: object) -> Augmenter:
    return Augmenter(AugmentConfig(spec_augment=SpecAugmentConfig(**{"probability": 1.0, **values})))


def masks(num_frames: int, key: int, **values: object) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the masked bins and of the masked frames."""
    before = clip(num_frames)
    after = augmenter(warp_frames=0, **values).features(before, key)
    same = (after.mel_MF == before.mel_MF)[:, :num_frames]
    np.testing.assert_array_equal(after.mel_MF[:, num_frames:], before.mel_MF[:, num_frames:])
    return np.flatnonzero(~same.any(axis=1)), np.flatnonzero(~same.any(axis=0))


def test_the_default_is_the_librispeech_basic_policy() -> None:
    spec = SpecAugmentConfig()
    assert (spec.warp_frames, spec.longest_mask_bins, spec.frequency_masks) == (80, 27, 1)
    assert (spec.longest_mask_frames, spec.longest_mask_share, spec.time_masks) == (100, 1.0, 1)


def test_masks_keep_to_the_policy_over_a_thousand_keys() -> None:
    widths, firsts = [], []
    for key in KEYS:
        bins, frames = masks(400, key)
        for part in (bins, frames):
            assert len(part) == 0 or part[-1] - part[0] == len(part) - 1  # one piece
        widths.append((len(bins), len(frames)))
        firsts.append((bins[0] if len(bins) else -1, frames[0] if len(frames) else -1))
    bin_widths, frame_widths = np.array(widths).T
    assert (bin_widths.min(), bin_widths.max()) == (0, 27)
    assert frame_widths.min() <= 1
    assert 98 <= frame_widths.max() <= 100
    assert abs(bin_widths.mean() - 13.5) < 1
    assert abs(frame_widths.mean() - 50) < 3
    # Places are even over what a width leaves: means of uniform draws, and both ends are reached.
    first_bins, first_frames = (part[part >= 0] for part in np.array(firsts).T)
    assert abs(first_bins.mean() - (128 - 14) / 2) < 4
    assert abs(first_frames.mean() - (400 - 50) / 2) < 12
    assert min(first_frames) < 5
    assert max(np.array(firsts)[:, 1] + frame_widths) > 395
    assert abs(np.corrcoef(bin_widths, frame_widths)[0, 1]) < 0.1


def test_every_masked_value_is_the_clips_mean() -> None:
    before = clip(400)
    after = augmenter(warp_frames=0).features(before, KEYS[0])
    changed = after.mel_MF != before.mel_MF
    assert changed.any()
    assert np.unique(after.mel_MF[changed]) == np.float32(before.mel_MF[:, :400].mean(dtype=np.float64))


def test_no_mask_is_longer_than_its_share_or_the_clip() -> None:
    for key in KEYS[:200]:
        assert len(masks(50, key, longest_mask_share=0.2)[1]) <= 10
        assert len(masks(3, key)[1]) <= 3  # the shortest clips, under the policy's share of 1


def test_several_masks_and_none() -> None:
    bins, frames = masks(2000, KEYS[1], frequency_masks=2, time_masks=10, longest_mask_frames=20)
    assert (np.diff(frames) > 1).sum() >= 4
    bins, frames = masks(400, KEYS[1], frequency_masks=0, time_masks=0)
    assert len(bins) == len(frames) == 0


def test_share_of_clips() -> None:
    before, spec = clip(200), augmenter(probability=0.3)
    changed = sum(spec.features(before, key) is not before for key in KEYS)
    assert 260 < changed < 340


def test_the_clip_given_is_left_alone() -> None:
    before = clip(400)
    kept = before.mel_MF.copy()
    augmenter().features(before, KEYS[0])
    np.testing.assert_array_equal(before.mel_MF, kept)


def ramp(num_frames: int) -> ClipFeatures:
    """Every frame says when it was."""
    times = np.arange(num_frames + CONTEXT, dtype=np.float32)
    return ClipFeatures(np.tile(times, (4, 1)), num_frames)


def test_a_warp_moves_one_point_and_keeps_both_ends_and_the_context() -> None:
    moved = []
    for key in KEYS:
        after = augmenter(frequency_masks=0, time_masks=0).features(ramp(400), key).mel_MF
        times = after[0]
        assert (np.diff(times) >= 0).all()  # nothing runs backwards
        np.testing.assert_allclose(times[[0, 399, 400, 401]], [0, 399, 400, 401])
        moved.append(float((times[:400] - np.arange(400))[np.argmax(np.abs(times[:400] - np.arange(400)))]))
    assert 70 < max(np.abs(moved)) <= 80
    assert abs(np.mean(moved)) < 5  # either way
    assert abs(np.mean(np.abs(moved)) - 40) < 4


def test_a_clip_of_two_warps_or_fewer_is_not_warped() -> None:
    spec = augmenter(frequency_masks=0, time_masks=0)
    for key in KEYS[:50]:
        np.testing.assert_array_equal(spec.features(ramp(160), key).mel_MF, ramp(160).mel_MF)
    assert any((spec.features(ramp(161), key).mel_MF != ramp(161).mel_MF).any() for key in KEYS[:50])


def test_warping_does_not_move_the_masks() -> None:
    before = clip(400)
    for key in KEYS[:20]:
        masked = []
        for warp_frames in (0, 80):
            mel = augmenter(warp_frames=warp_frames).features(before, key).mel_MF
            masked.append(np.flatnonzero((mel == mel[0]).all(axis=0)).tolist())  # one value from top to bottom
        assert masked[0] == masked[1]


@pytest.mark.parametrize(
    ("key", "expected"),
    [(0, "d909366503b0a6ec"), (1, "f1c9193d976d958c"), (0xE20506BFC7C20DB7, "c9c6004347e6f06f")],
)
def test_golden_masks(key: int, expected: str) -> None:
    """Changes only when what a run sees changes."""
    places = []
    for num_frames in (3, 50, 161, 400, 3000):
        places += [part.tolist() for part in masks(num_frames, key)]
    assert hashlib.sha256(repr(places).encode()).hexdigest()[:16] == expected
