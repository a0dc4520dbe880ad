"""Lengths at every speed are exact integers, and the sound is the clip's."""

from __future__ import annotations

import numpy as np
import pytest

from qwen_audio_train.audio.lengths import MAX_CLIP_SAMPLES, MIN_CLIP_SAMPLES
from qwen_audio_train.audio.speed import at_speed, legal_speeds, samples_at, speed_hundredths

SPEEDS = (50, 80, 90, 95, 99, 101, 105, 110, 133, 200)
LENGTHS = (*range(642, 662), 15_999, 16_000, 16_001, 47_999, 123_457)


@pytest.mark.parametrize("speed", SPEEDS)
def test_the_waveform_has_the_planned_length_to_the_sample(speed: int) -> None:
    for num_samples in LENGTHS:
        changed = at_speed(np.ones(num_samples, np.float32), speed)
        assert len(changed) == samples_at(num_samples, speed), num_samples
        assert changed.dtype == np.float32


def test_lengths_in_hand() -> None:
    assert samples_at(16_000, 90) == 17_778  # 17777.8
    assert samples_at(16_000, 110) == 14_546  # 14545.5
    assert samples_at(9_000, 90) == 10_000
    assert samples_at(16_001, 100) == 16_001


def test_normal_speed_is_the_very_array() -> None:
    samples = np.ones(1000, np.float32)
    assert at_speed(samples, 100) is samples


@pytest.mark.parametrize(("speed", "expected_hz"), [(90, 900), (110, 1100)])
def test_pitch_moves_with_speed_and_level_stays(speed: int, expected_hz: int) -> None:
    times = np.arange(32_000) / 16_000
    tone = np.sin(2 * np.pi * 1000 * times).astype(np.float32)
    changed = at_speed(tone, speed)
    middle = changed[4000:20_000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert abs(np.argmax(spectrum) * 16_000 / len(middle) - expected_hz) < 1.5
    assert abs(np.sqrt(np.mean(middle**2)) - np.sqrt(0.5)) < 1e-3


def test_nothing_is_delayed() -> None:
    """Linear phase: a click stays where the new speed puts it."""
    click = np.zeros(16_000, np.float32)
    click[8000] = 1
    for speed in (90, 110):
        assert abs(int(np.argmax(at_speed(click, speed))) - 8000 * 100 / speed) <= 1


def test_a_speed_that_breaks_a_limit_is_not_legal() -> None:
    longest_at_90 = MAX_CLIP_SAMPLES * 90 // 100
    assert legal_speeds(longest_at_90, (90, 100, 110)) == (90, 100, 110)
    assert legal_speeds(longest_at_90 + 1, (90, 100, 110)) == (100, 110)
    shortest_at_110 = 353
    assert samples_at(shortest_at_110, 110) == MIN_CLIP_SAMPLES
    assert legal_speeds(shortest_at_110, (90, 110)) == (90, 110)
    assert legal_speeds(shortest_at_110 - 1, (90, 110)) == (90,)


def test_factors_are_counted_in_hundredths() -> None:
    assert [speed_hundredths(factor) for factor in (0.9, 1.0, 1.1, 0.95, 1.15)] == [90, 100, 110, 95, 115]
